"""Golden scores of Hugging Face transformers on every backend, and that a score depends on nothing but its prompt."""

import json
import statistics

import pytest
from support import DATA, SOURCE, score

CHECKPOINTS = ["micro-1", "untied-1", "small-1", "odd-7"]
F32 = ["mlx:f32", "pytorch:f32"]
HALF = ["mlx:f16", "mlx:bf16", "pytorch:f16", "pytorch:bf16"]
DOCUMENTS = ["short", "a document of some more words " * 3, "x", "long " * 150, "another one", "short"]


def golden(name):
    cases = json.loads((SOURCE / "tests" / "golden" / f"scores-{name}.json").read_text())["cases"]
    lines = []
    for case in cases:
        line = {"query": case["query"], "document": case["document"] * (case.get("repeat") or 1), "instruction": case["instruction"]}
        lines.append(line | ({"max_length": case["max_length"]} if case.get("max_length") else {}))
    return cases, lines


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.parametrize("options", F32, indirect=True)
def test_f32(options, checkpoint):
    cases, lines = golden(checkpoint)
    for case, result in zip(cases, score(lines, "--model", DATA / checkpoint, *options), strict=True):
        assert result["ids_sha256"] == case["ids_sha256"]
        assert abs(result["margin"] - case["margin"]) <= 1e-3, case["query"]


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.parametrize("options", HALF, indirect=True)
def test_16_bit_types(options, checkpoint):
    """Not much farther from f32 than transformers' own bf16 is."""
    cases, lines = golden(checkpoint)
    results = score(lines, "--model", DATA / checkpoint, *options)
    error = statistics.mean(abs(r["margin"] - c["margin"]) for r, c in zip(results, cases, strict=True))
    assert error <= 1.25 * statistics.mean(abs(c["hf_bf16_margin"] - c["margin"]) for c in cases)


@pytest.mark.parametrize("options", F32, indirect=True)
def test_a_score_depends_on_its_prompt_only(options):
    """Not on its neighbours, their order, the size of batches, or on what is cached."""
    lines = [{"query": query, "document": document} for query in ("first query", "the second, a little longer") for document in DOCUMENTS]
    model = ["--model", DATA / "untied-1"]
    margins = [r["margin"] for r in score(lines, *model, *options)]
    assert margins[0] == pytest.approx(margins[5], abs=1e-5)
    for more in (["--max-batch-tokens", "1"], ["--max-batch-tokens", "300"], ["--prefix-cache", "0"]):
        assert [r["margin"] for r in score(lines, *model, *options, *more)] == pytest.approx(margins, abs=1e-4)
    mixed = score(lines[::-1] + lines[::2], *model, *options)
    assert [r["margin"] for r in mixed] == pytest.approx(margins[::-1] + margins[::2], abs=1e-4)
    alone = [score([line], *model, *options)[0]["margin"] for line in lines[3:5]]
    assert alone == pytest.approx(margins[3:5], abs=1e-4)


@pytest.mark.parametrize("options", F32, indirect=True)
def test_a_prompt_of_8192_tokens(options):
    """Longer than a batch, and than what is computed in one piece."""
    line = {"query": "q", "document": "word " * 9000}
    (result,) = score([line], "--model", DATA / "micro-1", *options)
    (expected,) = score([line], "--model", DATA / "micro-1", "--backend", "cpu", "--dtype", "f32")
    assert result["n_tokens"] == 8192 and result["truncated"] and result["margin"] == pytest.approx(expected["margin"], abs=1e-3)
