"""`pull` against a hub that misbehaves on demand (hub_server.py): the right bytes or a clear failure, and nothing that only looks complete."""

import json
import os
import pathlib
import random
import signal
import subprocess
import time

import pytest
from hub_server import COMMIT, Hub
from support import DATA, HANG_S, PROGRAM, cli, environment

REPO = "test/model"
WEIGHTS = "model.safetensors"


def repository():
    folder = DATA / "micro-1"
    files = {name: (folder / name).read_bytes() for name in ("config.json", "tokenizer.json", WEIGHTS)}
    extra = {"README.md": b"# a model\n", "onnx/model.onnx": b"x" * 5000, "pytorch_model.bin": b"y" * 5000, "1_LogitScore/config.json": b"{}"}
    return files | extra


@pytest.fixture(scope="module")
def files():
    return repository()


@pytest.fixture
def hub(files):
    hub = Hub(files)
    yield hub
    hub.close()


@pytest.fixture
def env(hub, tmp_path):
    return hub_environment(hub, tmp_path / "hf")


def hub_environment(hub, home, **variables):
    env = environment(HF_ENDPOINT=hub.api, HF_HOME=str(home), HF_HUB_DOWNLOAD_TIMEOUT="1", **variables)
    for name in ("HF_HUB_CACHE", "HF_TOKEN", "http_proxy", "https_proxy", "HTTP_PROXY", "all_proxy"):
        env.pop(name, None) if name not in variables else None
    return env


def pull(env, *args, code=0):
    done = cli("pull", REPO, *args, env=env)
    assert done.returncode == code, done.stderr.decode()
    return done


def snapshot(env):
    return pathlib.Path(env["HF_HOME"]) / "hub" / "models--test--model" / "snapshots" / COMMIT


def blobs(env):
    return pathlib.Path(env["HF_HOME"]) / "hub" / "models--test--model" / "blobs"


def check_whole(env, files):
    folder = snapshot(env)
    for name in ("config.json", "tokenizer.json", WEIGHTS, "1_LogitScore/config.json"):
        assert (folder / name).read_bytes() == files[name], name
        assert not os.path.isabs(os.readlink(folder / name))
    assert not (folder / "README.md").exists() and not (folder / "onnx").exists() and not (folder / "pytorch_model.bin").exists()
    assert (blobs(env).parent / "refs" / "main").read_text() == COMMIT
    assert not list(blobs(env).glob("*qwen-rerank*"))


def test_pull_and_rank(hub, env, files):
    done = pull(env)
    assert done.stdout.decode().strip() == str(snapshot(env))
    check_whole(env, files)
    scores = [cli("score", "--model", model, env=env, stdin='{"query": "a", "document": "b"}').stdout for model in (REPO, DATA / "micro-1")]
    assert scores[0] == scores[1] != b""
    served = hub.bytes_served
    pull(env)  # nothing is fetched twice
    assert hub.bytes_served == served


def test_pull_where_a_model_is_needed(env, files):
    missing = cli("score", "--model", REPO, env=env, stdin="{}")
    assert missing.returncode == 4 and b"qwen-rerank pull test/model" in missing.stderr
    done = cli("score", "--model", REPO, "--pull", env=env, stdin='{"query": "a", "document": "b"}')
    assert done.returncode == 0 and b'"score"' in done.stdout
    check_whole(env, files)


PASSING = {
    "too many requests": [(429, [("Retry-After", "1")])],
    "server errors": [500, 503, 502],
    "dropped connections": ["drop", "drop", "drop"],
    "a stall": ["stall"],
    "an address that has expired": [403, 403],
    "ranges ignored": ["no ranges"] * 200,
    "wrong content, once": ["wrong"],
}


@pytest.mark.parametrize("faults", PASSING.values(), ids=PASSING)
def test_what_passes(hub, env, files, faults):
    hub.faults[WEIGHTS].extend(faults)
    pull(env)
    check_whole(env, files)


FAILING = {
    "wrong content": (["wrong"] * 200, "expected the sha256"),
    "short content": (["short"] * 200, "expected"),
    "long content": (["long"] * 200, "expected"),
    "errors for ever": ([500] * 200, "expected 200 or 206, found 500"),
    "not there": ([404] * 200, "not found"),
    "a ring of addresses": (["elsewhere"] * 400, "redirect"),
}


