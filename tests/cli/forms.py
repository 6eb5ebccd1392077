"""Quantised forms of safetensors written down from their public descriptions, with numpy alone: each function takes a matrix [out, in] and
gives the tensors that stand for it in a file, and the same values as float32. Run as a program it quantises a folder."""

import json
import pathlib
import shutil
import struct
import sys

import numpy as np

TYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I32": np.int32, "U32": np.uint32, "I8": np.int8, "U8": np.uint8, "F8_E4M3": np.uint8}


def load(folder):
    """{name: float32 array} of the single file of a folder, whose tensors are BF16 or F32."""
    raw = np.memmap(folder / "model.safetensors", np.uint8, "r")
    (n,) = struct.unpack("<Q", raw[:8].tobytes())
    header, found = json.loads(raw[8 : 8 + n].tobytes()), {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            data = raw[8 + n + begin : 8 + n + end].view(TYPES[entry["dtype"]]).reshape(entry["shape"])
            found[name] = from_bf16(data) if entry["dtype"] == "BF16" else data.astype(np.float32)
    return found


def save(folder, source, tensors, **more):
    """tensors: {name: (type, array)}; more: keys of config.json"""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(json.loads((source / "config.json").read_text()) | more))
    header, offset = {}, 0
    for name, (kind, data) in tensors.items():
        header[name] = {"dtype": kind, "shape": list(data.shape), "data_offsets": [offset, offset + data.nbytes]}
        offset += data.nbytes
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for _, data in tensors.values():
            f.write(np.ascontiguousarray(data).tobytes())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (source / name).exists():
            shutil.copy(source / name, folder / name)
    return folder


def from_bf16(x):
    return (x.astype(np.uint32) << 16).view(np.float32)


