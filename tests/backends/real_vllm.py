"""The backend vllm with real servers: `make test-vllm`. Shows that the fake server of test_vllm.py is like them."""

import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.request

import pytest
from support import MODEL, SOURCE, fails, free_port, ok, score
from test_vllm import DOCUMENTS, GOLDEN, serve  # noqa: F401

PYTHON = SOURCE / "build" / "vllm-venv" / "bin" / "python"
START_S = 600  # a minute on an idle machine with two cores
EXACT = 1e-3  # f32 there and in the reference; 1.4e-5 was measured
CLASSIFIER = {"architectures": ["Qwen3ForSequenceClassification"], "classifier_from_token": ["no", "yes"], "is_original_qwen3_reranker": True}
SETTINGS = {
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_WAIT_POLICY": "passive",
}  # fmt: skip


class RealVllm:
    def __init__(self, port, log, *options):
        # Blocks of 32 tokens: with the default of processors, 128, no head of a prompt would be shared.
        command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", MODEL, "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32",
                   "--max-model-len", "8193", "--served-model-name", "reranker", "--enforce-eager", "--block-size", "32", *options]  # fmt: skip
        self.url, self.log = f"http://127.0.0.1:{port}", log
        self.process = subprocess.Popen(command, env=os.environ | SETTINGS, stdout=log.open("wb"), stderr=subprocess.STDOUT, start_new_session=True)
        end = time.monotonic() + START_S
        while not self.is_healthy():
            assert self.process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
            time.sleep(0.5)

    def is_healthy(self):
        try:
            return urllib.request.urlopen(self.url + "/health", timeout=2).status == 200
        except OSError:
            return False

    def metric(self, name):
        text = urllib.request.urlopen(self.url + "/metrics").read().decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"vllm:{name}{{"))

    def kill(self, number=signal.SIGKILL):
        os.killpg(self.process.pid, number)


def start(tmp_path_factory, *options):
    return RealVllm(free_port(), tmp_path_factory.mktemp("vllm") / "log", *options)


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    server = start(tmp_path_factory, "--enable-prefix-caching")
    yield server
    server.kill()


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    server = start(tmp_path_factory, "--runner", "pooling", "--hf-overrides", json.dumps(CLASSIFIER))
    yield server
    server.kill()


def test_doctor(causal, classifier):
    report = json.loads(ok("doctor", "--json", "--vllm-url", causal.url, "--vllm-url", classifier.url))
    found = {s["name"]: (s["state"], s["protocol"], s["address"], s["model"], s["max_model_len"]) for s in report["servers"]}
    assert found[causal.url] == ("up", "completions", "127.0.0.1", "reranker", 8193)
    assert found[classifier.url] == ("up", "classify", "127.0.0.1", "reranker", 8193)
    assert all(re.match(r"\d+\.\d+", s["version"]) for s in report["servers"])


def golden(url, protocol):
    reference = json.loads((GOLDEN / "scores-micro-1.json").read_text())["cases"]
    cases = json.loads((GOLDEN / "cases.json").read_text())
    lines = [
        {k: v for k, v in case.items() if k in ("query", "instruction", "max_length")} | {"document": case["document"] * case.get("repeat", 1)}
        for case in cases
    ]
    results = score(lines, "--vllm-url", url, "--vllm-protocol", protocol)
    assert len(results) == len(reference) > 20
    for r, c in zip(results, reference):
        assert r["ids_sha256"] == c["ids_sha256"] and r["margin"] == pytest.approx(c["margin"], abs=EXACT)


@pytest.mark.parametrize("protocol", ["auto", "completions", "generative-scoring"])
def test_golden_scores_of_a_causal_model(causal, protocol):
    golden(causal.url, protocol)


@pytest.mark.parametrize("protocol", ["auto", "classify"])
def test_golden_scores_of_a_classifier(classifier, protocol):
    golden(classifier.url, protocol)


