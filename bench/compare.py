#!/usr/bin/env python3
"""Documents per second of our backends, of transformers and of vLLM (both on the CPU), one after another on the same checkpoint and texts.

    build/bench --compare --model DIR [--backend cpu --backend pytorch --backend cpu:int8 ...] [--dtype bf16] [--batch 1,4,8,all]
                          [--vllm build/vllm-venv/bin/python] WORKLOAD.json...

transformers gets what helps it: documents sorted by length, logits of the last position only, its best batch size, no gradients. An empty
--batch leaves it out. vLLM gets all prompts in one request for one token each, and blocks of its prefix cache that are small enough for the
head of the prompt to be shared. Its server, of the Python that --vllm names, is stopped (SIGSTOP) while others are measured."""

import argparse
import atexit
import contextlib
import http.client
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import tempfile
import time

import torch
from common import completion, free_port, prompts
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

TYPES = {"bf16": "bfloat16", "f32": "float32"}  # as PyTorch and vLLM call them
START_S = 600


class Transformers:
    def __init__(self, model, dtype):
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{model}/tokenizer.json", padding_side="left", pad_token="<|endoftext|>")
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        self.labels = [self.tokenizer.convert_tokens_to_ids(word) for word in ("no", "yes")]

    @torch.inference_mode()
    def score(self, query, documents, batch):
        ids = sorted(self.tokenizer(prompts(query, documents), add_special_tokens=False)["input_ids"], key=len)
        for i in range(0, len(ids), batch):
            inputs = self.tokenizer.pad({"input_ids": ids[i : i + batch]}, return_tensors="pt")
            logits = self.model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1, self.labels]
            logits.float().softmax(-1)[:, 1].tolist()

    def seconds(self, query, documents, batch):
        start = time.perf_counter()
        self.score(query, documents, batch)
        return time.perf_counter() - start


class Vllm:
    """A server; `with` wakes it up for as long as it is measured."""

    def __init__(self, python, model, dtype):
        self.port, self.n_requests = free_port(), 0
        self.log = tempfile.NamedTemporaryFile(suffix=".log")
        settings = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "4"}
        # Left to itself it keeps one core of two free, and takes twice as long.
        settings["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        self.process = subprocess.Popen(
            [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--host", "127.0.0.1", "--port", str(self.port), "--dtype",
             TYPES[dtype], "--served-model-name", "reranker", "--max-model-len", "8193", "--enable-prefix-caching", "--block-size", "32"],
            env=os.environ | settings, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        atexit.register(self.close)
        end = time.monotonic() + START_S
        while not self.is_healthy():
            if self.process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"vLLM does not get ready: {pathlib.Path(self.log.name).read_text()[-3000:]}")
            time.sleep(0.5)
        self.tell(signal.SIGSTOP)

    def is_healthy(self):
        try:
            return self.ask("GET", "/health")[0] == 200
        except OSError:
            return False

    def tell(self, number):
        os.killpg(self.process.pid, number)

    def __enter__(self):
        self.tell(signal.SIGCONT)
        return self

    def __exit__(self, *_):
        self.tell(signal.SIGSTOP)

    def close(self):
        with contextlib.suppress(ProcessLookupError):
            self.tell(signal.SIGKILL)
        self.process.wait()

    def ask(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=3600)
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()

    def seconds(self, query, documents):
        self.n_requests += 1  # a new query each time: nothing but the documents of one request may share its beginning
        body = json.dumps(completion("reranker", prompts(f"{query} ({self.n_requests})", documents))).encode()
        start = time.perf_counter()
        status, answer = self.ask("POST", "/v1/completions", body)
        seconds = time.perf_counter() - start
        assert status == 200 and len(json.loads(answer)["choices"]) == len(documents), answer[:500]
        return seconds


def ours(args, backend, workload):
    name, _, dtype = backend.partition(":")
    options = ["--torch-dir", pathlib.Path(torch.__file__).parent] if name == "pytorch" else []
    command = [args.bench, "--model", args.model, "--backend", name, "--dtype", dtype or args.dtype, "--repeat", str(args.repeat)]
    out = subprocess.run([*command, *options, workload], capture_output=True, text=True, check=True).stdout
    seconds = float(re.search(rf"^{re.escape(workload.name)} +([0-9.]+)", out, re.M)[1])
    return seconds, re.search(r"^peak memory .*", out, re.M)[0]


def best_of_transformers(args, peer, query, documents):
    """Its median with the batch size that is best, and what all of them took."""
    sizes = dict.fromkeys(len(documents) if b == "all" else min(int(b), len(documents)) for b in args.batch.split(","))
    peer.score(query, documents[:2], 2)
    tried = {b: peer.seconds(query, documents, b) for b in sizes}
    best = min(tried, key=tried.get)
    again = [peer.seconds(query, documents, best) for _ in range(args.repeat - 1)]
    return statistics.median([tried[best], *again]), f"batches of {best}; {', '.join(f'{b}: {s:.2f} s' for b, s in tried.items())}"


def print_row(path, name, seconds, documents, detail):
    print(f"{path.name:<20} {name:<16} {seconds:9.3f} {len(documents) / seconds:9.2f}  {detail}", flush=True)


def compare(args, path, transformers, vllm):
    workload = json.loads(path.read_text())
    query, documents = workload["query"], workload["documents"]
    own = [(f"ours, {b}", *ours(args, b, path)) for b in args.backend or ["cpu"]]
    peers = []
    if transformers is not None:
        peers.append(("transformers", *best_of_transformers(args, transformers, query, documents)))
    if vllm is not None:
        with vllm:
            vllm.seconds(query, documents)  # warm
            peers.append(("vLLM", statistics.median(vllm.seconds(query, documents) for _ in range(args.repeat)), ""))
    for name, seconds, memory in own:
        ratios = [f"{theirs / seconds:.2f} x {peer}" for peer, theirs, _ in peers]
        print_row(path, name, seconds, documents, "; ".join([*ratios, memory]))
    for name, seconds, detail in peers:
        print_row(path, name, seconds, documents, detail)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--backend", action="append")
    parser.add_argument("--dtype", default="bf16", choices=["bf16", "f32"])
    parser.add_argument("--batch", default="1,4,8,all")
    parser.add_argument("--vllm", metavar="PYTHON")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("workloads", nargs="+", type=pathlib.Path)
    args = parser.parse_args()
    vllm = Vllm(args.vllm, args.model, args.dtype) if args.vllm else None
    transformers = Transformers(args.model, getattr(torch, TYPES[args.dtype])) if args.batch else None
    print(f"{'workload':<20} {'runner':<16} {'seconds':>9} {'docs/s':>9}  ratio in documents/s")
    for path in args.workloads:
        compare(args, path, transformers, vllm)


if __name__ == "__main__":
    main()
