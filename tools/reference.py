#!/usr/bin/env python3
"""The model as one page of PyTorch: executable documentation of the forward pass, in f32, one prompt, no transformers.

  reference.py MODEL_DIR SCORES.json [N]    the largest |margin difference| over the first N cases that list their ids (see make_golden.py)
  reference.py MODEL_DIR - < ids.txt        the two logits, their difference and P(yes) of one prompt, given as token ids

Needs torch only (2.13 was used). Reads config.json and one model.safetensors; yes and no are the tokens 9693 and 2152."""
import json, math, struct, sys
import torch

YES, NO = 9693, 2152
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load(path):
    """u64 header length, JSON header {name: {dtype, shape, data_offsets}}, data; all widened to f32, which loses nothing."""
    with open(path, "rb") as f:
        header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
        data = bytearray(f.read())
    header.pop("__metadata__", None)
    return {name: torch.frombuffer(data, dtype=DTYPES[t["dtype"]], count=math.prod(t["shape"]), offset=t["data_offsets"][0])
            .view(t["shape"]).float() for name, t in header.items()}


def rms_norm(x, w, eps):
    """y = x / sqrt(mean(x^2) + eps) * w over the last dimension. arXiv:1910.07467"""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * w


def rope(x, theta):
    """x [heads, T, d]: element j and j + d/2 turn by position * theta^(-2j/d). arXiv:2104.09864, halves instead of neighbours"""
    d, T = x.shape[-1], x.shape[-2]
    angle = torch.outer(torch.arange(T).float(), 1.0 / theta ** (torch.arange(0, d, 2).float() / d))
    a, b, cos, sin = x[..., : d // 2], x[..., d // 2 :], angle.cos(), angle.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def forward(c, w, ids):
    """ids: list of T ints. Returns the logits of yes and no after the last token."""
    T, d, heads, kv_heads, eps = len(ids), c["head_dim"], c["num_attention_heads"], c["num_key_value_heads"], c["rms_norm_eps"]
    causal = torch.full((T, T), -math.inf).triu(1)
    x = w["model.embed_tokens.weight"][ids]  # [T, hidden]
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        linear = lambda y, name: y @ w[p + name + ".weight"].T
        split = lambda y, n: y.view(T, n, d).transpose(0, 1)  # [T, n * d] -> [n, T, d]

        a = rms_norm(x, w[p + "input_layernorm.weight"], eps)
        q, k, v = split(linear(a, "self_attn.q_proj"), heads), split(linear(a, "self_attn.k_proj"), kv_heads), split(linear(a, "self_attn.v_proj"), kv_heads)
        q = rope(rms_norm(q, w[p + "self_attn.q_norm.weight"], eps), c["rope_theta"])  # normalised per head, before RoPE
        k = rope(rms_norm(k, w[p + "self_attn.k_norm.weight"], eps), c["rope_theta"])
        k, v = (y.repeat_interleave(heads // kv_heads, 0) for y in (k, v))  # query head h uses key head h // (heads / kv_heads)
        o = torch.softmax(q @ k.transpose(1, 2) * d**-0.5 + causal, -1) @ v
        x = x + linear(o.transpose(0, 1).reshape(T, heads * d), "self_attn.o_proj")

        m = rms_norm(x, w[p + "post_attention_layernorm.weight"], eps)
        x = x + linear(torch.nn.functional.silu(linear(m, "mlp.gate_proj")) * linear(m, "mlp.up_proj"), "mlp.down_proj")
    head = w["model.embed_tokens.weight" if c["tie_word_embeddings"] else "lm_head.weight"]
    return (head[[YES, NO]] @ rms_norm(x[-1], w["model.norm.weight"], eps)).tolist()


def main():
    folder, scores, n = sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else None
    with open(f"{folder}/config.json") as f:
        c = json.load(f)
    w = load(f"{folder}/model.safetensors")
    with torch.inference_mode():
        if scores == "-":
            yes, no = forward(c, w, [int(t) for t in sys.stdin.read().replace(",", " ").split()])
            print(yes, no, yes - no, 1 / (1 + math.exp(no - yes)))
            return
        with open(scores) as f:
            cases = [case for case in json.load(f)["cases"] if "ids" in case][:n]
        worst = 0.0
        for case in cases:
            yes, no = forward(c, w, case["ids"])
            worst = max(worst, abs(yes - no - case["margin"]))
        print(f"{len(cases)} cases, largest |margin difference| {worst:.2e}")


if __name__ == "__main__":
    main()
