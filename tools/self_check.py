#!/usr/bin/env python3
"""The reference margins of src/engine/self_check.c, from the same model computed in 64 bits. Prints src/engine/self_check_margins.h.

  self_check.py > src/engine/self_check_margins.h

Needs torch; the forward pass is that of reference.py."""
import torch

import reference

HIDDEN, INTER, LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCAB, YES, NO = 64, 96, 2, 4, 2, 32, 64, 7, 3
PREFIXES = [0, 5, 33]
CHECKS = [(0, 1), (0, 2), (0, 17), (0, 70), (1, 1), (1, 3), (1, 31), (1, 64), (2, 1), (2, 16), (2, 32), (2, 33), (2, 90)]


class Bytes:
    def __init__(self, seed):
        self.state = seed

    def __next__(self):
        self.state = (self.state * 1664525 + 1013904223) % 2**32
        return self.state >> 24


def model():
    source = Bytes(1)
    w = {}

    def add(name, rows, cols=0, scale=0.25):
        b = [next(source) for _ in range(rows * max(cols, 1))]
        values = [(2 * x - 255) / 256 * scale if cols else (64 + x // 4) / 64 for x in b]
        w[name + ".weight"] = torch.tensor(values, dtype=torch.float64).view((rows, cols) if cols else (rows,))

    add("model.embed_tokens", VOCAB, HIDDEN, 1)
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    for i in range(LAYERS):
        p = f"model.layers.{i}."
        add(p + "input_layernorm", HIDDEN)
        add(p + "self_attn.q_proj", q, HIDDEN)
        add(p + "self_attn.k_proj", kv, HIDDEN)
        add(p + "self_attn.v_proj", kv, HIDDEN)
        add(p + "self_attn.q_norm", HEAD_DIM)
        add(p + "self_attn.k_norm", HEAD_DIM)
        add(p + "self_attn.o_proj", HIDDEN, q)
        add(p + "post_attention_layernorm", HIDDEN)
        add(p + "mlp.gate_proj", INTER, HIDDEN)
        add(p + "mlp.up_proj", INTER, HIDDEN)
        add(p + "mlp.down_proj", HIDDEN, INTER)
    add("model.norm", HIDDEN)
    return w


def ids(n, seed):
    source = Bytes(seed)
    return [next(source) % VOCAB for _ in range(n)]


reference.YES, reference.NO = YES, NO
config = {"head_dim": HEAD_DIM, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
          "num_hidden_layers": LAYERS, "tie_word_embeddings": True}  # fmt: skip
weights = model()
print("/* clang-format off */\n/* Made by tools/self_check.py: index of the prefix, own tokens, logit(yes) - logit(no). */")
for i, (prefix, n) in enumerate(CHECKS):
    yes, no = reference.forward(config, weights, ids(PREFIXES[prefix], 1000 + prefix) + ids(n, 2000 + i))
    print(f"{{{prefix}, {n}, {yes - no:.9g}f}},")
