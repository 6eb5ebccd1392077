"""Clients that people use, unchanged, against the program with its built-in model: each must find the order and the scores of the command line."""

import asyncio
import json
import os
import pathlib
import socket
import subprocess
import time
import urllib.request

import pytest

SOURCE = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = pathlib.Path(os.environ.get("QR_BUILD") or SOURCE / "build") / "qwen-rerank"
QUERY = "What is the capital of the United States?"
DOCUMENTS = [
    "Carson City is the capital city of the American state of Nevada.",
    "Washington, D.C. is the capital of the United States.",
    "Bread is baked from flour, water and salt.",
    "The United States has fifty states.",
    "Capital punishment has existed in the United States since before it was a country.",
]


@pytest.fixture(scope="session")
def expected():
    lines = "".join(json.dumps({"query": QUERY, "document": d}) + "\n" for d in DOCUMENTS)
    out = subprocess.run([PROGRAM, "score", "--model", "builtin", "--quiet"], input=lines, capture_output=True, text=True, check=True).stdout
    scores = [json.loads(line)["score"] for line in out.splitlines()]
    return sorted(enumerate(scores), key=lambda item: (-item[1], item[0]))


def serve(*options):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    process = subprocess.Popen([PROGRAM, "serve", "--model", "builtin", "--port", str(port), "--log-level", "error", *options])
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{url}/ready").close()
            return process, url
        except OSError:
            time.sleep(0.05)
    raise RuntimeError("the server does not start")


@pytest.fixture(scope="session")
def url():
    process, url = serve()
    yield url
    process.terminate()
    assert process.wait(60) == 0


@pytest.fixture(scope="session")
def locked():
    process, url = serve("--api-key", "secret")
    yield url
    process.terminate()
    process.wait(60)


def same(found, expected):
    assert [index for index, _ in found] == [index for index, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-6)


def pairs(results):
    return [(r.index, r.relevance_score) for r in results]


# ---- Cohere ----


@pytest.mark.parametrize("base", ["", "/v1"])
@pytest.mark.parametrize("version", ["Client", "ClientV2"])
def test_cohere(url, expected, version, base):
    import cohere

    client = getattr(cohere, version)(api_key="any", base_url=url + base)
    same(pairs(client.rerank(model="m", query=QUERY, documents=DOCUMENTS).results), expected)
    same(pairs(client.rerank(model="m", query=QUERY, documents=DOCUMENTS, top_n=2).results), expected[:2])


def test_cohere_v1_documents(url, expected):
    import cohere

    documents = [{"text": d, "id": str(i)} for i, d in enumerate(DOCUMENTS)]
    found = cohere.Client(api_key="any", base_url=url).rerank(query=QUERY, documents=documents, return_documents=True).results
    same(pairs(found), expected)
    assert [r.document.text for r in found] == [DOCUMENTS[i] for i, _ in expected]


def test_cohere_async(url, expected):
    import cohere

    async def ask():
        return await cohere.AsyncClientV2(api_key="any", base_url=url).rerank(model="m", query=QUERY, documents=DOCUMENTS)

    same(pairs(asyncio.run(ask()).results), expected)


def test_cohere_errors(url, locked):
    import cohere

    with pytest.raises(cohere.BadRequestError) as error:
        cohere.ClientV2(api_key="any", base_url=url).rerank(model="m", query=QUERY, documents=[])
    assert "non-empty" in error.value.body["message"]
    with pytest.raises(cohere.UnauthorizedError):
        cohere.ClientV2(api_key="wrong", base_url=locked).rerank(model="m", query=QUERY, documents=DOCUMENTS)
    assert cohere.ClientV2(api_key="secret", base_url=locked).rerank(model="m", query=QUERY, documents=DOCUMENTS).results


def test_langchain_cohere(url, expected):
    from langchain_cohere import CohereRerank

    found = CohereRerank(model="m", base_url=url, cohere_api_key="any", top_n=3).rerank(DOCUMENTS, QUERY)
    same([(r["index"], r["relevance_score"]) for r in found], expected[:3])


# ---- others ----


def test_voyage(url, expected):
    import voyageai

    found = voyageai.Client(api_key="any", base_url=f"{url}/v1").rerank(QUERY, DOCUMENTS, model="rerank-2.5")
    same(pairs(found.results), expected)
    assert [r.document for r in found.results] == [DOCUMENTS[i] for i, _ in expected] and found.total_tokens > 0


def test_mixedbread(url, expected):
    from mixedbread import Mixedbread

    found = Mixedbread(api_key="any", base_url=url).rerank(model="m", query=QUERY, input=DOCUMENTS, top_k=3, return_input=True)
    same([(r.index, r.score) for r in found.data], expected[:3])
    assert [r.input for r in found.data] == [DOCUMENTS[i] for i, _ in expected[:3]]


def test_infinity(url, expected):
    from infinity_client import Client
    from infinity_client.api.default import rerank
    from infinity_client.models import RerankInput

    found = rerank.sync(client=Client(base_url=url), body=RerankInput(query=QUERY, documents=DOCUMENTS, model="m"))
    same(pairs(found.results), expected)


