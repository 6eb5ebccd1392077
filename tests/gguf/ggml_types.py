"""Files of rows that llama.cpp's own library quantised, loaded and compared with the gguf package's reading of them. Run by `make test-ggml`,
which gets the library from npm."""

import ctypes
import os

import gguf
import numpy as np
import pytest
from gguf_files import write
from support import SOURCE
from test_scores import golden, margins

LIBRARY = SOURCE / "build" / "ggml" / "node_modules" / "@node-llama-cpp" / "linux-x64" / "bins" / "linux-x64" / "libggml-base.so"
TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]


@pytest.fixture(scope="module")
def ggml():
    library = ctypes.CDLL(os.fspath(LIBRARY))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    return library


@pytest.mark.parametrize("kind", TYPES)
def test_rows_of_llama_cpp(tmp_path, ggml, kind):
    _, lines = golden("small-1")
    number = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[number]
    errors = []

    def quantised(name, value):
        value = np.ascontiguousarray(value, np.float32)
        rows, cols = value.shape
        out = np.zeros((rows, cols // block * size), np.uint8)
        assert ggml.ggml_quantize_chunk(int(number), value.ctypes.data, out.ctypes.data, 0, rows, cols, None) == out.size
        errors.append(float(np.abs(gguf.quants.dequantize(out, number) - value).mean() / np.abs(value).mean()))
        return out, number

    def decoded(name, value):
        return gguf.quants.dequantize(quantised(name, value)[0], number), gguf.GGMLQuantizationType.F32

    a, b = (write(tmp_path / f"{k}.gguf", "small-1", encode=e) for k, e in (("packed", quantised), ("wide", decoded)))
    assert 0 < max(errors) < 0.5  # they are those weights
    assert margins(a, lines[:6]) == margins(b, lines[:6])
