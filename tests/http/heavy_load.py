"""What takes minutes: slow clients, large requests, 10,000 connections, memcheck. Not collected by itself; `make test-load` names it."""

import concurrent.futures
import http.client
import json
import socket
import struct
import subprocess
import time

import pytest
from support import DATA, SOURCE
from test_load import BODY, GET, abandon, answers, descriptors, head, resident

SECONDS = 12  # that slow clients take
LONG = {"query": "q", "documents": [f"{i} " + "x" * 5000 for i in range(100)], "return_documents": True}
MANY = {"query": "q", "documents": [f"{i:x}" for i in range(100000)], "return_documents": True}
LARGE = b'{"query": "q", "documents": ["' + (b"word " * 13_421_766) + b'"]}'  # 64 MiB and no byte more
VALGRIND = ("valgrind", "--quiet", "--error-exitcode=99", "--leak-check=full", "--errors-for-leak-kinds=definite,indirect")


def ask(s, data):
    s.sendall(data)
    return http.client.HTTPResponse(s, method="POST")


def write_slowly(server):
    """Sends the end of its request byte by byte, one a second."""
    data = head() + BODY
    with server.connect() as s:
        s.sendall(data[:-SECONDS])
        for byte in data[-SECONDS:]:
            time.sleep(1)
            s.sendall(bytes([byte]))
        response = ask(s, b"")
        response.begin()
        return len(json.loads(response.read())["results"])


def read_slowly(server):
    """Leaves most of its answer, which does not fit the system's buffers, with the server for a while."""
    data = json.dumps(LONG).encode()
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.connect(("127.0.0.1", server.port))
        s.settimeout(120)
        response = ask(s, head(length=len(data)) + data)
        response.begin()
        body = b""
        for _ in range(SECONDS):
            time.sleep(1)
            body += response.read(1)
        return len(json.loads(body + response.read())["results"])


def be_slow(server):
    with concurrent.futures.ThreadPoolExecutor(200) as pool:
        clients = [pool.submit(client, server) for client in (write_slowly, read_slowly) for _ in range(100)]
        n = 0
        while not any(client.done() for client in clients):
            assert server.post("/v1/rerank", BODY).status == 200  # others are served meanwhile
            n += 1
            time.sleep(0.1)
        assert n > 10 and [client.result() for client in clients] == [2] * 100 + [100] * 100


def be_large(server):
    results = server.post("/v1/rerank", MANY).json()["results"]
    assert sorted(item["index"] for item in results) == list(range(100000))
    assert all(item["document"]["text"] == f"{item['index']:x}" for item in results)
    scores = [item["score"] for item in results]
    assert scores == sorted(scores, reverse=True)
    assert len(LARGE) <= 64 << 20 and server.post("/v1/rerank", LARGE).status == 200
    assert server.post("/v1/rerank", b" " * (64 << 20)).status == 400
    assert server.post("/v1/rerank", b" " * ((64 << 20) + 1)).status == 413
    assert server.post("/v1/rerank", b"[1," * (10 << 20)).status == 400


def come_and_go(server):
    """Ten thousand connections: left alone, in the middle of a request, or while its answer is computed; some with a reset."""
    abandon(server, 6000)
    for i in range(4000):
        with server.connect() as s:
            if i % 2 == 0:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            s.sendall(head() + BODY if i % 10 == 0 else GET)


def settled(server, n):
    """Resident memory once no more than `n` descriptors are left, and what is given back later has been."""
    server.wait_for(lambda: descriptors(server) <= n, "descriptors to be closed")
    time.sleep(2)
    return resident(server)


@pytest.mark.parametrize("load", [be_slow, be_large, come_and_go])
def test_load_is_served_and_given_back(start, load):
    server = start("--max-waiting", "10000")
    n = descriptors(server)
    for _ in range(2):  # until heaps and buffers have the size that this load needs
        load(server)
    memory = settled(server, n)
    load(server)
    assert settled(server, n) < 1.1 * memory
    assert server.stop()[0] == 0


def test_memcheck(start):
    """No error and no leak of our own, whatever is asked and however it ends."""
    server = start("--model", str(DATA / "micro-1"), "--api-key", "k", "--max-length", "256", wrapper=VALGRIND)
    texts = ["some text", "", "é\ud83d\ude00" * 20]
    bodies = [
        {"query": "q", "documents": texts, "return_documents": True, "top_n": 2},
        {"query": "q", "documents": [{"title": "a", "body": "b"}, {"x": 1}], "rank_fields": ["title", "body"], "return_documents": True},
        {"query": "q", "documents": texts, "top_k": 1, "return_documents": True},
        {"query": "q", "texts": texts, "return_text": True},
        {"query": "q", "input": texts, "return_input": True},
        {"text_1": texts, "text_2": texts},
        {"query": {"text": "q"}, "passages": [{"text": text} for text in texts]},
        {"input": {"query": "q", "documents": texts}, "parameters": {"return_documents": True}},
        {"query": "q", "documents": ["long " * 400], "truncation": False},
        {"query": "q", "documents": ["long " * 400]},
        {"query": "q", "documents": []},
        {"query": 1, "texts": texts},
        {"inputs": texts},
        {"content": "a b", "with_pieces": True},
        b'{"query": "\xff\\ud800", "documents": ["\\u0000"]',
    ]
    key = {"X-Api-Key": "k"}
    for body in bodies:
        for path in ("/v1/rerank", "/v1/score", "/api/rerank", "/tokenize"):
            for accept in ("application/json", "text/event-stream"):
                assert server.post(path, body, headers={**key, "Accept": accept}).status in (200, 400, 422)
    for path in ("/health", "/ready", "/v1/config", "/info", "/v1/models", "/v1/models/x", "/metrics", "/ui", "/docs/", "/nowhere"):
        assert server.get(path, headers=key).status in (200, 308, 404)
    assert server.post("/v1/rerank", bodies[0]).status == 401
    for line in (b"Content-Length: 4\r\nContent-Length: 5\r\n", b"Content-Length: 99999999999\r\n", b"Transfer-Encoding: chunked\r\n"):
        answers(server, b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nX-Api-Key: k\r\n" + line + b"\r\n5\r\nabcde\r\n0\r\n\r\n")
    for data in (head()[:20], head() + BODY[:9], head(b"X-Api-Key: k\r\n") + BODY, head(b"X-Api-Key: k\r\nAccept: text/event-stream\r\n") + BODY):
        with server.connect() as s:
            s.sendall(data)
    code, _ = server.stop()
    assert code == 0, [line for line in server.read_log().splitlines() if line.startswith(b"==")]


def test_promtool_finds_nothing_about_the_metrics(server):
    program = subprocess.run([SOURCE / "scripts" / "promtool.sh"], capture_output=True, text=True, check=True).stdout.strip()
    server.post("/v1/rerank", BODY)
    server.get("/nowhere")
    found = subprocess.run([program, "check", "metrics"], input=server.get("/metrics").body, capture_output=True, cwd=SOURCE)
    assert (found.returncode, found.stdout, found.stderr) == (0, b"", b"")
