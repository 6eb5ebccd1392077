"""Every block type of GGUF against the gguf package, bit for bit."""

import os
import subprocess
from pathlib import Path

import numpy
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

TOOL = Path(os.environ.get("QR_BUILD", "build")) / "tensor_f32"
TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]
# Where a block has its 16-bit scales.
SCALES = {"Q4_1": [0, 2], "Q5_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
# Zeros of both signs, the smallest and largest subnormal, the smallest normal, one, the largest.
EXTREME = [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x83FF, 0x0400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF]


def random_blocks(name: str, n: int) -> numpy.ndarray:
    """Any bits, but for scales, which are numbers."""
    _, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    rng = numpy.random.default_rng(7)
    blocks = rng.integers(0, 256, (n, size), numpy.uint8)
    for k, at in enumerate(SCALES.get(name, [0])):
        halves = blocks[:, at : at + 2].copy().view("<u2")
        halves[(halves & 0x7C00) == 0x7C00] ^= 0x4000
        halves[: len(EXTREME) ** 2, 0] = numpy.repeat(EXTREME, len(EXTREME)) if k == 0 else EXTREME * len(EXTREME)
        blocks[:, at : at + 2] = halves.view(numpy.uint8)
    return blocks


def widened(name: str, data: bytes, first: int, n: int) -> numpy.ndarray:
    done = subprocess.run([TOOL, name, str(first), str(n)], input=data, capture_output=True, check=True)
    return numpy.frombuffer(done.stdout, "<u4")


@pytest.mark.parametrize("name", TYPES)
def test_equals_the_gguf_package(name):
    blocks = random_blocks(name, 1000)
    expected = quants.dequantize(blocks, GGMLQuantizationType[name]).reshape(-1).view("<u4")
    assert numpy.array_equal(widened(name, blocks.tobytes(), 0, expected.size), expected)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("first, n", [(0, 1), (31, 2), (255, 514), (5, 1000), (256, 256), (511, 1), (17, 0)])
def test_any_part_of_a_row(name, first, n):
    blocks = random_blocks(name, 128)
    expected = quants.dequantize(blocks, GGMLQuantizationType[name]).reshape(-1).view("<u4")
    assert numpy.array_equal(widened(name, blocks.tobytes(), first, n), expected[first : first + n])
