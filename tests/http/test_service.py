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
