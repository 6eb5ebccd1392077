"""The built-in model: when the program takes it and what it says then, in any build that has one; and how well it ranks, in builds with
the trained one of models/builtin. Each test says why it is skipped."""

import json
import os

import pytest
from support import BUILD, PROGRAM, SOURCE, cli, environment, ok

EMPTY_DOCUMENT_SCORE = 0.2  # what the project promises of a document without text
MAX_PROGRAM_BYTES = 20_000_000

# The right document is the first. The others share words with the query, or the kind of thing that is asked for.
QUESTIONS = {
    "What is Python?": [
        "Python is a high-level programming language with readable syntax, used for web services, data analysis and automation.",
        "The Eiffel Tower is an iron lattice tower in Paris, finished in 1889.",
        "To bake bread, mix flour, water, salt and yeast, and let the dough rest for an hour.",
        "What is the time of the next train to Berlin?",
        "A violin has four strings, which are tuned in perfect fifths.",
    ],
    "How to configure RAID?": [
        "To set up a RAID array, create it with mdadm from two or more disks, choose the level, such as 1 for mirroring, and save the "
        "configuration in mdadm.conf so that it is assembled at boot.",
        "Tomato plants need full sun, regular water and a stake to grow along.",
        "The police raid in the harbour ended with three arrests.",
        "How to write a letter of application: begin with your name and address.",
    ],
    "What is machine learning?": [
        "Machine learning is the study of algorithms that improve at a task by learning patterns from data instead of following fixed "
        "rules.",
        "A washing machine needs a water inlet, a drain and an electric socket.",
        "The river Danube flows through ten countries into the Black Sea.",
        "Learning to swim takes children about twenty lessons.",
        "Cheddar is a hard cheese made from cow's milk.",
    ],
}


@pytest.fixture
def bare(tmp_path):
    """An environment in which no model is named and none can be found: an empty HOME, nothing else that leads to a cache."""
    (tmp_path / "home").mkdir()
    env = environment(HOME=str(tmp_path / "home"))
    for name in ("QWEN_RERANK_MODEL_ID", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        env.pop(name, None)
    return env


def has_builtin():
    return json.loads(cli("doctor", "--json").stdout)["built-in model"] != "none in this build"


@pytest.fixture
def builtin():
    if not has_builtin():
        pytest.skip("this build has no built-in model: there is none in models/builtin, or QR_BUILTIN is off")


@pytest.fixture
def trained(builtin):
    cache = (BUILD / "CMakeCache.txt").read_text()
    if f"QR_BUILTIN_DIR:PATH={SOURCE / 'models' / 'builtin'}\n" not in cache:
        pytest.skip("this build's built-in model is another than that of models/builtin")


def note(done):
    """The lines about the built-in model on standard error."""
    return [line for line in done.stderr.decode().splitlines() if "built-in demo model" in line]


def test_a_build_without_one_says_so(bare):
    if has_builtin():
        pytest.skip("this build has a built-in model")
    for args in (["--model", "builtin"], []):
        env = bare if args else bare | {"QWEN_RERANK_MODEL_ID": "builtin"}
        done = cli("rank", "q", "--doc", "d", *args, env=env)
        assert done.returncode == 4 and len(note(done)) == 1 and b"found one without" in done.stderr
    done = cli("rank", "q", "--doc", "d", env=bare)
    assert done.returncode == 4 and b"no model named" in done.stderr and b"qwen-rerank pull" in done.stderr


@pytest.mark.parametrize("args", [["rank", "q", "--doc", "d"], ["score"], ["tokenize", "x"], ["inspect"], ["doctor"]])
@pytest.mark.parametrize("named", [None, "option", "variable"])
def test_every_command_uses_it_and_says_so_once(builtin, bare, args, named):
    env = bare | ({"QWEN_RERANK_MODEL_ID": "builtin"} if named == "variable" else {})
    args = args + (["--model", "builtin"] if named == "option" else [])
    stdin = '{"query": "q", "document": "d"}\n'
    done = cli(*args, env=env, stdin=stdin)
    assert done.returncode == 0 and done.stdout
    (line,) = note(done)
    assert "qwen-rerank pull 0.6b" in line
    quiet = cli(*args, "-q", env=env, stdin=stdin)
    assert quiet.returncode == 0 and quiet.stderr == b""


def test_reports_name_it(builtin, bare):
    def answer(*args):
        return json.loads(ok(*args, "--json", env=bare))

    assert answer("rank", "q", "--doc", "d")["model"] == "builtin"
    assert answer("doctor")["builtin_model"] and answer("inspect")["builtin_model"]
    assert "built-in demo model" in ok("doctor", env=bare) and "built-in demo model" in ok("inspect", env=bare)


def test_it_replaces_no_model_that_was_named(builtin, bare, tmp_path):
    for name in ("0.6b", "Qwen/Qwen3-Reranker-0.6B", "no-such-folder"):
        assert cli("rank", "q", "--doc", "d", "--model", name, env=bare).returncode == 4
        assert cli("rank", "q", "--doc", "d", env=bare | {"QWEN_RERANK_MODEL_ID": name}).returncode == 4
    (tmp_path / "builtin").mkdir()
    done = cli("inspect", "./builtin", env=bare, cwd=tmp_path)
    assert done.returncode == 4 and b"not a model folder" in done.stderr
    assert cli("inspect", "builtin", env=bare, cwd=tmp_path).returncode == 0


def test_it_is_left_alone_when_a_model_is_there(builtin):
    done = cli("rank", "q", "--doc", "d", "--json")
    assert json.loads(done.stdout)["model"] != "builtin" and not note(done)


def ranked(env, query, documents):
    answer = json.loads(ok("rank", query, *[a for d in documents for a in ("--doc", d)], "--json", "-q", env=env))
    assert answer["model"] == "builtin"
    return answer["results"]


@pytest.mark.parametrize("query", QUESTIONS)
def test_the_right_document_comes_first(trained, bare, query):
    documents = QUESTIONS[query]
    results = ranked(bare, query, documents)
    assert results[0]["index"] == 0, [(round(r["score"], 3), documents[r["index"]]) for r in results]
    assert all(0 <= r["score"] <= 1 for r in results)
    scores = {r["index"]: r["score"] for r in ranked(bare, query, documents[::-1])}
    assert [scores[len(documents) - 1 - r["index"]] for r in results] == [r["score"] for r in results]


def test_the_same_document_twice_scores_the_same(trained, bare):
    for query, documents in QUESTIONS.items():
        a, b, *_ = sorted(ranked(bare, query, [documents[0], documents[0], documents[1]]), key=lambda r: r["index"])
        assert a["score"] == b["score"] and a["margin"] == b["margin"]


@pytest.mark.parametrize("query", QUESTIONS)
def test_an_empty_document_scores_low(trained, bare, query):
    (result,) = ranked(bare, query, [""])
    assert result["score"] < EMPTY_DOCUMENT_SCORE


def test_the_program_stays_small(trained, sanitized):
    if sanitized:
        pytest.skip("a sanitizer build is larger")
    assert os.path.getsize(PROGRAM) <= MAX_PROGRAM_BYTES
