"""The fake vLLM servers and our own of tests/backends. No conftest.py: `make test`, which leaves this folder's tests out, would load it."""

import pathlib
import sys

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "cli"), str(TESTS / "backends")]
from test_vllm import serve, tokenize, vllm  # noqa: E402, F401
