"""Hostile and heavy load: every request is answered or refused in order, and what it took is given back. `make test-load` runs the mixed load for
60 seconds instead of 3."""

import concurrent.futures
import http.client
import json
import os
import pathlib
import random
import signal
import socket
import threading
import time

import pytest
from support import HANG_S

SECONDS = float(os.environ.get("QR_LOAD_SECONDS") or 3)
BODY = json.dumps({"query": "q", "documents": ["a", "b"]}).encode()


def head(extra=b"", length=None, path=b"/v1/rerank"):
    length = b"Content-Length: %d\r\n" % (len(BODY) if length is None else length)
    return b"POST " + path + b" HTTP/1.1\r\nHost: x\r\n" + extra + length + b"\r\n"


def status(server, data, end=False):
    """The status line's number; 0: the server closed the connection without an answer."""
    with server.connect() as s:
        s.sendall(data)
        if end:
            s.shutdown(socket.SHUT_WR)
        try:
            line = s.makefile("rb").readline()
        except ConnectionResetError:
            line = b""
    return int(line.split()[1]) if line else 0


def descriptors(server):
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def resident(server):
    lines = pathlib.Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


@pytest.mark.parametrize(
    "data, expected",
    [
        (b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY), 200),
        (b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n", 400),
        (head(length=10**23), 413),
        (head(length=2**64 - 1), 413),
        (head(b"Expect: 100-continue\r\n", length=10**10), 413),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200000 + b"\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X%d: a\r\n" % i for i in range(5000)) + b"\r\n", 431),
        (b"GET /" + b"a" * 100000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET /he%00alth HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /health%00 HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /health?" + b"a=b&" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 200),  # libmicrohttpd never answered
        (b"GET http://x/health HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (head(b"Content-Encoding: gzip\r\n", path=b"/tokenize") + BODY, 415),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"POST /v1/rerank HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY), 200),
    ],
    ids=lambda value: value[:70] if isinstance(value, bytes) else None,
)
def test_odd_requests(server, data, expected):
    assert status(server, data) == expected
    assert server.post("/v1/rerank", BODY).status == 200


GET = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


def answers(server, data):
    """All that comes back until the server or, having sent all, the client ends the connection."""
    with server.connect() as s:
        s.sendall(data)
        s.shutdown(socket.SHUT_WR)
        file, found = s.makefile("rb"), []
        while line := file.readline():
            headers = http.client.parse_headers(file)
            found.append((int(line.split()[1]), headers, file.read(int(headers["Content-Length"]))))
    return found


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        b"Content-Length: 4\r\nContent-Length: 0\r\n",
        b"Content-Length : 4\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        b"X: a\rContent-Length: 4\r\n",
        b"Host: y\r\n",
    ],
)
def test_unclear_ends_of_requests(server, lines):
    """What a proxy could take for a part of the body is not answered as a request (smuggling)."""
    (status, headers, body), *more = answers(server, b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n0\r\n\r\n" + GET)
    assert status == 400 and not more and headers["Connection"] == "close" and json.loads(body)["error"]["code"] == 400


def test_pipelining_and_half_closed_connections(server):
    statuses = [status for status, _, _ in answers(server, (head() + BODY) * 3 + GET + (head() + BODY) * 2)]
    assert statuses == [200] * 6


@pytest.mark.parametrize(
    "body, expected",
    [
        (b"[" * 1000000, 400),
        (b'{"query":"q","documents":["a"],"x":' + b"[" * 100000 + b"]" * 100000 + b"}", 400),
        (b'{"query":"q","query":"r","documents":["a"]}', 200),
        (b'{"query":"\xff\xfe","documents":["\xc3\x28", "\\ud800", "\\u0000"]}', 200),
        (b'{"query":"q","documents":["a"],"top_n":NaN}', 400),
        (b'{"query":"q","documents":["a"],"top_n":1e999}', 400),
        (b'{"query":"q","documents":["a"],"top_n":' + b"9" * 400 + b"}", 400),
        (json.dumps({"query": "q", "documents": ["word " * 2000000]}).encode(), 200),
        (json.dumps({"query": "q", "documents": ["d"] * 100001}).encode(), 400),
        (b"x" * (65 << 20), 413),
    ],
    ids=["deep", "deep inside", "twice", "broken text", "NaN", "large real", "large whole", "10 MB document", "100001 documents", "65 MiB"],
)
def test_odd_bodies(server, body, expected):
    answer = server.post("/v1/rerank", body)
    assert answer.status == expected and answer.headers["Content-Type"] == "application/json"
    assert "results" in answer.json() if expected == 200 else answer.json()["message"]


def abandon(server, n):
    for i in range(n):
        with server.connect() as s:
            if i % 3 == 0:
                s.sendall(head() + BODY[:5])


def be_slow(server, n=200):
    """All write byte by byte, side by side, while another client is served."""
    sockets = [server.connect() for _ in range(n)]
    for i in range(10):
        for s in sockets:
            s.sendall((head() + BODY)[i : i + 1])
    assert server.post("/v1/rerank", BODY).status == 200
    for s in sockets:
        s.sendall((head() + BODY)[10:])
    answers = [s.recv(20) for s in sockets]
    for s in sockets:
        s.close()
    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)


