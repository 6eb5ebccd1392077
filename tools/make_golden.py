#!/usr/bin/env python3
"""Golden scores: what Hugging Face transformers gives for every case, one prompt at a time (no padding), eager attention, in f32; beside
each the bf16 margin of the same code, which is the yardstick for what reduced precision may cost on these weights.

  make_golden.py MODEL_DIR CASES.json OUT.json        see tests/golden/README.md

Made with: torch 2.13.0 (CPU), transformers 5.23.0, on Python 3.11. MODEL_DIR holds a checkpoint of make_checkpoint and tokenizer.json.
User text is tokenised with split_special_tokens, so that <|im_end|> inside a query or document stays plain text."""
import hashlib, json, math, os, sys
import torch, transformers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

PREFIX = ('<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. '
          'Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n')
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"


def main():
    folder, cases, out = sys.argv[1:4]
    tok = PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json")
    f32, bf16 = (AutoModelForCausalLM.from_pretrained(folder, dtype=t, attn_implementation="eager").eval() for t in (torch.float32, torch.bfloat16))
    encode = lambda text, plain=False: tok.encode(text, add_special_tokens=False, split_special_tokens=plain)
    prefix, suffix, (yes, no) = encode(PREFIX), encode(SUFFIX), tok.convert_tokens_to_ids(["yes", "no"])

    def logits(model, ids):
        with torch.inference_mode():
            row = model(torch.tensor([ids]), logits_to_keep=1).logits[0, -1].double()
        return row[yes].item(), row[no].item()

    results = []
    with open(cases) as f:
        todo = json.load(f)
    for case in todo:
        instruction = INSTRUCTION if case.get("instruction") is None else case["instruction"]
        document = case["document"] * case.get("repeat", 1)
        body = encode(f"<Instruct>: {instruction}\n<Query>: {case['query']}\n<Document>: {document}", plain=True)
        if case.get("max_length"):
            body = body[: case["max_length"] - len(prefix) - len(suffix)]
        ids = prefix + body + suffix
        (y, n), (low_y, low_n) = logits(f32, ids), logits(bf16, ids)
        r = dict(case, n_tokens=len(ids), ids_sha256=hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest(), yes_logit=y, no_logit=n,
                 margin=y - n, hf_bf16_margin=low_y - low_n, score=1 / (1 + math.exp(n - y)))
        if len(ids) < 200:
            r["ids"] = ids
        results.append(r)
    with open(out, "w") as f:
        json.dump({"checkpoint": os.path.basename(folder.rstrip("/")), "dtype": "float32", "transformers": transformers.__version__,
                   "torch": torch.__version__, "cases": results}, f, indent=1, ensure_ascii=False)
    errors = [abs(r["margin"] - r["hf_bf16_margin"]) for r in results]
    print(f"{out}: {len(results)} cases, bf16 margin error mean {sum(errors) / len(errors):.3f}, largest {max(errors):.3f}")


if __name__ == "__main__":
    main()
