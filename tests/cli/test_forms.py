"""Folders in other quantised forms score exactly as the same values written out in f32, and wrong ones are refused."""

import json

import forms
import numpy as np
import pytest
from support import DATA, cli, score

LINES = [
    {"query": "capital of China", "document": text * n}
    for text, n in [("Beijing is the capital of China.", 1), ("Paris is in France. ", 40), ("a", 1), ("Gravity attracts bodies. ", 9)]
]


def floats(**weights):
    weights = {"num_bits": 8, "type": "float", "strategy": "channel"} | weights
    group = {"targets": ["Linear"], "weights": weights, "input_activations": {"num_bits": 8, "type": "float", "dynamic": True}}
    return {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": group}}


BLOCK = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}


def shuffled(name, w, **more):
    return forms.gptq(name, w, group=32, order=np.random.default_rng(5).permutation(w.shape[1]), **more)


FORMS = {
    "fp8 blocks": (forms.fp8, BLOCK),
    "fp8 blocks, f32 scales": (lambda n, w: forms.fp8(n, w, kind="F32"), BLOCK),
    "fp8 small blocks": (lambda n, w: forms.fp8(n, w, (48, 40)), BLOCK | {"weight_block_size": [48, 40]}),
    "fp8 rows": (lambda n, w: forms.fp8(n, w, (1, w.shape[1]), "_scale"), floats()),
    "fp8 matrix": (lambda n, w: forms.fp8(n, w, w.shape, "_scale", "F32"), floats(strategy="tensor")),
    "gptq 4": (lambda n, w: forms.gptq(n, w, group=32), GPTQ),
    "gptq 4, one group": (lambda n, w: forms.gptq(n, w, group=-1), GPTQ | {"group_size": -1}),
    "gptq 4, zeros": (lambda n, w: forms.gptq(n, w, group=32, symmetric=False), GPTQ | {"sym": False}),
    "gptq 8": (lambda n, w: forms.gptq(n, w, 8, 32, False), GPTQ | {"bits": 8}),
    "gptq 4, another order": (shuffled, GPTQ | {"desc_act": True}),
    "gptq 4, version 2": (lambda n, w: shuffled(n, w, symmetric=False, version=2), GPTQ | {"checkpoint_format": "gptq_v2"}),
    "awq": (lambda n, w: forms.awq(n, w, 32), AWQ),
}


def complaint(folder):
    done = cli("score", "--backend", "cpu", "--model", folder)
    assert done.returncode in (1, 2, 3, 4), done.returncode
    return done.stderr.decode()


@pytest.mark.parametrize("form", FORMS)
def test_equal_to_the_values_written_out(tmp_path, form):
    make, config = FORMS[form]
    packed, wide = tmp_path / "packed", tmp_path / "wide"
    forms.quantise(packed, DATA / "micro-1", make, {"quantization_config": config}, wide)
    arguments = ("--backend", "cpu", "--dtype", "f32", "--model")
    expected = score(LINES, *arguments, wide)
    assert score(LINES, *arguments, packed) == expected
    report = json.loads(cli("inspect", packed, "--json").stdout)
    assert report["config"]["quantization"] == form.split()[0]
    assert report["n_parameters"] == json.loads(cli("inspect", wide, "--json").stdout)["n_parameters"]
    assert score(LINES, *arguments, packed, "--memory", "small") == expected
    assert expected != score(LINES, *arguments, DATA / "micro-1")


def test_e4m3_has_the_published_values():
    table = forms.e4m3_table()
    assert [table[i] for i in (0x00, 0x01, 0x07, 0x08, 0x38, 0x7E, 0x81, 0xFE)] == [0, 2**-9, 7 * 2**-9, 2**-6, 1, 448, -(2**-9), -448]


def broken(change):
    """A form whose first matrix is changed."""

    def make(form):
        done = []

        def changed(name, w):
            tensors, values = FORMS[form][0](name, w)
            if not done:
                change(tensors, name.removesuffix("weight"))
                done.append(name)
            return tensors, values

        return changed

    return make


def put(end, at, value):
    def change(tensors, module):
        data = tensors[module + end][1].copy()
        data.flat[at] = value
        tensors[module + end] = (tensors[module + end][0], data)

    return change


def drop(end):
    return lambda tensors, module: tensors.pop(module + end)


def cut(end):
    def change(tensors, module):
        kind, data = tensors[module + end]
        tensors[module + end] = (kind, np.ascontiguousarray(data[..., :-1]))

    return change


def empty(end):
    def change(tensors, module):
        kind, data = tensors[module + end]
        tensors[module + end] = (kind, np.ascontiguousarray(data[:0]))

    return change


WRONG = [
    ("fp8 blocks", empty("weight_scale_inv"), "expected one scale, or ["),
    ("fp8 rows", empty("weight_scale"), "expected one scale, or ["),
    ("gptq 4", empty("scales"), "where groups divides 64"),
    ("awq", empty("qzeros"), '"qzeros" beside it'),
    ("fp8 blocks", put("weight", 3, 0x7F), "found NaN"),
    ("fp8 blocks", put("weight", 3, 0xFF), "found NaN"),
    ("fp8 rows", put("weight_scale", 3, 0x7F80), "not finite"),
    ("fp8 blocks", drop("weight_scale_inv"), "expected its scales"),
    ("fp8 small blocks", cut("weight_scale_inv"), "expected one scale, or ["),
    ("gptq 4", put("g_idx", 0, 2), "expected groups from 0 to 1, found 2 at 0"),
    ("gptq 4", put("g_idx", 63, -1), "found -1 at 63"),
    ("gptq 4", cut("g_idx"), "one for each input"),
    ("gptq 4", put("scales", 1, np.inf), "not finite"),
    ("gptq 4", drop("qzeros"), '"qzeros" beside it'),
    ("gptq 4", cut("qzeros"), '"qzeros" beside it'),
    ("gptq 4", cut("qweight"), "4- or 8-bit weights of 64 inputs"),
    ("gptq 4", drop("qweight"), "none of that name"),
    ("awq", cut("qweight"), "4-bit weights of 64 inputs"),
    ("awq", cut("scales"), "where groups divides 64"),
    ("awq", drop("scales"), "expected its scales"),
]


@pytest.mark.parametrize("form,change,message", WRONG)
def test_wrong_tensors_are_refused(tmp_path, form, change, message):
    folder = tmp_path / "wrong"
    forms.quantise(folder, DATA / "micro-1", broken(change)(form), {"quantization_config": FORMS[form][1]})
    assert message in complaint(folder)


CONFIGS = [
    ("fp8 blocks", {"fmt": "e5m2"}, "fmt"),
    ("fp8 blocks", {"weight_block_size": [0, 128]}, "weight_block_size"),
    ("fp8 blocks", {"weight_block_size": [128]}, "weight_block_size"),
    ("gptq 4", {"bits": 3}, "bits"),
    ("gptq 4", {"checkpoint_format": "marlin"}, "checkpoint_format"),
    ("awq", {"version": "gemv"}, "version"),
    ("awq", {"zero_point": False}, "zero_point"),
    ("awq", {"quant_method": "bitsandbytes"}, "quant_method"),
]


@pytest.mark.parametrize("form,change,message", CONFIGS)
def test_other_settings_are_refused(tmp_path, form, change, message):
    folder = tmp_path / "other"
    folder.mkdir()
    config = json.loads((DATA / "micro-1" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": FORMS[form][1] | change}))
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "tokenizer.json").symlink_to((DATA / "micro-1" / "tokenizer.json").resolve())
    assert message in complaint(folder)
