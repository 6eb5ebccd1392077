"""Python clients of the environment `current`."""

import asyncio
import os

import pytest
from contract import *  # noqa: F403
from support import DOCUMENTS, KEY, QUERY, client, close, get, ranked

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would fetch prices when it is imported
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

CLIENTS = []


def pairs(results, score="relevance_score"):
    return [(r.index, getattr(r, score)) for r in results]


# ---- vendors' own packages ----


@client(CLIENTS, "voyageai.Client", "no /v1")  # the URL that is given to it has one already
def _(url, key, query, documents):
    import voyageai

    answer = voyageai.Client(api_key=key, base_url=f"{url}/v1").rerank(query, documents, model="rerank-2.5")
    assert answer.total_tokens > 0 and [r.document for r in answer.results] == [documents[r.index] for r in answer.results]
    return pairs(answer.results)


@client(CLIENTS, "voyageai.AsyncClient", "no /v1")
def _(url, key, query, documents):
    import voyageai

    answer = voyageai.AsyncClient(api_key=key, base_url=f"{url}/v1").rerank(query, documents, model="rerank-2.5", top_k=len(documents) or None, truncation=True)
    return pairs(asyncio.run(answer).results)


@client(CLIENTS, "mixedbread.Mixedbread", "no /v1")
def _(url, key, query, documents):
    from mixedbread import Mixedbread

    answer = Mixedbread(api_key=key, base_url=url, max_retries=0).rerank(model="m", query=query, input=documents, return_input=True)
    assert [r.input for r in answer.data] == [documents[r.index] for r in answer.data]
    return pairs(answer.data, "score")


@client(CLIENTS, "mixedbread.AsyncMixedbread", "no /v1")
def _(url, key, query, documents):
    from mixedbread import AsyncMixedbread

    answer = AsyncMixedbread(api_key=key, base_url=url, max_retries=0).rerank(
        model="mixedbread-ai/m", query=query, input=[{"title": "ignored", "text": d} for d in documents], rank_fields=["text"], top_k=len(documents), return_input=False
    )
    return pairs(asyncio.run(answer).data, "score")


@client(CLIENTS, "openrouter.OpenRouter", "no /v1")
def _(url, key, query, documents):
    from openrouter import OpenRouter

    with OpenRouter(api_key=key, server_url=f"{url}/api/v1") as api:
        return pairs(api.rerank.rerank(model="m", query=query, documents=documents).results)


@client(CLIENTS, "openrouter.OpenRouter async, objects", "no /v1")
def _(url, key, query, documents):
    from openrouter import OpenRouter

    async def ask():
        async with OpenRouter(api_key=key, server_url=f"{url}/api/v1") as api:
            return await api.rerank.rerank_async(model="m", query=query, documents=[{"text": d} for d in documents], top_n=len(documents))

    answer = asyncio.run(ask())
    assert [r.document.text for r in answer.results] == [documents[r.index] for r in answer.results]
    return pairs(answer.results)


def dashscope_answer(answer):
    if answer.status_code != 200:
        raise RuntimeError(f"{answer.code}: {answer.message}")
    assert answer.request_id and answer.usage.total_tokens > 0
    return pairs(answer.output.results)


@client(CLIENTS, "dashscope.TextReRank", "no /v1", "frugal")
def _(url, key, query, documents):
    import dashscope

    dashscope.base_http_api_url = f"{url}/api/v1"
    if not documents:
        with pytest.raises(dashscope.common.error.InputRequired):
            dashscope.TextReRank.call(model="qwen3-rerank", query=query, documents=documents, api_key=key)
        return []
    return dashscope_answer(dashscope.TextReRank.call(model="qwen3-rerank", query=query, documents=documents, api_key=key, return_documents=True))


@client(CLIENTS, "dashscope.AioTextReRank", "no /v1", "frugal")
def _(url, key, query, documents):
    import dashscope

    dashscope.base_http_api_url = f"{url}/api/v1"
    if not documents:
        return []
    return dashscope_answer(asyncio.run(dashscope.AioTextReRank.call(model="qwen3-rerank", query=query, documents=documents, api_key=key, top_n=len(documents))))


