"""Folders in MLX's form, against MLX."""

import json

import pytest
from conftest import load_safetensors, np
from support import DATA, ok

mx = pytest.importorskip("mlx.core", reason="mlx: not installed (make test-quantize)")


def as_f32(a):
    return np.array(a.astype(mx.float32))


def ulps(a, b):
    """Distance in steps of bf16."""
    order = lambda x: np.where(x.view(np.int32) < 0, -(x.view(np.int32) & 0x7FFFFFFF), x.view(np.int32)) / 65536.0  # noqa: E731
    return np.abs(order(a) - order(b)).max()


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
        ours = (q.astype(np.float32) * as_f32(packed[1])[:, :, None] + as_f32(packed[2])[:, :, None]).reshape(values.shape)
        scale = np.abs(ours).max()
        large = np.abs(ours) > scale / 256  # near zero a sum of two roundings is many of its own steps away
        assert ulps(ours[large], rounded[large]) <= 1.5 and np.abs(ours - found).max() <= 1e-6 * scale
        theirs = mx.quantize(mx.array(values).astype(mx.bfloat16), group_size=group, bits=bits)
        other = as_f32(mx.dequantize(*(p if p.dtype == mx.uint32 else p.astype(mx.float32) for p in theirs), group_size=group, bits=bits))
        error = lambda x: np.sqrt(np.mean((x - values).astype(np.float64) ** 2))  # noqa: E731
        assert error(found) <= error(other)
        if len(values) == reported[name]["rows"]:
            relative = error(found) / np.sqrt(np.mean(values.astype(np.float64) ** 2))
            assert reported[name]["rmse"] == pytest.approx(relative, rel=1e-3)


def test_the_program_reads_it_and_reports_the_drift(tmp_path):
    report = json.loads(ok("quantize", DATA / "small-1", tmp_path / "m8", "--type", "mlx8-g32", "--json"))
    assert report["drift"]["documents"] == 24
    assert report["drift"]["score_max"] <= 0.02 and report["drift"]["kendall_tau"] >= 0.98
