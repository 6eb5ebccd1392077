"""Load, limits, keys, logs, clients that behave badly, and the end."""

import concurrent.futures
import json
import random
import signal
import socket
import threading
import time

import pytest

# About one second of work for one thread, and ten.
LARGE = {"query": "q", "documents": [f"{i} the quick brown fox jumps over the lazy dog " * 6 for i in range(1500)]}
HUGE = {"query": "q", "documents": [f"{i} a quick brown fox jumps over my lazy dog " * 6 for i in range(20000)]}


def scores(answer):
    assert answer.status == 200, answer.body
    return {item["index"]: item["score"] for item in answer.json()["results"]}


def test_many_clients_get_their_own_answers(server):
    rng = random.Random(1)
    words = "the quick brown fox jumps over a lazy dog near seven old bridges".split()
    text = lambda: " ".join(rng.choices(words, k=rng.randrange(1, 30)))
    bodies = [{"query": text(), "documents": [text() for _ in range(rng.randrange(1, 30))]} for _ in range(40)]
    alone = [scores(server.post("/v1/rerank", body)) for body in bodies]
    order = [rng.randrange(len(bodies)) for _ in range(300)]
    with concurrent.futures.ThreadPoolExecutor(30) as pool:
        together = list(pool.map(lambda i: scores(server.post("/v1/rerank", bodies[i])), order))
    assert together == [alone[i] for i in order]


def test_keys(start, tmp_path):
    file = tmp_path / "keys"
    file.write_text("# keys\nfirst\nsecond\n")
    server = start("--api-key-file", str(file), QWEN_RERANK_API_KEY="third")
    assert server.get("/v1/cluster/auth").json() == {"auth": True}
    body = {"query": "q", "documents": ["a"]}
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}, {"X-Api-Key": "firs"}, {"X-Api-Key": "# keys"}):
        answer = server.post("/v1/rerank", body, headers=headers)
        assert answer.status == 401 and answer.headers["WWW-Authenticate"] == "Bearer" and answer.json()["detail"]
    for headers in ({"Authorization": "Bearer first"}, {"Authorization": "bearer second"}, {"authorization": "third"}, {"X-Api-Key": "first"}, {"api-key": "third"}):
        assert server.post("/v1/rerank", body, headers=headers).status == 200
    assert server.get("/health").status == 200 and server.get("/info").status == 401


def test_an_empty_key_file_lets_nobody_in(tmp_path):
    from support import fails

    file = tmp_path / "keys"
    file.write_text("\n# none\n")
    assert "expected a key a line" in fails(2, "serve", "--api-key-file", str(file))


def test_limits(start):
    server = start("--max-documents", "3", "--max-body", "1", "--url-prefix", "/v3")
    assert server.post("/v3/rerank", {"query": "q", "documents": ["a"] * 3}).status == 200
    assert server.post("/rerank", {"query": "q", "documents": ["a"] * 3}).status == 200
    answer = server.post("/v1/rerank", {"query": "q", "documents": ["a"] * 4})
    assert answer.status == 400 and "at most 3 documents, found 4" in answer.json()["message"]
    answer = server.post("/v1/rerank", {"query": "q" * 2_000_000, "documents": ["a"]})
    assert answer.status == 413 and answer.json()["error"]["code"] == 413
    with server.connect() as s:  # no length is given
        s.sendall(b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + (b"10000\r\n" + b"x" * 65536 + b"\r\n") * 32 + b"0\r\n\r\n")
        assert s.recv(100).startswith(b"HTTP/1.1 413")


def test_too_many_waiting(start):
    server = start("--max-waiting", "1")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        large = pool.submit(server.post, "/v1/rerank", LARGE)
        server.wait_for(lambda: server.metric("requests_in_flight") == 1, "the large request")
        answer = server.post("/v1/rerank", {"query": "q", "documents": ["a"]})
        assert answer.status == 429 and answer.headers["Retry-After"] and answer.json()["error"]["type"] == "rate_limit_error"
        assert len(scores(large.result())) == 1500


def test_small_request_overtakes_large_one(start):
    server = start()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        large = pool.submit(server.post, "/v1/rerank", LARGE)
        server.wait_for(lambda: server.metric("batches_total") > 0, "the large request")
        assert server.post("/v1/rerank", {"query": "q", "documents": ["a"]}).status == 200
        assert not large.done()
        large.result()


