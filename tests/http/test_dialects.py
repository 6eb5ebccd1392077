"""What each kind of client sends, and what it reads of the answer."""

import itertools

import pytest
from support import score

QUERY = "capital of China"
DOCUMENTS = ["Paris is in France.", "Beijing is the capital of China.", "", "Bread is baked from flour."]


def expected(query=QUERY, documents=DOCUMENTS, **extra):
    """(index, score) from best to worst, from the command line."""
    found = [line["score"] for line in score([{"query": query, "document": d, **extra} for d in documents], "--threads", "1")]
    return sorted(enumerate(found), key=lambda item: (-item[1], item[0]))


def ranks(items, key="relevance_score"):
    return [(item["index"], item[key]) for item in items]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank", "/v1/rerank/", "/reranking", "/v1/reranking",
                                  "/compatible-api/v1/reranks", "/v1/v1/rerank", "/v1/v2/rerank", "/invocations", "/"])
def test_results_on_every_path(server, path):
    answer = server.post(path, {"model": "m", "query": QUERY, "documents": DOCUMENTS})
    assert answer.status == 200 and answer.headers["Content-Type"] == "application/json"
    body = answer.json()
    assert ranks(body["results"]) == expected()
    assert ranks(body["results"], "score") == expected()
    assert not any("document" in item for item in body["results"])
    assert body["object"] == "list" and body["model"] == "m" and body["id"] == answer.headers["X-Request-ID"]
    assert isinstance(body["usage"]["total_tokens"], int) and body["usage"]["total_tokens"] > 0
    assert body["meta"]["api_version"]["version"] == "2" and body["meta"]["billed_units"]["search_units"] == 1


def test_cohere_documents_as_objects(server):
    body = {"query": "q", "documents": [{"text": "a", "id": "x"}, "b"], "return_documents": True}
    results = server.post("/v1/rerank", body).json()["results"]
    assert {item["index"]: item["document"] for item in results} == {0: {"text": "a", "id": "x"}, 1: {"text": "b"}}


def test_rank_fields(server):
    documents = [{"title": "Beijing", "body": "is the capital of China", "other": 7}, {"title": "Paris"}, {"nothing": 1}]
    got = server.post("/v1/rerank", {"query": QUERY, "documents": documents, "rank_fields": ["title", "body"]}).json()["results"]
    assert ranks(got) == expected(documents=["title: Beijing\nbody: is the capital of China", "Paris", ""])


def test_tei(server):
    plain = server.post("/rerank", {"query": QUERY, "texts": DOCUMENTS}).json()
    assert ranks(plain, "score") == expected() and not any("text" in item for item in plain)
    texts = server.post("/rerank", {"query": QUERY, "texts": DOCUMENTS, "return_text": True, "truncate": True, "top_n": 2}).json()
    assert [item["text"] for item in texts] == [DOCUMENTS[i] for i, _ in expected()[:2]]
    raw = server.post("/rerank", {"query": QUERY, "texts": DOCUMENTS, "raw_scores": True}).json()
    assert [item["index"] for item in raw] == [item["index"] for item in plain]
    error = server.post("/rerank", {"query": QUERY, "texts": []})
    assert error.status == 400 and error.json()["error_type"] == "Empty" and isinstance(error.json()["error"], str)


@pytest.mark.parametrize("left, right", [("text_1", "text_2"), ("data_1", "data_2"), ("queries", "documents"), ("queries", "items")])
def test_score_keeps_the_order(server, left, right):
    data = server.post("/v1/score", {left: QUERY, right: DOCUMENTS}).json()["data"]
    assert ranks(data, "score") == sorted(expected())
    assert all(item["object"] == "score" for item in data)


