"""Clients that are no packages: what they send and the few fields that they read, by the source files that are named."""

import urllib.error

import pytest
from support import DOCUMENTS, KEY, QUERY, close, get, post, ranked

TEXTS = list(DOCUMENTS)


def by_score(item):
    return item["index"], item["relevance_score"]


# ---- Dify: langgenius/dify-official-plugins, models/PLUGIN/models/rerank/rerank.py ----


def text_of_document(item):
    return item["document"]["text"]


def text_if_there(item):
    return item["document"]["text"] if "document" in item else TEXTS[item["index"]]


def plain_text_if_there(item):
    return item["document"] if "document" in item else TEXTS[item["index"]]


def text_at_index(item):
    return TEXTS[item["index"]]


COMMON = {"model": "m", "query": QUERY, "documents": TEXTS}
DIFY = [
    # plugin, path below the server's root, body, where results are, how the text is found
    ("openai_api_compatible", "/v1/rerank", COMMON | {"top_n": 5}, "results", text_at_index),
    ("cohere", "/v1/rerank", COMMON | {"top_n": 5, "return_documents": True}, "results", text_of_document),
    ("jina", "/v1/rerank", COMMON | {"top_n": None, "return_documents": False}, "results", text_at_index),
    ("jina, objects", "/v1/rerank", COMMON | {"documents": [{"text": d} for d in TEXTS], "top_n": 5, "return_documents": False}, "results", text_at_index),
    ("xinference", "/v1/rerank", COMMON | {"top_n": None, "return_documents": True, "max_chunks_per_doc": None, "return_len": None, "kwargs": "{}"}, "results", text_of_document),
    ("localai", "/rerank", COMMON | {"top_n": None}, "results", text_if_there),
    ("localai, /v1", "/v1/rerank", COMMON | {"top_n": 5}, "results", text_if_there),
    ("gpustack", "/v1/rerank", COMMON | {"top_n": None}, "results", text_if_there),
    ("siliconflow", "/v1/rerank", COMMON | {"top_n": None, "return_documents": True}, "results", text_of_document),
    ("voyage", "/v1/rerank", COMMON | {"top_k": None, "return_documents": True}, "data", lambda item: item["document"]),
    ("ollama", "/api/rerank", COMMON, "results", plain_text_if_there),
    ("ollama, full URL", "/v1/rerank", COMMON | {"top_n": 5}, "results", plain_text_if_there),
    ("openrouter", "/api/v1/rerank", COMMON | {"top_n": 5}, "results", text_at_index),
    ("openrouter, /v1", "/v1/rerank", COMMON, "results", text_at_index),
]


@pytest.mark.parametrize("key", ["None", "any", ""])  # "None" is what its plugins send without a key
@pytest.mark.parametrize("plugin, path, body, results, text", DIFY, ids=[row[0] for row in DIFY])
def test_dify(url, plugin, path, body, results, text, key):
    found = post(url + path, body, Authorization=f"Bearer {key}")[results]
    assert close([by_score(item) for item in found], ranked())
    assert [text(item) for item in found] == [TEXTS[i] for i, _ in ranked()]


@pytest.mark.parametrize("plugin, path, body, results, text", DIFY, ids=[row[0] for row in DIFY])
def test_dify_takes_the_best(url, plugin, path, body, results, text):
    count = "top_k" if "top_k" in body else "top_n"
    assert close([by_score(item) for item in post(url + path, body | {count: 2})[results]], ranked()[:2])


def test_dify_mixedbread(url):
    body = {"model": "mixedbread-ai/m", "query": QUERY, "input": TEXTS, "top_k": None, "return_input": True}
    found = post(f"{url}/v1/reranking", body)["data"]
    assert close([(item["index"], item["score"]) for item in found], ranked())
    assert [item["input"] for item in found] == [TEXTS[i] for i, _ in ranked()]


def test_dify_huggingface_tei(url):
    info = get(f"{url}/info")
    assert next(iter(info["model_type"])) == "reranker" and info["max_input_length"] > 0 and info["max_client_batch_size"] > 0
    found = post(f"{url}/rerank", {"query": QUERY, "texts": TEXTS, "return_text": True})
    assert close([(item["index"], item["score"]) for item in found], ranked())
    assert [item["text"] for item in found] == [TEXTS[i] for i, _ in ranked()]


def test_dify_xinference_asks_what_the_model_is(url):
    assert get(f"{url}/v1/models/any")["model_type"] == "rerank"


# ---- RAGFlow: infiniflow/ragflow, rag/llm/rerank_model.py ----

RAGFLOW = [
    ("jina", "/v1/rerank", COMMON | {"top_n": 5}),
    ("xinference", "/v1/rerank", COMMON | {"return_documents": "true", "return_len": "true"}),
    ("localai", "/rerank", COMMON | {"top_n": 5}),
    ("openai-api-compatible", "/v1/rerank", COMMON | {"top_n": 5}),
    ("gpustack", "/v1/rerank", COMMON | {"top_n": 5}),
    ("vllm and cohere", "/v1/rerank", COMMON | {"top_n": 5, "return_documents": False}),
    ("siliconflow", "/v1/rerank", COMMON | {"top_n": 5, "return_documents": False, "max_chunks_per_doc": 1024, "overlap_tokens": 80}),
]


@pytest.mark.parametrize("name, path, body", RAGFLOW, ids=[row[0] for row in RAGFLOW])
def test_ragflow(url, name, path, body):
    answer = post(url + path, body, Authorization="Bearer any")
    scores = [0.0] * len(TEXTS)
    for item in answer["results"]:
        scores[item["index"]] = item["relevance_score"]
    assert close(list(enumerate(scores)), sorted(ranked()))
    assert all(0 <= score <= 1 for score in scores)  # others are rescaled
    assert "total_tokens" in answer["usage"] and answer["usage"]["total_tokens"] > 0