@client(CLIENTS, "xinference_client", "no /v1")
def _(url, key, query, documents):
    from xinference_client import RESTfulClient

    answer = RESTfulClient(url, api_key=key).get_model("builtin").rerank(documents, query, return_documents=True, return_len=True)
    assert [r["document"]["text"] for r in answer["results"]] == [documents[r["index"]] for r in answer["results"]]
    return [(r["index"], r["relevance_score"]) for r in answer["results"]]


@client(CLIENTS, "tei_client", "silent", "no /v1")
def _(url, key, query, documents):
    from tei_client import HttpClient

    return pairs(HttpClient(url, headers={"Authorization": f"Bearer {key}"}).rerank(query, documents).ranks, "score")


@client(CLIENTS, "tei_client async", "silent", "no /v1")
def _(url, key, query, documents):
    from tei_client import HttpClient

    answer = asyncio.run(HttpClient(url, headers={"Authorization": f"Bearer {key}"}).async_rerank(query, documents, return_text=True, truncate=True))
    assert [r.text for r in answer.ranks] == [documents[r.index] for r in answer.ranks]
    return pairs(answer.ranks, "score")


# ---- LightRAG ----


def lightrag(name, path, **options):
    def ask(url, key, query, documents):
        import tenacity
        from lightrag import rerank

        rerank.generic_rerank_api.retry.wait = tenacity.wait_none()  # else 4 seconds
        answer = asyncio.run(getattr(rerank, name)(query, documents, api_key=key, model="m", base_url=url + path, **options))
        return [(r["index"], r["relevance_score"]) for r in answer]

    return ask


client(CLIENTS, "lightrag cohere", "no /v1")(lightrag("cohere_rerank", "/v2/rerank"))
client(CLIENTS, "lightrag cohere, with chunks", "no /v1")(lightrag("cohere_rerank", "/v1/rerank", enable_chunking=True))
client(CLIENTS, "lightrag jina", "no /v1")(lightrag("jina_rerank", "/v1/rerank"))
client(CLIENTS, "lightrag aliyun", "no /v1")(lightrag("ali_rerank", "/api/v1/services/rerank/text-rerank/text-rerank"))


# ---- litellm ----

PROVIDERS = ["cohere", "jina_ai", "infinity", "huggingface", "hosted_vllm"]

for provider in PROVIDERS:
    traits = ["rooted"] if provider == "jina_ai" else []

    # Of "infinity" litellm expects documents as plain texts, of "hosted_vllm" as objects, and asks for both in the same words at the same path.
    @client(CLIENTS, f"litellm {provider}", *traits)
    def _(url, key, query, documents, provider=provider):
        import litellm

        answer = litellm.rerank(model=f"{provider}/m", query=query, documents=documents, api_base=url, api_key=key, return_documents=provider != "infinity")
        return [(r["index"], r["relevance_score"]) for r in answer.results]

    @client(CLIENTS, f"litellm {provider} async", *traits)
    def _(url, key, query, documents, provider=provider):
        import litellm

        answer = litellm.arerank(model=f"{provider}/m", query=query, documents=documents, api_base=url, api_key=key, return_documents=False, top_n=len(documents))
        return [(r["index"], r["relevance_score"]) for r in asyncio.run(answer).results]


# ---- LlamaIndex ----


def llama_index(ranker, query, documents):
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

    nodes = [NodeWithScore(node=TextNode(text=d, id_=str(i)), score=0.5) for i, d in enumerate(documents)]
    return [(int(n.node.node_id), n.score) for n in ranker.postprocess_nodes(nodes, query_bundle=QueryBundle(query))]


@client(CLIENTS, "llama-index jina", "frugal", "no /v1")
def _(url, key, query, documents):
    from llama_index.postprocessor.jinaai_rerank import JinaRerank

    return llama_index(JinaRerank(top_n=len(documents), model="m", base_url=f"{url}/v1", api_key=key), query, documents)


@client(CLIENTS, "llama-index tei", "frugal", "silent")
def _(url, key, query, documents):
    from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

    return llama_index(TextEmbeddingInference(top_n=len(documents), base_url=url, auth_token=key), query, documents)


