"""Names with many addresses, which change: the headless service of Kubernetes, played by a name server of one's own."""

import subprocess
import time

import pytest
from servers import serve, tokenize, vllm  # noqa: F401, first: it makes the others be found
from support import HANG_S, PROGRAM, environment
from support_dns import NameServer, asking
from test_vllm import DOCUMENTS, Service

NAME = "vllm.test"
HOST = "127.9.0.53"


@pytest.fixture
def names(tmp_path):
    words = asking(HOST, tmp_path)
    try:
        server = NameServer(HOST, NAME)
    except OSError as e:
        pytest.skip(f"no name server can be started on {HOST}: {e}")
    server.words = words
    yield server
    server.close()


def start(serve, names, port, *options):
    return Service(lambda *all, **variables: serve(*all, wrapper=names.words, **variables), "--vllm-url", f"http://{NAME}:{port}", *options)


def states(service):
    return {name.split("(")[-1].split(":")[0]: r["state"] for name, r in service.replicas().items()}


def load_until(service, condition):
    end = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < end, states(service)
        assert {x.status for x in service.load(4, 20)} == {200}


def test_addresses_come_and_go(vllm, serve, names):  # noqa: F811
    """Resolved again every 15 seconds: new servers get work, those whose address is gone finish what they have, and no request is lost."""
    first = vllm(host="127.9.0.1")
    fakes = [first] + [vllm(host=f"127.9.0.{i}", port=first.port) for i in (2, 3, 4)]
    names.addresses = [f.host for f in fakes[:3]]
    service = start(serve, names, first.port)
    service.server.wait_for(lambda: states(service) == {f.host: "up" for f in fakes[:3]}, "all three")
    service.load(8, 60)
    assert all(f.n_answered > 0 for f in fakes[:3]) and fakes[3].n_answered == 0

    names.addresses = [f.host for f in fakes[1:]]
    load_until(service, lambda: states(service) == {f.host: "up" for f in fakes[1:]})
    before = fakes[0].n_answered
    assert {x.status for x in service.load(8, 60)} == {200}
    assert fakes[0].n_answered == before and fakes[3].n_answered > 0

    names.is_dead = True  # what was known stays
    asked = names.n_asked
    time.sleep(17)
    assert names.n_asked == asked and {x.status for x in service.load(4, 20)} == {200} and len(states(service)) == 3
    names.is_dead = False

    names.addresses = [fakes[1].host]  # one address alone
    load_until(service, lambda: list(states(service).values()) == ["up"])
    before = [f.n_answered for f in fakes]
    assert {x.status for x in service.load(4, 20)} == {200}
    assert [f.n_answered > n for f, n in zip(fakes, before)] == [False, True, False, False]


def test_hundreds_of_addresses(vllm, serve, names):  # noqa: F811
    """More than an answer by UDP can have: libc asks by TCP. All are checked, all get work."""
    first = vllm(host="127.9.1.1")
    fakes = [first] + [vllm(host=f"127.9.1.{i}", port=first.port) for i in range(2, 201)]
    names.addresses = [f.host for f in fakes]
    service = start(serve, names, first.port)
    assert names.n_tcp > 0
    service.server.wait_for(lambda: list(states(service).values()) == ["up"] * 200, "all 200")
    answers = [service.server.post("/v1/rerank", {"query": f"query {i}", "documents": DOCUMENTS[:2]}) for i in range(400)]
    assert {a.status for a in answers} == {200}
    assert sum(f.n_answered > 0 for f in fakes) > 100  # each query has one of its own


def test_a_name_that_does_not_exist(vllm, names):  # noqa: F811
    fake = vllm(host="127.9.0.1")
    command = [*names.words, PROGRAM, "score", "--vllm-url", f"http://nothing.test:{fake.port}"]
    done = subprocess.run(command, input=b'{"query": "q", "document": "d"}\n', capture_output=True, env=environment())
    assert done.returncode == 1 and b"nothing.test" in done.stderr and b"resolve" in done.stderr