@pytest.mark.parametrize("provider", ["cohere", "jina_ai", "infinity", "huggingface", "hosted_vllm"])
def test_litellm(url, expected, provider):
    import litellm

    # Of "infinity" litellm expects documents as plain texts, of "hosted_vllm" as objects, and asks for both in the same words at the same path.
    found = litellm.rerank(model=f"{provider}/m", query=QUERY, documents=DOCUMENTS, top_n=len(DOCUMENTS), api_base=url, api_key="any",
                           return_documents=provider != "infinity")
    same([(r["index"], r["relevance_score"]) for r in found.results], expected)


def test_litellm_async(url, expected):
    import litellm

    async def ask():
        return await litellm.arerank(model="cohere/m", query=QUERY, documents=DOCUMENTS, api_base=url, api_key="any")

    same([(r["index"], r["relevance_score"]) for r in asyncio.run(ask()).results], expected)


# ---- clients without a package: what they send, and how they read it ----


def post(url, body, **headers):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def test_open_webui(url, expected):
    """open-webui, retrieval/models/external.py: sorts by index, uses scores by position."""
    answer = post(f"{url}/v1/rerank", {"model": "reranker", "query": QUERY, "documents": DOCUMENTS, "top_n": len(DOCUMENTS)})
    scores = [r["relevance_score"] for r in sorted(answer["results"], key=lambda r: r["index"])]
    assert scores == pytest.approx([score for _, score in sorted(expected)], abs=1e-6)


def test_dify(url, expected):
    """dify-official-plugins: the bodies of its rerank providers."""
    cohere_like = {"model": "m", "query": QUERY, "documents": DOCUMENTS, "top_n": None, "return_documents": True}
    for path in ("/v1/rerank", "/rerank"):  # gpustack, siliconflow, localai, jina
        results = post(url + path, cohere_like, Authorization="Bearer None")["results"]
        same([(r["index"], r["relevance_score"]) for r in results], expected)
        assert all(r["document"]["text"] == DOCUMENTS[r["index"]] for r in results)
    with urllib.request.urlopen(f"{url}/info") as info:  # huggingface_tei
        assert next(iter(json.load(info)["model_type"])) == "reranker"
    tei = post(f"{url}/rerank", {"query": QUERY, "texts": DOCUMENTS, "return_text": True})
    same([(r["index"], r["score"]) for r in tei], expected)
    with urllib.request.urlopen(f"{url}/v1/models/any") as model:  # xinference
        assert json.load(model)["model_type"] == "rerank"
    ollama = post(f"{url}/api/rerank", {"model": "m", "query": QUERY, "documents": DOCUMENTS})["results"]
    same([(r["index"], r["relevance_score"]) for r in ollama], expected)


def test_ragflow(url, expected):
    """ragflow, rag/llm/rerank_model.py."""
    strings = {"model": "m", "query": QUERY, "return_documents": "true", "return_len": "true", "documents": DOCUMENTS}
    answer = post(f"{url}/v1/rerank", strings)
    assert "total_tokens" in answer["usage"]
    same([(r["index"], r["relevance_score"]) for r in answer["results"]], expected)
    siliconflow = {"model": "m", "query": QUERY, "documents": DOCUMENTS, "top_n": 5, "return_documents": False, "max_chunks_per_doc": 1024, "overlap_tokens": 80}
    same([(r["index"], r["relevance_score"]) for r in post(f"{url}/v1/rerank", siliconflow)["results"]], expected)
    nvidia = {"model": "m", "query": {"text": QUERY}, "passages": [{"text": d} for d in DOCUMENTS], "truncate": "END", "top_n": 5}
    assert [r["index"] for r in post(f"{url}/reranking", nvidia)["rankings"]] == [index for index, _ in expected]


def test_lightrag_aliyun(url, expected):
    """lightrag/rerank.py, the aliyun binding."""
    body = {"model": "m", "input": {"query": QUERY, "documents": DOCUMENTS}, "parameters": {"top_n": 5}}
    results = post(f"{url}/api/v1/services/rerank/text-rerank/text-rerank", body)["output"]["results"]
    same([(r["index"], r["relevance_score"]) for r in results], expected)


def test_continue(url, expected):
    """continuedev/continue: both key headers, and the model's length from /models."""
    both = {"Authorization": "Bearer any", "x-api-key": "any"}
    results = post(f"{url}/v1/rerank", {"model": "m", "query": QUERY, "documents": DOCUMENTS}, **both)["results"]
    same([(r["index"], r["relevance_score"]) for r in results], expected)
    with urllib.request.urlopen(f"{url}/v1/models") as models:
        model = json.load(models)["data"][0]
    assert model["id"] == "builtin" and model["max_model_len"] > 0


# ---- npm ----


@pytest.mark.parametrize("name", ["cohere-v1", "cohere-v2", "ai-sdk"])
def test_npm(url, expected, name):
    script = SOURCE / "build" / "clients-npm" / "clients.mjs"
    body = json.dumps({"query": QUERY, "documents": DOCUMENTS})
    done = subprocess.run(["node", script, name, url], input=body, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    same([tuple(item) for item in json.loads(done.stdout)], expected)