@client(CLIENTS, "llama-index nvidia", "frugal", "silent", "logits", "no /v1")
def _(url, key, query, documents):
    from llama_index.postprocessor.nvidia_rerank import NVIDIARerank

    return llama_index(NVIDIARerank(model="builtin", base_url=f"{url}/v1", api_key=key, top_n=len(documents), truncate="END"), query, documents)


@client(CLIENTS, "llama-index siliconflow", "frugal", "no /v1")
def _(url, key, query, documents):
    from llama_index.postprocessor.siliconflow_rerank import SiliconFlowRerank

    return llama_index(SiliconFlowRerank(model="m", base_url=f"{url}/v1/rerank", api_key=key, top_n=len(documents)), query, documents)


@client(CLIENTS, "llama-index dashscope", "frugal", "silent", "no /v1")
def _(url, key, query, documents):
    import dashscope
    from llama_index.postprocessor.dashscope_rerank import DashScopeRerank

    dashscope.base_http_api_url = f"{url}/api/v1"
    return llama_index(DashScopeRerank(top_n=len(documents), model="m", api_key=key), query, documents)


@client(CLIENTS, "llama-index xinference", "frugal", "keyless")
def _(url, key, query, documents):
    from llama_index.postprocessor.xinference_rerank import XinferenceRerank

    return llama_index(XinferenceRerank(top_n=len(documents), model="m", base_url=url), query, documents)


# ---- Haystack ----


def haystack(ranker, query, documents, run_async):
    from haystack import Document

    given = [Document(id=str(i), content=d) for i, d in enumerate(documents)]
    found = asyncio.run(ranker.run_async(query=query, documents=given)) if run_async else ranker.run(query=query, documents=given)
    return [(int(d.id), d.score) for d in found["documents"]]


for run_async in (False, True):
    ending = " async" if run_async else ""

    @client(CLIENTS, f"haystack tei{ending}", "frugal", "rooted")
    def _(url, key, query, documents, run_async=run_async):
        from haystack.utils import Secret
        from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker

        return haystack(HuggingFaceTEIRanker(url=url, token=Secret.from_token(key), max_retries=1), query, documents, run_async)

    @client(CLIENTS, f"haystack jina{ending}", "frugal", "no /v1")
    def _(url, key, query, documents, run_async=run_async):
        from haystack.utils import Secret
        from haystack_integrations.components.rankers.jina import JinaRanker

        return haystack(JinaRanker(model="m", api_key=Secret.from_token(key), base_url=f"{url}/v1/rerank"), query, documents, run_async)

    @client(CLIENTS, f"haystack vllm{ending}", "frugal")
    def _(url, key, query, documents, run_async=run_async):
        from haystack.utils import Secret
        from haystack_integrations.components.rankers.vllm import VLLMRanker

        ranker = VLLMRanker(model="m", api_key=Secret.from_token(key), api_base_url=url, extra_parameters={"truncate_prompt_tokens": 256})
        return haystack(ranker, query, documents, run_async)


@client(CLIENTS, "haystack nvidia", "frugal", "logits", "no /v1")
def _(url, key, query, documents):
    from haystack.utils import Secret
    from haystack_integrations.components.rankers.nvidia import NvidiaRanker

    return haystack(NvidiaRanker(model="m", api_url=f"{url}/v1", api_key=Secret.from_token(key), top_k=len(documents) or 1, truncate="END"), query, documents, False)


# ---- LangChain ----


def langchain(compressor, query, documents, run_async=False):
    from langchain_core.documents import Document

    given = [Document(page_content=d, metadata={"place": i}) for i, d in enumerate(documents)]
    found = asyncio.run(compressor.acompress_documents(given, query)) if run_async else compressor.compress_documents(given, query)
    return [(d.metadata["place"], d.metadata["relevance_score"]) for d in found]


for run_async in (False, True):
    ending = " async" if run_async else ""

    @client(CLIENTS, f"langchain voyage{ending}", "frugal", "no /v1")
    def _(url, key, query, documents, run_async=run_async):
        from langchain_voyageai import VoyageAIRerank

        return langchain(VoyageAIRerank(model="rerank-2.5", api_key=key, base_url=f"{url}/v1"), query, documents, run_async)

    @client(CLIENTS, f"langchain nvidia{ending}", "frugal", "logits", "no /v1")
    def _(url, key, query, documents, run_async=run_async):
        from langchain_nvidia_ai_endpoints import NVIDIARerank

        return langchain(NVIDIARerank(model="builtin", base_url=f"{url}/v1", api_key=key, top_n=len(documents)), query, documents, run_async)


