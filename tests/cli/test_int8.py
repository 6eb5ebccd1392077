"""--dtype int8: taken where it holds, refused with the reason where it does not."""

import hashlib
import json
import os
import re
import shutil
import struct

import pytest

from support import DATA, SOURCE, cli, environment, fails, ok, score

QUERY = "how does a refrigerator work"
DOCUMENTS = [
    "A refrigerator moves heat from its inside to the room by compressing and expanding a coolant.",
    "The compressor squeezes the coolant, which gives off heat in the coils at the back.",
    "Freezers run at minus eighteen degrees.",
    "The museum is closed on Mondays.",
]
PAIRS = [{"query": QUERY, "document": document} for document in DOCUMENTS]


@pytest.fixture(scope="module")
def vnni():
    if json.loads(ok("doctor", "--json"))["native int8"] != "yes":
        message = fails(4, "score", "--model", "builtin", "--dtype", "int8", stdin='{"query":"a","document":"b"}')
        assert "needs a processor with AVX-VNNI" in message
        pytest.skip("this processor does not multiply 8-bit integers; it said so")


def test_a_trained_model_ranks_alike(vnni):
    exact = [r["score"] for r in score(PAIRS, "--model", "builtin", "--dtype", "f32")]
    fast = [r["score"] for r in score(PAIRS, "--model", "builtin", "--dtype", "int8")]
    assert fast != exact and max(abs(a - b) for a, b in zip(fast, exact)) < 0.03
    assert sorted(range(4), key=lambda i: exact[i]) == sorted(range(4), key=lambda i: fast[i])


def test_what_was_found_is_logged(vnni):
    done = cli("rank", QUERY, "--model", "builtin", "--dtype", "int8", "--verbose", stdin="\n".join(DOCUMENTS))
    found = re.search(rb"int8 beside f32 on 36 prompts of our own: Kendall's tau (0\.\d+|1\.000), scores off by (0\.\d+)", done.stderr)
    assert done.returncode == 0 and float(found[1]) >= 0.97 and float(found[2]) <= 0.02


def test_a_model_that_loses_too_much_is_refused(vnni):
    message = fails(4, "score", "--model", DATA / "small-1", "--dtype", "int8", stdin='{"query":"a","document":"b"}')
    assert "would move its scores too far" in message and "Kendall's tau 0.9" in message


# ---- what a start keeps for the next one


@pytest.fixture
def model(vnni, tmp_path):
    """The built-in model as files: one inside the program has no date, and nothing of it is kept."""
    if not (SOURCE / "models" / "builtin" / "config.json").exists():
        pytest.skip("this source has no built-in model")
    return shutil.copytree(SOURCE / "models" / "builtin", tmp_path / "model", copy_function=shutil.copy)


def start(model, cache, **variables):
    """Margins in int8, and whether f32 was left out."""
    lines = "".join(json.dumps(pair) + "\n" for pair in PAIRS)
    done = cli("score", "--model", model, "--dtype", "int8", "-v", stdin=lines, env=environment(QWEN_RERANK_CACHE_DIR=str(cache), **variables))
    assert done.returncode == 0, done.stderr
    return [json.loads(line)["margin"] for line in done.stdout.splitlines()], b"as found by an earlier start" in done.stderr


def only_file(cache):
    [file] = cache.iterdir()
    assert re.fullmatch(r"int8-[0-9a-f]{16}\.bin", file.name)
    return file


def test_f32_is_tried_once(model, tmp_path):
    cache = tmp_path / "deep" / "cache"
    margins, kept = start(model, cache)
    assert not kept
    file = only_file(cache)
    assert start(model, cache) == (margins, True) and only_file(cache) == file
    assert start(model, "none") == (margins, False)
    os.utime(model / "model.safetensors")  # as if it were another one
    assert start(model, cache) == (margins, False) and len(list(cache.iterdir())) == 2


def test_the_folder_is_where_caches_are(model, tmp_path):
    env = environment(HOME=str(tmp_path))
    del env["QWEN_RERANK_CACHE_DIR"]
    env.pop("XDG_CACHE_HOME", None)
    for variables, folder in (({}, tmp_path / ".cache" / "qwen-rerank"), ({"XDG_CACHE_HOME": str(tmp_path / "x")}, tmp_path / "x" / "qwen-rerank")):
        done = cli("score", "--model", model, "--dtype", "int8", stdin=json.dumps(PAIRS[0]), env=env | variables)
        assert done.returncode == 0 and only_file(folder)


def test_another_prompt_is_another_trial(model, tmp_path):
    start(model, tmp_path / "cache")
    assert not start(model, tmp_path / "cache", QWEN_RERANK_PROMPT_SUFFIX="<|im_end|>")[1]


def test_a_damaged_file_is_made_again(model, tmp_path):
    cache = tmp_path / "cache"
    margins, _ = start(model, cache)
    file = only_file(cache)
    good = file.read_bytes()
    head = 16 + 32  # the format's name and the key; then 36 margins
    n_inputs = 4 * json.loads((model / "config.json").read_text())["num_hidden_layers"]

    def with_(at, data, sums=True):
        bad = good[:at] + data + good[at + len(data) :]
        return bad[:-32] + hashlib.sha256(bad[:-32]).digest() if sums else bad

    rotations = head + 36 * 8
    factors = rotations + 4 * n_inputs
    cases = [
        b"",
        good[:-1],
        good + b"\0",
        bytes(len(good)),
        with_(len(good) - 40, b"\1\2", sums=False),
        with_(0, b"Q"),
        with_(16, bytes(32)),
        with_(head, struct.pack("=d", float("nan"))),
        with_(rotations, struct.pack("=I", 3)),
        with_(rotations, struct.pack("=I", 1 << 31)),
        with_(factors, struct.pack("=f", 0)),
        with_(factors, struct.pack("=f", float("inf"))),
    ]
    for i, bad in enumerate(cases):
        assert bad != good
        file.write_bytes(bad)
        assert start(model, cache) == (margins, False), i
        assert only_file(cache).read_bytes() == good, i
    assert start(model, cache) == (margins, True)


def test_what_cannot_be_kept_is_not_needed(model, tmp_path):
    (tmp_path / "file").write_text("")
    lines = json.dumps(PAIRS[0])
    done = cli("score", "--model", model, "--dtype", "int8", "-v", "--cache-dir", tmp_path / "file" / "x", stdin=lines)
    assert done.returncode == 0 and b"cannot make this folder: " in done.stderr
    cache = tmp_path / "cache"
    start(model, cache)
    file = only_file(cache)
    file.unlink()
    file.mkdir()
    assert not start(model, cache)[1] and file.is_dir()


def test_files_do_not_pile_up(model, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    for i in range(20):
        (cache / f"int8-{i:016x}.bin").write_text("")
        os.utime(cache / f"int8-{i:016x}.bin", (i, i))
    others = ["int8-x.bin", "notes.txt"]
    for name in others:
        (cache / name).write_text("")
    start(model, cache)
    left = sorted(path.name for path in cache.iterdir() if path.stat().st_size == 0)
    assert left == sorted([f"int8-{i:016x}.bin" for i in range(5, 20)] + others)
