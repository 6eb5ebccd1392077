"""Python clients of the environment `older`: those that need httpx before 0.28 or Cohere's package before 7."""

import asyncio

import pytest
from contract import *  # noqa: F403
from support import DOCUMENTS, KEY, QUERY, client, close, ranked

CLIENTS = []


def pairs(results):
    return [(r.index, r.relevance_score) for r in results]


# ---- Infinity ----


def infinity(url, key):
    from infinity_client import Client

    return Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, raise_on_unexpected_status=True)


@client(CLIENTS, "infinity_client")
def _(url, key, query, documents):
    from infinity_client.api.default import rerank
    from infinity_client.models import RerankInput

    answer = rerank.sync(client=infinity(url, key), body=RerankInput(query=query, documents=documents, model="m", return_documents=True))
    assert [r.document for r in answer.results] == [documents[r.index] for r in answer.results] and answer.usage.total_tokens > 0
    return pairs(answer.results)


@client(CLIENTS, "infinity_client async")
def _(url, key, query, documents):
    from infinity_client.api.default import rerank
    from infinity_client.models import RerankInput

    answer = rerank.asyncio_detailed(client=infinity(url, key), body=RerankInput(query=query, documents=documents, model="m", top_n=len(documents)))
    return pairs(asyncio.run(answer).parsed.results)


# ---- LangChain ----


def langchain(compressor, query, documents, run_async=False):
    from langchain_core.documents import Document

    given = [Document(page_content=d, metadata={"place": i}) for i, d in enumerate(documents)]
    found = asyncio.run(compressor.acompress_documents(given, query)) if run_async else compressor.compress_documents(given, query)
    return [(d.metadata["place"], d.metadata["relevance_score"]) for d in found]


def langchain_cohere(url, key, documents):
    from langchain_cohere import CohereRerank

    return CohereRerank(model="m", base_url=url, cohere_api_key=key, top_n=len(documents) or None)


@client(CLIENTS, "langchain-cohere rerank", "frugal")
def _(url, key, query, documents):
    return [(r["index"], r["relevance_score"]) for r in langchain_cohere(url, key, documents).rerank(documents, query)]


@client(CLIENTS, "langchain-cohere compress_documents", "frugal")
def _(url, key, query, documents):
    return langchain(langchain_cohere(url, key, documents), query, documents)


@client(CLIENTS, "langchain-cohere acompress_documents", "frugal")
def _(url, key, query, documents):
    return langchain(langchain_cohere(url, key, documents), query, documents, run_async=True)


def langchain_jina(url, key, documents):
    """Its URL is a constant: the one thing that is patched."""
    from langchain_community.document_compressors import jina_rerank

    jina_rerank.JINA_API_URL = f"{url}/v1/rerank"
    return jina_rerank.JinaRerank(model="m", jina_api_key=key, top_n=len(documents) or None)


@client(CLIENTS, "langchain-community jina rerank", "frugal", "no /v1")
def _(url, key, query, documents):
    return [(r["index"], r["relevance_score"]) for r in langchain_jina(url, key, documents).rerank(documents, query)]


@client(CLIENTS, "langchain-community jina compress_documents", "frugal", "no /v1")
def _(url, key, query, documents):
    return langchain(langchain_jina(url, key, documents), query, documents)


@client(CLIENTS, "langchain-community infinity", "frugal")
def _(url, key, query, documents):
    from langchain_community.document_compressors.infinity_rerank import InfinityRerank

    return langchain(InfinityRerank(client=infinity(url, key), model="m", top_n=len(documents)), query, documents)


# ---- LlamaIndex ----


def llama_index(ranker, query, documents):
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

    nodes = [NodeWithScore(node=TextNode(text=d, id_=str(i)), score=0.5) for i, d in enumerate(documents)]
    return [(int(n.node.node_id), n.score) for n in ranker.postprocess_nodes(nodes, query_bundle=QueryBundle(query))]


@client(CLIENTS, "llama-index cohere", "frugal")
def _(url, key, query, documents):
    from llama_index.postprocessor.cohere_rerank import CohereRerank

    return llama_index(CohereRerank(model="m", base_url=url, api_key=key, top_n=len(documents)), query, documents)


@client(CLIENTS, "llama-index voyage", "frugal", "silent", "no /v1")
def _(url, key, query, documents):
    """It has no argument for the URL, but its client takes it from here. voyageai 0.3 fails with an AttributeError of its own at errors with an
    "error" object, which others need."""
    from llama_index.postprocessor.voyageai_rerank import VoyageAIRerank

    ranker = VoyageAIRerank(model="rerank-2.5", api_key=key, top_n=len(documents))
    ranker._client._params["base_url"] = f"{url}/v1"
    return llama_index(ranker, query, documents)


@client(CLIENTS, "llama-index mixedbread", "frugal", "no /v1")
def _(url, key, query, documents):
    from llama_index.postprocessor.mixedbreadai_rerank import MixedbreadAIRerank

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXEDBREAD_BASE_URL", url)
        ranker = MixedbreadAIRerank(model="m", api_key=key, top_n=len(documents) or 1, max_retries=0)
    return llama_index(ranker, query, documents)


# ---- Haystack ----

for run_async in (False, True):

    @client(CLIENTS, f"haystack cohere{' async' if run_async else ''}")
    def _(url, key, query, documents, run_async=run_async):
        from haystack import Document
        from haystack.utils import Secret
        from haystack_integrations.components.rankers.cohere import CohereRanker

        ranker = CohereRanker(model="m", api_key=Secret.from_token(key), api_base_url=url, top_k=len(documents) or 1)
        given = [Document(id=str(i), content=d) for i, d in enumerate(documents)]
        found = asyncio.run(ranker.run_async(query, given)) if run_async else ranker.run(query, given)
        return [(int(d.id), d.score) for d in found["documents"]]


def test_raw_scores_of_infinity(url):
    from infinity_client.api.default import rerank
    from infinity_client.models import RerankInput

    answer = rerank.sync(client=infinity(url, KEY), body=RerankInput(query=QUERY, documents=list(DOCUMENTS), raw_scores=True, top_n=2))
    assert close(pairs(answer.results), ranked(score="margin")[:2])


def test_langchain_cohere_sends_objects_as_yaml(url):
    import yaml
    from langchain_cohere import CohereRerank

    found = CohereRerank(model="m", base_url=url, cohere_api_key="any").rerank([{"text": d, "other": 1} for d in DOCUMENTS], QUERY, top_n=2, rank_fields=["text"])
    sent = tuple(yaml.dump({"text": d}, sort_keys=False) for d in DOCUMENTS)
    assert close([(r["index"], r["relevance_score"]) for r in found], ranked(documents=sent)[:2])
