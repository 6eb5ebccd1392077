"""What quantize and convert write, against the gguf package, MLX and llama.cpp. `make test-quantize` installs them; what is missing is skipped."""

import json
import pathlib
import sys

import pytest

SOURCE = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(SOURCE / "tests" / "cli"))
from support import DATA, ok  # noqa: E402

np = pytest.importorskip("numpy", reason="numpy and gguf: not installed (make test-quantize)")


def load_safetensors(path):
    """{name: (dtype, float32 or integer array)} and __metadata__"""
    raw = path.read_bytes()
    n = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + n]), raw[8 + n :]
    metadata = header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        part = data[begin:end]
        if entry["dtype"] == "BF16":
            value = (np.frombuffer(part, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            value = np.frombuffer(part, {"F32": "<f4", "F16": "<f2", "U32": "<u4"}[entry["dtype"]])
        tensors[name] = (entry["dtype"], value.reshape(entry["shape"]))
    return tensors, metadata


@pytest.fixture(scope="session")
def small():
    """The weights of small-1, whose rows are whole blocks of 256."""
    return {name: value.astype(np.float32) for name, (_, value) in load_safetensors(DATA / "small-1" / "model.safetensors")[0].items()}


@pytest.fixture(scope="session")
def quantised(tmp_path_factory):
    """(path, report) of small-1 by type; each is made once."""
    done = {}

    def quantised(kind, model="small-1"):
        if (kind, model) not in done:
            out = tmp_path_factory.mktemp("quantised") / (f"{model}-{kind}" + ("" if kind.startswith("mlx") else ".gguf"))
            done[kind, model] = out, json.loads(ok("quantize", DATA / model, out, "--type", kind, "--no-check", "--json"))
        return done[kind, model]

    return quantised
