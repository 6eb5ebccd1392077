"""Runs the program as a user would. QR_BIN and QR_TEST_MODEL choose another program and model than those of the build."""

import json
import os
import pathlib
import socket
import subprocess

SOURCE = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("QR_BUILD") or SOURCE / "build")
DATA = pathlib.Path(os.environ.get("QR_TEST_DATA") or SOURCE / "build" / "testdata")
PROGRAM = os.environ.get("QR_BIN") or os.environ.get("QR_PROGRAM") or str(BUILD / "qwen-rerank")
MODEL = os.environ.get("QR_TEST_MODEL") or str(DATA / "micro-1")
HANG_S = 300  # a guard against hanging, not a promise about speed: sanitizer and emulated runs are slow


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment(**extra):
    """The caller's environment without variables that change what the program does."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("QWEN_RERANK_") and k not in ("NO_COLOR", "COLUMNS")}
    env["QWEN_RERANK_MODEL_ID"] = MODEL
    env["XDG_CONFIG_HOME"] = "/nonexistent"  # nor a file with profiles
    env["QWEN_RERANK_CACHE_DIR"] = "none"  # nor what an earlier run left
    env.update(extra)
    return env


def cli(*args, stdin=b"", env=None, **kwargs):
    """Runs the program and returns it with bytes in stdout and stderr."""
    if isinstance(stdin, str):
        stdin = stdin.encode()
    return subprocess.run(
        [PROGRAM, *map(os.fspath, args)], input=stdin, capture_output=True, timeout=HANG_S, env=env or environment(), **kwargs
    )


def ok(*args, **kwargs):
    done = cli(*args, **kwargs)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def fails(code, *args, **kwargs):
    """stderr of a run that must fail with `code`."""
    done = cli(*args, **kwargs)
    assert done.returncode == code, (done.returncode, done.stderr)
    return done.stderr.decode()


def score(lines, *args, code=0):
    """Results of `score` for a list of objects, or of raw lines as bytes."""
    stdin = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    done = cli("score", *args, stdin=stdin)
    assert done.returncode == code, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.decode().splitlines()]
