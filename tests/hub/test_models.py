"""`models`: what is in the cache, made by hand here, and what of it can rank."""

import fcntl
import json
import os
import pty
import shutil
import subprocess

import pytest
from hub_server import COMMIT
from support import DATA, PROGRAM, cli, environment


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "hub"


def add(cache, repo, source, commit=COMMIT, leave_out=()):
    folder = cache / ("models--" + repo.replace("/", "--"))
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "blobs").mkdir(exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    for name in os.listdir(source):
        if name not in leave_out:
            shutil.copy(source / name, folder / "blobs" / name)
            (folder / "snapshots" / commit / name).symlink_to(f"../../blobs/{name}")
    return folder


def models(cache, *args, **kwargs):
    return cli("models", *args, env=environment(HF_HUB_CACHE=str(cache)), **kwargs)


def test_list(cache, tmp_path):
    assert b"no models in" in models(cache).stdout
    folder = add(cache, "org/good-model", DATA / "micro-1")
    add(cache, "org/cut", DATA / "micro-1", leave_out=["model.safetensors"])
    add(cache, "org/no--tokenizer", DATA / "micro-1", leave_out=["tokenizer.json"])
    (folder / "refs" / "pr").mkdir()
    (folder / "refs" / "pr" / "1").write_text(COMMIT)
    (cache / "datasets--org--x").mkdir()
    (cache / "models--broken").mkdir()
    found = {m["model"]: m for m in json.loads(models(cache, "--json").stdout)["models"]}
    assert sorted(found) == ["org/cut", "org/good-model", "org/no--tokenizer"]
    good = found["org/good-model"]
    assert good["usable"] and good["format"] == "safetensors, BF16" and good["revisions"] == "main, pr/1" and good["commit"] == COMMIT
    assert good["bytes"] == sum(f.stat().st_size for f in (DATA / "micro-1").iterdir())
    assert not found["org/cut"]["usable"] and "found no model.safetensors" in found["org/cut"]["reason"]
    assert not found["org/no--tokenizer"]["usable"] and "tokenizer.json" in found["org/no--tokenizer"]["reason"]
    text = models(cache).stdout.decode()
    assert "org/good-model" in text and "cannot rank: " in text


def test_remove(cache):
    folder = add(cache, "org/model", DATA / "micro-1")
    other = add(cache, "org/other", DATA / "micro-1")
    refused = models(cache, "rm", "org/model")
    assert refused.returncode == 1 and b"--yes" in refused.stderr and folder.exists()
    assert models(cache, "rm", "org/none", "--yes").returncode == 1
    for bad in (["rm"], ["rm", "../org"], ["list"], ["rm", "a/b", "c"]):
        assert models(cache, *bad, "--yes").returncode == 2
    locks = cache / ".locks" / "models--org--model"
    locks.mkdir(parents=True)
    with open(locks / "x.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert b"is being downloaded" in models(cache, "rm", "org/model", "--yes").stderr and folder.exists()
    assert models(cache, "rm", "org/model", "--yes").returncode == 0
    assert not folder.exists() and other.exists()


@pytest.mark.parametrize("answer, gone", [(b"n\n", False), (b"y\n", True)])
def test_asks(cache, answer, gone):
    folder = add(cache, "org/model", DATA / "micro-1")
    ours, theirs = pty.openpty()
    os.write(ours, answer)
    done = subprocess.run([PROGRAM, "models", "rm", "org/model"], stdin=theirs, capture_output=True, env=environment(HF_HUB_CACHE=str(cache)), timeout=60)
    os.close(ours)
    os.close(theirs)
    assert b"Remove org/model, " in done.stderr and folder.exists() != gone and done.returncode == (0 if gone else 1)