@pytest.mark.slow
def test_what_clients_took_is_given_back(start):
    server = start("--drain-timeout", "1000")
    large = json.dumps({"query": "q", "documents": [f"text {i}" for i in range(20000)]})

    def hammer():
        abandon(server, 2000)
        be_slow(server)
        for _ in range(2):
            assert server.post("/v1/rerank", large).status == 200

    before = descriptors(server)
    for _ in range(5):  # until heaps and buffers have the size that this load needs
        hammer()
    server.wait_for(lambda: descriptors(server) <= before, "descriptors to be closed")
    time.sleep(1)
    memory = resident(server)
    for _ in range(2):
        hammer()
    server.wait_for(lambda: descriptors(server) <= before, "descriptors to be closed")
    time.sleep(1)
    assert resident(server) < 1.1 * memory
    assert server.stop()[0] == 0  # in less than the drain timeout: nothing is left that it would wait for


def test_idle_connections_keep_nobody_out(server):
    idle = [server.connect() for _ in range(1500)]
    assert server.post("/v1/rerank", BODY).status == 200
    for s in idle:
        s.close()


WORDS = "search engine ranks passages by how well they answer a question of some user".split()
PATHS = [("/v1/rerank", "documents"), ("/v2/rerank", "documents"), ("/rerank", "texts"), ("/v1/reranking", "input")]


def make_requests(rng, n):
    for _ in range(n):
        path, field = rng.choice(PATHS)
        texts = [" ".join(rng.choices(WORDS, k=rng.choice([0, 3, 30, 200]))) for _ in range(rng.choice([1, 2, 5, 20]))]
        yield path, json.dumps({"query": " ".join(rng.choices(WORDS, k=5)), field: texts})


def without_names(body):
    """An answer without what differs from request to request."""
    if isinstance(body, dict):
        body = {key: value for key, value in body.items() if key not in ("id", "created")}
    return body


def run_clients(server, requests, expected, stop, outcomes):
    """One client: keeps its connection for a few requests, then takes a new one. Ends when the server takes no more."""
    rng = random.Random(threading.get_ident())
    connection, left = None, 0
    while not stop.is_set():
        i = rng.randrange(len(requests))
        if left == 0:
            connection, left = http.client.HTTPConnection("127.0.0.1", server.port, timeout=HANG_S), rng.randrange(1, 10)
            try:
                connection.connect()
            except OSError:
                return  # no longer listening
        left -= 1
        path, body = requests[i]
        try:
            connection.request("POST", path, body)
            answer = connection.getresponse()
        except OSError:
            return  # closed before it read the request; the log below tells if it had
        outcomes.append(answer.status == 200 and without_names(json.loads(answer.read())) == expected[i])
        if answer.headers.get("Connection") == "close":
            left = 0


def test_fifty_clients_and_a_stop(start):
    server = start("--max-waiting", "1000")
    requests = list(make_requests(random.Random(1), 60))
    expected = [without_names(server.post(path, body).json()) for path, body in requests]
    stop, outcomes = threading.Event(), []
    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        clients = [pool.submit(run_clients, server, requests, expected, stop, outcomes) for _ in range(50)]
        time.sleep(SECONDS)
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(timeout=HANG_S)
        stop.set()
        for client in clients:
            client.result()
    assert code == 0
    assert len(outcomes) > 100 and all(outcomes)
    log = [json.loads(line) for line in server.read_log().splitlines() if line.startswith(b"{")]
    statuses = [entry["status"] for entry in log if entry["event"] == "request"]
    assert set(statuses) == {200} and len(statuses) == len(requests) + len(outcomes)  # whatever it took on was answered


def ask_for_health(server, signalled, lost):
    """Connects, asks, reads until the end, again and again, until the server takes no more connections."""
    while True:
        is_early = not signalled.is_set()  # later, a connection may come just between the last one that is accepted and the end of listening
        try:
            s = server.connect()
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            continue  # while it was being made
        with s:
            try:
                s.sendall(GET.replace(b"Host", b"Connection: close\r\nHost"))
                answer = s.makefile("rb").read()
            except OSError:
                answer = b""
        if is_early and not answer.endswith(b'{"status": "ok"}\n'):
            lost.append(answer)


def stop_in_the_middle(server, signalled):
    time.sleep(0.5)
    signalled.set()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=HANG_S) == 0


@pytest.mark.slow
def test_a_stop_loses_no_request(start):
    """Connections that the system had made but the server had not looked at were reset by SIGTERM."""
    server = start()
    signalled, lost = threading.Event(), []
    with concurrent.futures.ThreadPoolExecutor(51) as pool:
        for client in [pool.submit(ask_for_health, server, signalled, lost) for _ in range(50)] + [pool.submit(stop_in_the_middle, server, signalled)]:
            client.result()
    assert lost == []


def test_who_has_just_connected_may_ask(start):
    server = start()
    with server.connect() as asks, server.connect():
        assert server.get("/health").status == 200  # they have been accepted by now, or will be before the listener closes
        begin = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        server.wait_for(lambda: b"stopping: " in server.read_log(), "the signal")
        asks.sendall(GET)
        answer = asks.makefile("rb").read()
        assert b"\r\nConnection: close\r\n" in answer and answer.endswith(b'{"status": "ok"}\n')
        assert server.process.wait(timeout=HANG_S) == 0
        assert time.monotonic() - begin >= 0.9  # the other one had a second to ask
