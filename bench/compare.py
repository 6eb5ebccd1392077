#!/usr/bin/env python3
"""Documents per second of our backends and of transformers (PyTorch on the CPU), one after another on the same checkpoint and texts.

    build/bench --compare --model DIR [--backend cpu --backend pytorch --backend cpu:int8 ...] [--dtype bf16] [--batch 1,4,8,all]
                          WORKLOAD.json...

transformers gets what helps it: documents sorted by length, logits of the last position only, its best batch size, no gradients."""

import argparse
import json
import pathlib
import re
import statistics
import subprocess
import time

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"


class Transformers:
    def __init__(self, model, dtype):
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{model}/tokenizer.json", padding_side="left", pad_token="<|endoftext|>")
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        self.labels = [self.tokenizer.convert_tokens_to_ids(word) for word in ("no", "yes")]

    @torch.inference_mode()
    def score(self, query, documents, batch):
        prompts = [f"{PREFIX}<Instruct>: {INSTRUCTION}\n<Query>: {query}\n<Document>: {d}{SUFFIX}" for d in documents]
        ids = sorted(self.tokenizer(prompts, add_special_tokens=False)["input_ids"], key=len)
        for i in range(0, len(ids), batch):
            inputs = self.tokenizer.pad({"input_ids": ids[i : i + batch]}, return_tensors="pt")
            logits = self.model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1, self.labels]
            logits.float().softmax(-1)[:, 1].tolist()

    def seconds(self, query, documents, batch):
        start = time.perf_counter()
        self.score(query, documents, batch)
        return time.perf_counter() - start


def ours(args, backend, workload):
    name, _, dtype = backend.partition(":")
    options = ["--torch-dir", pathlib.Path(torch.__file__).parent] if name == "pytorch" else []
    command = [args.bench, "--model", args.model, "--backend", name, "--dtype", dtype or args.dtype, "--repeat", str(args.repeat)]
    out = subprocess.run([*command, *options, workload], capture_output=True, text=True, check=True).stdout
    seconds = float(re.search(rf"^{re.escape(workload.name)} +([0-9.]+)", out, re.M)[1])
    return seconds, re.search(r"^peak memory .*", out, re.M)[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--backend", action="append")
    parser.add_argument("--dtype", default="bf16", choices=["bf16", "f32"])
    parser.add_argument("--batch", default="1,4,8,all")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("workloads", nargs="+", type=pathlib.Path)
    args = parser.parse_args()
    peer = Transformers(args.model, {"bf16": torch.bfloat16, "f32": torch.float32}[args.dtype])
    print(f"{'workload':<20} {'runner':<28} {'seconds':>9} {'docs/s':>9} {'ratio':>6}")
    for path in args.workloads:
        workload = json.loads(path.read_text())
        query, documents = workload["query"], workload["documents"]
        first = {b: ours(args, b, path) for b in args.backend or ["cpu"]}
        sizes = dict.fromkeys(len(documents) if b == "all" else min(int(b), len(documents)) for b in args.batch.split(","))
        peer.score(query, documents[:2], 2)
        tried = {b: peer.seconds(query, documents, b) for b in sizes}
        best = min(tried, key=tried.get)
        theirs = statistics.median([tried[best], *(peer.seconds(query, documents, best) for _ in range(args.repeat - 1))])
        rows = [(f"transformers, batches of {best}", theirs, ""), *((f"ours, {b}", s, memory) for b, (s, memory) in first.items())]
        for name, seconds, memory in rows:
            rate = len(documents) / seconds
            print(f"{path.name:<20} {name:<28} {seconds:9.3f} {rate:9.2f} {theirs / seconds:6.2f}  {memory}", flush=True)
        print(f"{'':<20} other batch sizes: {', '.join(f'{b}: {s:.2f} s' for b, s in tried.items())}", flush=True)


if __name__ == "__main__":
    main()
