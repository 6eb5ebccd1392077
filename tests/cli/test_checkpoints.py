"""One model in several files and number formats: equal weights must give equal margins, to the last bit in f32."""

import array
import json
import re
import struct

import pytest

from support import BUILD, DATA, cli, fails, ok, score

SHAPE = ["custom", "3", "--hidden", "48", "--layers", "2", "--heads", "4", "--kv-heads", "2", "--head-dim", "16", "--inter", "72"]
# What rounding to 8 bits may change: the largest difference seen is 0.07. Only a check that the file holds the same model; that it is read
# rightly is compared to the last bit.
INT8_MARGIN_ERROR = 0.15
PAIRS = [
    {"query": "What is the capital of China?", "document": "The capital of China is Beijing."},
    {"query": "What is the capital of China?", "document": "Gravity attracts two bodies."},
    {"query": "list open files", "document": "lsof - list open files\n" * 40},
]


@pytest.fixture(scope="module")
def make(tmp_path_factory, run):
    if not (BUILD / "make_checkpoint").exists():
        pytest.skip("needs make_checkpoint")

    def make(name, *options):
        out = tmp_path_factory.mktemp(name)
        run(BUILD / "make_checkpoint", *SHAPE[:2], out, *SHAPE[2:], *options, "--tokenizer", DATA / "tokenizer" / "tokenizer.json")
        return out

    return make


def margins(folder, dtype="f32", *args):
    return [r["margin"] for r in score(PAIRS, "--model", folder, "--dtype", dtype, *args)]


def read_tensors(folder):
    """{name: (dtype, shape, bytes)} in the order of the file."""
    data = (folder / "model.safetensors").read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + n]), data[8 + n :]
    tensors = sorted(((k, v) for k, v in header.items() if k != "__metadata__"), key=lambda kv: kv[1]["data_offsets"])
    return {name: (t["dtype"], t["shape"], body[slice(*t["data_offsets"])]) for name, t in tensors}


def write_tensors(folder, tensors):
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(t[2] for t in tensors.values()))


def widen_f16(folder):
    """Rewrites an f16 checkpoint as the f32 one with the same values, with the standard library's own conversion."""
    tensors = read_tensors(folder)
    for name, (_, shape, data) in tensors.items():
        values = struct.unpack(f"<{len(data) // 2}e", data)
        tensors[name] = "F32", shape, struct.pack(f"<{len(values)}f", *values)
    write_tensors(folder, tensors)


def widen_int8(folder):
    """Rewrites an 8-bit checkpoint as the f32 one of the products integer * scale: exact in double, then rounded once."""
    tensors, wide = read_tensors(folder), {}
    for name, (dtype, shape, data) in tensors.items():
        if dtype == "I8":
            cols, scales = shape[1], array.array("f", tensors[f"{name}_scale"][2])
            data = array.array("f", [q * scales[i // cols] for i, q in enumerate(array.array("b", data))]).tobytes()
            dtype = "F32"
        if not name.endswith("_scale"):
            wide[name] = dtype, shape, data
    write_tensors(folder, wide)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))


def test_shards_are_one_model(make):
    assert margins(make("whole")) == margins(make("shards", "--shards", "3"))


@pytest.mark.slow
def test_f32_and_f16_files(make):
    wide = make("f32", "--dtype", "f32")
    assert len(set(margins(wide))) == len(PAIRS)
    half = make("f16", "--dtype", "f16")
    narrow = margins(half)
    widen_f16(half)
    assert margins(half) == narrow  # f16 weights stay 16 bit in memory and are widened as they are used: the same numbers
    assert narrow != margins(wide)  # while f32 weights keep bits that f16 has not


def test_8_bit_files(make):
    small = make("int8", "--quant", "int8")
    assert {t[0] for t in read_tensors(small).values()} == {"I8", "F32"}
    narrow = [margins(small, dtype) for dtype in ("f32", "bf16")]
    assert narrow[0] == margins(make("int8-shards", "--quant", "int8", "--shards", "3"))
    wide = margins(make("from-f32", "--dtype", "f32"))
    assert narrow[0] != wide and max(abs(a - b) for a, b in zip(narrow[0], wide)) < INT8_MARGIN_ERROR
    assert json.loads(ok("inspect", small, "--json"))["config"]["quantization"] == "int8"
    widen_int8(small)
    assert [margins(small, dtype) for dtype in ("f32", "bf16")] == narrow


def test_8_bit_files_that_lack_something(make):
    folder = make("broken", "--quant", "int8")
    tensors = read_tensors(folder)
    del tensors["model.layers.1.mlp.up_proj.weight_scale"]
    write_tensors(folder, tensors)
    message = fails(4, "rank", "q", "--doc", "d", "--model", folder)
    assert 'expected "model.layers.1.mlp.up_proj.weight_scale" beside I8 weights' in message


def test_self_test():
    report = json.loads(ok("inspect", "builtin", "--self-test", "--json"))
    assert report["self_test"] == {"pairs": 4, "right": 4}
    done = cli("inspect", DATA / "small-1", "--self-test")
    assert done.returncode == 1 and re.search(rb"self-test +[0-3] of 4 .* does not rank", done.stdout)