@pytest.mark.parametrize("faults, message", FAILING.values(), ids=FAILING)
def test_what_fails(hub, env, faults, message):
    hub.faults[WEIGHTS].extend(faults)
    done = pull(env, code=4 if message == "not found" else 1)
    assert message in done.stderr.decode()
    assert not (snapshot(env) / WEIGHTS).exists() and not (blobs(env) / hub.files[WEIGHTS].hash).exists()
    assert not (blobs(env).parent / "refs" / "main").exists()
    assert cli("score", "--model", REPO, env=env, stdin="{}").returncode == 4  # no half model is taken for one


def test_errors_of_the_hub(hub, env, tmp_path):
    assert "no such model" in cli("pull", "test/other", env=env).stderr.decode()
    assert "RevisionNotFound" in cli("pull", REPO + "@v7", env=env).stderr.decode()
    hub.api_faults.append((403, [("X-Error-Code", "GatedRepo")]))
    assert "accept the model's terms" in pull(env, code=4).stderr.decode()
    for bad in ("", "x", "a/b/c", "../x", "a/..", "0.6", "a/b:", "/etc/passwd"):
        assert cli("pull", bad, env=env).returncode == 2
    env["HF_ENDPOINT"] = "http://127.0.0.1:9"
    assert "HF_ENDPOINT" in pull(env, code=1).stderr.decode()
    env["HF_ENDPOINT"] = "gopher://x"
    assert "expected http://" in pull(env, code=2).stderr.decode()


@pytest.mark.parametrize(
    "answer, message",
    [
        (b"{", "not JSON"),
        (b"[1]", "found neither"),
        (b'{"a": 1}', "expected a list of files"),
        (b'[{"type": "file", "path": "../../x", "size": 1, "oid": "%s"}]' % (b"0" * 40), "within the repository"),
        (b'[{"type": "file", "path": "/x", "size": 1, "oid": "%s"}]' % (b"0" * 40), "within the repository"),
        (b'[{"type": "file", "path": "a\\\\b", "size": 1, "oid": "%s"}]' % (b"0" * 40), "within the repository"),
        (b'[{"type": "file", "path": "config.json", "size": -1, "oid": "%s"}]' % (b"0" * 40), "a size and a hash"),
        (b'[{"type": "file", "path": "config.json", "size": 1, "oid": "../../x"}]', "a size and a hash"),
        (b"[" + b'{"type": "file", "path": "x", "size": 1, "oid": "%s"},' % (b"0" * 40) * 30000 + b"1]", "at most 20000 files"),
        (b" " * (17 << 20), "found more"),
    ],
    ids=["half", "numbers", "object", "up", "root", "backslash", "size", "hash", "many", "large"],
)
def test_hostile_lists(hub, env, tmp_path, answer, message):
    hub.raw_list = answer
    done = cli("pull", REPO, env=env)
    assert done.returncode in (1, 3) and message in done.stderr.decode()
    assert not hub.host_requests("cdn") and not (tmp_path / "x").exists()


