"""Cohere's own package, in both of its generations: this file runs in both environments."""

import asyncio

import cohere
from contract import *  # noqa: F403
from support import DOCUMENTS, QUERY, client, close, ranked

CLIENTS = []
ONCE = {"max_retries": 0}


def pairs(answer):
    return [(r.index, r.relevance_score) for r in answer.results]


for name in ("Client", "ClientV2"):

    @client(CLIENTS, f"cohere.{name}")
    def _(url, key, query, documents, kind=getattr(cohere, name)):
        return pairs(kind(api_key=key, base_url=url).rerank(model="m", query=query, documents=documents, request_options=ONCE))

    @client(CLIENTS, f"cohere.Async{name}")
    def _(url, key, query, documents, kind=getattr(cohere, f"Async{name}")):
        return pairs(asyncio.run(kind(api_key=key, base_url=url).rerank(model="m", query=query, documents=documents, request_options=ONCE)))


@client(CLIENTS, "cohere.Client with objects")
def _(url, key, query, documents):
    answer = cohere.Client(api_key=key, base_url=url).rerank(
        query=query,
        documents=[{"text": d, "id": str(i)} for i, d in enumerate(documents)],
        return_documents=True,
        top_n=len(documents) or None,
        max_chunks_per_doc=10,
        request_options=ONCE,
    )
    assert [(r.document.text, r.document.id) for r in answer.results] == [(documents[r.index], str(r.index)) for r in answer.results]
    return pairs(answer)


def test_details(url):
    v2 = cohere.ClientV2(api_key="any", base_url=url)
    answer = v2.rerank(model="some-model", query=QUERY, documents=list(DOCUMENTS), top_n=2, max_tokens_per_doc=4096)
    assert close(pairs(answer), ranked()[:2])
    assert answer.id and answer.meta.api_version.version and answer.meta.billed_units.search_units == 1
    assert pairs(v2.rerank(model="m", query=QUERY, documents=list(DOCUMENTS), top_n=None)) == pairs(v2.rerank(model="m", query=QUERY, documents=list(DOCUMENTS)))


def test_fields_to_rank_by(url):
    documents = [{"title": "Beijing", "body": "is the capital of China"}, {"title": "Paris", "body": "is in France"}]
    answer = cohere.Client(api_key="any", base_url=url).rerank(query=QUERY, documents=documents, rank_fields=["title", "body"])
    assert close(pairs(answer), ranked(documents=tuple(f"title: {d['title']}\nbody: {d['body']}" for d in documents)))


def test_instruction(url):
    options = {"additional_body_parameters": {"instruction": "Find recipes"}}
    answer = cohere.ClientV2(api_key="any", base_url=url).rerank(model="m", query=QUERY, documents=list(DOCUMENTS), request_options=options)
    assert close(pairs(answer), ranked(instruction="Find recipes"))


def test_errors_by_their_classes(url, strict):
    def error(base, key, documents):
        try:
            cohere.ClientV2(api_key=key, base_url=base).rerank(model="m", query=QUERY, documents=documents, request_options=ONCE)
        except cohere.core.ApiError as e:
            return e
        raise AssertionError("no error")

    assert isinstance(error(url, "any", []), cohere.BadRequestError)
    assert isinstance(error(strict, "wrong", ["a"]), cohere.UnauthorizedError)
    assert isinstance(error(f"{url}/nowhere", "any", ["a"]), cohere.NotFoundError)
    assert error(strict, "secret", ["x" * 2_000_000]).status_code == 413
