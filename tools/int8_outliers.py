#!/usr/bin/env python3
"""What int8 costs on a model with outliers as trained ones have them, beside transformers in bf16, both against transformers in f32.

  int8_outliers.py MODEL_DIR CASES.json WORK_DIR        needs what bench/requirements.txt names, and build/qwen-rerank

WORK_DIR gets a copy of the checkpoint in which some channels of everything that products read are 64 times as large as the others and the
weights behind them as much smaller, which leaves the results as they are; and the token that prompts begin with an embedding with two
elements that are 256 times as large (massive activations, arXiv:2402.17762). Random models are refused in int8 as a rule: QR_INT8_ANYWAY."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import torch
from safetensors.torch import load_file, save_file

ROOT = pathlib.Path(__file__).parent.parent
FACTOR, EVERY, MASSIVE, FIRST_TOKEN = 64, 101, 256, "<|im_start|>"


def plant(source, target):
    weights = load_file(source / "model.safetensors")
    first = next(t["id"] for t in json.loads((source / "tokenizer.json").read_text())["added_tokens"] if t["content"] == FIRST_TOKEN)
    weights["model.embed_tokens.weight"][first, [7, 77]] *= MASSIVE
    n_layers = json.loads((source / "config.json").read_text())["num_hidden_layers"]
    for layer in (f"model.layers.{i}." for i in range(n_layers)):
        for norm, readers in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            weights[f"{layer}{norm}.weight"][7::EVERY] *= FACTOR
            for reader in readers:
                weights[f"{layer}{reader}.weight"][:, 7::EVERY] /= FACTOR
        weights[f"{layer}mlp.up_proj.weight"][5::EVERY] *= FACTOR
        weights[f"{layer}mlp.down_proj.weight"][:, 5::EVERY] /= FACTOR
    target.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(source / name, target)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})


def ours(model, cases, dtype):
    keys = ("query", "document", "instruction", "max_length")
    lines = [json.dumps({k: c[k] for k in keys if c.get(k) is not None} | {"document": c["document"] * c.get("repeat", 1)}) for c in cases]
    command = [ROOT / "build/qwen-rerank", "score", "--model", model, "--backend", "cpu", "--dtype", dtype, "--verbose"]
    done = subprocess.run(command, input="\n".join(lines), text=True, capture_output=True, env=dict(os.environ, QR_INT8_ANYWAY="1"))
    if done.returncode != 0:
        sys.exit(done.stderr)
    return [json.loads(line)["margin"] for line in done.stdout.splitlines()], [l for l in done.stderr.splitlines() if "Kendall" in l]


def compare(name, margins, reference):
    margins, reference = torch.tensor(margins, dtype=torch.float64), torch.tensor(reference, dtype=torch.float64)
    i, j = torch.triu_indices(len(margins), len(margins), 1)
    tau = torch.sign((margins[i] - margins[j]) * (reference[i] - reference[j])).mean().item()
    error = (margins - reference).abs()
    print(f"{name:<20} margin error mean {error.mean():.4f}, largest {error.max():.4f}; Kendall's tau {tau:.3f}")
    return error.mean().item()


def main():
    source, cases, target = (pathlib.Path(a) for a in sys.argv[1:4])
    plant(source, target)
    subprocess.run([sys.executable, ROOT / "tools/make_golden.py", target, cases, target / "scores.json"], check=True)
    golden = json.loads((target / "scores.json").read_text())["cases"]
    reference = [c["margin"] for c in golden]
    print(f"margins from {min(reference):.2f} to {max(reference):.2f}")
    theirs = compare("transformers, bf16", [c["hf_bf16_margin"] for c in golden], reference)
    for dtype in ("f32", "bf16", "int8"):
        margins, said = ours(target, golden, dtype)
        error = compare(f"ours, {dtype}", margins, reference)
    print(f"int8: {error / theirs:.2f} times the error of transformers in bf16\n" + "\n".join(said))


if __name__ == "__main__":
    main()
