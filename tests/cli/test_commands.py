"""Everything but rank and score: options, environment, exit codes, closed output, the small commands and the generated files."""

import json
import re
import shutil
import subprocess

import pytest
from support import MODEL, PROGRAM, SOURCE, cli, environment, fails, ok

COMMANDS = ["rank", "score", "tokenize", "inspect", "doctor", "completion", "version", "help"]


def test_help_and_version():
    assert cli().returncode == 2
    for args in (["--help"], ["-h"], ["help"]):
        assert all(name in ok(*args) for name in COMMANDS)
    for name in COMMANDS:
        assert ok("help", name) == ok(name, "--help")
        assert "Exit codes" in ok("help", name)
    assert ok("--version") == ok("version") == ok("-V")


def test_misspelt_names_are_suggested():
    assert "did you mean '--max-length'?" in fails(2, "rank", "q", "--max-lenght", "3")
    assert "did you mean '--max-length'?" in fails(2, "rank", "q", "--max-len=3")
    assert "did you mean 'rank'?" in fails(2, "rnak")
    assert "did you mean 'score'?" in fails(2, "help", "scor")
    assert "did you mean" not in fails(2, "rank", "--zzzzzzzz")
    assert "-Z" in fails(2, "rank", "-Z")


@pytest.mark.parametrize(
    "args",
    [["rank"], ["rank", "q", "--top-n"], ["rank", "q", "--top-n", "0"], ["rank", "q", "--top-n", "-1"], ["rank", "q", "--top-n", "1x"],
     ["rank", "q", "--dtype", "f64"], ["rank", "q", "--json=1"], ["rank", "q", "--threads", "99999999999999999999"], ["score", "extra"],
     ["rank", "q", "--doc", "d", "--backend", "none"], ["completion"], ["completion", "tcsh"], ["version", "--json"]],
)  # fmt: skip
def test_wrong_usage(args):
    done = cli(*args)
    assert done.returncode == 2
    assert done.stdout == b"" and done.stderr.startswith(b"qwen-rerank: ")


def test_options_after_two_dashes_are_operands():
    assert json.loads(ok("rank", "--json", "--doc", "d", "--", "-query"))["query"] == "-query"


def test_environment():
    def dtype(*args, **env):
        return json.loads(ok("rank", "q", "--doc", "d", "--json", *args, env=environment(**env)))["dtype"]

    assert dtype(QWEN_RERANK_DTYPE="f32") == "f32"
    assert dtype("--dtype", "bf16", QWEN_RERANK_DTYPE="f32") == "bf16"
    assert dtype("--dtype", "f32", QWEN_RERANK_DTYPE="") == "f32"
    for name in ("DTYPE", "THREADS", "MAX_LENGTH", "BATCH_TOKENS", "LOG_LEVEL", "BACKEND"):
        variable = f"QWEN_RERANK_{name}"
        message = fails(2, "rank", "q", "--doc", "d", env=environment(**{variable: "bad"}))
        assert variable in message or name == "BACKEND"
    long = json.loads(ok("rank", "q", "--doc", "d", "--json"))["results"][0]
    short = json.loads(ok("rank", "q", "--doc", "d", "--json", env=environment(QWEN_RERANK_INSTRUCTION="x")))["results"][0]
    assert short["n_tokens"] < long["n_tokens"]


def test_verbose_goes_to_standard_error():
    done = cli("rank", "q", "--doc", "d", "--json", "-v")
    assert done.returncode == 0 and done.stderr and json.loads(done.stdout)


@pytest.mark.parametrize("args", [["rank", "q", "--doc", "d"], ["rank", "q", "--doc", "d", "--json"], ["score"], ["inspect"], ["doctor"],
                                  ["tokenize", "x"], ["help"], ["version"], ["completion", "bash"]])  # fmt: skip
def test_closed_and_full_output(args):
    line = b'{"query": "q", "document": "d"}\n'
    with open("/dev/full", "wb") as full:
        done = subprocess.run([PROGRAM, *args], input=line, stdout=full, stderr=subprocess.PIPE, env=environment())
    assert done.returncode == 1 and b"cannot write: No space left" in done.stderr
    shell = subprocess.run(["bash", "-c", 'set -o pipefail; "$@" | :', "-", PROGRAM, *args], input=line, stderr=subprocess.PIPE, env=environment())
    assert shell.returncode in (0, 1) and b"cannot write" not in shell.stderr  # 0: written before the reader went away
    closed = subprocess.run(["bash", "-c", '"$@" >&-', "-", PROGRAM, *args], input=line, stderr=subprocess.PIPE, env=environment())
    assert closed.returncode == 1 and b"cannot write" in closed.stderr


