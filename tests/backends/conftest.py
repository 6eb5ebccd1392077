"""Backends of foreign libraries. Those that are not installed are skipped by name; `make test-backends` installs all."""

import functools
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

SOURCE = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(SOURCE / "tests" / "cli"), str(SOURCE / "tests" / "abi")]
from support import PROGRAM, environment  # noqa: E402


@functools.cache
def torch_options():
    """The torch of QR_TEST_TORCH_DIR, else of build/backends-venv, else the one of this Python; none if there is none."""
    if "QR_TEST_TORCH_DIR" in os.environ:
        return ["--torch-dir", os.environ["QR_TEST_TORCH_DIR"]]
    found = sorted((SOURCE / "build" / "backends-venv").glob("lib/python3*/site-packages/torch/lib/libtorch_cpu.*"))
    spec = importlib.util.find_spec("torch")
    folder = str(found[0].parents[1]) if found else spec.submodule_search_locations[0] if spec else None
    return ["--torch-dir", folder] if folder else []


@functools.cache
def reasons():
    """{backend: None if it is usable, else why not}"""
    done = subprocess.run([PROGRAM, "doctor", "--json", *torch_options()], capture_output=True, env=environment(), check=True)
    return {b["name"]: None if b["probe"] > 0 else b["why"] for b in json.loads(done.stdout)["backends"]}


def require(name):
    if name not in reasons():
        pytest.skip(f"{name}: not in this build")
    if reasons()[name] is not None:
        pytest.skip(f"{name} is not installed: {reasons()[name]}")


def more(backend):
    """Options that it needs to be found."""
    return torch_options() if backend == "pytorch" else []


@pytest.fixture
def options(request):
    """Options that choose the backend and type of the test's parameter, "NAME:DTYPE"."""
    name, dtype = request.param.split(":")
    require(name)
    return ["--backend", name, "--dtype", dtype, *(torch_options() if name == "pytorch" else [])]
