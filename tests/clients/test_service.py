"""Clients of a server that is not there yet, or busy."""

import threading
import urllib.error
import urllib.request

import cohere
import pytest
from support import DOCUMENTS, QUERY, close, post, ranked, running, wait_until_ready


def pairs(answer):
    return [(r.index, r.relevance_score) for r in answer.results]


def test_clients_wait_while_models_are_loaded():
    """A hundred models take a while."""
    with running(*(arg for i in range(100) for arg in ("--model", f"m{i}=builtin"))) as url:
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{url}/ready")
        assert caught.value.code == 503 and caught.value.headers["Retry-After"] == "1"
        client = cohere.ClientV2(api_key="any", base_url=url)
        with pytest.raises(cohere.ServiceUnavailableError):
            client.rerank(model="m0", query=QUERY, documents=list(DOCUMENTS), request_options={"max_retries": 0})
        answer = client.rerank(model="m99", query=QUERY, documents=list(DOCUMENTS), request_options={"max_retries": 60})
        assert close(pairs(answer), ranked())
        with pytest.raises(cohere.NotFoundError):
            client.rerank(model="m100", query=QUERY, documents=list(DOCUMENTS))


def test_clients_are_told_when_the_server_is_busy():
    with running("--model", "builtin", "--max-waiting", "1") as url:
        wait_until_ready(url)
        stopping = threading.Event()

        def keep_busy():
            while not stopping.is_set():
                try:
                    post(f"{url}/v1/rerank", {"query": "q", "documents": [f"{i} the quick brown fox" for i in range(300)]})
                except urllib.error.HTTPError as error:
                    assert error.code == 429

        busy = threading.Thread(target=keep_busy)
        busy.start()
        client = cohere.ClientV2(api_key="any", base_url=url)
        try:
            with pytest.raises(cohere.TooManyRequestsError):
                for _ in range(10000):
                    client.rerank(model="m", query=QUERY, documents=["a"], request_options={"max_retries": 0})
        finally:
            stopping.set()
            busy.join()
        assert close(pairs(client.rerank(model="m", query=QUERY, documents=list(DOCUMENTS))), ranked())
