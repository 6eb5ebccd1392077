"""What every client must be able to do. The modules with clients import these tests; CLIENTS lists whom they are about."""

import pytest
from support import DOCUMENTS, KEY, MOST_DOCUMENTS, QUERY, close, ranked

__all__ = [
    "test_order_and_scores",
    "test_a_base_url_that_ends_in_v1",
    "test_the_right_key",
    "test_a_wrong_key",
    "test_no_documents",
    "test_too_many_documents",
    "test_a_body_that_is_too_large",
    "test_an_unknown_route",
]


def fits(client, found, documents=DOCUMENTS):
    return close(found, ranked(QUERY, tuple(documents), score="margin" if "logits" in client.traits else "score"))


def refuses(client, message, *args, **kwargs):
    """The client raises, and its user can read why."""
    with pytest.raises(Exception) as caught:
        client(*args, **kwargs)
    error, told = caught.value, ""
    while error is not None:
        told += f"{error} {vars(error)} {getattr(getattr(error, 'response', None), 'text', '')}\n"
        error = error.__cause__ or error.__context__
    assert "silent" in client.traits or message in told


def test_order_and_scores(client, url):
    assert fits(client, client(url))
    assert fits(client, client(url, documents=["", "x"]), ["", "x"])


def test_a_base_url_that_ends_in_v1(client, url):
    if "no /v1" in client.traits:
        pytest.skip("its URL has no place for one")
    assert fits(client, client(f"{url}/v1"))


def test_the_right_key(client, strict):
    if "keyless" in client.traits:
        refuses(client, "Invalid API Key", strict, KEY)
    else:
        assert fits(client, client(strict, KEY))


def test_a_wrong_key(client, strict):
    refuses(client, "Invalid API Key", strict, "wrong")


def test_no_documents(client, url):
    if "frugal" in client.traits:
        assert client(url, documents=[]) == []
    else:
        refuses(client, "non-empty", url, documents=[])


def test_too_many_documents(client, strict):
    if "keyless" in client.traits:
        pytest.skip("the server with limits asks for a key")
    refuses(client, f"at most {MOST_DOCUMENTS} documents", strict, KEY, documents=["x"] * (MOST_DOCUMENTS + 1))


def test_a_body_that_is_too_large(client, strict):
    if "keyless" in client.traits:
        pytest.skip("the server with limits asks for a key")
    refuses(client, "larger than", strict, KEY, documents=["x" * 600_000] * 2)


def test_an_unknown_route(client, url):
    if "rooted" in client.traits:
        assert fits(client, client(f"{url}/nowhere"))
    else:
        refuses(client, "no such path", f"{url}/nowhere")