def test_score_of_pairs(server):
    data = server.post("/score", {"text_1": [QUERY, "bread"], "text_2": [DOCUMENTS[1], DOCUMENTS[3]]}).json()["data"]
    assert data[0]["score"] == expected(documents=[DOCUMENTS[1]])[0][1]
    assert data[1]["score"] == expected(query="bread", documents=[DOCUMENTS[3]])[0][1]
    assert server.post("/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}).status == 400


@pytest.mark.parametrize("extra", [{"top_k": None, "truncation": True}, {"top_k": 2}, {"truncation": True}])
def test_voyage(server, extra):
    body = server.post("/v1/rerank", {"query": QUERY, "documents": DOCUMENTS, "model": "m", "return_documents": True, **extra}).json()
    assert body["object"] == "list" and body["usage"]["total_tokens"] > 0
    assert ranks(body["data"]) == expected()[: extra.get("top_k") or 4]
    assert [item["document"] for item in body["data"]] == [DOCUMENTS[item["index"]] for item in body["data"]]


def test_mixedbread(server):
    sent = {"model": "mixedbread-ai/m", "query": QUERY, "input": DOCUMENTS, "top_k": 1, "return_input": True}
    body = server.post("/v1/reranking", sent).json()
    assert ranks(body["data"], "score") == expected()[:1] and body["data"][0]["input"] == DOCUMENTS[expected()[0][0]]
    assert body["top_k"] == 1 and body["return_input"] is True and body["usage"] and body["model"]


@pytest.mark.parametrize("name", ["instruction", "instruct", "task", "prompt"])
def test_instruction_by_any_name(server, name):
    got = server.post("/v1/rerank", {"query": QUERY, "documents": DOCUMENTS, name: "Find the opposite"}).json()["results"]
    assert ranks(got) == expected(instruction="Find the opposite")
    nested = {"query": QUERY, "documents": DOCUMENTS, "chat_template_kwargs": {name: "Find the opposite"}}
    assert ranks(server.post("/v1/rerank", nested).json()["results"]) == ranks(got)


@pytest.mark.parametrize("top_n, count", [(None, 4), (0, 4), (1, 1), (4, 4), (9, 4), ("3", 3), (2.0, 2)])
def test_top_n(server, top_n, count):
    results = server.post("/v1/rerank", {"query": QUERY, "documents": DOCUMENTS, "top_n": top_n}).json()["results"]
    assert ranks(results) == expected()[:count]


@pytest.mark.parametrize("value, shown", [(True, True), ("true", True), ("false", False), (None, False), (False, False)])
def test_booleans_as_strings(server, value, shown):
    results = server.post("/v1/rerank", {"query": "q", "documents": ["a"], "return_documents": value, "return_len": "true"}).json()["results"]
    assert ("document" in results[0]) == shown


BAD = [
    ({"query": "q", "documents": []}, "documents"),
    ({"documents": ["a"]}, "query"),
    ({"query": 1, "documents": ["a"]}, "query"),
    ({"query": "q"}, "documents"),
    ({"query": "q", "documents": {"a": 1}}, "documents"),
    ({"query": "q", "documents": ["a", 5]}, "documents"),
    ({"query": "q", "documents": ["a", None]}, "documents"),
    ({"query": "q", "documents": ["a"], "top_n": -1}, "top_n"),
    ({"query": "q", "documents": ["a"], "top_n": 1.5}, "top_n"),
    ({"query": "q", "documents": ["a"], "return_documents": "perhaps"}, "return_documents"),
    ({"query": "q", "documents": ["a"], "model": 3}, "model"),
    ([1, 2], None),
    ("text", None),
]


@pytest.mark.parametrize("body, param", BAD)
def test_errors_name_the_field(server, body, param):
    answer = server.post("/v1/rerank", body if not isinstance(body, str) else f'"{body}"')
    assert answer.status == 400
    error = answer.json()
    assert error["message"] == error["detail"] == error["error"]["message"]
    assert error["error"]["param"] == param and error["error"]["code"] == 400 and error["error"]["type"] == "invalid_request_error"


def test_broken_json(server):
    for body in [b"", b"{", b'{"query": "q", "documents": ["a"]', b"[" * 100000, b'{"query": "q", "documents": ["a"], "top_n": NaN}', b"\xff\xfe"]:
        answer = server.post("/v1/rerank", body)
        assert answer.status == 400 and "JSON" in answer.json()["message"], body[:40]


def test_broken_text_is_repaired(server):
    sent = b'{"query": "q", "documents": ["\xff\xfe", "\\ud800 lone", "a\\u0000b", "\\ud83d\\ude00"]}'
    got = server.post("/v1/rerank", sent).json()["results"]
    assert ranks(got) == expected(query="q", documents=["\ufffd\ufffd", "\ufffd lone", "a\0b", "\U0001f600"])


def test_same_documents_same_scores(server):
    got = server.post("/v1/rerank", {"query": "q", "documents": ["a", "b"] * 50}).json()["results"]
    for index, group in itertools.groupby(sorted(got, key=lambda item: item["index"] % 2), key=lambda item: item["index"] % 2):
        assert len({item["score"] for item in group}) == 1, index


def test_questions_about_the_server(server):
    assert server.get("/health").json() == server.get("/healthz").json() == {"status": "ok"}
    ready = server.get("/ready")
    assert ready.status == 200 and ready.json()["ready"] is True and ready.json()["backend"] == "cpu"
    info = server.get("/info").json()
    assert next(iter(info["model_type"])) == "reranker" and {"sha", "docker_label", "max_batch_requests"} <= info.keys()
    models = server.get("/v1/models").json()
    assert models["object"] == "list" and models["data"][0]["max_model_len"] > 0
    assert server.get("/v1/models/any").json()["model_type"] == "rerank"
    assert server.get("/v1/config").json()["backend"] == "cpu"
    assert server.request("HEAD", "/health").status == 200
    assert server.get("/v1/rerank").status == 405 and server.get("/v1/rerank").headers["Allow"] == "POST, OPTIONS"
    assert server.get("/nothing/here").status == 404 and "/v1/rerank" in server.get("/nothing/here").json()["message"]
    assert server.request("DELETE", "/health").status == 405


@pytest.mark.parametrize("path", ["/v1/ranking", "/reranking", "/v1/rerank"])
def test_nim(server, path):
    body = {"model": "m", "query": {"text": QUERY}, "passages": [{"text": d} for d in DOCUMENTS], "truncate": "END"}
    answer = server.post(path, body).json()
    assert [item["index"] for item in answer["rankings"]] == [i for i, _ in expected()]
    logits = [item["logit"] for item in answer["rankings"]]
    assert logits == sorted(logits, reverse=True) and min(logits) < 0
    assert len(server.post(path, body | {"top_n": 1}).json()["rankings"]) == 1


def test_dashscope(server):
    path = "/api/v1/services/rerank/text-rerank/text-rerank"
    body = {"model": "m", "input": {"query": QUERY, "documents": DOCUMENTS}, "parameters": {"top_n": 2, "return_documents": True}}
    answer = server.post(path, body).json()
    assert ranks(answer["output"]["results"]) == expected()[:2]
    assert [item["document"]["text"] for item in answer["output"]["results"]] == [DOCUMENTS[i] for i, _ in expected()[:2]]
    assert answer["usage"]["total_tokens"] > 0 and answer["request_id"]
    error = server.post(path, {"input": {"query": QUERY}})
    assert error.status == 400 and error.json()["code"] == "InvalidParameter" and "documents" in error.json()["message"]


def test_ollama(server):
    answer = server.post("/api/rerank", {"model": "m", "query": QUERY, "documents": DOCUMENTS, "return_documents": True}).json()
    assert ranks(answer["results"]) == expected()
    assert [item["document"] for item in answer["results"]] == [DOCUMENTS[i] for i, _ in expected()]
    assert "document" not in server.post("/api/rerank", {"query": QUERY, "documents": DOCUMENTS}).json()["results"][0]


def test_openrouter_sends_documents_back(server):
    answer = server.post("/api/v1/rerank", {"model": "m", "query": QUERY, "documents": DOCUMENTS}).json()
    assert ranks(answer["results"]) == expected()
    assert [item["document"] for item in answer["results"]] == [{"text": DOCUMENTS[i]} for i, _ in expected()]
    refused = server.post("/api/v1/rerank", {"query": QUERY, "documents": DOCUMENTS, "return_documents": False}).json()
    assert not any("document" in item for item in refused["results"])


LONG = "Beijing is the capital of China. " * 300
PREFIX = ('<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. '
          'Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n')
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def test_long_documents_are_cut_unless_forbidden(server):
    body = {"query": QUERY, "documents": ["short", LONG], "max_length": 200}
    cut = server.post("/v1/rerank", body)
    assert cut.status == 200 and cut.headers["X-Truncated-Documents"] == "1" and cut.json()["meta"]["warnings"]
    assert ranks(cut.json()["results"]) == expected(documents=["short", LONG], max_length=200)
    for extra, status in [({"truncation": False}, 400), ({"truncate": False}, 400), ({"truncate": "NONE"}, 400)]:
        refused = server.post("/v1/rerank", body | extra)
        assert refused.status == status and "document 1: expected at most" in refused.json()["message"], refused.body
    tei = server.post("/rerank", {"query": QUERY, "texts": ["short", LONG], "truncate": False, "max_length": 200})
    assert tei.status == 422 and tei.json()["error_type"] == "Validation"
    assert server.post("/v1/rerank", body | {"truncation": False, "documents": ["short"]}).status == 200
    start = server.post("/v1/rerank", {"query": QUERY, "documents": [LONG + "Paris"], "max_length": 200, "truncation_side": "left"}).json()
    end = server.post("/v1/rerank", {"query": QUERY, "documents": [LONG + "Paris"], "max_length": 200}).json()
    assert start["usage"] == end["usage"] and start["results"] != end["results"]
    assert server.post("/v1/rerank", body | {"truncation_side": "up"}).status == 400


def test_large_requests(server):
    documents = [f"{i} {DOCUMENTS[i % 4]}" for i in range(1000)]
    assert ranks(server.post("/v1/rerank", {"query": QUERY, "documents": documents}).json()["results"]) == expected(documents=documents)
    megabyte = "Beijing is the capital of China. " * 32000
    answer = server.post("/v1/rerank", {"query": QUERY, "documents": ["short", megabyte], "max_tokens_per_doc": 4096})
    assert answer.headers["X-Truncated-Documents"] == "1" and len(answer.json()["results"]) == 2


def test_limit_on_each_document(server):
    def ask(**extra):
        return server.post("/v1/rerank", {"query": QUERY, "documents": [LONG]} | extra).json()

    few, many, all_ = ask(max_tokens_per_doc=20), ask(max_tokens_per_doc=21), ask(max_tokens_per_doc=1000000)
    assert many["usage"]["total_tokens"] == few["usage"]["total_tokens"] + 1
    assert all_["results"] == ask()["results"] == ask(max_tokens_per_doc=0, truncate_prompt_tokens=-1)["results"]
    assert ask(truncate_prompt_tokens=150)["usage"]["total_tokens"] == 150


def test_wrapped_texts_are_unwrapped(server):
    query = f"{PREFIX}<Instruct>: Find cities\n<Query>: {QUERY}\n"
    body = {"query": query, "documents": [f"<Document>: {d}{SUFFIX}" for d in DOCUMENTS]}
    want = expected(instruction="Find cities")
    assert ranks(server.post("/v1/rerank", body).json()["results"]) == want
    assert ranks(server.post("/v1/rerank", body | {"template": "never"}).json()["results"]) == want
    assert ranks(server.post("/v1/rerank", body | {"template": "always"}).json()["results"]) == expected(query, body["documents"])
    scores = server.post("/v1/score", {"text_1": query, "text_2": body["documents"]}).json()["data"]
    assert [item["score"] for item in scores] == [score for _, score in sorted(want)]
    plain = server.post("/v1/rerank", {"query": QUERY, "documents": DOCUMENTS, "template": "never"})
    assert plain.status == 400 and "template" in plain.json()["message"]


def test_tokenize(server):
    tei = server.post("/tokenize", {"inputs": ["Beijing is", "a"], "add_special_tokens": True}).json()
    assert "".join(token["text"] for token in tei[0]) == "Beijing is" and len(tei) == 2
    assert tei[0][-1]["stop"] == 10 and not any(token["special"] for token in tei[0])
    ids = [token["id"] for token in tei[0]]
    assert server.post("/tokenize", {"content": "Beijing is"}).json() == {"tokens": ids}
    assert server.post("/tokenize", {"content": "Beijing is", "with_pieces": True}).json()["tokens"][0] == {"id": ids[0], "piece": tei[0][0]["text"]}
    vllm = server.post("/v1/tokenize", {"model": "m", "prompt": "Beijing is"}).json()
    assert vllm["tokens"] == ids and vllm["count"] == len(ids) and vllm["max_model_len"] > 0
    assert server.post("/tokenize", {"inputs": [1]}).status == server.post("/tokenize", {}).status == 400