def test_the_token_stays_at_home(hub, env, tmp_path):
    token = tmp_path / "hf" / "token"
    token.parent.mkdir()
    token.write_text("secret of the file\n")
    pull(env)
    assert {r[3].get("Authorization") for r in hub.host_requests("api")} == {"Bearer secret of the file"}
    assert hub.host_requests("cdn") and all("Authorization" not in r[3] for r in hub.host_requests("cdn"))
    hub.requests.clear()
    pull(env | {"HF_TOKEN": " other "})
    assert {r[3].get("Authorization") for r in hub.host_requests("api")} == {"Bearer other"}
    hub.requests.clear()
    pull(env | {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"})
    assert {r[3].get("Authorization") for r in hub.host_requests("api")} == {None}


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline(hub, env, variable):
    done = cli("pull", REPO, env=env | {variable: "YES"})
    assert done.returncode != 0 and b"nothing is downloaded" in done.stderr and not hub.requests


def test_no_room(hub, env):
    hub.files[WEIGHTS].size = 1 << 52
    done = pull(env, code=1)
    assert "GB are free" in done.stderr.decode() and not hub.host_requests("cdn")


def test_killed_and_resumed(hub, env, files):
    """Twenty times killed at some moment; then what came before is not fetched again."""
    hub.rate = 3_000_000
    rnd = random.Random(7)
    for _ in range(20):
        with subprocess.Popen([PROGRAM, "pull", REPO], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            time.sleep(rnd.uniform(0.05, 0.6))
            process.send_signal(signal.SIGKILL)
        assert not (blobs(env).parent / "refs" / "main").exists() or (snapshot(env) / WEIGHTS).exists()
    hub.rate = None
    pull(env)
    check_whole(env, files)
    total = sum(len(files[name]) for name in ("config.json", "tokenizer.json", WEIGHTS))
    assert hub.bytes_served < 4 * total  # each kill loses up to four parts of a megabyte


def test_interrupted(hub, env):
    hub.rate = 500_000
    with subprocess.Popen([PROGRAM, "pull", REPO], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while hub.bytes_served == 0:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=HANG_S)
    assert process.returncode == 130 and b"goes on from there" in stderr


def test_two_at_once(hub, env, files):
    hub.rate = 20_000_000
    both = [subprocess.Popen([PROGRAM, "pull", REPO], env=env, stderr=subprocess.PIPE) for _ in range(2)]
    assert [p.communicate(timeout=60) and p.returncode for p in both] == [0, 0]
    check_whole(env, files)
    assert hub.bytes_served < 1.2 * sum(len(files[name]) for name in ("config.json", "tokenizer.json", WEIGHTS))


def test_a_journal_that_lies(hub, env, files):
    """Parts that are said to be there and are not: the hash finds it, and the file is fetched anew."""
    file = hub.files[WEIGHTS]
    blobs(env).mkdir(parents=True)
    (blobs(env) / f"{file.hash}.qwen-rerank.part").write_bytes(bytes(file.size))
    (blobs(env) / f"{file.hash}.qwen-rerank.parts").write_text(f"qwen-rerank 1 {file.size} {1 << 20}\n0\n1\n5\n")
    pull(env)
    check_whole(env, files)


def test_gguf_files(tmp_path):
    names = ["m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-f16.gguf", "m-bf16.gguf", "big-Q5_0-00001-of-00002.gguf", "big-Q5_0-00002-of-00002.gguf"]
    hub = Hub({name: name.encode() * 200 for name in names} | {"README.md": b"x"})
    env = hub_environment(hub, tmp_path)
    try:
        got = lambda done: pathlib.Path(done.stdout.decode().strip()).name  # noqa: E731
        assert got(cli("pull", REPO + ":q4_k_m", env=env)) == "m-Q4_K_M.gguf"
        assert got(cli("pull", REPO, env=env)) == "m-f16.gguf"
        assert got(cli("pull", REPO, "--file", "m-bf16.gguf", env=env)) == "m-bf16.gguf"
        assert got(cli("pull", REPO + ":Q5_0", env=env)) == "big-Q5_0-00001-of-00002.gguf"
        assert (snapshot({"HF_HOME": str(tmp_path)}) / "big-Q5_0-00002-of-00002.gguf").exists()
        for wrong in ([REPO + ":Q4_K"], [REPO + ":Q2_K"], [REPO, "--file", "none.gguf"]):
            done = cli("pull", *wrong, env=env)
            assert done.returncode == 3 and b"m-Q4_K_M.gguf, m-Q4_K_S.gguf" in done.stderr
    finally:
        hub.close()


def test_by_way_of_a_proxy(hub, env, files):
    """A proxy is asked for whole addresses; the test hub answers those as well, since it looks at the path only."""
    env = env | {"http_proxy": hub.api, "HF_ENDPOINT": "http://hub.invalid"}
    cli("pull", REPO, env=env)
    assert hub.host_requests("api")[0][2].startswith("http://hub.invalid/api/models/")


def test_python_finds_ours(env, files):
    """What we wrote, huggingface_hub takes for its own."""
    pull(env)
    code = f"""
import json, huggingface_hub as h
folder = h.snapshot_download("{REPO}", local_files_only=True)
file = h.try_to_load_from_cache("{REPO}", "{WEIGHTS}")
cache = h.scan_cache_dir()
print(json.dumps([folder, file, [str(w) for w in cache.warnings], sorted(f.file_name for f in list(list(cache.repos)[0].revisions)[0].files)]))
"""
    folder, file, warnings, names = json.loads(python(code, env | {"HF_HUB_OFFLINE": "1"}))
    assert folder == str(snapshot(env)) and file == str(snapshot(env) / WEIGHTS) and warnings == []
    assert names == ["config.json", "config.json", "model.safetensors", "tokenizer.json"]


def test_we_find_pythons(hub, env, files):
    python(f"import huggingface_hub as h; h.snapshot_download('{REPO}', allow_patterns=['*.json', '*.safetensors'])", env | {"HF_HUB_DISABLE_XET": "1"})
    assert cli("score", "--model", REPO, env=env, stdin='{"query": "a", "document": "b"}').returncode == 0
    served = hub.bytes_served
    pull(env)
    assert hub.bytes_served == served


def python(code, env):
    done = subprocess.run([os.sys.executable, "-c", code], env=env, capture_output=True, timeout=120, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
