"""Folders in MLX's form, against MLX."""

import json

import pytest
from conftest import load_safetensors, np
from support import DATA, ok

mx = pytest.importorskip("mlx.core", reason="mlx: not installed (make test-quantize)")


def as_f32(a):
    return np.array(a.astype(mx.float32))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_form(bits, group, quantised, small):
    folder, report = quantised(f"mlx{bits}-g{group}")
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization"] == config["quantization_config"] == {"bits": bits, "group_size": group, "mode": "affine"}
    assert (folder / "tokenizer.json").read_bytes() == (DATA / "small-1" / "tokenizer.json").read_bytes()
    tensors = mx.load(str(folder / "model.safetensors"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors)
    assert load_safetensors(folder / "model.safetensors")[1] == {"format": "mlx"}
    reported = {t["name"]: t for t in report["tensors"]}
    for name, values in small.items():
        if values.ndim == 1:
            assert np.array_equal(as_f32(tensors[name]), values)
            continue
        values, module = values[:4096], name.removesuffix(".weight")
        packed = [tensors[f"{module}.{part}"][:4096] for part in ("weight", "scales", "biases")]
        found = as_f32(mx.dequantize(*(p if p.dtype == mx.uint32 else p.astype(mx.float32) for p in packed), group_size=group, bits=bits))
        rounded = as_f32(mx.dequantize(*packed, group_size=group, bits=bits))
        stream = np.unpackbits(np.array(packed[0]).view(np.uint8), axis=1, bitorder="little").reshape(len(values), -1, bits)
        q = (stream.astype(np.uint32) << np.arange(bits, dtype=np.uint32)).sum(-1).reshape(len(values), -1, group)
        product, bias = q.astype(np.float32) * as_f32(packed[1])[:, :, None], as_f32(packed[2])[:, :, None]
        ours = (product + bias).reshape(values.shape)
        assert np.abs(ours - found).max() <= 1e-6 * np.abs(ours).max()
        # In bf16, MLX rounds the product and the sum to 8 bits each: together at most one step of the larger of the two.
        step = np.maximum(np.abs(product), np.abs(product + bias)).reshape(values.shape) / 128
        assert (np.abs(ours - rounded) <= step).all()
        theirs = mx.quantize(mx.array(values).astype(mx.bfloat16), group_size=group, bits=bits)
        other = as_f32(mx.dequantize(*(p if p.dtype == mx.uint32 else p.astype(mx.float32) for p in theirs), group_size=group, bits=bits))
        error = lambda x: np.sqrt(np.mean((x - values).astype(np.float64) ** 2))  # noqa: E731
        assert error(found) <= error(other)
        if len(values) == reported[name]["rows"]:
            relative = error(found) / np.sqrt(np.mean(values.astype(np.float64) ** 2))
            assert reported[name]["rmse"] == pytest.approx(relative, rel=1e-3)


@pytest.mark.parametrize("kind", ["mlx8-g32", "mlx8", "q8_0"])
def test_eight_bits_of_a_trained_model_keep_its_scores(kind, tmp_path):
    """The built-in model. The checkpoints of build/testdata have random weights: transformers' own bf16 moves their scores by up to 0.11."""
    out = tmp_path / ("a.gguf" if kind == "q8_0" else "a")
    drift = json.loads(ok("quantize", "builtin", out, "--type", kind, "--json"))["drift"]
    assert drift["documents"] == 24 and drift["score_max"] <= 0.02 and drift["kendall_tau"] >= 0.98
