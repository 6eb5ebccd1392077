"""What all backends have in common: errors, limits, cancelling, memory, threads."""

import ctypes
import json
import os
import pathlib
import signal
import subprocess
import threading
import time

import capi
import pytest
from conftest import require, torch_options
from support import BUILD, DATA, PROGRAM, SOURCE, cli, environment, fails, ok

FOREIGN = ["mlx", "pytorch"]


@pytest.fixture(params=FOREIGN)
def backend(request):
    require(request.param)
    return request.param


def more(backend):
    return torch_options() if backend == "pytorch" else []


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("Beijing is the capital of China.\nParis is in France.\n")
    return path


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """26 questions with an answer and seven distractors each, which the built-in model was not trained on."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    questions = json.loads((SOURCE / "tools" / "train" / "questions.json").read_text())
    with path.open("w") as f:
        for q in questions[:26]:
            for document in [q["answer"], *q["distractors"]]:
                f.write(json.dumps({"query": q["query"], "document": document}) + "\n")
    return path


def runs():
    names = ["cpu:f32", "cpu:bf16"]
    for name in FOREIGN:
        try:
            require(name)
        except pytest.skip.Exception:
            continue
        names += [f"{name}:f32", f"{name}:f16", f"{name}:bf16"]
    return names


@pytest.mark.parametrize("pairs", ["default", "held out"])
def test_parity_on_the_built_in_model(pairs, held_out):
    if len(runs()) == 2:
        pytest.skip("neither PyTorch nor MLX is installed")
    extra = ["--pairs", held_out] if pairs == "held out" else []
    report = json.loads(ok("parity", "--json", "--model", "builtin", "--backends", ",".join(runs()), *torch_options(), *extra))
    assert report["pairs"] == (208 if extra else 18) and report["within_tolerance"]
    for d in report["distances"]:
        exact = d["a"].endswith("f32") and d["b"].endswith("f32")
        assert d["score_max"] < (0.005 if exact else 0.05), d
        # Documents that are as good as equal may change places when margins are rounded to 16 bits; others not.
        assert d["order_changed_by_max"] < (1e-4 if exact else 0.02 if extra else 0.005), d
        assert d["kendall_tau"] > (0.9999 if exact else 0.98 if extra else 0.9), d


def test_info_tells_device_and_type(backend, lines):
    report = json.loads(ok("rank", "--backend", backend, *more(backend), "--dtype", "f16", "--format", "json", "q", lines))
    assert (report["backend"], report["dtype"]) == (backend, "f16")
    log = cli("rank", "--backend", backend, *more(backend), "--log-level", "info", "q", lines).stderr.decode()
    assert f"backend {backend} (" in log and "CPU" in log.upper()


def test_deep_checks(backend):
    report = json.loads(ok("doctor", "--deep", "--json", *more(backend)))
    found = {c["dtype"]: c["result"] for c in report["checks"] if (c["backend"], c["device"]) == (backend, "cpu")}
    assert found == {"f32": "right", "bf16": "right", "f16": "right", "int8": "not supported"}


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "toaster"])
def test_a_device_that_is_not_there(backend, device, lines):
    if pathlib.Path("/dev/nvidiactl").exists():
        pytest.skip("there is a GPU")
    message = fails(1, "rank", "--backend", backend, *more(backend), "--device", device, "q", lines)
    assert f'backend "{backend}" cannot be used here' in message and device in message


def test_int8_is_refused(backend, lines):
    assert "int8" in fails(4, "rank", "--backend", backend, *more(backend), "--dtype", "int8", "q", lines)


def test_a_memory_limit(backend, lines):
    message = fails(1, "rank", "--backend", backend, *more(backend), "--memory-limit", "1", "q", lines)
    assert "GiB" in message and "allowed" in message


def test_an_interrupt_ends_it(backend, tmp_path):
    """In the middle of work that would take long."""
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"query": "q", "document": f"{i} some words " * 30}) + "\n" for i in range(5000)))
    command = [PROGRAM, "score", "--model", DATA / "micro-1", "--backend", backend, *more(backend), "--dtype", "f32"]
    with path.open() as stdin:
        process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    assert process.stdout.readline()  # some are done
    time.sleep(0.2)  # more are in work
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130


@pytest.fixture(scope="module")
def lib(sanitized):
    if sanitized:
        pytest.skip("Python is not built with the sanitizer's library")
    return capi.load(BUILD / ("libqwen-rerank.dylib" if (BUILD / "libqwen-rerank.dylib").exists() else "libqwen-rerank.so"))


def engine(lib, backend, **kwargs):
    if backend == "pytorch" and torch_options():
        kwargs["torch_dir"] = torch_options()[1].encode()
    return capi.Engine(lib, DATA / "micro-1", backend=backend.encode(), dtype=capi.DTYPE_F32, **kwargs)


def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="reads /proc")
def test_two_hundred_engines_leave_nothing_behind(lib, backend):
    def use(n):
        for _ in range(n):
            e = engine(lib, backend)
            e.score("q", ["a", "b " * 20])
            e.close()
        return resident()

    before = use(40)  # until heaps and thread pools have their size
    assert use(160) < before + (24 << 20)


def test_eight_threads(lib, backend):
    e = engine(lib, backend)
    documents = [f"document {i} " * (i + 1) for i in range(6)]
    expected = {q: [r.margin for r in e.score(f"query {q}", documents)] for q in range(8)}
    wrong = []

    def work(q):
        for _ in range(5):
            if [r.margin for r in e.score(f"query {q}", documents)] != pytest.approx(expected[q], abs=1e-4):
                wrong.append(q)

    threads = [threading.Thread(target=work, args=(q,)) for q in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    e.close()
    assert not wrong and ctypes.sizeof(capi.Result) > 0


def test_two_backends_at_once(lib, backend):
    """In one process, side by side with our own engine."""
    ours, theirs = engine(lib, "cpu"), engine(lib, backend)
    a, b = ([r.margin for r in e.score("q", ["a", "b c", "d " * 30])] for e in (ours, theirs))
    again = [r.margin for r in ours.score("q", ["a", "b c", "d " * 30])]
    ours.close()
    theirs.close()
    assert a == again and b == pytest.approx(a, abs=1e-3)
