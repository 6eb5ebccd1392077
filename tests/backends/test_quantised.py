"""Folders that MLX quantised, as mlx_lm.convert writes them, against the same weights written out in f32."""

import json
import shutil
import statistics

import pytest
from conftest import more, require, torch_options
from support import DATA, ok, score
from test_golden import golden

np = pytest.importorskip("numpy", reason="numpy and mlx: not installed")
mx = pytest.importorskip("mlx.core", reason="mlx: not installed")


def unpacked(words, bits):
    """uint32 [rows, n] -> integers [rows, n * 32 / bits], the first in the lowest bits."""
    stream = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little").reshape(len(words), -1, bits)
    return (stream.astype(np.uint32) << np.arange(bits, dtype=np.uint32)).sum(-1).astype(np.float32)


def as_f32(a):
    return np.array(a.astype(mx.float32))


def write(folder, source, tensors, **more):
    folder.mkdir()
    config = json.loads((source / "config.json").read_text()) | more
    (folder / "config.json").write_text(json.dumps(config, indent=4, sort_keys=True))
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "mlx"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (source / name).exists():
            shutil.copy(source / name, folder / name)
    return folder


def quantise(tmp_path, checkpoint, recipe, scale_type=mx.bfloat16):
    """(the quantised folder, the same weights in f32). recipe: name of a matrix -> (group size, bits) or None"""
    source = DATA / checkpoint
    packed, wide, overrides, done = {}, {}, {}, 0
    for name, value in mx.load(str(source / "model.safetensors")).items():
        form = recipe(name) if value.ndim == 2 else None
        if form is None or value.shape[-1] % form[0]:
            packed[name], wide[name] = value, value.astype(mx.float32)
            continue
        group, bits = form
        module = name.removesuffix(".weight")
        words, scales, biases = mx.quantize(value.astype(scale_type), group_size=group, bits=bits)
        packed |= {name: words, f"{module}.scales": scales, f"{module}.biases": biases}
        overrides[module] = {"group_size": group, "bits": bits, "mode": "affine"}
        by_group = unpacked(np.array(words), bits).reshape(len(as_f32(scales)), -1, group)
        wide[name] = mx.array((by_group * as_f32(scales)[:, :, None] + as_f32(biases)[:, :, None]).reshape(value.shape))
        done += 1
    assert done > 0
    quantization = {"group_size": 64, "bits": 4, "mode": "affine"} | overrides
    return (
        write(tmp_path / "packed", source, packed, quantization=quantization, quantization_config=quantization),
        write(tmp_path / "wide", source, wide),
    )


def mixed(name):
    """As recipes with several precisions do: neighbours that are otherwise computed as one product differ, and some stay as they were."""
    for part, form in {"k_proj": (32, 6), "v_proj": (64, 4), "gate": (32, 3), "up_proj": (64, 5), "down": (32, 8), "o_proj": None}.items():
        if part in name:
            return form
    return 64, 4


RECIPES = {f"{bits} bits, groups of {group}": lambda name, form=(group, bits): form for bits, group in
           [(2, 32), (3, 64), (4, 32), (4, 64), (4, 128), (5, 32), (6, 64), (8, 32), (8, 64), (8, 128)]}
RECIPES["mixed"] = mixed


USUAL = ["4 bits, groups of 64", "8 bits, groups of 32", "mixed"]
TRIALS = [("micro-1", recipe) for recipe in RECIPES] + [("untied-1", recipe) for recipe in USUAL]
TRIALS += [("small-1", "mixed"), ("odd-7", "8 bits, groups of 32")]  # of odd-7 only some matrices can be divided into groups


@pytest.mark.parametrize("checkpoint,recipe", TRIALS)
def test_equal_to_the_weights_written_out(tmp_path, checkpoint, recipe):
    require("mlx")
    cases, lines = golden(checkpoint)
    if checkpoint != "micro-1" or recipe not in USUAL:  # MLX's products are slow on CPUs
        cases, lines = zip(*((c, line) for c, line in zip(cases, lines, strict=True) if c["n_tokens"] < 200), strict=True)
    packed, wide = quantise(tmp_path, checkpoint, RECIPES[recipe])
    expected = [r["margin"] for r in score(lines, "--model", wide, "--backend", "cpu", "--dtype", "f32")]
    for options in (["cpu"], ["mlx"], ["pytorch", *torch_options()]):
        if options[0] == "pytorch" and not torch_options():
            continue
        found = [r["margin"] for r in score(lines, "--model", packed, "--dtype", "f32", "--backend", *options)]
        assert found == pytest.approx(expected, abs=1e-3), options[0]
    for dtype in ("f16", "bf16") if recipe in USUAL else ():
        found = [r["margin"] for r in score(lines, "--model", packed, "--dtype", dtype, "--backend", "mlx")]
        error = statistics.mean(abs(a - b) for a, b in zip(found, expected, strict=True))
        assert error <= 1.25 * statistics.mean(abs(c["hf_bf16_margin"] - c["margin"]) for c in cases), dtype


@pytest.mark.parametrize("scale_type", ["float16", "float32"])
def test_scales_of_other_types(tmp_path, scale_type):
    require("mlx")
    _, lines = golden("untied-1")
    packed, wide = quantise(tmp_path, "untied-1", mixed, getattr(mx, scale_type))
    expected = [r["margin"] for r in score(lines, "--model", wide, "--backend", "cpu", "--dtype", "f32")]
    for backend in ("cpu", "mlx"):
        found = [r["margin"] for r in score(lines, "--model", packed, "--dtype", "f32", "--backend", backend)]
        assert found == pytest.approx(expected, abs=1e-3), backend


@pytest.mark.parametrize("backend", ["pytorch", "mlx"])
@pytest.mark.parametrize("checkpoint,kind", [("micro-1", "bf16"), ("small-1", "q4_k_m"), ("untied-1", "q8_0")])
def test_gguf_files(tmp_path, checkpoint, kind, backend):
    """untied-1 then has only the two rows of a head."""
    require(backend)
    cases, lines = golden(checkpoint)
    lines = [line for c, line in zip(cases, lines, strict=True) if c["n_tokens"] < 200]
    ok("quantize", DATA / checkpoint, tmp_path / "a.gguf", "--type", kind, "--no-check")
    expected = [r["margin"] for r in score(lines, "--model", tmp_path / "a.gguf", "--backend", "cpu", "--dtype", "f32")]
    found = [r["margin"] for r in score(lines, "--model", tmp_path / "a.gguf", "--dtype", "f32", "--backend", backend, *more(backend))]
    assert found == pytest.approx(expected, abs=2e-3)
