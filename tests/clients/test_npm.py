"""Clients from npm: clients.mjs asks, one Node.js process for all."""

import json
import os
import subprocess

import pytest
from contract import *  # noqa: F403
from support import DOCUMENTS, QUERY, SOURCE, client, close, ranked, running, wait_until_ready

CLIENTS = []
NODE = None


@pytest.fixture(scope="module", autouse=True)
def node():
    global NODE
    command = [os.environ.get("NODE", "node"), SOURCE / "build" / "clients-npm" / "clients.mjs"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as NODE:
        yield
        NODE.stdin.close()
        assert NODE.wait() == 0


def ask(name, url, key, query, documents):
    NODE.stdin.write(json.dumps({"client": name, "url": url, "key": key, "query": query, "documents": documents}) + "\n")
    NODE.stdin.flush()
    answer = json.loads(NODE.stdout.readline())
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return [tuple(pair) for pair in answer["found"]]


NAMES = {
    "cohere-ai v1": [],
    "cohere-ai v2": [],
    "cohere-ai v1 with objects": [],
    "@langchain/cohere": ["frugal"],
    "@ai-sdk/cohere": ["frugal"],
    "voyage-ai-provider": ["frugal"],
    "voyageai": [],
    "@mixedbread/sdk": ["no /v1"],
    "@openrouter/sdk": ["no /v1"],
    "continue vllm": [],
    "continue cohere": ["silent"],
}

for name, traits in NAMES.items():

    @client(CLIENTS, name, *traits)
    def _(url, key, query, documents, name=name):
        return ask(name, url, key, query, documents)


def test_voyage_requests_that_do_not_look_like_voyage():
    """Without options Voyage's client sends what all others send, and reads "data": that is what the setting is for."""
    with running("--model", "builtin", "--mirror-data") as url:
        wait_until_ready(url)
        assert close(ask("voyageai with nothing but the texts", url, "any", QUERY, list(DOCUMENTS)), ranked())
