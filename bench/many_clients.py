#!/usr/bin/env python3
"""Many small requests at once beside one big one: documents per second of each, the waiting times of the small ones, and the service's memory.

    many_clients.py --model DIR [--program build/qwen-rerank] [--clients 64] [--documents 5] [--rounds N] WORKLOAD.json

Starts the service, lets it score all documents in one request, then lets every client send `rounds` requests one after another, each with a
query of its own and its own documents, cut to about 100 tokens; then the big request once more. No document is sent twice with a query."""

import argparse
import http.client
import json
import pathlib
import re
import statistics
import subprocess
import threading
import time

from common import free_port

CHARACTERS = 430  # about 100 tokens of English


class Service:
    def __init__(self, program, model, options):
        self.port = free_port()
        self.process = subprocess.Popen([program, "serve", "--model", model, "--port", str(self.port), *options], stderr=subprocess.DEVNULL)
        while True:
            assert self.process.poll() is None, "the service ended"
            try:
                if self.request("GET", "/ready")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.1)

    def request(self, method, path, body=None, connection=None):
        connection = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=3600)
        connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()

    def memory(self):
        """Megabytes, without what is the page cache's."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) * 1024 / 1e6

    def rerank(self, query, documents, connection=None):
        start = time.perf_counter()
        status, answer = self.request("POST", "/v1/rerank", {"query": query, "documents": documents}, connection)
        assert status == 200 and len(json.loads(answer)["results"]) == len(documents), answer[:500]
        return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="build/qwen-rerank")
    parser.add_argument("--model", required=True)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--documents", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("workload", type=pathlib.Path)
    args, options = parser.parse_known_args()
    workload = json.loads(args.workload.read_text())
    text = " ".join(workload["documents"])
    pieces = [text[i : i + CHARACTERS] for i in range(0, len(text) - CHARACTERS, CHARACTERS)]
    n = args.clients * args.documents

    def documents(first, count):  # a number makes each different
        return [f"{first + i}. {pieces[(first + i) % len(pieces)]}" for i in range(count)]

    service = Service(args.program, args.model, options)
    try:
        service.rerank("to get warm", documents(0, 10))
        big = [n / service.rerank(f"{workload['query']} (all)", documents(0, n))]
        waits = [[] for _ in range(args.clients)]
        memory = []  # after each tenth of the first client's requests

        def client(number):
            connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=3600)
            for turn in range(args.rounds):
                query = f"{workload['query']} ({number}, {turn})"
                waits[number].append(service.rerank(query, documents(number * args.documents, args.documents), connection))
                if number == 0 and (turn + 1) * 10 // args.rounds > turn * 10 // args.rounds:
                    memory.append(service.memory())

        threads = [threading.Thread(target=client, args=(i,)) for i in range(args.clients)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        small = n * args.rounds / (time.perf_counter() - start)
        big.append(n / service.rerank(f"{workload['query']} (again)", documents(0, n)))
    finally:
        service.process.terminate()
        service.process.wait()
    all_waits = sorted(w for per_client in waits for w in per_client)
    p50, p99 = statistics.median(all_waits), all_waits[int(0.99 * (len(all_waits) - 1))]
    print(f"one request of {n} documents: {big[0]:.2f} and {big[1]:.2f} documents/s")
    print(f"{args.clients} clients x {args.documents} documents, {args.rounds} rounds: {small:.2f} documents/s, {small / statistics.mean(big):.2f} of that")
    print(f"memory as it goes: {' '.join(f'{m:.0f}' for m in memory)} MB")
    print(f"waiting times: median {p50:.2f} s, 99 % {p99:.2f} s, ratio {p99 / p50:.2f}")


if __name__ == "__main__":
    main()
