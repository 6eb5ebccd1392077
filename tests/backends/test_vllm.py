"""The backend vllm against fake servers: scores by every protocol, what is refused at the start, and faults, under which no request may be
lost while one replica lives, and none answered wrongly."""

import collections
import concurrent.futures
import contextlib
import importlib.util
import json
import os
import pathlib
import re
import shutil
import signal
import sys
import threading
import time

import pytest
from fake_vllm import CAUSAL, CLASSIFIER, FakeVllm, formula, sigmoid
from support import MODEL, PROGRAM, cli, environment, fails, ok, score

TESTS = pathlib.Path(__file__).resolve().parents[1]
GOLDEN = TESTS / "golden"
PROTOCOLS = {"completions": CAUSAL, "classify": CLASSIFIER, "generative-scoring": ("/generative_scoring",)}
EXACT = 2e-5  # margins of up to 16 travel as decimal text and end in single precision; by way of a probability, a digit more is lost
DOCUMENTS = [f"document number {i} " + "word " * (i % 40) for i in range(150)]
PAIRS = [{"query": f"query {i % 3}", "document": d} for i, d in enumerate(DOCUMENTS)]


@pytest.fixture(scope="session")
def tokenize():
    """The real tokenizer, which is ours: tests of the tokenizer compare it with the reference."""
    known = {}

    def tokenize(text):
        if text not in known:
            known[text] = [token["id"] for token in json.loads(ok("tokenize", "--special", "--json", "-", stdin=text))["tokens"]]
        return known[text]

    return tokenize


@pytest.fixture
def vllm(tokenize):
    """Starts fake servers."""
    servers = []

    def start(**settings):
        servers.append(FakeVllm(tokenize, **settings))
        return servers[-1]

    yield start
    for s in servers:
        s.stop()


