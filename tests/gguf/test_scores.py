"""GGUF files against the safetensors folder that they were made from, and golden scores."""

import json

import gguf
import pytest
from gguf_files import NO, YES, weights, write
from support import DATA, SOURCE, cli, ok, score

CHECKPOINTS = ["micro-1", "odd-7", "small-1", "untied-1"]


def golden(checkpoint):
    cases = json.loads((SOURCE / "tests" / "golden" / f"scores-{checkpoint}.json").read_text())["cases"]
    lines = []
    for case in cases:
        line = {"query": case["query"], "document": case["document"] * (case.get("repeat") or 1), "instruction": case["instruction"]}
        lines.append(line | ({"max_length": case["max_length"]} if case.get("max_length") else {}))
    return cases, lines


def margins(model, lines, dtype="f32"):
    return [r["margin"] for r in score(lines, "--model", model, "--backend", "cpu", "--dtype", dtype)]


def kendall_tau(a, b):
    pairs = [(i, j) for i in range(len(a)) for j in range(i)]
    signs = [(a[i] > a[j]) - (a[i] < a[j]) for i, j in pairs]
    return sum(s * ((b[i] > b[j]) - (b[i] < b[j])) for s, (i, j) in zip(signs, pairs, strict=True)) / sum(s * s for s in signs)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.parametrize("kind", ["F32", "BF16"])
def test_exact_types_give_the_same_scores(tmp_path, checkpoint, kind):
    cases, lines = golden(checkpoint)
    model = write(tmp_path / "model.gguf", checkpoint, kind)
    for dtype in ("f32", "bf16"):
        assert margins(model, lines[:20], dtype) == margins(DATA / checkpoint, lines[:20], dtype)


@pytest.mark.golden
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_eight_bits_and_more_keep_golden_scores(tmp_path, checkpoint, kind):
    cases, lines = golden(checkpoint)
    results = score(lines, "--model", write(tmp_path / "model.gguf", checkpoint, kind), "--backend", "cpu", "--dtype", "f32")
    assert [r["ids_sha256"] for r in results] == [c["ids_sha256"] for c in cases]
    assert max(abs(r["score"] - c["score"]) for r, c in zip(results, cases, strict=True)) <= 0.02
    assert kendall_tau([r["score"] for r in results], [c["score"] for c in cases]) >= 0.98


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_fewer_bits_equal_the_same_values_in_f32(tmp_path, kind):
    """What drifts is the file, not the program: its numbers, written out in f32 by the gguf package, give the same scores."""
    _, lines = golden("small-1")

    def decoded(name, value):
        packed = gguf.quants.quantize(value, gguf.GGMLQuantizationType[kind])
        return gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[kind]), gguf.GGMLQuantizationType.F32

    packed = write(tmp_path / "packed.gguf", "small-1", kind)
    wide = write(tmp_path / "wide.gguf", "small-1", encode=decoded)
    assert margins(packed, lines[:12]) == margins(wide, lines[:12])


@pytest.mark.parametrize("checkpoint", ["micro-1", "untied-1"])
def test_a_head_of_two_rows(tmp_path, checkpoint):
    _, lines = golden(checkpoint)
    expected = margins(DATA / checkpoint, lines[:8])
    assert margins(write(tmp_path / "a.gguf", checkpoint, head="pair"), lines[:8]) == expected
    named = write(tmp_path / "b.gguf", checkpoint, head="swapped", labels=["no", "yes"])
    assert margins(named, lines[:8]) == expected


def test_rows_against_their_labels_are_put_right(tmp_path):
    _, lines = golden("micro-1")
    assert margins(write(tmp_path / "a.gguf", "micro-1", head="swapped"), lines[:8]) == margins(DATA / "micro-1", lines[:8])


def test_other_labels_than_yes_and_no_need_the_whole_head(tmp_path):
    model = write(tmp_path / "a.gguf", "micro-1", head="pair")
    done = cli("score", "--model", model, "--yes-token", "true", "--no-token", "false", stdin='{"query":"a","document":"b"}\n')
    assert done.returncode != 0
    assert "only" in done.stderr.decode() and str(YES) in done.stderr.decode() and str(NO) in done.stderr.decode()


def test_split_files_and_folders(tmp_path):
    _, lines = golden("micro-1")
    write(tmp_path / "m.gguf", "micro-1", split=12)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) > 2
    expected = margins(DATA / "micro-1", lines[:3])
    assert margins(parts[0], lines[:3]) == expected
    assert margins(tmp_path, lines[:3]) == expected  # a folder with one set
    last = parts[-1].rename(tmp_path / "elsewhere")
    assert "00003-of" in cli("inspect", tmp_path).stderr.decode()
    last.rename(parts[-1])
    write(tmp_path / "other.gguf", "micro-1")
    message = cli("inspect", tmp_path).stderr.decode()
    assert "several" in message and "other.gguf" in message and parts[0].name in message
    message = cli("inspect", parts[1]).stderr.decode()
    assert "part" in message


def test_tokens(tmp_path):
    model = write(tmp_path / "m.gguf", "micro-1")
    cases = json.loads((SOURCE / "tests" / "golden" / "tokenizer_cases.json").read_text())["ids"]
    texts = [text for text, _ in cases] + ["<|fim_prefix|>x<|repo_name|>", "<think>a</think>", "[PAD151669]"]
    for special in ([], ["--special"]):
        for text in texts[:: 1 if special else 3]:
            a, b = (cli("tokenize", "--json", *special, "--model", m, "-", stdin=text).stdout for m in (model, DATA / "micro-1"))
            assert a == b and a != b"", text


def test_inspect(tmp_path):
    model = write(tmp_path / "m.gguf", "micro-1", "Q8_0", head="swapped")
    facts = json.loads(ok("inspect", "--json", model))
    assert facts["gguf"]["version"] == 3 and facts["gguf"]["name"] == "Qwen3 Reranker test"
    assert facts["gguf"]["head"] == "cls.output, rows swapped"
    assert facts["config"]["quantization"] == "gguf"
    assert facts["tokenizer"]["canonical_prompt"] is True
    n = sum(v.size for v in weights("micro-1").values())
    assert facts["n_parameters"] == n + 2 * weights("micro-1")["token_embd.weight"].shape[1]
    text = ok("inspect", model)
    assert "GGUF version 3" in text and "Q8_0" in text and "swapped" in text
