"""PyTorch's variable-length flash attention, which exists on GPUs only: the code that calls it, with a plain implementation for processors."""

import pathlib
import statistics
import subprocess

import pytest
from conftest import require, torch_options
from support import DATA, SOURCE, cli, environment, fails
from test_golden import CHECKPOINTS, DOCUMENTS, golden

import json


@pytest.fixture(scope="module")
def flash(tmp_path_factory, sanitized):
    """Environment in which the program finds flash attention for processors."""
    require("pytorch")
    if sanitized:
        pytest.skip("a preloaded PyTorch and the sanitizer's library exclude each other")
    torch = pathlib.Path(torch_options()[1])
    library = tmp_path_factory.mktemp("flash") / "flash_on_cpu.so"
    headers = [f"-isystem{torch / 'include'}", f"-isystem{torch / 'include/torch/csrc/api/include'}"]
    libraries = [f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{torch / 'lib'}"]
    source = SOURCE / "tests" / "backends" / "flash_on_cpu.cpp"
    subprocess.run(["g++", "-std=c++20", "-shared", "-fPIC", "-O1", *headers, source, "-o", library, *libraries], check=True)
    return environment(LD_PRELOAD=str(library))


def options(checkpoint, dtype="f32"):
    return ["--model", DATA / checkpoint, "--backend", "pytorch", "--dtype", dtype, "--flash-attn", *torch_options()]


def margins(env, lines, *args):
    done = cli("score", *args, stdin="".join(json.dumps(line) + "\n" for line in lines), env=env)
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line)["margin"] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_golden_scores(flash, checkpoint):
    cases, lines = golden(checkpoint)
    expected = [c["margin"] for c in cases]
    assert margins(flash, lines, *options(checkpoint)) == pytest.approx(expected, abs=1e-3)
    bf16 = margins(flash, lines, *options(checkpoint, "bf16"))
    error = statistics.mean(abs(a - b) for a, b in zip(bf16, expected, strict=True))
    assert error <= 1.25 * statistics.mean(abs(c["hf_bf16_margin"] - c["margin"]) for c in cases)


def test_a_score_depends_on_its_prompt_only(flash):
    lines = [{"query": query, "document": document} for query in ("first query", "the second, a little longer") for document in DOCUMENTS]
    expected = margins(flash, lines, *options("untied-1"))
    for more in (["--max-batch-tokens", "1"], ["--max-batch-tokens", "300"], ["--prefix-cache", "0"]):
        assert margins(flash, lines, *options("untied-1"), *more) == pytest.approx(expected, abs=1e-4)
    mixed = margins(flash, lines[::-1] + lines[::2], *options("untied-1"))
    assert mixed == pytest.approx(expected[::-1] + expected[::2], abs=1e-4)


def test_it_is_named(flash, tmp_path):
    (tmp_path / "lines.txt").write_text("some document\n")
    done = cli("rank", *options("micro-1"), "--log-level", "info", "q", tmp_path / "lines.txt", env=flash)
    assert "cpu, flash attention" in done.stderr.decode()


def test_another_mask_is_noticed(flash):
    """As versions of FlashAttention before 2.1 had it: right without a prefix, wrong with one."""
    message = fails(1, "score", *options("micro-1"), stdin='{"query": "q", "document": "d"}', env=flash | {"QR_FLASH_MASK": "top"})
    assert "flash attention is wrong here: query 0 of 3 with 10 keys" in message


def test_where_there_is_none():
    require("pytorch")
    message = fails(4, "score", *options("micro-1"), stdin='{"query": "q", "document": "d"}')
    assert "no flash attention here: pytorch: aten::_flash_attention_forward" in message