def to_bf16(x):
    """Cut, not rounded: any value will do for a scale."""
    return (np.ascontiguousarray(x, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def bits_of(q, bits):
    """Integers [..., n] as words of 32 bits along the last axis, the first integer in the lowest bits."""
    planes = (q[..., None] >> np.arange(bits, dtype=np.uint32) & 1).astype(np.uint8).reshape(*q.shape[:-1], -1)
    return np.packbits(planes, axis=-1, bitorder="little").view(np.uint32)


def affine(w, bits, group):
    """q [out, in], scale and the value of q = 0, [out, in / group]: the even steps between a group's least and greatest value."""
    g = w.reshape(len(w), -1, group)
    low = g.min(2)
    scale = np.maximum((g.max(2) - low) / (2**bits - 1), np.float32(1e-6))
    return low, scale


def mlx(name, w, bits=4, group=64):
    low, scale = affine(w, bits, group)
    scale, low = to_bf16(scale), to_bf16(low)
    s, b = from_bf16(scale)[:, :, None], from_bf16(low)[:, :, None]
    q = np.clip(np.rint((w.reshape(len(w), -1, group) - b) / s), 0, 2**bits - 1)
    module = name.removesuffix("weight")
    words = bits_of(q.reshape(w.shape).astype(np.uint32), bits)
    return {name: ("U32", words), module + "scales": ("BF16", scale), module + "biases": ("BF16", low)}, (
        q.astype(np.float32) * s + b
    ).reshape(w.shape)


def int8(name, w):
    scale = np.maximum(np.abs(w).max(1, keepdims=True) / np.float32(127), np.float32(1e-6)).astype(np.float32)
    q = np.clip(np.rint(w / scale), -127, 127).astype(np.int8)
    return {name: ("I8", q), name + "_scale": ("F32", scale)}, q.astype(np.float32) * scale


def e4m3_table():
    """The value of each byte: 4 bits of exponent with bias 7, 3 of mantissa, no infinities, NaN where all seven bits are ones."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    size = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    size[(code & 127) == 127] = np.nan
    return np.where(code < 128, size, -size).astype(np.float32)


def to_e4m3(x):
    table = e4m3_table()
    positive = table[:127]
    at = np.clip(np.searchsorted(positive, np.abs(x)), 1, 126)
    at = np.where(np.abs(x) - positive[at - 1] < positive[at] - np.abs(x), at - 1, at)
    return (at | np.where(np.signbit(x), 128, 0)).astype(np.uint8)


def fp8(name, w, block=(128, 128), suffix="_scale_inv", kind="BF16"):
    """One scale for each block of rows and columns; the edge blocks are smaller."""
    rows, cols = w.shape
    high, wide = (min(b, n) for b, n in zip(block, w.shape, strict=True))
    shape = (-(-rows // high), -(-cols // wide))
    scale = np.empty(shape, np.float32)
    for i in range(shape[0]):
        for j in range(shape[1]):
            scale[i, j] = max(np.abs(w[i * high : (i + 1) * high, j * wide : (j + 1) * wide]).max() / 448, 1e-6)
    stored = to_bf16(scale) if kind == "BF16" else scale
    used = np.repeat(np.repeat(from_bf16(stored) if kind == "BF16" else scale, high, 0)[:rows], wide, 1)[:, :cols]
    q = to_e4m3(np.clip(w / used, -448, 448))
    return {name: ("F8_E4M3", q), name + suffix: (kind, stored)}, e4m3_table()[q] * used


def by_column(w, bits, group, symmetric):
    """q [in, out], scale (F16) and zero [groups, out]."""
    low, scale = affine(w, bits, group)
    if symmetric:
        scale = np.maximum(np.abs(w.reshape(len(w), -1, group)).max(2) * 2 / (2**bits - 1), np.float32(1e-4))
    scale = np.maximum(scale, np.float32(1e-4)).astype(np.float16).T
    zero = np.full(scale.shape, 2 ** (bits - 1)) if symmetric else np.clip(np.rint(-low.T / scale.astype(np.float32)), 1, 2**bits - 1)
    groups = np.arange(w.shape[1]) // group
    return scale, zero.astype(np.int64), groups


def gptq(name, w, bits=4, group=64, symmetric=True, order=None, version=1):
    """order: column i of the matrix is in group order[i] // group, as with desc_act."""
    cols = w.shape[1]
    group = cols if group == -1 else group
    order = np.arange(cols) if order is None else order
    sorted_w = np.empty_like(w)
    sorted_w[:, order] = w
    scale, zero, _ = by_column(sorted_w, bits, group, symmetric)
    g_idx = (order // group).astype(np.int32)
    s, z = scale.astype(np.float32)[g_idx], zero[g_idx]
    q = np.clip(np.rint(w.T / s) + z, 0, 2**bits - 1).astype(np.int64)
    stored_zero = (zero - (1 if version == 1 else 0)) & (2**bits - 1)
    module = name.removesuffix("weight")
    tensors = {
        module + "qweight": ("I32", np.ascontiguousarray(bits_of(q.T.astype(np.uint32), bits).T).view(np.int32)),
        module + "qzeros": ("I32", bits_of(stored_zero.astype(np.uint32), bits).view(np.int32)),
        module + "scales": ("F16", scale),
        module + "g_idx": ("I32", g_idx),
    }
    return tensors, np.ascontiguousarray(((q - z).astype(np.float32) * s).T)


AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # nibble i of a word is column AWQ_ORDER[i] of its eight


def awq(name, w, group=64):
    scale, zero, groups = by_column(w, 4, group, False)
    s, z = scale.astype(np.float32)[groups], zero[groups]
    q = np.clip(np.rint(w.T / s) + z, 0, 15).astype(np.int64)

    def words(a):
        return bits_of(a.reshape(len(a), -1, 8)[:, :, AWQ_ORDER].reshape(a.shape).astype(np.uint32), 4).view(np.int32)

    module = name.removesuffix("weight")
    tensors = {module + "qweight": ("I32", words(q)), module + "qzeros": ("I32", words(zero)), module + "scales": ("F16", scale)}
    return tensors, np.ascontiguousarray(((q - z).astype(np.float32) * s).T)


def quantise(folder, source, form, more, wide=None, only=lambda name: ".layers." in name or name.startswith("layers.")):
    """Writes the folder with the matrices for which `only` says so in a form, the rest in BF16; and, where `wide` is given, all in F32."""
    packed, values = {}, {}
    for name, w in load(source).items():
        if w.ndim == 2 and only(name):
            tensors, values[name] = form(name, w)
            packed |= tensors
        else:
            packed[name], values[name] = ("BF16", to_bf16(w)), w
    save(folder, source, packed, **more)
    if wide is not None:
        save(wide, source, {name: ("F32", w) for name, w in values.items()})
    return folder


MLX_CONFIG = {"quantization": {"group_size": 64, "bits": 4, "mode": "affine"}}

if __name__ == "__main__":
    quantise(pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[1]), mlx, MLX_CONFIG, only=lambda name: True)
