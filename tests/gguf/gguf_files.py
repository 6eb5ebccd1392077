"""GGUF files of the test checkpoints, made by the gguf package's own writer."""

import functools
import json

import gguf
import numpy as np
from support import DATA

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
YES, NO = 9693, 2152
F32 = gguf.GGMLQuantizationType.F32


def gguf_name(name):
    name = name.removesuffix(".weight")
    if name.startswith("model.layers."):
        _, _, layer, rest = name.split(".", 3)
        return f"blk.{layer}.{NAMES[rest]}.weight"
    return f"{NAMES[name]}.weight"


@functools.cache
def weights(checkpoint):
    """{GGUF name: f32} of a bf16 safetensors file."""
    raw = (DATA / checkpoint / "model.safetensors").read_bytes()
    n = int.from_bytes(raw[:8], "little")
    found = {}
    for name, entry in json.loads(raw[8 : 8 + n]).items():
        if name == "__metadata__":
            continue
        assert entry["dtype"] == "BF16"
        begin, end = entry["data_offsets"]
        halves = np.frombuffer(raw, "<u2", (end - begin) // 2, 8 + n + begin)
        found[gguf_name(name)] = (halves.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])
    return found


@functools.cache
def vocabulary(padding=0):
    """(tokens, types, merges) as llama.cpp's converter writes them."""
    tokenizer = json.loads((DATA / "tokenizer" / "tokenizer.json").read_text())
    entries = {i: (text, gguf.TokenType.NORMAL) for text, i in tokenizer["model"]["vocab"].items()}
    for token in tokenizer["added_tokens"]:
        text = token["content"]
        control = token["special"] or (text.startswith("<|") and text.endswith("|>"))
        entries[token["id"]] = (text, gguf.TokenType.CONTROL if control else gguf.TokenType.USER_DEFINED)
    for i in range(len(entries), len(entries) + padding):
        entries[i] = (f"[PAD{i}]", gguf.TokenType.UNUSED)
    rows = [entries[i] for i in range(len(entries))]
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    return [t for t, _ in rows], [int(k) for _, k in rows], merges


def metadata(writer, checkpoint, *, skip=(), pooling=None, labels=None, name="Qwen3 Reranker test"):
    c = json.loads((DATA / checkpoint / "config.json").read_text())
    writer.add_name(name)
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_key_length(c["head_dim"])
    writer.add_value_length(c["head_dim"])
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    writer.add_rope_freq_base(c["rope_theta"])
    if pooling is not None:
        writer.add_uint32("qwen3.pooling_type", pooling)
    if labels is not None:
        writer.add_array("qwen3.classifier.output_labels", labels)
    if "tokenizer" not in skip:
        tokens, types, merges = vocabulary()
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        writer.add_token_merges(merges)


def write(path, checkpoint, quantise="F32", *, architecture="qwen3", head=None, split=0, drop=(), more=None, encode=None, **options):
    """head: None, as the checkpoint has it; "pair", cls.output with labels; "swapped", its rows the other way round. encode: (name, array)
    -> (bytes by row, type), instead of quantise."""
    writer = gguf.GGUFWriter(str(path), architecture, split_max_tensors=split)
    tensors = dict(weights(checkpoint))
    if head is not None:
        table = tensors.get("output.weight", tensors["token_embd.weight"])
        tensors["cls.output.weight"] = table[[YES, NO] if head == "pair" else [NO, YES]]
        tensors.pop("output.weight", None)
        options = {"pooling": 4, "labels": ["yes", "no"]} | options
    metadata(writer, checkpoint, **options)
    for key, value in (more or {}).items():
        writer.add_key_value(key, *value)
    for name, value in tensors.items():
        if name in drop:
            continue
        kind = gguf.GGMLQuantizationType[quantise]
        block, _ = gguf.GGML_QUANT_SIZES[kind]
        if encode is not None and value.ndim == 2:
            data, kind = encode(name, value)
        elif value.ndim == 1 or value.shape[1] % block or kind == F32:
            data, kind = value, F32
        elif quantise == "F16":
            data = value.astype(np.float16)
        else:
            data = gguf.quants.quantize(value, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
