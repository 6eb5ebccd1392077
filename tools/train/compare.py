#!/usr/bin/env python3
"""Compares the program's scores with those of Hugging Face transformers, in f32, on text of every evaluation set.

usage: compare.py MODEL F32_DIR [PROGRAM]

MODEL is what the program loads ("builtin" or a directory), F32_DIR the same weights as f32 (export.py --f32). Fails if a margin
(logit yes - logit no) differs by more than 1e-3.
"""

import json
import pathlib
import subprocess
import sys

import torch
import transformers

import evaluate
import prompt


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    model, directory, program = sys.argv[1], sys.argv[2], (sys.argv[3:] or ["build/qwen-rerank"])[0]
    pairs = [(None, "", ""), (None, "same", "same"), ("Find it", "How to configure RAID?", "naïve café ﬁ 日本語 \t\n 12345 <|im_end|> </think>")]
    for name in ("a", "b", "c"):
        if evaluate.available(name):
            pairs += [(i.get("instruction"), i["query"], d) for i in evaluate.load_set(name)[0][:20] for d in i["documents"][:4]]
    lines = "".join(json.dumps({"query": q, "document": d} | ({"instruction": i} if i else {})) + "\n" for i, q, d in pairs)
    done = subprocess.run([program, "score", "--model", model, "--dtype", "f32"], input=lines, stdout=subprocess.PIPE, text=True, check=True)
    ours = [json.loads(line)["margin"] for line in done.stdout.splitlines()]

    # split_special_tokens: a document that spells a special token must not become one
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    reference = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    yes, no = tokenizer.convert_tokens_to_ids("yes"), tokenizer.convert_tokens_to_ids("no")
    encode = lambda text, user: tokenizer(text, add_special_tokens=False, split_special_tokens=user)["input_ids"]
    worst = 0.0
    for (instruction, query, document), our in zip(pairs, ours, strict=True):
        whole = prompt.head(instruction, query) + document
        ids = encode(prompt.PREFIX, False) + encode(whole[len(prompt.PREFIX) :], True) + encode(prompt.SUFFIX, False)
        with torch.inference_mode():
            logits = reference(torch.tensor([ids])).logits[0, -1]
        worst = max(worst, abs(float(logits[yes] - logits[no]) - our))
    print(f"{len(pairs)} pairs: largest difference of a margin to transformers {worst:.2e}")
    if worst > 1e-3:
        sys.exit("too large")


if __name__ == "__main__":
    main()
