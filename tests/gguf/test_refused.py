"""GGUF files that are damaged, hostile, or of models that would rank at random."""

import struct

import gguf
import pytest
from gguf_files import write
from support import cli

U32, U64, STRING, ARRAY = 4, 10, 8, 9


def text(s):
    s = s if isinstance(s, bytes) else s.encode()
    return struct.pack("<Q", len(s)) + s


def key(name, kind, value):
    return text(name) + struct.pack("<I", kind) + value


def tensor(name, dims=(4, 2), kind=0, offset=0):
    return text(name) + struct.pack("<I", len(dims)) + b"".join(struct.pack("<Q", d) for d in dims) + struct.pack("<IQ", kind, offset)


def container(keys=(), tensors=(), version=3, n_keys=None, n_tensors=None, data=bytes(256)):
    counts = struct.pack("<QQ", len(tensors) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys)
    head = b"GGUF" + struct.pack("<I", version) + counts + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


HUGE = 1 << 63
ARRAY_OF = struct.Struct("<IQ")
BROKEN = {
    "an empty file": (b"", "GGUF"),
    "another format": (b"PK\3\4" + bytes(60), "something else"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "version 1": (container(version=1), "version 2 or 3, found 1"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + bytes(16), "big-endian"),
    "only a magic": (b"GGUF", "end of the file"),
    "2^63 keys": (container(n_keys=HUGE), "count of 9223372036854775808"),
    "2^63 tensors": (container(n_tensors=HUGE), "count of 9223372036854775808"),
    "a key past the end": (container([struct.pack("<Q", HUGE)]), "length of 9223372036854775808"),
    "a string past the end": (container([key("a", STRING, struct.pack("<Q", 1 << 40))]), "length of 1099511627776"),
    "an array of 2^63": (container([key("a", ARRAY, ARRAY_OF.pack(U64, HUGE))]), "count of 9223372036854775808"),
    "an array of 2^61 + 1, whose bytes overflow": (container([key("a", ARRAY, ARRAY_OF.pack(U64, (1 << 61) + 1))]), "count of"),
    "nested arrays": (container([key("a", ARRAY, ARRAY_OF.pack(ARRAY, 1) * 50 + ARRAY_OF.pack(U32, 0))]), "nested"),
    "arrays of arrays of nothing": (container([key("a", ARRAY, ARRAY_OF.pack(ARRAY, 1 << 40))]), "count of"),
    "an unknown value type": (container([key("a", 13, b"")]), "value type up to 12, found 13"),
    "a key twice": (container([key("a", U32, bytes(4))] * 2), "once, found twice"),
    "a key with a line end": (container([key("a\nb", U32, bytes(4))]), "printable"),
    "an alignment that is no power of two": (container([key("general.alignment", U32, struct.pack("<I", 48))]), "power of two"),
    "an alignment of 0": (container([key("general.alignment", U32, bytes(4))]), "power of two"),
    "no dimensions": (container(tensors=[tensor("output.weight", ())]), "1 to 4 dimensions, found 0"),
    "five dimensions": (container(tensors=[tensor("output.weight", (1,) * 5)]), "1 to 4 dimensions, found 5"),
    "a dimension of 0": (container(tensors=[tensor("output.weight", (0, 4))]), "above 0"),
    "dimensions that overflow": (container(tensors=[tensor("output.weight", (1 << 33, 1 << 33))]), "64 bits"),
    "bytes that overflow": (container(tensors=[tensor("output.weight", (1 << 62, 1))]), "overflow"),
    "rows of broken blocks": (container(tensors=[tensor("output.weight", (48, 2), kind=8)]), "whole blocks of 32"),
    "an unknown type": (container(tensors=[tensor("output.weight", (64, 2), kind=39)]), "type number 39"),
    "an offset outside": (container(tensors=[tensor("output.weight", offset=1 << 20)]), "offset within the file"),
    "an offset of 2^63": (container(tensors=[tensor("output.weight", offset=HUGE)]), "offset within the file"),
    "an offset that is not aligned": (container(tensors=[tensor("output.weight", offset=8)]), "multiple of 32"),
    "overlapping tensors": (container(tensors=[tensor("output.weight"), tensor("token_embd.weight")]), "overlap"),
    "a gap": (container(tensors=[tensor("output.weight", offset=64)]), "gap"),
    "data cut off": (container(tensors=[tensor("output.weight", (64, 64))]), "incomplete"),
    "a tensor twice": (container(tensors=[tensor("output.weight"), tensor("output.weight", offset=32)]), "once"),
    "a tensor that changes the result": (container(tensors=[tensor("blk.0.attn_q.bias", (4,))]), "attn_q.bias"),
    "a part of something": (container([key("split.count", U32, struct.pack("<I", 2)), key("split.no", U32, struct.pack("<I", 1))]), "part"),
    "a split set by another name": (container([key("split.count", U32, struct.pack("<I", 2))]), "00001-of-00002"),
    "no architecture": (container(), "general.architecture"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken(tmp_path, what):
    content, expected = BROKEN[what]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    for command in (["inspect", path], ["tokenize", "--model", path, "x"]):
        if command[0] == "tokenize" and what == "no architecture":
            expected = "tokenizer.ggml"
        done = cli(*command)
        message = done.stderr.decode()
        assert done.returncode == 4, (done.returncode, message)
        assert expected in message and "model.gguf" in message


def test_every_cut_of_a_file(tmp_path):
    """However much of a file is there, it is refused or whole."""
    whole = write(tmp_path / "whole.gguf", "micro-1", skip=("tokenizer",), drop=("token_embd.weight",)).read_bytes()
    path = tmp_path / "cut.gguf"
    for n in [*range(0, 3000, 61), len(whole) // 2, len(whole) - 32]:
        path.write_bytes(whole[:n])
        assert cli("inspect", path).returncode == 4


REFUSED = {
    "another architecture": ({"architecture": "llama"}, "general.architecture"),
    "an embedding model": ({"pooling": 3}, "embedding models"),
    "an embedding model by name": ({"name": "Qwen3 Embedding 0.6B"}, "Embedding"),
    "other labels": ({"head": "pair", "labels": ["LABEL_0", "LABEL_1"]}, "output_labels"),
    "scaled positions": ({"more": {"qwen3.rope.scaling.type": ("yarn", gguf.GGUFValueType.STRING)}}, "rope.scaling"),
    "a sliding window": ({"more": {"qwen3.attention.sliding_window": (4096, gguf.GGUFValueType.UINT32)}}, "sliding_window"),
    "no norm": ({"drop": ("output_norm.weight",)}, "norm.weight"),
    "no embedding": ({"drop": ("token_embd.weight",)}, "token_embd"),
    "no tokenizer": ({"skip": ("tokenizer",)}, "tokenizer.ggml"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_with_the_reason(tmp_path, what):
    options, expected = REFUSED[what]
    done = cli("inspect", write(tmp_path / "model.gguf", "micro-1", **options))
    assert done.returncode == 4
    assert expected in done.stderr.decode()