def test_timeout(start):
    server = start("--request-timeout", "1")
    answer = server.post("/v1/rerank", HUGE)
    assert answer.status == 504 and "of 20000 documents were scored when the time was up" in answer.json()["message"]


def test_work_ends_when_the_client_has_gone(start):
    server = start()
    body = json.dumps(HUGE).encode()
    with server.connect() as s:
        s.sendall(b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        server.wait_for(lambda: server.metric("batches_total") > 0, "the request")
    server.wait_for(lambda: server.metric("requests_in_flight") == 0, "the request's end")
    assert server.metric("documents_total") == 0  # it was not finished
    assert scores(server.post("/v1/rerank", {"query": "q", "documents": ["a"]}))


def test_half_closed_clients_are_answered(server):
    body = b'{"query": "q", "documents": ["a", "b"]}'
    with server.connect() as s:
        s.sendall(b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        s.shutdown(socket.SHUT_WR)
        assert s.makefile("rb").read().startswith(b"HTTP/1.1 200")


def test_slow_writers_and_pipelines(server):
    body = b'{"query": "q", "documents": ["a"]}'
    request = b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with server.connect() as slow, server.connect() as quick:
        for byte in request[:60]:
            slow.sendall(bytes([byte]))
        quick.sendall(request * 3 + b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert quick.makefile("rb").read().count(b"HTTP/1.1 200") == 4
        slow.sendall(request[60:])
        assert slow.recv(100).startswith(b"HTTP/1.1 200")
    with server.connect() as old:
        old.sendall(b"POST /v1/rerank HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert b" 200 " in old.makefile("rb").read().split(b"\r\n")[0]


def test_request_ids(server):
    mine = server.get("/health", headers={"X-Request-ID": "mine-1"})
    assert mine.headers["X-Request-ID"] == "mine-1"
    assert server.get("/health", headers={"X-Request-ID": 'bad"id'}).headers["X-Request-ID"] != 'bad"id'
    ids = {server.get("/health").headers["X-Request-ID"] for _ in range(20)}
    assert len(ids) == 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping_finishes_what_is_in_work(start, number):
    server = start()
    answers = []
    thread = threading.Thread(target=lambda: answers.append(server.post("/v1/rerank", LARGE)))
    thread.start()
    server.wait_for(lambda: server.metric("batches_total") > 0, "the request")
    code, log = server.stop(number)
    thread.join()
    assert code == 0 and len(scores(answers[0])) == 1500
    line = next(entry for entry in log if entry["event"] == "request" and entry["path"] == "/v1/rerank")
    assert line["status"] == 200 and line["documents"] == 1500 and line["dialect"] == "results" and line["level"] == "info"
    assert all("quick brown" not in json.dumps(entry) for entry in log)


def test_a_second_signal_ends_at_once(start):
    server = start()
    with server.connect() as s:
        body = json.dumps(HUGE).encode()
        s.sendall(b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        server.wait_for(lambda: server.metric("batches_total") > 0, "the request")
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        code, _ = server.stop(signal.SIGTERM)
        assert code == 130


def test_addresses_in_use(server):
    from support import fails

    assert "cannot listen on 127.0.0.1 port" in fails(1, "serve", "--port", str(server.port))
    assert "cannot listen on" in fails(2, "serve", "--host", "no.such.name.invalid")


def test_unix_socket(tmp_path):
    import http.client
    import subprocess

    from support import PROGRAM, environment

    path = tmp_path / "socket"
    with subprocess.Popen([PROGRAM, "serve", "--unix-socket", str(path)], stderr=subprocess.PIPE, env=environment()) as process:
        while b"ready on" not in process.stderr.readline():
            assert process.poll() is None
        connection = http.client.HTTPConnection("x")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(path))
        connection.request("GET", "/health")
        assert connection.getresponse().read() == b'{"status": "ok"}\n'
        process.terminate()
        process.stderr.read()
    assert process.returncode == 0 and not path.exists()


def events(answer):
    """The (event, data) of a stream of server-sent events."""
    assert answer.status == 200 and answer.headers["Content-Type"] == "text/event-stream"
    blocks = [dict(line.split(": ", 1) for line in block.split("\n")) for block in answer.body.decode().split("\n\n") if block]
    return [(block["event"], json.loads(block["data"])) for block in blocks]


STREAM = {"Accept": "text/event-stream"}


def test_streams(server):
    body = {"query": "fox", "documents": [f"The fox number {i % 90}" for i in range(100)] + ["The fox number 1"], "top_n": 3}
    *progress, (last, final) = events(server.post("/v1/rerank", body, headers=STREAM))
    assert last == "result" and final["results"] == server.post("/v1/rerank", body).json()["results"]
    told = [item for name, data in progress for item in data["results"]]
    assert {name for name, _ in progress} == {"progress"} and sorted(item["index"] for item in told) == list(range(101))
    assert progress[-1][1]["done"] == progress[-1][1]["total"] == 101
    best = max(told, key=lambda item: (item["score"], -item["index"]))
    assert best["index"] == final["results"][0]["index"] and best["score"] == final["results"][0]["score"] and best["tokens"] > 50
    assert events(server.post("/rerank", {"query": "fox", "texts": ["a"]}, headers=STREAM))[-1][1][0]["index"] == 0
    assert server.post("/v1/rerank", {"query": "fox"}, headers=STREAM).status == 400
    refused = server.post("/v1/rerank", body, headers={"Accept": "application/json;q=1, text/event-stream;q=0"})
    assert refused.headers["Content-Type"] == "application/json" and refused.json()["results"] == final["results"]
    rather = server.post("/v1/rerank", body, headers={"Accept": "text/event-stream;q=0.5"})
    assert rather.headers["Content-Type"] == "text/event-stream"


def test_streams_end_with_an_error(start):
    server = start("--request-timeout", "1", "--max-batch-tokens", "512")
    *progress, (last, error) = events(server.post("/v1/rerank", HUGE, headers=STREAM))
    assert progress and last == "error" and "time was up" in error["message"] and error["error"]["code"] == 504
    assert server.metric("requests_in_flight") == 0


@pytest.mark.parametrize("headers", [{}, STREAM])
def test_partial_answers_when_the_time_is_up(start, headers):
    server = start("--request-timeout", "1", "--max-batch-tokens", "512")
    answer = server.post("/v1/rerank", HUGE | {"partial": True}, headers=headers)
    assert answer.status == 200
    answer = events(answer)[-1][1] if headers else answer.json()
    found, failed = [r["index"] for r in answer["results"]], [f["index"] for f in answer["failed"]]
    assert answer["partial"] is True and found and failed == sorted(set(range(20000)) - set(found)) != []
    assert {f["error"] for f in answer["failed"]} == {f"{len(found)} of 20000 documents were scored when the time was up"}
    assert server.metric("documents_total") == len(found) and server.metric("documents_waiting") == 0
    sample = answer["results"][:3]
    again = server.post("/v1/rerank", HUGE | {"documents": [HUGE["documents"][r["index"]] for r in sample], "partial": True}).json()
    assert again["partial"] is False and again["failed"] == []
    assert [r["relevance_score"] for r in again["results"]] == [r["relevance_score"] for r in sample]


def test_a_stream_nobody_reads_is_given_up(start):
    server = start("--max-batch-tokens", "512")
    body = json.dumps(HUGE).encode()
    with server.connect() as s:
        s.sendall(b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert b" 200 OK" in s.recv(100)
    server.wait_for(lambda: server.metric("requests_in_flight") == 0, "the request's end")
    assert server.metric("documents_total") == 0
    code, log = server.stop()
    assert code == 0 and 499 in [entry.get("status") for entry in log]


def test_pages_of_other_origins(start):
    server = start("--cors-origin", "https://good.example")
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    good = server.request("OPTIONS", "/v1/rerank", headers=asked | {"Origin": "https://good.example"})
    assert good.status == 204 and good.headers["Access-Control-Allow-Origin"] == "https://good.example"
    assert "Authorization" in good.headers["Access-Control-Allow-Headers"] and "Origin" in good.headers["Vary"]
    assert server.get("/health", headers={"Origin": "https://good.example"}).headers["Access-Control-Allow-Origin"] == "https://good.example"
    assert "Access-Control-Allow-Origin" not in server.get("/health", headers={"Origin": "https://bad.example"}).headers


def test_encodings_and_traces(start):
    server = start()
    body = json.dumps({"query": "q", "documents": ["a"]})
    refused = server.post("/v1/rerank", body, headers={"Content-Encoding": "gzip"})
    assert refused.status == 415 and "Content-Encoding" in refused.json()["message"]
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    assert server.post("/v1/rerank", body, headers={"Content-Encoding": "identity", "traceparent": f"00-{trace}-00f067aa0ba902b7-01"}).status == 200
    assert server.post("/v1/rerank", body, headers={"traceparent": "00-zz"}).status == 200
    _, log = server.stop()
    assert [entry.get("trace_id") for entry in log if entry["event"] == "request" and entry["status"] == 200] == [trace, None]


def test_timing_headers(server):
    answer = server.post("/rerank", {"query": "q", "texts": ["aä", "b"]})
    assert answer.headers["x-compute-characters"] == "3" and int(answer.headers["x-compute-tokens"]) > 100
    for name in ("x-total-time", "x-compute-time", "x-tokenization-time", "x-queue-time", "x-inference-time"):
        assert int(answer.headers[name]) >= 0
    names = [part.split(";")[0] for part in answer.headers["Server-Timing"].split(", ")]
    assert names == ["read", "tokenize", "queue", "inference", "total"]


def test_limits_on_characters(start):
    server = start("--max-query-chars", "5", "--max-document-chars", "7")
    long = server.post("/v1/rerank", {"query": "123456", "documents": ["a"]})
    assert long.status == 400 and "at most 5 characters" in long.json()["message"]
    cut = server.post("/v1/rerank", {"query": "ääää", "documents": ["äbcdefgh", "äbcdefg"]})
    assert cut.status == 200 and cut.headers["X-Truncated-Documents"] == "1" and len(set(scores(cut).values())) == 1
    assert server.post("/v1/rerank", {"query": "q", "documents": ["a", "12345678"], "truncation": False}).status == 400


def test_results_as_data_and_documents_by_default(start):
    server = start("--mirror-data", "--return-documents")
    answer = server.post("/v1/rerank", {"query": "q", "documents": ["a", "b"]}).json()
    assert [(d["index"], d["relevance_score"]) for d in answer["data"]] == [(r["index"], r["relevance_score"]) for r in answer["results"]]
    assert answer["results"][0]["document"] and "document" not in server.post(
        "/v1/rerank", {"query": "q", "documents": ["a"], "return_documents": False}).json()["results"][0]


@pytest.mark.parametrize("model, level, words", [("builtin", "info", "4 of 4 answers"), ("small-1", "warning", "does not rank")])
def test_self_test(start, model, level, words):
    from support import DATA

    server = start("--self-test", "--model", model if model == "builtin" else str(DATA / model))
    server.wait_for(lambda: b"self-test" in server.read_log(), "the self-test")
    assert server.get("/ready").status == 200
    _, log = server.stop()
    line = next(entry for entry in log if "self-test" in entry.get("message", ""))
    assert line["level"] == level and words in line["message"]


def test_cached_results(start):
    server = start("--result-cache", "1")
    body = {"query": "q", "documents": [f"text {i}" for i in range(30)]}
    first, second = server.post("/v1/rerank", body).json(), server.post("/v1/rerank", body).json()
    assert first["results"] == second["results"]
    assert server.metric("result_cache_hits_total") == server.metric("result_cache_misses_total") == 30


def test_stages_add_up_to_the_time_of_computing(start):
    server = start()
    server.post("/v1/rerank", {"query": "q", "documents": [f"text number {i} " * 20 for i in range(20)]})
    stages = {name: server.metric(f'stage_seconds_total{{stage="{name}"}}') for name in ("embed", "norm", "qkv", "attention", "o", "mlp", "head", "idle")}
    assert all(seconds > 0 for seconds in stages.values()), stages
    assert 0.5 * server.metric("compute_seconds_total") < sum(stages.values()) <= server.metric("compute_seconds_total")


def test_metrics_behind_a_key(start):
    server = start("--api-key", "k", "--protect-metrics")
    assert server.get("/metrics").status == 401 and server.get("/metrics", headers={"Authorization": "Bearer k"}).status == 200


def test_texts_are_logged_only_if_asked_for(start):
    server = start("--log-texts")
    server.post("/v1/rerank", {"query": "secret question", "documents": ["secret text"]})
    _, log = server.stop()
    line = next(entry for entry in log if entry["event"] == "request" and entry["path"] == "/v1/rerank")
    assert line["queries"] == ["secret question"] and line["texts"] == ["secret text"]


def test_several_models(start, tmp_path):
    from support import DATA, MODEL

    server = start("--model", f"first={MODEL}", "--model", f"second={DATA / 'untied-1'}")
    body = {"query": "q", "documents": ["a", "b"]}
    first, second = (scores(server.post("/v1/rerank", body | {"model": name})) for name in ("first", "second"))
    assert first != second and scores(server.post("/v1/rerank", body)) == first
    unknown = server.post("/v1/rerank", body | {"model": "third"})
    assert unknown.status == 404 and "first, second" in unknown.json()["message"] and unknown.json()["error"]["param"] == "model"
    assert [model["id"] for model in server.get("/v1/models").json()["data"]] == ["first", "second"]
    assert server.get("/v1/models/second").json()["id"] == "second" and server.get("/v1/models/third").status == 404
    assert [model["model"] for model in server.get("/v1/config").json()["models"]] == ["first", "second"]
    assert server.get("/v1/v1/models/second").json()["id"] == "second"  # a base URL that has the version, too
    from support import fails

    assert "two models are called 'micro-1'" in fails(2, "serve", "--model", MODEL, "--model", MODEL)


def test_config_tells_settings_and_backends(start):
    config = start("--max-documents", "9", QWEN_RERANK_PROFILE="builtin").get("/v1/config").json()
    settings = {item["name"]: (item["value"], item["origin"]) for item in config["settings"]}
    assert settings["max-documents"] == ("9", "--max-documents") and settings["backend"] == ("cpu", "profile builtin (built in)")
    assert config["profile"] == "builtin" and config["limits"]["max_documents"] == 9
    backends = {b["name"]: b for b in config["backends"]}
    assert backends["cpu"]["usable"] and all(b["chosen"] == (name == "cpu") and b["why"] for name, b in backends.items())


def test_keys_are_hidden_in_the_settings(start):
    server = start("--api-key", "swordfish")
    shown = server.get("/v1/config", headers={"X-Api-Key": "swordfish"}).body
    assert b"swordfish" not in shown and b"(hidden)" in shown


def test_any_port_and_the_service_manager(tmp_path):
    import subprocess

    from support import PROGRAM, environment

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        command = [PROGRAM, "serve", "--port", "0", "--log-format", "json", "--threads", "1"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment(NOTIFY_SOCKET=str(tmp_path / "notify")))
        assert manager.recv(100) == b"READY=1"
        line = next(line for line in process.stderr if b"ready on" in line)
        port = int(json.loads(line)["message"].rsplit(":", 1)[1])
        assert port > 1023
        with socket.create_connection(("127.0.0.1", port)):
            pass
        process.terminate()
        assert manager.recv(100) == b"STOPPING=1"
        process.communicate(timeout=60)
        assert process.returncode == 0


def test_not_ready_while_loading(tmp_path):
    """A hundred models take a while."""
    import http.client
    import subprocess

    from support import MODEL, PROGRAM, environment, free_port

    port = free_port()
    models = [arg for i in range(100) for arg in ("--model", f"m{i}={MODEL}")]
    said = tmp_path / "stderr"
    with said.open("wb") as stderr:
        process = subprocess.Popen([PROGRAM, "serve", *models, "--port", str(port)], stderr=stderr, env=environment())

    def ask(*args):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request(*args)
        answer = connection.getresponse()
        return answer, answer.read()

    try:
        for _ in range(6000):
            try:
                ready, body = ask("GET", "/ready")
                break
            except ConnectionRefusedError:
                time.sleep(0.01)
        assert ready.status == 503 and json.loads(body)["status"] == "loading"
        assert ask("GET", "/health")[1] == b'{"status": "ok"}\n'
        answer, body = ask("POST", "/v1/rerank", b'{"query": "q", "documents": ["a"]}')
        assert answer.status == 503 and b"Loading model" in body and answer.headers["Retry-After"] == "1"
    finally:
        process.terminate()
    assert process.wait(timeout=60) == 0, said.read_text(errors="replace")[-8000:]


def test_smoke_test(server, tmp_path):
    import subprocess

    from support import SOURCE

    script = SOURCE / "scripts" / "smoke_test.sh"
    if not (SOURCE / "models" / "builtin" / "config.json").exists():
        pytest.skip("this build has no built-in model")
    done = subprocess.run([script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "checks passed: builtin on cpu" in done.stdout, done.stderr
    refused = subprocess.run([script, "--url", "http://127.0.0.1:1"], capture_output=True, text=True, timeout=300)
    assert refused.returncode == 1 and "smoke_test: /v1/rerank" in refused.stderr
