"""Types of GGUF: what they decode to, and how good they are."""

import ctypes
import math
import os
import pathlib

import pytest
from conftest import np
from support import DATA, SOURCE, fails, ok

gguf = pytest.importorskip("gguf", reason="gguf: not installed (make test-quantize)")

TYPES = ["q8_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k", "q5_1", "q5_0", "q4_1", "q4_0", "bf16", "f16", "f32"]
# Theirs is the reference implementation; ours searches longer, and must not be worse. The margin is for rows on which both are lucky.
NO_WORSE = 1.01


def llama_folder():
    found = sorted((SOURCE / "build" / "llama").glob("package/bins/linux-x64"))
    return pathlib.Path(os.environ["QR_TEST_LLAMA"]) if "QR_TEST_LLAMA" in os.environ else found[0] if found else None


def ggml_quantised(values, kind):
    """What llama.cpp's own quantiser makes of the values, decoded; None where it is not there."""
    folder = llama_folder()
    if folder is None:
        return None
    ggml = ctypes.CDLL(str(folder / "libggml-base.so"))
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
    values, out = np.ascontiguousarray(values), np.zeros(values.size * 4, np.uint8)
    n = ggml.ggml_quantize_chunk(kind, values.ctypes.data, out.ctypes.data, 0, *values.shape, None)
    return gguf.quants.dequantize(out[:n].reshape(len(values), -1), gguf.GGMLQuantizationType(kind))


def rmse(found, expected):
    return math.sqrt(np.mean((found - expected).astype(np.float64) ** 2) / np.mean(expected.astype(np.float64) ** 2))


def hf_name(name):
    parts = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    if name.startswith("blk."):
        _, layer, part, _ = name.split(".")
        return f"model.layers.{layer}.{parts[part]}.weight"
    return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}[name]


@pytest.mark.parametrize("kind", [kind if kind in ("q8_0", "q4_k") else pytest.param(kind, marks=pytest.mark.slow) for kind in TYPES])
def test_type(kind, quantised, small):
    path, report = quantised(kind)
    reported = {t["name"]: t for t in report["tensors"]}
    seen, worse = 0, []
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.name == "cls.output.weight":
            rows = small["model.embed_tokens.weight"][[9693, 2152]]
            assert np.array_equal(np.asarray(tensor.data).reshape(rows.shape), rows)
            continue
        values = small[hf_name(tensor.name)]
        found = gguf.quants.dequantize(np.asarray(tensor.data), tensor.tensor_type).reshape(values.shape)
        told = reported[hf_name(tensor.name)]
        seen += 1
        if values.ndim == 1:
            assert tensor.tensor_type == gguf.GGMLQuantizationType.F32 and np.array_equal(found, values)
            continue
        assert tensor.tensor_type.name.lower() == kind and told["type"].lower() == kind
        # The program reports the error of what it believes that the bytes mean: equal only if they mean it to gguf as well.
        assert told["rmse"] == pytest.approx(rmse(found, values), rel=1e-4, abs=1e-9)
        assert told["max_error"] == pytest.approx(np.abs(found - values).max(), rel=1e-4, abs=1e-9)
        if kind in ("bf16", "f32"):
            assert np.array_equal(found, values)
            continue
        part = values[:2048]
        theirs = ggml_quantised(part, int(tensor.tensor_type))
        if theirs is None:
            try:
                theirs = gguf.quants.dequantize(gguf.quants.quantize(part, tensor.tensor_type), tensor.tensor_type)
            except NotImplementedError:
                continue
        if rmse(found[:2048], part) > NO_WORSE * rmse(theirs, part):
            worse.append((tensor.name, rmse(found[:2048], part), rmse(theirs, part)))
    assert seen == len(small) and not worse


def test_mixture(quantised):
    _, report = quantised("q4_k_m")
    types = {t["name"]: t["type"] for t in report["tensors"]}
    assert types["model.embed_tokens.weight"] == "Q6_K" and types["model.layers.0.self_attn.q_proj.weight"] == "Q4_K"
    assert {types[f"model.layers.{i}.mlp.down_proj.weight"] for i in range(6)} == {"Q4_K", "Q6_K"}


def test_rows_that_are_no_whole_blocks_get_another_type_and_it_is_said(tmp_path):
    """micro-1 has rows of 64, 128 and 160, small enough that no type of 256 fits."""
    text = ok("quantize", DATA / "micro-1", tmp_path / "a.gguf", "--type", "q4_k", "--no-check")
    assert "no whole blocks" in text
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert kinds["token_embd.weight"] == "Q5_0" and kinds["blk.0.ffn_down.weight"] == "Q5_0"


def test_metadata(quantised):
    path, _ = quantised("q8_0", "micro-1")
    fields = gguf.GGUFReader(path).fields
    get = {name: fields[name].contents() for name in fields if not name.startswith("tokenizer.ggml.") or len(fields[name].data) < 2}
    assert get["general.architecture"] == "qwen3" and get["general.file_type"] == 7
    assert get["qwen3.pooling_type"] == 4 and get["qwen3.classifier.output_labels"] == ["yes", "no"]
    assert get["qwen3.attention.key_length"] == 32 and get["qwen3.rope.freq_base"] == 1e6
    assert get["tokenizer.ggml.model"] == "gpt2" and get["tokenizer.ggml.pre"] == "qwen2"
    assert get["tokenizer.ggml.bos_token_id"] == 151643 and get["tokenizer.ggml.eos_token_id"] == 151645
    assert get["tokenizer.ggml.add_bos_token"] is False and get["tokenizer.chat_templates"] == ["rerank"]
    template = get["tokenizer.chat_template.rerank"]
    assert template.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n") and "{query}" in template and "{document}" in template
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert len(tokens.data) == len(kinds.data) == 151669 and len(fields["tokenizer.ggml.merges"].data) == 151387
    words = [bytes(tokens.parts[tokens.data[i]]).decode() for i in (220, 9693, 151644, 151667)]
    assert words == ["Ġ", "yes", "<|im_start|>", "<think>"]
    assert [int(kinds.parts[kinds.data[i]][0]) for i in (9693, 151644, 151667)] == [1, 3, 4]


def test_nothing_is_overwritten_and_nothing_half_done_remains(tmp_path):
    there = tmp_path / "a.gguf"
    there.write_text("mine")
    assert "exists" in fails(2, "quantize", DATA / "micro-1", there, "--type", "q8_0", "--no-check")
    assert there.read_text() == "mine"
    assert "expected one of" in fails(2, "quantize", DATA / "micro-1", tmp_path / "b.gguf", "--type", "q9")
    assert "folder" in fails(2, "quantize", DATA / "micro-1", tmp_path / "b.gguf", "--type", "mlx4")
    assert ".gguf" in fails(2, "quantize", DATA / "micro-1", tmp_path / "b", "--type", "q4_0")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf"]
    fails(1, "quantize", DATA / "micro-1", tmp_path / "missing" / "b.gguf", "--no-check")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf"]