def test_what_does_not_fit_is_refused(causal, classifier):
    assert "max_model_len of 8193" in fails(1, "score", "--vllm-url", causal.url, "--max-length", "9000")
    assert "expected the model other, found reranker" in fails(1, "score", "--vllm-url", causal.url, "--vllm-model", "other")
    assert "status 404" in fails(1, "score", "--vllm-url", causal.url, "--vllm-protocol", "classify")
    assert "status 404" in fails(1, "score", "--vllm-url", classifier.url, "--vllm-protocol", "completions")


def test_the_prefix_of_a_query_is_shared(causal):
    before = causal.metric("prefix_cache_hits_total")
    lines = [{"query": "a question that nobody has asked before", "document": d} for d in DOCUMENTS[:40]]
    score(lines, "--vllm-url", causal.url)
    assert causal.metric("prefix_cache_hits_total") - before >= 30 * 64  # two blocks of the 80 tokens and more that all have in common


def test_a_client_that_goes_away_frees_the_server(causal, serve):  # noqa: F811
    front = serve("--vllm-url", causal.url)
    before = causal.metric("generation_tokens_total")
    body = json.dumps({"query": "q", "documents": [f"document {i} " + "word " * 400 for i in range(300)]}).encode()
    with front.connect() as connection:
        connection.sendall(b"POST /v1/rerank HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        front.wait_for(lambda: causal.metric("num_requests_running") > 0, "the requests' arrival")
    front.wait_for(lambda: causal.metric("num_requests_running") + causal.metric("num_requests_waiting") == 0, "their end")
    assert causal.metric("generation_tokens_total") - before < 300  # one each


def test_frozen_and_killed_under_load(causal, classifier, serve):  # noqa: F811
    """Last: it leaves one server only."""
    front = serve("--vllm-url", classifier.url, "--vllm-url", causal.url)
    front.wait_for(lambda: all(r["state"] == "up" for r in front.get("/v1/config").json()["replicas"]), "both servers")
    lines = "".join(json.dumps({"query": "q", "document": d}) + "\n" for d in DOCUMENTS)
    expected = [json.loads(line)["score"] for line in ok("score", "--vllm-url", classifier.url, stdin=lines).splitlines()]
    stop, statuses, worst = threading.Event(), [], []

    def client(first):
        while not stop.is_set():
            answer = front.post("/v1/rerank", {"query": "q", "documents": DOCUMENTS[first : first + 10]})
            statuses.append(answer.status)
            if answer.status == 200:
                worst.extend(abs(r["relevance_score"] - expected[first + r["index"]]) for r in answer.json()["results"])
            time.sleep(0.05)

    clients = [threading.Thread(target=client, args=(10 * i,)) for i in range(4)]
    for c in clients:
        c.start()
    time.sleep(3)
    causal.kill(signal.SIGSTOP)
    time.sleep(12)
    causal.kill(signal.SIGCONT)
    front.wait_for(lambda: all(r["state"] == "up" for r in front.get("/v1/config").json()["replicas"]), "the frozen server's return")
    causal.kill()
    time.sleep(5)
    stop.set()
    for c in clients:
        c.join()
    assert len(statuses) > 20 and set(statuses) == {200} and max(worst) < 1e-4


def test_the_manifests_have_flags_that_vllm_knows():
    """They are all in its --help."""
    import yaml

    packaging = SOURCE / "packaging"
    deployment = next(d for d in yaml.safe_load_all((packaging / "kubernetes" / "vllm.yaml").read_text()) if d["kind"] == "Deployment")
    services = yaml.safe_load((packaging / "docker" / "compose.vllm.yaml").read_text())["services"]
    commands = [deployment["spec"]["template"]["spec"]["containers"][0]["args"], services["vllm-0"]["command"], services["vllm-1"]["command"]]
    flags = {flag.partition("=")[0] for command in commands for flag in command}
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--help=all"]
    known = subprocess.run(command, capture_output=True, text=True, env=os.environ | SETTINGS, timeout=START_S, check=True).stdout
    assert "--shutdown-timeout" in flags and [f for f in flags if not re.search(rf"^  {f}[ ,]", known, re.MULTILINE)] == []
