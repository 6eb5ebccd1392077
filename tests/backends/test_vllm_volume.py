"""Long lists: cut into requests that servers take, streamed, and held in little memory."""

import json

import pytest
from test_vllm import Service, serve, tokenize, urls, vllm  # noqa: F401

N = 10000
MARGIN_MIB = 16  # 5 were measured: the request has 3.4 MB


def peak_mib(service):
    with open(f"/proc/{service.server.process.pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def stream(service, n, text):
    """Documents in the order in which their scores arrived, and the sizes of the events."""
    body = json.dumps({"query": "q", "documents": [f"document {i} {text}" for i in range(n)], "return_documents": False})
    answer = service.server.post("/v1/rerank", body, headers={"Accept": "text/event-stream"})
    assert answer.status == 200
    events = [e.split("\n", 1) for e in answer.body.decode().split("\n\n") if e]
    assert events[-1][0] == "event: result" and len(json.loads(events[-1][1][6:])["results"]) == n
    parts = [json.loads(data[6:])["results"] for name, data in events if name == "event: progress"]
    return [r["index"] for part in parts for r in part], [len(part) for part in parts]


@pytest.mark.slow
def test_ten_thousand_documents(vllm, serve):  # noqa: F811
    """They stream, each once, in requests of bounded size; beyond the request itself they need hardly more memory than a thousand."""
    replicas = [vllm() for _ in range(2)]
    service = Service(serve, *urls(*replicas))
    text = "word " * 60
    stream(service, 1000, text)
    before = peak_mib(service)
    indices, sizes = stream(service, N, text)
    assert sorted(indices) == list(range(N))
    assert len(sizes) > 50 and max(sizes) < N / 10  # as they are computed, not at the end
    # --max-batch-tokens is 8,192 with servers, and a document has 60 words: what is in work is bounded, however long the list.
    assert max(len(lengths) for r in replicas for lengths in r.requests) <= 8192 / 60
    assert peak_mib(service) < before + MARGIN_MIB
