#!/usr/bin/env python3
"""What qwen-rerank in front of a vLLM server costs: the time of a request through it beside that of the same token ids sent to vLLM directly.

    vllm_overhead.py --vllm http://127.0.0.1:8000 --model DIR [--program build/qwen-rerank] [--repeat N] [--documents N] WORKLOAD.json

Both in turn, with a new query each time, so that vLLM's cache holds nothing but what the documents of one request share. Prints medians,
their ratio, and how many tokens vLLM's prefix cache gave, by its own metrics."""

import argparse
import http.client
import json
import pathlib
import random
import socket
import statistics
import subprocess
import time
import urllib.parse

from common import completion, free_port, prompts


class Client:
    """A new connection for each request, made before its time is taken: idle ones are closed by vLLM after 5 seconds."""

    def __init__(self, url):
        parts = urllib.parse.urlsplit(url)
        self.address = parts.hostname, parts.port

    def connect(self):
        connection = http.client.HTTPConnection(*self.address, timeout=600)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def post(self, path, body):
        data, connection = json.dumps(body).encode(), self.connect()
        start = time.perf_counter()
        connection.request("POST", path, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        seconds = time.perf_counter() - start
        assert response.status == 200, answer[:500]
        return json.loads(answer), seconds

    def get(self, path):
        connection = self.connect()
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()


def metric(vllm, name):
    return sum(float(line.split()[-1]) for line in vllm.get("/metrics")[1].splitlines() if line.startswith(f"vllm:{name}{{"))


def share_of_cache(vllm, step):
    """Does the step; which part of its tokens vLLM's prefix cache had."""
    hits, asked = metric(vllm, "prefix_cache_hits_total"), metric(vllm, "prefix_cache_queries_total")
    step()
    return (metric(vllm, "prefix_cache_hits_total") - hits) / (metric(vllm, "prefix_cache_queries_total") - asked)


def tokenize(args, text):
    command = [args.program, "tokenize", "--model", args.model, "--special", "--json", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    return [t["id"] for t in json.loads(done.stdout)["tokens"]]


def start_front_end(args):
    port = free_port()
    command = [args.program, "serve", "--model", args.model, "--vllm-url", args.vllm, "--port", str(port), "--log-level", "error"]
    process = subprocess.Popen(command)
    client = Client(f"http://127.0.0.1:{port}")
    for _ in range(600):
        try:
            if client.get("/ready")[0] == 200:
                return process, client
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit("the front end does not get ready")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--program", default="build/qwen-rerank")
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--documents", type=int)
    parser.add_argument("workload", type=pathlib.Path)
    args = parser.parse_args()
    workload = json.loads(args.workload.read_text())
    documents = workload["documents"][: args.documents]
    process, front = start_front_end(args)
    vllm = Client(args.vllm)
    name = json.loads(vllm.get("/v1/models")[1])["data"][0]["id"]
    direct, through, shared = [], [], ([], [])
    try:
        for i in range(args.repeat + 1):
            run = random.randrange(10**6)
            queries = [f"{workload['query']} ({run} {side})" for side in "ab"]
            ids = [tokenize(args, prompt) for prompt in prompts(queries[0], documents)]
            steps = [
                lambda: direct.append(vllm.post("/v1/completions", completion(name, ids))[1]),
                lambda: through.append(front.post("/v1/rerank", {"query": queries[1], "documents": documents})[1]),
            ]
            for side in (0, 1) if i % 2 else (1, 0):
                shared[side].append(share_of_cache(vllm, steps[side]))
            if i == 0:  # compiled and warmed up
                direct, through, shared = [], [], ([], [])
    finally:
        process.terminate()
        process.wait()
    a, b = statistics.median(direct), statistics.median(through)
    pairs = sorted(y / x for x, y in zip(direct, through, strict=True))
    print(f"{len(documents)} documents, {sum(map(len, ids))} tokens; {args.repeat} pairs of requests")
    print(f"direct            median {a:.3f} s, {min(direct):.3f} to {max(direct):.3f}")
    print(f"through qwen-rerank      {b:.3f} s, {min(through):.3f} to {max(through):.3f}")
    print(f"ratio of medians {b / a:.4f}, of pairs: median {statistics.median(pairs):.4f}, quartiles {pairs[len(pairs) // 4]:.4f} to {pairs[-1 - len(pairs) // 4]:.4f}")
    print(f"tokens from vLLM's prefix cache: {100 * statistics.median(shared[0]):.0f} % directly, {100 * statistics.median(shared[1]):.0f} % through qwen-rerank")


if __name__ == "__main__":
    main()