def test_models_that_cannot_be_used(tmp_path):
    assert fails(4, "rank", "q", "--doc", "d", "--model", tmp_path / "none")
    (tmp_path / "config.json").write_text("{}")
    for command in (["rank", "q", "--doc", "d", "--model", tmp_path], ["inspect", tmp_path]):
        assert fails(4, *command)
    assert fails(4, "tokenize", "x", "--tokenizer", tmp_path / "config.json")


def test_tokenize():
    answer = json.loads(ok("tokenize", "--json", "What is Python? 👩‍👧"))
    assert answer["count"] == len(answer["tokens"])
    whole = b"".join(bytes.fromhex(t["bytes"]) if "bytes" in t else t["text"].encode() for t in answer["tokens"])
    assert whole.decode() == "What is Python? 👩‍👧"
    assert int(ok("tokenize", "--count", "What is Python? 👩‍👧")) == answer["count"]
    assert int(ok("tokenize", "-c", stdin="What is Python? 👩‍👧")) == answer["count"]
    assert int(ok("tokenize", "-c", stdin="")) == 0
    assert json.loads(ok("tokenize", "--json", "--special", "<|im_end|>"))["tokens"] == [{"id": 151645, "text": "<|im_end|>", "special": True}]
    assert int(ok("tokenize", "-c", "<|im_end|>")) > 1
    assert ok("tokenize", "a b", "--tokenizer", f"{MODEL}/tokenizer.json").splitlines()[1].endswith('" b"')


def test_inspect():
    answer = json.loads(ok("inspect", MODEL, "--json", "--tensors"))
    assert len(answer["tensors"]) == answer["n_tensors"]
    assert answer["tokenizer"]["yes_id"] == 9693 and answer["tokenizer"]["no_id"] == 2152
    assert answer["tokenizer"]["canonical_prompt"]
    assert sum(t["bytes"] for t in answer["tensors"]) >= answer["weight_bytes"]
    assert "layers 0-" in ok("inspect", MODEL)
    assert "embed_tokens" in ok("inspect", MODEL, "--tensors")


def test_doctor():
    answer = json.loads(ok("doctor", "--json"))
    assert answer["backends"] and answer["model"] == MODEL and answer["threads"] >= 1
    missing = cli("doctor", "--json", "--model", "/nowhere")
    assert missing.returncode == 4 and json.loads(missing.stdout)["model"] is None


@pytest.mark.parametrize("path, args", [("docs/qwen-rerank.1", ["help", "--man"]), ("completions/qwen-rerank.bash", ["completion", "bash"]),
                                        ("completions/_qwen-rerank", ["completion", "zsh"]),
                                        ("completions/qwen-rerank.fish", ["completion", "fish"])])  # fmt: skip
def test_generated_files_are_current(path, args):
    assert (SOURCE / path).read_text() == ok(*args), f"run: build/qwen-rerank {' '.join(args)} > {path}"


def test_the_manual_has_every_option():
    manual = ok("help", "--man").replace("\\-", "-").replace("\\fR[\\fBno-\\fR]\\fB", "[no-]")
    options = set(re.findall(r"^ +(?:-\w, )?(--[a-z\[][a-z0-9\[\]-]*)", ok("serve", "--help"), re.MULTILINE))
    assert len(options) > 60 and {o for o in options if f"\\fB{o}\\fR" not in manual} == set()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_parse(shell):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    assert subprocess.run([shell, "-n"], input=ok("completion", shell).encode()).returncode == 0


def test_bash_completion():
    script = ok("completion", "bash") + """
try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _qwen_rerank; echo "${COMPREPLY[*]}"; }
try qwen-rerank sc
try qwen-rerank rank --dty
try qwen-rerank rank --dtype ""
try qwen-rerank completion f
"""
    out = subprocess.run(["bash", "-c", script], capture_output=True, text=True).stdout
    assert out.splitlines() == ["score", "--dtype", "auto f32 bf16 f16 int8", "fish"]
