#!/usr/bin/env bash
# Asks every route of a server once and checks order and shape of the answers. Starts one on the built-in model and stops it, unless --url
# names one that runs.
#
# usage: scripts/smoke_test.sh [--url URL] [--key KEY]
set -euo pipefail
cd "$(dirname "$0")/.."

url='' key='' server=''
while [[ $# -gt 0 ]]; do
    case $1 in
    --url) url=${2:?--url needs an argument} && shift 2 ;;
    --key) key=${2:?--key needs an argument} && shift 2 ;;
    *)
        sed -n 's/^# \{0,1\}//; 2,5p' "$0" >&2
        exit 2
        ;;
    esac
done
if [[ -z $url ]]; then
    build=${QR_BUILD:-build} log=$(mktemp)
    "$build/qwen-rerank" serve --model builtin --port 0 --log-level info 2>"$log" &
    server=$!
    trap 'kill "$server" 2>/dev/null; wait "$server" 2>/dev/null; rm -f "$log"' EXIT
    for _ in {1..300}; do
        url=$(sed -n 's/.*ready on \(http:[^ ]*\).*/\1/p' "$log")
        [[ -n $url ]] && break
        kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    if [[ -z $url ]]; then
        echo "smoke_test.sh: the server did not start:" >&2
        cat "$log" >&2
        exit 1
    fi
fi

python3 - "$url" "$key" <<'PYTHON'
import json
import sys
import urllib.error
import urllib.request

url, key = sys.argv[1].rstrip("/"), sys.argv[2]
query, good, bad = "What is the capital of China?", "The capital of China is Beijing.", "Rust forms on iron that is left in the rain."
documents = [bad, good]
checked = 0


def ask(path, body=None, **headers):
    if key:
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, data, headers), timeout=120) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, OSError) as error:
        sys.exit(f"smoke_test: {path}: {error}{': ' + error.read().decode()[:300] if isinstance(error, urllib.error.HTTPError) else ''}")


def check(path, found, wanted):
    global checked
    checked += 1
    if found != wanted:
        sys.exit(f"smoke_test: {path}: expected {wanted}, found {found}")


def order(path, body, read):
    results = read(json.loads(ask(path, body)))
    check(path, [item["index"] for item in results], [1, 0])


for path in ("/v1/rerank", "/v2/rerank", "/rerank", "/v1/reranking", "/reranking", "/api/rerank", "/api/v1/rerank", "/v1/v1/rerank", "/v1/v2/rerank",
             "/compatible-api/v1/reranks", "/invocations", "/"):
    order(path, {"query": query, "documents": documents}, lambda a: a["results"])
order("/rerank", {"query": query, "texts": documents}, lambda a: a)
order("/v1/rerank", {"query": query, "documents": documents, "top_k": 2}, lambda a: a["data"])
order("/v1/reranking", {"query": query, "input": documents}, lambda a: a["data"])
order("/v1/ranking", {"query": {"text": query}, "passages": [{"text": d} for d in documents]}, lambda a: a["rankings"])
order("/api/v1/services/rerank/text-rerank/text-rerank", {"input": {"query": query, "documents": documents}}, lambda a: a["output"]["results"])
for path in ("/v1/score", "/score"):
    scores = [item["score"] for item in json.loads(ask(path, {"text_1": query, "text_2": documents}))["data"]]
    check(path, scores[0] < scores[1] and all(0 <= score <= 1 for score in scores), True)
for path in ("/tokenize", "/v1/tokenize"):
    check(path, len(json.loads(ask(path, {"content": "one two"}))["tokens"]) >= 2, True)
for path in ("/health", "/healthz", "/v1/health"):
    check(path, json.loads(ask(path)), {"status": "ok"})
for path in ("/ready", "/ping"):
    check(path, json.loads(ask(path))["ready"], True)
check("/info", next(iter(json.loads(ask("/info"))["model_type"])), "reranker")
models = json.loads(ask("/v1/models"))["data"]
check("/models", json.loads(ask("/models"))["data"], models)
check("/v1/models/", json.loads(ask("/v1/models/" + models[0]["id"]))["id"], models[0]["id"])
config = json.loads(ask("/v1/config"))
check("/version", json.loads(ask("/version"))["version"], config["version"])
check("/metrics", "qwen_rerank_ready 1" in ask("/metrics"), True)
check("/openapi.json", json.loads(ask("/openapi.json"))["openapi"], "3.1.0")
for path in ("/ui", "/docs"):
    check(path, ask(path).lower().startswith("<!doctype html>"), True)
check("/", ask("/", Accept="text/html"), ask("/ui"))
stream = ask("/v1/rerank", {"query": query, "documents": documents}, Accept="text/event-stream")
check("stream", "event: progress" in stream and "event: result" in stream, True)
print(f"{checked} checks passed: {config['model']} on {config['backend']} at {url}")
PYTHON