# ---- instructions, by the name that each client has for them ----


def test_instructions(url):
    import litellm
    from haystack_integrations.components.rankers.vllm import VLLMRanker
    from lightrag.rerank import jina_rerank
    from mixedbread import Mixedbread
    from xinference_client import RESTfulClient

    import dashscope

    text, documents = "Find recipes", list(DOCUMENTS)
    expected = ranked(instruction=text)
    assert [i for i, _ in expected] != [i for i, _ in ranked()] or not close(expected, ranked())
    answer = litellm.rerank(model="hosted_vllm/m", query=QUERY, documents=documents, api_base=url, instruction=text)
    assert close([(r["index"], r["relevance_score"]) for r in answer.results], expected)
    assert close(haystack(VLLMRanker(model="m", api_key=None, api_base_url=f"{url}/v1", extra_parameters={"instruction": text}), QUERY, documents, False), expected)
    answer = asyncio.run(jina_rerank(QUERY, documents, base_url=f"{url}/v1/rerank", extra_body={"instruction": text}))
    assert close([(r["index"], r["relevance_score"]) for r in answer], expected)
    answer = Mixedbread(api_key="any", base_url=url).rerank(query=QUERY, input=documents, extra_body={"instruction": text})
    assert close(pairs(answer.data, "score"), expected)
    answer = RESTfulClient(url).get_model("builtin").rerank(documents, QUERY, instruction=text)
    assert close([(r["index"], r["relevance_score"]) for r in answer["results"]], expected)
    dashscope.base_http_api_url = f"{url}/api/v1"
    assert close(dashscope_answer(dashscope.TextReRank.call(model="qwen3-rerank", query=QUERY, documents=documents, api_key="any", instruct=text)), expected)


def test_fewer_than_all(url):
    import litellm
    import voyageai

    documents = list(DOCUMENTS)
    assert close(pairs(voyageai.Client(api_key="any", base_url=f"{url}/v1").rerank(QUERY, documents, model="m", top_k=2).results), ranked()[:2])
    for provider in PROVIDERS:
        answer = litellm.rerank(model=f"{provider}/m", query=QUERY, documents=documents, top_n=2, api_base=url, api_key="any", return_documents=False)
        assert close([(r["index"], r["relevance_score"]) for r in answer.results], ranked()[:2]), provider


def test_raw_scores(url):
    from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker
    from tei_client import HttpClient

    margins = ranked(score="margin")
    assert close(haystack(HuggingFaceTEIRanker(url=url, raw_scores=True, token=None), QUERY, DOCUMENTS, False), margins)
    assert close(pairs(HttpClient(url).rerank(QUERY, list(DOCUMENTS), raw_scores=True).ranks, "score"), margins)


def test_long_documents(url):
    """Who forbids truncation is told; who does not ask, or asks for it, is answered."""
    import litellm
    import voyageai
    from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker, TruncationDirection
    from haystack import Document

    documents = ["short", "Washington is the capital. " * 8000]
    voyage = voyageai.Client(api_key="any", base_url=f"{url}/v1")
    assert len(voyage.rerank(QUERY, documents, model="m").results) == 2
    with pytest.raises(voyageai.error.InvalidRequestError, match="document 1"):
        voyage.rerank(QUERY, documents, model="m", truncation=False)
    with pytest.raises(Exception, match="document 1"):  # litellm forbids it always
        litellm.rerank(model="huggingface/m", query=QUERY, documents=documents, api_base=url, api_key="any")
    given = [Document(content=d) for d in documents]
    assert len(HuggingFaceTEIRanker(url=url, token=None).run(query=QUERY, documents=given, truncation_direction=TruncationDirection.LEFT)["documents"]) == 2


def test_what_tei_clients_ask_about_the_server(url, strict):
    from tei_client import HttpClient

    server = HttpClient(url)
    assert server.health() and server.info().max_input_length > 0
    assert get(f"{strict}/info", Authorization=f"Bearer {KEY}")["model_id"] == "builtin"
