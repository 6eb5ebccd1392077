"""One model in several files and number formats: equal weights must give equal margins, to the last bit in f32."""

import json
import struct

import pytest

from support import BUILD, DATA, score

SHAPE = ["custom", "3", "--hidden", "48", "--layers", "2", "--heads", "4", "--kv-heads", "2", "--head-dim", "16", "--inter", "72"]
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


def widen_f16(folder):
    """Rewrites an f16 checkpoint as the f32 one with the same values, with the standard library's own conversion."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    header, body, at, out = json.loads(data[8 : 8 + n]), data[8 + n :], 0, []
    for name, tensor in sorted(((k, v) for k, v in header.items() if k != "__metadata__"), key=lambda kv: kv[1]["data_offsets"]):
        begin, end = tensor["data_offsets"]
        values = struct.unpack(f"<{(end - begin) // 2}e", body[begin:end])
        out.append(struct.pack(f"<{len(values)}f", *values))
        tensor.update(dtype="F32", data_offsets=[at, at + len(out[-1])])
        at += len(out[-1])
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(out))


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
