"""What docs/OPERATIONS.md promises of restarts: one after the other, of servers or of front ends, 20 clients lose no request."""

import concurrent.futures
import http.client
import itertools
import json
import signal
import threading
import time

import pytest
from support import HANG_S
from test_vllm import DOCUMENTS, Service, serve, tokenize, urls, vllm  # noqa: F401

N_CLIENTS = 20


class Load:
    """Clients that ask without a pause until the end of the block; `statuses` are all answers, an exception is the test's."""

    def __init__(self, ask):
        self.ask, self.stop = ask, threading.Event()

    def __enter__(self):
        self.pool = concurrent.futures.ThreadPoolExecutor(N_CLIENTS)
        self.clients = [self.pool.submit(self.client, i) for i in range(N_CLIENTS)]
        return self

    def client(self, number):
        statuses = []
        for i in itertools.count():
            if self.stop.is_set():
                return statuses
            statuses.append(self.ask(number, i))

    def __exit__(self, *error):
        self.stop.set()
        self.statuses = [s for c in self.clients for s in c.result()]
        self.pool.shutdown()


@pytest.mark.parametrize("how", ["drain", "kill", "hang"])
def test_servers_one_after_the_other(vllm, serve, how):  # noqa: F811
    """With --shutdown-timeout, without it (connections stay open, unanswered), and by kill -9."""
    replicas = [vllm(delay=0.02) for _ in range(3)]
    service = Service(serve, *urls(*replicas))
    with Load(lambda number, i: service.rerank((7 * number + i) % 100, 1 + i % 20).status) as load:
        for r in replicas:
            time.sleep(0.1)
            if how == "drain":
                r.drain()
            else:
                r.stop(hang=how == "hang")
            time.sleep(0.3)
            answered = r.n_answered
            r.start()
            service.server.wait_for(lambda: service.replicas()[r.url]["state"] == "up", "the replica's return")
            service.server.wait_for(lambda: r.n_answered > answered + 10, "work for it")
    assert len(load.statuses) > 100 and set(load.statuses) == {200}


def test_front_ends_one_after_the_other(vllm, serve):  # noqa: F811
    """As a deployment does it: out of the balancer's list, SIGTERM, a successor, into the list when it is ready. Clients keep their connections."""
    fake = vllm(delay=0.05)
    start = lambda: Service(serve, *urls(fake))  # noqa: E731
    fronts = [start(), start()]
    targets = {f.server.port for f in fronts}
    expected, lock, local = fronts[0].expected, threading.Lock(), threading.local()

    def ask(number, i):
        with lock:
            alive = sorted(targets)
        if getattr(local, "connection", None) is None:
            local.connection = http.client.HTTPConnection("127.0.0.1", alive[(number + i) % len(alive)], timeout=HANG_S)
        first = (7 * number + i) % 100
        local.connection.request("POST", "/v1/rerank", json.dumps({"query": "q", "documents": DOCUMENTS[first : first + 5]}))
        answer = local.connection.getresponse()
        for r in json.loads(answer.read())["results"]:
            assert r["relevance_score"] == pytest.approx(expected[first + r["index"]], abs=1e-5)
        if answer.headers["Connection"] == "close":  # what a client's library does
            local.connection.close()
            local.connection = None
        return answer.status

    with Load(ask) as load:
        for front in fronts:
            time.sleep(0.5)
            with lock:
                targets.remove(front.server.port)
            time.sleep(0.3)  # preStop: clients that had chosen it have connected
            code, log = front.server.stop()
            assert code == 0 and any(line.get("status") == 200 for line in log)
            successor = start()
            assert successor.server.get("/ready").status == 200
            with lock:
                targets.add(successor.server.port)
    assert len(load.statuses) > 100 and set(load.statuses) == {200}


def test_a_front_end_drains(vllm, serve):  # noqa: F811
    """After SIGTERM it says that it is not ready, and answers what it has, also what it had to ask for again elsewhere."""
    a, b = vllm(delay=1), vllm(delay=1)
    service = Service(serve, *urls(a, b))
    with concurrent.futures.ThreadPoolExecutor(4) as pool, service.server.connect() as idle:
        answers = [pool.submit(service.rerank, i, 20) for i in range(4)]
        service.server.wait_for(lambda: service.server.metric("requests_in_flight") == 4 and a.running + b.running > 0, "work")
        service.server.process.send_signal(signal.SIGTERM)
        (a if a.running else b).stop()
        idle.sendall(b"GET /ready HTTP/1.1\r\nHost: h\r\n\r\n")
        said = idle.recv(4096)
        assert said.startswith(b"HTTP/1.1 503") and b"draining" in said
        assert [x.result().status for x in answers] == [200] * 4
    assert service.server.process.wait(timeout=HANG_S) == 0


def test_failures_at_the_same_moment_count_once(vllm, serve):  # noqa: F811
    """A server killed with much in work was taken for one that fails again and again, and left alone for up to 15 s."""
    bad, good = vllm(delay=0.2), vllm(delay=0.02)
    service = Service(serve, *urls(bad, good), "--max-batch-tokens", "256")
    while bad.most_running < 8:  # until its limit has been learnt
        service.load(16, 32)
    bad.faults = "500"
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(service.rerank, i, 20) for i in range(16)]
        service.server.wait_for(lambda: service.replicas()[bad.url]["state"] != "up", "its failure")
        bad.faults = []
        assert [x.result().status for x in answers] == [200] * 16
    returned = (service.replicas()[bad.url]["state"] == "up" for _ in range(100) if service.rerank(0, 20).status == 200)
    assert any(returned)  # within a hundred answers of the other one, 2 to 5 s
