"""What all backends have in common: errors, limits, cancelling, memory, threads."""

import concurrent.futures
import ctypes
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import capi
import pytest
from conftest import more, require, torch_options
from support import BUILD, DATA, HANG_S, PROGRAM, SOURCE, cli, environment, fails, ok, score

FOREIGN = ["mlx", "pytorch"]


@pytest.fixture(params=FOREIGN)
def backend(request):
    require(request.param)
    return request.param


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
    process.communicate(timeout=HANG_S)
    assert process.returncode == 130


@pytest.fixture(scope="module")
def lib(sanitized):
    if sanitized and "libasan" not in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("Python is without the sanitizer's library; scripts/backends_asan.sh loads it")
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


def in_a_child(f):
    """What f returned in a forked process, or its error; a hang is ended by a signal."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(HANG_S)
        try:
            said = f()
        except RuntimeError as error:
            said = str(error)
        os.write(writer, json.dumps(said).encode())
        os._exit(0)
    os.close(writer)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(reader) as pipe:
        assert status == 0
        return json.loads(pipe.read())


FORKS = """
import json, sys
from test_behaviour import capi, engine, in_a_child
lib, backend = capi.load(sys.argv[1]), sys.argv[2]
ask = lambda e: [r.margin for r in e.score("q", ["a", "b " * 30])]
said = {"before": in_a_child(lambda: ask(engine(lib, backend)))}
e = engine(lib, backend)
said["parent"] = ask(e)
said["another"] = in_a_child(lambda: ask(engine(lib, backend)))
said["the same"] = in_a_child(lambda: ask(e))
said["closed"] = in_a_child(e.close)
said["after"] = ask(e)
e.close()
print(json.dumps(said))
"""


@pytest.mark.parametrize("name", ["cpu", *FOREIGN])
def test_processes_that_fork(lib, name):
    """Before anything is loaded: all works; an engine serves the process that opened it only, and says so elsewhere."""
    if name != "cpu":
        require(name)
    path = os.pathsep.join([str(pathlib.Path(__file__).parent), *sys.path])
    command = [sys.executable, "-c", FORKS, lib._name, name]
    done = subprocess.run(command, capture_output=True, env=environment(PYTHONPATH=path), check=True, timeout=HANG_S)
    said = json.loads(done.stdout)
    assert said["before"] == said["parent"] == said["after"]
    if name == "mlx":
        assert said["another"] == "MLX was loaded before this process was forked, and its threads are not here"
    else:
        assert said["another"] == said["parent"]
    assert "from which this one was forked; open one here" in said["the same"] and said["closed"] is None


def test_several_devices(tmp_path):
    """Each batch is shared out among them; the processor, twice, stands in for two GPUs."""
    require("pytorch")
    lines = [{"query": f"query {i // 20}", "document": f"document {i} " * (1 + i % 37)} for i in range(60)]
    options = ["--model", DATA / "untied-1", "--backend", "pytorch", "--dtype", "f32", *torch_options()]
    one, two, three = (score(lines, *options, "--device", device) for device in ("cpu", "cpu,cpu", "cpu,cpu,cpu"))
    for results in (two, three):
        assert [r["margin"] for r in results] == pytest.approx([r["margin"] for r in one], abs=1e-4)
    (tmp_path / "lines.txt").write_text("a\nb\n")
    log = cli("rank", *options, "--device", "cpu,cpu", "--log-level", "info", "q", tmp_path / "lines.txt").stderr.decode()
    assert "2 devices: cpu,cpu" in log


def test_both_plugins_at_once(lib):
    """PyTorch and MLX in one process, by turns and at the same time."""
    [require(name) for name in FOREIGN]
    engines = [engine(lib, name) for name in (*FOREIGN, "cpu")]
    documents = [f"document {i} " * (i + 1) for i in range(8)]
    expected = [r.margin for r in engines[-1].score("q", documents)]
    with concurrent.futures.ThreadPoolExecutor(len(engines)) as pool:
        calls = [pool.submit(e.score, "q", documents) for _ in range(10) for e in engines]
        for call in calls:
            assert [r.margin for r in call.result()] == pytest.approx(expected, abs=1e-3)
    [e.close() for e in engines]


def test_two_backends_at_once(lib, backend):
    """In one process, side by side with our own engine."""
    ours, theirs = engine(lib, "cpu"), engine(lib, backend)
    a, b = ([r.margin for r in e.score("q", ["a", "b c", "d " * 30])] for e in (ours, theirs))
    again = [r.margin for r in ours.score("q", ["a", "b c", "d " * 30])]
    ours.close()
    theirs.close()
    assert a == again and b == pytest.approx(a, abs=1e-3)
