"""The description of the interface says what the server does: its routes, and answers of every dialect by their schemas."""

import json
import re

import jsonschema
import pytest
from support import SOURCE

DOCUMENT = json.loads((SOURCE / "src" / "server" / "web" / "openapi.json").read_text())
TEXTS = ["Paris is in France.", "Beijing is the capital of China."]


def routes():
    """{path: methods} of the table in server.c."""
    found = {}
    for path, flags in re.findall(r'^    \{"([^"]+)", ([A-Z |]+), \w+\}', (SOURCE / "src" / "server" / "server.c").read_text(), re.M):
        found.setdefault(path + "{id}" if "BELOW" in flags else path, set()).add("get" if "GET" in flags else "post")
    return found


def test_every_route_is_described_and_answers():
    assert {path: set(methods) for path, methods in DOCUMENT["paths"].items()} == routes()


def test_methods(server):
    for path, methods in DOCUMENT["paths"].items():
        allowed = server.request("OPTIONS", path.replace("{id}", "x")).headers["Allow"]
        assert {"get": "GET" in allowed, "post": "POST" in allowed} == {"get": "get" in methods, "post": "post" in methods}


def validate(value, schema):
    """Pointers in the document start at its root, so the schema is put there."""
    jsonschema.Draft202012Validator(DOCUMENT | {"$ref": schema}).validate(value)


@pytest.mark.parametrize(
    "kind, body",
    [
        ("Results", {"query": "q", "documents": TEXTS, "return_documents": True, "top_n": 1}),
        ("Voyage", {"query": "q", "documents": TEXTS, "top_k": None}),
        ("Tei", {"query": "q", "texts": TEXTS, "return_text": True}),
        ("Mixedbread", {"query": "q", "input": TEXTS, "return_input": True}),
        ("Score", {"text_1": "q", "text_2": TEXTS}),
        ("Nim", {"query": {"text": "q"}, "passages": [{"text": text} for text in TEXTS]}),
        ("Dashscope", {"input": {"query": "q", "documents": TEXTS}, "parameters": {"top_n": 1}}),
    ],
)
def test_requests_and_answers_fit_their_schemas(server, kind, body):
    validate(body, f"#/components/schemas/{kind}Request")
    answer = server.post("/v1/rerank", body)
    assert answer.status == 200
    validate(answer.json(), f"#/components/schemas/{kind}Answer")


@pytest.mark.parametrize(
    "kind, body",
    [("", {"query": "q"}), ("Tei", {"query": "q", "texts": []}), ("Dashscope", {"input": {"query": "q"}}), ("", {"query": 1, "passages": []})],
)
def test_errors_fit_their_schemas(server, kind, body):
    answer = server.post("/v1/rerank", body)
    assert answer.status == 400
    validate(answer.json(), f"#/components/schemas/{kind}Error")


@pytest.mark.parametrize("path", ["/health", "/ready", "/v1/config", "/v1/models", "/v1/models/x", "/info", "/version", "/v1/cluster/auth"])
def test_questions_fit_their_schemas(server, path):
    answer = DOCUMENT["paths"][path.replace("/x", "/{id}")]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator(DOCUMENT | answer).validate(server.get(path).json())
    assert server.get("/openapi.json").json() == DOCUMENT