@pytest.fixture
def serve():
    """Starts our server with options of its own, as in tests/http."""
    spec = importlib.util.spec_from_file_location("http_servers", TESTS / "http" / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    servers = []

    def serve(*options, **variables):
        servers.append(module.Server(*options, **variables))
        return servers[-1]

    yield serve
    for s in servers:
        s.stop(signal.SIGKILL)


def urls(*servers):
    return [option for s in servers for option in ("--vllm-url", s.url)]


def check(results):
    """Every result must be the formula's value of the very prompt that it is for."""
    for r in results:
        assert r["margin"] == pytest.approx(formula(r["ids_sha256"]), abs=EXACT)


# ---- scores


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.golden
def test_golden_scores(vllm, protocol):
    reference = json.loads((GOLDEN / "scores-micro-1.json").read_text())["cases"]
    cases = json.loads((GOLDEN / "cases.json").read_text())
    fake = vllm(routes=PROTOCOLS[protocol], golden={c["ids_sha256"]: c["margin"] for c in reference})
    lines = [
        {k: v for k, v in case.items() if k in ("query", "instruction", "max_length")} | {"document": case["document"] * case.get("repeat", 1)}
        for case in cases
    ]
    results = score(lines, "--backend", "vllm", *urls(fake))
    assert len(results) == len(reference) > 20
    for r, c in zip(results, reference):
        assert r["ids_sha256"] == c["ids_sha256"]
        assert r["margin"] == pytest.approx(c["margin"], abs=EXACT)
        assert r["score"] == pytest.approx(c["score"], abs=1e-6)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol(vllm, protocol):
    fake = vllm(routes=PROTOCOLS[protocol])
    done = cli("score", "-v", "--vllm-url", fake.url, stdin="".join(json.dumps(p) + "\n" for p in PAIRS))
    assert done.returncode == 0 and protocol in done.stderr.decode()  # found by trying, and the backend chosen for the URL alone
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(PAIRS)
    check(results)
    assert sum(len(r) for r in fake.requests) == len(PAIRS) + 4  # and the sample: nothing was asked twice


def test_a_protocol_can_be_chosen(vllm):
    fake = vllm()
    check(score(PAIRS[:5], "--vllm-url", fake.url, "--vllm-protocol", "generative-scoring"))
    assert "status 404" in fails(1, "score", "--vllm-url", fake.url, "--vllm-protocol", "classify")
    old = vllm(knows_label_ids=False)  # a vLLM from before logprob_token_ids, which ignores the field: the next protocol does
    check(score(PAIRS[:5], "--vllm-url", old.url))
    old.routes = ("/v1/completions",)
    assert "without logprob_token_ids" in fails(1, "score", "--vllm-url", old.url, "--vllm-protocol", "completions")


def test_the_model_may_be_elsewhere(vllm, tmp_path):
    """Only the configuration and the tokenizer have to be here."""
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(pathlib.Path(MODEL) / name, tmp_path)
    check(score(PAIRS[:5], "--model", str(tmp_path), "--vllm-url", vllm().url))
    assert "found no model.safetensors" in fails(4, "score", "--model", str(tmp_path), "--backend", "cpu")


def test_names_and_keys(vllm, tmp_path):
    fake = vllm(key="sesame", model="org/name")
    key = tmp_path / "key"
    key.write_text("sesame\n")
    check(score(PAIRS[:5], "--vllm-url", fake.url + "/v1/", "--vllm-api-key-file", str(key), "--vllm-model", "org/name"))
    assert "status 401" in fails(1, "score", "--vllm-url", fake.url)
    assert "status 401" in fails(1, "score", "--vllm-url", fake.url, "--vllm-api-key", "wrong")
    assert "expected the model other, found org/name" in fails(1, "score", "--vllm-url", fake.url, "--vllm-api-key", "sesame", "--vllm-model", "other")
    assert "sesame" not in ok("config", "show", "--vllm-api-key", "sesame")
    key.write_text("\n")
    assert "expected a key" in fails(2, "score", "--vllm-url", fake.url, "--vllm-api-key-file", str(key))


def test_long_prompts_and_long_lists(vllm):
    fake = vllm(routes=CAUSAL, max_model_len=1025)
    long = [{"query": "q", "document": "word " * 3000}, {"query": "q", "document": "short"}]
    results = score(long, "--vllm-url", fake.url, "--max-length", "1024")
    check(results)
    assert [r["truncated"] for r in results] == [True, False] and max(max(r) for r in fake.requests) == 1024
    many = score([{"query": "q", "document": f"d{i}"} for i in range(2500)], "--vllm-url", fake.url, "--max-length", "1024", "--max-batch-tokens", "1000000")
    check(many)
    assert len(many) == 2500 and max(len(r) for r in fake.requests) <= 1024


# ---- what is refused at the start


def test_servers_that_do_not_fit(vllm, tokenize):
    assert "another one" in fails(1, "score", *urls(vllm(tokenize_text=lambda text: tokenize(text)[:-1] + [0])))
    assert "max_model_len of 4096 (give --max-length 4095" in fails(1, "score", *urls(vllm(max_model_len=4096)))
    assert "found probabilities" in fails(1, "score", *urls(vllm(routes=CLASSIFIER, knows_use_activation=False)))
    assert "status 404" in fails(1, "score", *urls(vllm(routes=())))
    for fault, reason in {
        "html": "expected JSON", "nan": "expected JSON", "labels": "log-probability of token", "fewer": "expected 4 results", "twice": "that no other has",
        "cut": "were cut", "huge": "more than", "half": "transfer closed", "500": "status 500",
    }.items():  # fmt: skip
        assert reason in fails(1, "score", *urls(vllm(faults=fault, routes=("/v1/completions",))), "--vllm-protocol", "completions"), fault


def test_urls_that_are_none(vllm):
    for url, reason in {"localhost:8000": "http", "ftp://h": "http://", "http://": "URL", "http://u:p@h:1": "no user name", "": "URL"}.items():
        assert reason in fails(2, "score", "--vllm-url", url), url
    assert "no server is configured" in fails(1, "score", "--backend", "vllm")
    assert "expected one of auto|completions" in fails(2, "score", "--vllm-url", "http://h", "--vllm-protocol", "rerank")
    assert "Failed to connect" in fails(1, "score", "--vllm-url", "http://127.0.0.1:9")


def test_waiting_for_a_server_that_starts(vllm):
    fake = vllm()
    fake.stop()
    threading.Timer(1.5, fake.start).start()
    check(score(PAIRS[:5], "--vllm-url", fake.url, "--vllm-wait", "60"))


def test_one_good_server_is_enough_and_another_model_gets_no_work(vllm, serve):
    good, other, absent = vllm(), vllm(shift=5), vllm()
    absent.stop()
    server = serve(*urls(good, other, absent))
    for reason in ("another model", f"{absent.url} is out"):
        server.wait_for(lambda: reason.encode() in server.read_log(), reason)
    # Which of the two is asked first is not known; whichever it is, the scores are of one model.
    documents = DOCUMENTS[:50]
    margins = [formula(r["ids_sha256"]) for r in score([{"query": "q", "document": d} for d in documents])]
    results = server.post("/v1/rerank", {"query": "q", "documents": documents}).json()["results"]
    found = [r["relevance_score"] for r in sorted(results, key=lambda r: r["index"])]
    assert any(found == pytest.approx([sigmoid(m + shift) for m in margins], abs=1e-5) for shift in (0, 5))


# ---- faults


class Service:
    """Our server in front of fake ones, and clients that check every score."""

    def __init__(self, serve, *options, **variables):
        self.server = serve("--backend", "vllm", *options, **variables)
        lines = [{"query": "q", "document": d} for d in DOCUMENTS]
        self.expected = [sigmoid(formula(r["ids_sha256"])) for r in score(lines)]  # hashes by the cpu backend

    def rerank(self, first=0, n=20, **fields):
        body = {"query": "q", "documents": DOCUMENTS[first : first + n]} | fields
        answer = self.server.post("/v1/rerank", body)
        if answer.status == 200:
            results = answer.json()["results"]
            assert len(results) == n
            for r in results:
                assert r["relevance_score"] == pytest.approx(self.expected[first + r["index"]], abs=1e-5)
        return answer

    def load(self, n_clients=8, n_requests=100):
        """All answers of so many requests, by clients at the same time."""
        with concurrent.futures.ThreadPoolExecutor(n_clients) as pool:
            return list(pool.map(lambda i: self.rerank(i % 100, 1 + i % 30), range(n_requests)))

    def replicas(self):
        return {r["name"]: r for r in self.server.get("/v1/config").json()["replicas"]}


ONCE = ["500", "503", "429", "html", "nan", "labels", "fewer", "twice", "cut", "half", "drop", "huge"]


@pytest.mark.parametrize("fault", ONCE)
def test_a_spoilt_answer_is_asked_for_again(vllm, serve, fault):
    a, b = vllm(), vllm()
    service = Service(serve, *urls(a, b))
    a.faults, b.faults = [fault] * 3, [fault] * 3
    answers = service.load(4, 24)
    assert [x.status for x in answers] == [200] * 24
    assert not a.faults or not b.faults


@pytest.mark.parametrize("fault", [f for f in ONCE if f != "huge"])
def test_a_spoilt_answer_of_the_only_server(vllm, serve, fault):
    fake = vllm()
    service = Service(serve, *urls(fake))
    fake.faults = [fault] * 2
    assert [service.rerank().status for _ in range(3)] == [200] * 3


@pytest.mark.parametrize("fault", ["500", "html", "cut", "hang"])
def test_a_replica_that_is_always_bad(vllm, serve, fault):
    good, bad = vllm(), vllm()
    service = Service(serve, *urls(good, bad), "--vllm-timeout", "2")
    bad.faults = fault
    assert [x.status for x in service.load()] == [200] * 100
    bad.faults = []
    service.server.wait_for(lambda: service.replicas()[bad.url]["state"] == "up", "the replica's return")
    assert [x.status for x in service.load()] == [200] * 100


@pytest.mark.parametrize("hang", [False, True])
def test_a_replica_dies_and_comes_back(vllm, serve, hang):
    a, b = vllm(delay=0.05), vllm(delay=0.05)
    service = Service(serve, *urls(a, b))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        loading = pool.submit(service.load, 12, 300)
        time.sleep(0.4)
        a.stop(hang)
        time.sleep(4 if hang else 0.6)
        a.start()
        assert [x.status for x in loading.result()] == [200] * 300
    service.server.wait_for(lambda: service.replicas()[a.url]["state"] == "up", "the replica's return")
    assert service.replicas()[a.url]["ejections"] >= 1 and service.replicas()[b.url]["ejections"] == 0
    before = a.n_answered
    assert [x.status for x in service.load()] == [200] * 100
    assert a.n_answered > before


def test_a_replica_is_frozen(vllm, serve):
    """As by SIGSTOP: connections stay open, nothing comes. Its health is asked for, and what it had goes elsewhere long before --vllm-timeout."""
    a, b = vllm(), vllm()
    service = Service(serve, *urls(a, b), "--vllm-timeout", "1000")  # longer than the clients wait
    a.freeze()
    assert [x.status for x in service.load(8, 60)] == [200] * 60
    service.server.wait_for(lambda: service.replicas()[a.url]["state"] != "up", "its being noticed")
    a.thaw()
    service.server.wait_for(lambda: service.replicas()[a.url]["state"] == "up", "the replica's return")


def test_hedging(vllm, serve):
    """What one server keeps for long, though it is healthy, another is asked for; the first is told that nobody waits any more."""
    a, b = vllm(delay=0.01), vllm(delay=0.01)
    service = Service(serve, *urls(a, b), "--vllm-hedge")
    assert [x.status for x in service.load(4, 120)] == [200] * 120
    favourite = max(a, b, key=lambda fake: fake.n_answered)  # of the clients' one query
    for _ in range(4):
        favourite.faults = ["hang"]
        assert [x.status for x in service.load(1, 40)] == [200] * 40
        assert favourite.faults == []
    service.server.wait_for(lambda: a.running == b.running == 0, "the end of what hung")
    replicas = service.replicas()
    assert sum(r["hedges_won"] for r in replicas.values()) >= 2
    assert sum(r["hedges"] for r in replicas.values()) <= 0.05 * sum(r["requests"] for r in replicas.values())
    assert [r["ejections"] for r in replicas.values()] == [0, 0]
    metrics = service.server.get("/metrics").body.decode()
    assert re.search(r'qwen_rerank_replica_hedges_won_total\{model="[^"]+",replica="[^"]+"\} [1-9]', metrics)


def test_no_hedging_without_a_second_server(vllm, serve):
    fake = vllm()
    service = Service(serve, *urls(fake), "--vllm-hedge", "--vllm-timeout", "1")
    assert [x.status for x in service.load(4, 80)] == [200] * 80
    fake.faults = ["hang"]
    assert service.rerank().status == 200  # asked for again after the time limit
    assert service.replicas()[fake.url]["hedges"] == 0


def test_metrics_of_several_models(vllm, serve):
    """One head for each name: Prometheus refuses a second."""
    fake = vllm()
    server = serve("--backend", "vllm", *urls(fake), "--model", f"one={MODEL}", "--model", f"two={MODEL}")
    lines = server.get("/metrics").body.decode().splitlines()
    heads = [line for line in lines if line.startswith("#")]
    assert len(heads) == len(set(heads))
    assert {re.search('model="([^"]+)"', line)[1] for line in lines if line.startswith("qwen_rerank_replica_up{")} == {"one", "two"}


def test_doctor_says_what_each_server_is(vllm):
    good, short, gone, classifier = vllm(), vllm(max_model_len=100), vllm(), vllm(routes=CLASSIFIER, version=None)
    gone.stop()
    out = ok("doctor", *urls(good, short, gone, classifier))
    about = f"               address {good.host}, vLLM"
    first = f"server         {good.url}: up\n{about} 0.32.0, model {good.model}, 8193 tokens\n               asked by completions (the first choice), "
    assert re.search(re.escape(first) + r"[0-9.]+ ms for known prompts\n", out)
    assert re.search(rf"server         {short.url}: down, .*100.*\n{about} 0.32.0, model {short.model}, 100 tokens\n", out)
    assert re.search(rf"server         {gone.url}: down, .*\n(?!  )", out)
    assert f"{classifier.url}: up\n{about} of unknown version, " in out
    assert "asked by classify (/v1/completions: status 404: Not Found), " in out
    assert re.search(r"round trip     [0-9.]+ ms for a prompt of \d+ tokens", out)


def test_doctor_reports_in_json_and_by_its_exit_code(vllm):
    good, short = vllm(), vllm(max_model_len=100)
    report = json.loads(ok("doctor", "--json", "--vllm-protocol", "generative-scoring", *urls(good, short)))
    a, b = report["servers"]
    assert (a["state"], a["protocol"], a["protocol_reason"]) == ("up", "generative-scoring", "as asked for")
    assert (a["address"], a["version"], a["model"], a["max_model_len"]) == (good.host, "0.32.0", good.model, 8193)
    assert a["known_prompts_seconds"] > 0 and report["round_trip_seconds"] > 0
    assert b["state"] == "down" and "max_model_len of 100" in b["reason"]
    done = cli("doctor", *urls(short))
    assert done.returncode == 1 and b"no vLLM server can be used" in done.stderr and f"{short.url}: down, expected room".encode() in done.stdout
    report = json.loads(cli("doctor", "--json", *urls(short)).stdout)
    assert [s["state"] for s in report["servers"]] == ["down"] and "round_trip_seconds" not in report


def test_several_urls_in_a_variable(vllm):
    a, b = vllm(), vllm()
    env = environment(QWEN_RERANK_VLLM_URL=f" {a.url}, {b.url}\n")
    done = cli("score", "-v", stdin="".join(json.dumps(p) + "\n" for p in PAIRS[:5]), env=env)
    assert done.returncode == 0 and "of 2 vLLM servers" in done.stderr.decode()


def test_several_urls_in_a_profile(vllm, serve, tmp_path):
    a, b = vllm(), vllm()
    path = tmp_path / "profiles.yaml"
    path.write_text(f"profiles: {{p: {{vllm_options: {{urls: ['{a.url}', '{b.url}'], hedge: true}}}}}}")
    server = serve("--config", str(path), "--profile", "p")
    server.wait_for(lambda: [r["state"] for r in server.get("/v1/config").json()["replicas"]] == ["up", "up"], "both servers")


def test_rolling_restart(vllm, serve):
    """Each replica in turn says that it is going, refuses connections, and comes back, under load."""
    replicas = [vllm(delay=0.02) for _ in range(3)]
    service = Service(serve, *urls(*replicas))
    stop = threading.Event()

    def client(i):
        statuses = []
        while not stop.is_set():
            statuses.append(service.rerank(i * 10, 10).status)
        return statuses

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        clients = [pool.submit(client, i) for i in range(6)]
        for r in replicas:
            r.faults, r.health = "503", 503
            time.sleep(0.3)
            r.stop()
            time.sleep(0.3)
            r.faults, r.health = [], 200
            r.start()
            service.server.wait_for(lambda: service.replicas()[r.url]["state"] == "up", "the replica's return")
        stop.set()
        statuses = [s for c in clients for s in c.result()]
    assert len(statuses) > 50 and set(statuses) == {200}


def test_a_queue_that_counts_documents(vllm, serve):
    """vLLM's --max-num-queued-reqs counts every prompt of a request: smaller requests are made until they fit."""
    fake = vllm(max_queued=7)
    service = Service(serve, *urls(fake))
    assert service.rerank(0, 100).status == 200
    assert max(len(r) for r in fake.requests[-5:]) <= 7


def partial(service, n=20, status=200, **fields):
    answer = service.server.post("/v1/rerank", {"query": "q", "documents": DOCUMENTS[:n], "partial": True} | fields)
    assert answer.status == status, answer.body
    return answer.json()


def check_partial(service, answer, n=20):
    """Every document is either scored rightly or has its reason."""
    assert sorted([r["index"] for r in answer["results"]] + [f["index"] for f in answer["failed"]]) == list(range(n))
    for r in answer["results"]:
        assert r["relevance_score"] == pytest.approx(service.expected[r["index"]], abs=1e-5)
    scores = [r["relevance_score"] for r in answer["results"]]
    assert scores == sorted(scores, reverse=True)


def test_partial_answers_when_the_time_is_up(vllm, serve):
    fake = vllm()
    service = Service(serve, *urls(fake), "--request-timeout", "2", "--max-batch-tokens", "100")
    complete = partial(service)
    assert complete["partial"] is False and complete["failed"] == [] and len(complete["results"]) == 20
    fake.faults = [None] * 3 + ["hang"] * 100
    answer = partial(service)
    check_partial(service, answer)
    assert answer["partial"] is True and 0 < len(answer["results"]) < 20 and "when the time was up" in answer["failed"][0]["error"]
    fake.faults = "hang"
    assert "0 of 20 documents" in partial(service, status=504)["message"]  # nothing to show


def test_partial_answers_when_documents_fail(vllm, serve):
    """The others are scored all the same; without "partial" the request fails."""
    fake = vllm()
    service = Service(serve, *urls(fake), "--max-batch-tokens", "20")
    fake.max_model_len = 90
    answer = partial(service)
    check_partial(service, answer)
    assert 0 < len(answer["failed"]) < 20 and min(f["index"] for f in answer["failed"]) > 5  # documents grow
    assert "maximum context length" in answer["failed"][0]["error"]
    assert partial(service, top_n=2)["results"] == answer["results"][:2]
    assert service.server.post("/v1/rerank", {"query": "q", "documents": DOCUMENTS[:20]}).status == 500


def test_partial_answers_give_each_document_its_reason(vllm, serve):
    """Also where the time is up after others have failed."""
    fake = vllm()
    service = Service(serve, *urls(fake), "--max-batch-tokens", "20", "--request-timeout", "2")
    fake.max_model_len = 90
    fake.faults = [None] * 17 + ["hang"] * 100
    answer = partial(service, documents=DOCUMENTS[19::-1])  # the longest, which are refused, come first
    reasons = {f["index"]: f["error"] for f in answer["failed"]}
    assert "maximum context length" in reasons[0] and "when the time was up" in reasons[19]
    assert sorted([r["index"] for r in answer["results"]] + list(reasons)) == list(range(20)) and answer["results"]


def test_partial_answers_when_no_server_is_left(vllm, serve):
    fake = vllm(delay=0.2)
    service = Service(serve, *urls(fake), "--request-timeout", "4", "--max-batch-tokens", "20")
    before = fake.n_answered
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(partial, service)
        service.server.wait_for(lambda: fake.n_answered >= before + 3, "some answers")
        fake.stop()
        answer = waiting.result()
    check_partial(service, answer)
    assert answer["partial"] is True and answer["results"] and answer["failed"]


def test_no_server_is_left(vllm, serve):
    fake = vllm()
    service = Service(serve, *urls(fake), "--request-timeout", "2")
    assert service.rerank().status == 200
    fake.stop()
    start = time.monotonic()
    answer = service.rerank()
    assert answer.status == 504 and time.monotonic() - start > 1.5
    fake.start()
    service.server.wait_for(lambda: service.rerank().status == 200, "the server's return")


def test_a_refused_request_is_not_repeated_for_ever(vllm, serve):
    fake = vllm(routes=("/v1/completions",))
    service = Service(serve, *urls(fake))
    fake.max_model_len = 10  # now it refuses what it took at the start
    answer = service.rerank()
    assert answer.status == 500 and "maximum context length" in answer.body.decode()


def test_a_client_that_goes_away_frees_the_server(vllm, serve):
    fake = vllm()
    service = Service(serve, *urls(fake), "--vllm-timeout", "1000")
    fake.faults = ["hang"]
    with service.server.connect() as connection:
        body = json.dumps({"query": "q", "documents": DOCUMENTS[:20]}).encode()
        connection.sendall(b"POST /v1/rerank HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        service.server.wait_for(lambda: fake.running == 1, "the request's arrival")
    service.server.wait_for(lambda: fake.n_abandoned == 1, "the end of the request")
    assert service.rerank().status == 200


def test_a_deadline_frees_the_server(vllm, serve):
    fake = vllm()
    service = Service(serve, *urls(fake), "--request-timeout", "1")
    fake.faults = ["hang"]
    assert service.rerank().status == 504
    service.server.wait_for(lambda: fake.n_abandoned == 1, "the end of the request")
    assert service.rerank().status == 200


@pytest.mark.slow
def test_a_thousand_requests_for_a_server_that_stalls(vllm, serve):
    """As many as may wait do, the rest is told to come again; all end by their deadline, in bounded memory."""
    fake = vllm()
    service = Service(serve, *urls(fake), "--request-timeout", "8", "--max-waiting", "600")
    assert service.rerank().status == 200
    fake.faults = "hang"
    before = service.server.metric("resident_memory_bytes")
    body = json.dumps({"query": "q", "documents": DOCUMENTS}).encode()
    request = b"POST /v1/rerank HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(service.server.connect()) for _ in range(1000)]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda c: c.sendall(request), connections))
        service.server.wait_for(lambda: service.server.metric("requests_in_flight") == 600, "as many requests as may wait")
        assert service.server.metric("resident_memory_bytes") < before + 256 * 2**20  # of 40 MB of texts and their tokens
        statuses = [int(c.makefile("rb").readline().split()[1]) for c in connections]
    assert collections.Counter(statuses) == {429: 400, 504: 600}
    service.server.wait_for(lambda: fake.running == 0, "the end of all upstream requests")
    fake.faults = []
    assert service.rerank().status == 200


# ---- vLLM as a child


def is_alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def pids_of(server):
    lines = re.findall(r"startup complete\. pids (\d+) (\d+)", server.read_log().decode())
    return [[int(pid) for pid in line] for line in lines]


def test_vllm_as_a_child(serve, tmp_path):
    """Started, started again after a crash, and stopped with all its children."""
    crash = tmp_path / "crash"
    command = f"{sys.executable} {TESTS / 'backends' / 'fake_vllm.py'}"
    service = Service(serve, "--spawn", "--vllm-command", command, "--max-length", "2000", FAKE_VLLM_CRASH=str(crash), QR_TEST_PROGRAM=PROGRAM)
    assert service.rerank().status == 200
    ((first, engine),) = pids_of(service.server)
    os.kill(first, signal.SIGKILL)
    assert service.rerank().status == 200  # waits for the new one
    assert not is_alive(engine)
    second = pids_of(service.server)[1]
    assert all(is_alive(pid) for pid in second)
    code, log = service.server.stop()
    assert code == 0 and not any(is_alive(pid) for pid in second)
    said = [line.get("message", "") for line in log]
    assert any("ended by signal 9" in m for m in said) and any("vLLM says: INFO: loading" in m for m in said)


@pytest.mark.parametrize("deaf", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_no_orphan_is_left(serve, deaf):
    """By kill -9 of our server, nobody is there to stop vLLM but its guard; one that does not heed SIGTERM is killed after 20 s."""
    command = f"{sys.executable} {TESTS / 'backends' / 'fake_vllm.py'}"
    variables = {"FAKE_VLLM_DEAF": "1"} if deaf else {}
    service = Service(serve, "--spawn", "--vllm-command", command, "--max-length", "2000", QR_TEST_PROGRAM=PROGRAM, **variables)
    (pids,) = pids_of(service.server)
    assert all(is_alive(pid) for pid in pids)
    service.server.process.kill()
    service.server.process.wait()
    service.server.wait_for(lambda: not any(is_alive(pid) for pid in pids), "the end of vLLM and its engine")


def test_a_child_that_does_not_start(tmp_path):
    crash = tmp_path / "crash"
    crash.touch()
    options = ["serve", "--port", "0", "--spawn", "--vllm-command", f"{sys.executable} {TESTS / 'backends' / 'fake_vllm.py'}"]
    done = cli(*options, env=environment(FAKE_VLLM_CRASH=str(crash)))
    assert done.returncode == 1 and b"crashed on purpose" in done.stderr and b"ended 3 times without being ready" in done.stderr
    assert b"no such program" in cli(*options[:-1], "/nonexistent/vllm").stderr
    assert "expected one --model" in fails(2, "serve", "--spawn", "--vllm-url", "http://h")
    assert "expected a command" in fails(2, "serve", "--spawn", "--vllm-command", " ")


# ---- many at once


def test_requests_run_side_by_side_on_all_replicas(vllm, serve):
    """A slow request holds up no other, and every replica gets work."""
    replicas = [vllm(delay=0.1) for _ in range(4)]
    service = Service(serve, *urls(*replicas), "--max-batch-tokens", "512")
    service.load(16, 100)
    assert all(r.n_answered > 100 for r in replicas) and max(r.most_running for r in replicas) > 1
    answered = [r.n_answered for r in replicas]
    assert service.rerank(0, 150).status == 200  # one list, cut into parts for several
    assert sum(r.n_answered > n for r, n in zip(replicas, answered)) >= 2


def test_documents_of_a_query_stay_together(vllm, serve):
    """The prefix of a query is cached on one replica: its requests go there while it is not overloaded."""
    replicas = [vllm() for _ in range(4)]
    service = Service(serve, *urls(*replicas))
    before = [r.n_answered for r in replicas]
    for _ in range(10):
        assert service.rerank(0, 10).status == 200
    assert sorted(r.n_answered - n for r, n in zip(replicas, before)) == [0, 0, 0, 100]


@pytest.mark.slow
def test_memory_stays_flat(vllm, serve):
    a, b = vllm(), vllm()
    service = Service(serve, *urls(a, b))
    service.load(8, 200)
    before = service.server.metric("resident_memory_bytes")
    for fault in ("500", "html", "drop", "half", "huge"):
        a.faults = [fault] * 5
        service.load(8, 100)
    service.load(8, 400)
    assert service.server.metric("resident_memory_bytes") < before + 16 * 2**20