def test_ragflow_huggingface(url):
    """In batches of 8, without a header for a key."""
    texts = TEXTS * 3
    scores = []
    for begin in range(0, len(texts), 8):
        batch = texts[begin : begin + 8]
        found = post(f"{url}/rerank", {"query": QUERY, "texts": batch, "raw_scores": False, "truncate": True})
        scores += [item["score"] for item in sorted(found, key=lambda item: item["index"])]
    assert close(list(enumerate(scores)), [(i, dict(ranked())[i % len(TEXTS)]) for i in range(len(texts))])


def test_ragflow_nvidia(url):
    body = {"model": "m", "query": {"text": QUERY}, "passages": [{"text": d} for d in TEXTS], "truncate": "END", "top_n": 5}
    found = post(f"{url}/v1/reranking", body, Authorization="Bearer any")["rankings"]
    assert close([(item["index"], item["logit"]) for item in found], ranked(score="margin"))


# ---- open-webui/open-webui, backend/open_webui/retrieval/models/external.py ----


def test_open_webui(url):
    user = {"X-OpenWebUI-User-Name": "J%C3%BCrgen", "X-OpenWebUI-User-Id": "1", "X-OpenWebUI-User-Role": "user"}
    answer = post(f"{url}/v1/rerank", {"model": "reranker", "query": QUERY, "documents": TEXTS, "top_n": len(TEXTS)}, Authorization="Bearer any", **user)
    scores = [item["relevance_score"] for item in sorted(answer["results"], key=lambda item: item["index"])]  # by position
    assert close(list(enumerate(scores)), sorted(ranked()))


# ---- Continue: continuedev/continue, core/llm/llms/HuggingFaceTEI.ts, Vllm.ts; its other adapter is tested from npm ----


def test_continue_tei(url):
    body = {"query": QUERY, "return_text": False, "raw_scores": False, "texts": TEXTS, "truncation_direction": "Right", "truncate": True}
    assert get(f"{url}/info")["model_id"]
    found = sorted(post(f"{url}/rerank", body, **{"x-api-key": "any", "Authorization": "Bearer any"}), key=lambda item: item["index"])
    assert close([(item["index"], item["score"]) for item in found], sorted(ranked()))


def test_continue_asks_for_the_model(url, strict):
    model = get(f"{url}/v1/models")["data"][0]
    assert model["id"] == "builtin" and model["max_model_len"] > 0
    assert get(f"{strict}/models", **{"x-api-key": KEY})["data"][0]["id"] == "builtin"


# ---- llama.cpp and vLLM, by hand ----


def test_llama_cpp(url):
    answer = post(f"{url}/reranking", {"query": QUERY, "documents": TEXTS})
    assert answer["object"] == "list" and close([by_score(item) for item in answer["results"]], ranked())


@pytest.mark.parametrize("left, right", [("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")])
def test_vllm_score(url, left, right):
    answer = post(f"{url}/v1/score", {"model": "m", left: QUERY, right: TEXTS})
    assert close([(item["index"], item["score"]) for item in answer["data"]], sorted(ranked()))


def test_vllm_instruction(url):
    for extra in ({"instruction": "Find recipes"}, {"chat_template_kwargs": {"instruction": "Find recipes"}}):
        assert close([by_score(item) for item in post(f"{url}/v1/rerank", COMMON | extra)["results"]], ranked(instruction="Find recipes"))


# ---- keys and errors, as these clients send and read them ----


@pytest.mark.parametrize(
    "headers", [{"Authorization": f"Bearer {KEY}"}, {"Authorization": f"bearer {KEY}"}, {"Authorization": KEY}, {"x-api-key": KEY}, {"api-key": KEY}], ids=str
)
def test_keys(strict, headers):
    assert close([by_score(item) for item in post(f"{strict}/v1/rerank", COMMON, **headers)["results"]], ranked())


ERRORS = [
    ("a wrong key", 401, "/v1/rerank", COMMON, {"Authorization": "Bearer wrong"}),
    ("no key", 401, "/v1/rerank", COMMON, {}),
    ("an unknown route", 404, "/v1/rank", COMMON, {"Authorization": f"Bearer {KEY}"}),
    ("no documents", 400, "/v1/rerank", COMMON | {"documents": []}, {"Authorization": f"Bearer {KEY}"}),
    ("too many documents", 400, "/v1/rerank", COMMON | {"documents": ["x"] * 21}, {"Authorization": f"Bearer {KEY}"}),
    ("too large", 413, "/v1/rerank", COMMON | {"documents": ["x" * 2_000_000]}, {"Authorization": f"Bearer {KEY}"}),
]


@pytest.mark.parametrize("what, status, path, body, headers", ERRORS, ids=[row[0] for row in ERRORS])
def test_errors(strict, what, status, path, body, headers):
    import json

    with pytest.raises(urllib.error.HTTPError) as caught:
        post(strict + path, body, **headers)
    assert caught.value.code == status and caught.value.headers["Content-Type"] == "application/json"
    error = json.load(caught.value)
    assert error["message"] and error["message"] == error["detail"] == error["error"]["message"] and error["error"]["code"] == status


def test_errors_for_tei_clients_are_two_texts(url):
    import json

    with pytest.raises(urllib.error.HTTPError) as caught:
        post(f"{url}/rerank", {"query": QUERY, "texts": []})
    error = json.load(caught.value)
    assert isinstance(error["error"], str) and error["error_type"] == "Empty"
