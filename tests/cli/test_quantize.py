"""quantize: what 8 bits cost a trained model; --calibrate weighs columns by what the model multiplies them with on prompts of a file."""

import json

import pytest

from support import SOURCE, fails, ok, score

WORKLOADS = sorted((SOURCE / "bench" / "workloads").glob("*.json"))


def pairs():
    """Real text, cut short: every other one to calibrate with, the others to judge by."""
    found = []
    for file in WORKLOADS:
        workload = json.loads(file.read_text())
        found += [{"query": workload["query"], "document": document[:300]} for document in workload["documents"]]
    return found[:120:2], found[1:120:2]


def test_scores_move_less_with_weights(tmp_path):
    calibration, judges = pairs()
    lines = tmp_path / "lines.jsonl"
    lines.write_text("\n".join(map(json.dumps, calibration)))
    exact = [r["margin"] for r in score(judges, "--model", "builtin", "--dtype", "f32")]
    errors = {}
    for name, options in {"plain": [], "weighed": ["--calibrate", lines]}.items():
        out = tmp_path / f"{name}.gguf"
        table = json.loads(ok("quantize", "builtin", out, "--type", "q4_k", "--no-check", "--json", *options))
        found = [r["margin"] for r in score(judges, "--model", out, "--dtype", "f32")]
        errors[name] = sum(abs(a - b) for a, b in zip(found, exact)) / len(exact), sum(t["rmse"] for t in table["tensors"])
    assert errors["weighed"][0] < errors["plain"][0]  # what it is for,
    assert errors["weighed"][1] > errors["plain"][1]  # paid for with a larger error of the weights themselves


@pytest.mark.parametrize("kind, name", [("q8_0", "a.gguf"), ("mlx8", "folder")])
def test_eight_bits_of_a_trained_model(tmp_path, kind, name):
    drift = json.loads(ok("quantize", "builtin", tmp_path / name, "--type", kind, "--json"))["drift"]
    assert drift["score_max"] <= 0.02 and drift["kendall_tau"] >= 0.98


@pytest.mark.parametrize(
    "text, message",
    [("", "expected lines of JSON, found none"), ('{"query": 1, "document": "a"}', ':1: "query": expected a string'), ("{", ":1: ")],
)
def test_mistakes(tmp_path, text, message):
    lines, out = tmp_path / "lines.jsonl", tmp_path / "a.gguf"
    lines.write_text(text)
    assert message in fails(3, "quantize", "builtin", out, "--type", "q4_k", "--calibrate", lines)
    assert "cannot open" in fails(3, "quantize", "builtin", out, "--calibrate", tmp_path / "none")
    assert not out.exists()
