#!/usr/bin/env python3
"""Writes a trained model as a Hugging Face checkpoint: 8-bit weights for the program, or plain f32 for comparison with transformers.

usage: export.py WORK/NAME.pt DIR           int8 weights with one scale a row (compressed-tensors' "int-quantized"), as in models/builtin
       export.py --f32 DIR_OF_INT8 DIR      the same values as f32
"""

import json
import pathlib
import shutil
import sys

import safetensors.torch
import torch

import model as m


def quantise(weight):
    """[rows, cols] -> int8, scales [rows, 1]. Of 16 clipping points per row, the one with the least squared error."""
    most = weight.abs().amax(1, keepdim=True).clamp(min=1e-12)
    best, best_error = None, None
    for ratio in torch.linspace(0.7, 1.0, 16):
        scale = most * ratio / 127
        error = ((weight / scale).round().clamp(-127, 127) * scale - weight).pow(2).sum(1, keepdim=True)
        if best is None:
            best, best_error = scale, error
        else:
            best = torch.where(error < best_error, scale, best)
            best_error = torch.minimum(error, best_error)
    return (weight / best).round().clamp(-127, 127).to(torch.int8), best.float()


def named_weights(state, config):
    """Our fused parameters under the names and in the parts of Qwen3ForCausalLM."""
    out = {"model.embed_tokens.weight": state["embed"], "model.norm.weight": state["norm"]}
    for i in range(config.num_hidden_layers):
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        for a, b in (("input_norm", "input_layernorm"), ("post_norm", "post_attention_layernorm"), ("q_norm", "self_attn.q_norm"), ("k_norm", "self_attn.k_norm"),
                     ("o", "self_attn.o_proj"), ("down", "mlp.down_proj")):
            out[f"{theirs}{b}.weight"] = state[ours + a]
        for a, names in (("qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")), ("gate_up", ("mlp.gate_proj", "mlp.up_proj"))):
            for part, name in zip(state[ours + a].chunk(len(names)), names):
                out[f"{theirs}{name}.weight"] = part
    return {name: weight.detach().float().contiguous() for name, weight in out.items()}


def config_json(config, tokens):
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_attention_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "hidden_act": "silu",
        "attention_bias": False,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "bos_token_id": tokens["<|endoftext|>"],
        "eos_token_id": tokens["<|im_end|>"],
        "torch_dtype": "float32",
    }


QUANTISED = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear", "Embedding"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
            "input_activations": None,
            "output_activations": None,
        }
    },
}


def write(directory, weights, config, tokenizer):
    directory.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "model.safetensors").chmod(0o644)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if tokenizer.resolve() != (directory / "tokenizer.json").resolve():
        shutil.copyfile(tokenizer, directory / "tokenizer.json")
    print(f"{directory}: {(directory / 'model.safetensors').stat().st_size} bytes of weights")


def main():
    if len(sys.argv) == 3:
        source, directory = map(pathlib.Path, sys.argv[1:])
        state = torch.load(source)["model"]
        tokenizer = source.parent / "tokenizer.json"
        ids = {token["content"]: token["id"] for token in json.loads(tokenizer.read_text())["added_tokens"]}
        config = m.Config(vocab_size=state["embed"].shape[0], num_hidden_layers=sum(name.endswith(".o") for name in state))
        weights = {}
        for name, weight in named_weights(state, config).items():
            if weight.ndim == 2:
                weights[name], weights[name + "_scale"] = quantise(weight)
            else:
                weights[name] = weight
        write(directory, weights, config_json(config, ids) | {"quantization_config": QUANTISED}, tokenizer)
    elif len(sys.argv) == 4 and sys.argv[1] == "--f32":
        source, directory = map(pathlib.Path, sys.argv[2:])
        packed = safetensors.torch.load_file(source / "model.safetensors")
        weights = {n: w.float() * packed[n + "_scale"] if w.dtype == torch.int8 else w for n, w in packed.items() if not n.endswith("_scale")}
        config = json.loads((source / "config.json").read_text())
        config.pop("quantization_config", None)
        write(directory, weights, config, source / "tokenizer.json")
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
