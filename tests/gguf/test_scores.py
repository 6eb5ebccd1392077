"""GGUF files against the safetensors folder that they were made from, and golden scores."""

import json
import statistics

import gguf
import numpy as np
import pytest
from gguf_files import NO, YES, weights, write
from support import DATA, SOURCE, cli, ok, score
from test_blocks import SCALES

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


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.parametrize("kind", ["F32", "BF16"])
def test_exact_types_give_the_same_scores(tmp_path, checkpoint, kind):
    cases, lines = golden(checkpoint)
    model = write(tmp_path / "model.gguf", checkpoint, kind)
    for dtype in ("f32", "bf16"):
        assert margins(model, lines[:20], dtype) == margins(DATA / checkpoint, lines[:20], dtype)


@pytest.mark.golden
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_sixteen_bits_keep_golden_scores(tmp_path, checkpoint):
    cases, lines = golden(checkpoint)
    results = score(lines, "--model", write(tmp_path / "model.gguf", checkpoint, "F16"), "--backend", "cpu", "--dtype", "f32")
    assert [r["ids_sha256"] for r in results] == [c["ids_sha256"] for c in cases]
    assert max(abs(r["score"] - c["score"]) for r, c in zip(results, cases, strict=True)) <= 0.02
    assert max(abs(r["margin"] - c["margin"]) for r, c in zip(results, cases, strict=True)) <= 0.1


@pytest.mark.golden
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_eight_bits_stay_near_golden_scores(tmp_path, checkpoint):
    """These checkpoints are random, and answer a small change of their weights more than a trained one: what transformers' own bf16 does to
    their scores is the measure."""
    cases, lines = golden(checkpoint)
    found = margins(write(tmp_path / "model.gguf", checkpoint, "Q8_0"), lines)
    error = statistics.mean(abs(m - c["margin"]) for m, c in zip(found, cases, strict=True))
    assert error <= 1.25 * statistics.mean(abs(c["hf_bf16_margin"] - c["margin"]) for c in cases)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_blocks_equal_the_same_values_in_f32(tmp_path, kind):
    """What drifts is the file, not the program: its numbers, written out in f32 by the gguf package, give the same scores."""
    _, lines = golden("small-1")

    def decoded(name, value):
        packed = gguf.quants.quantize(value, gguf.GGMLQuantizationType[kind])
        return gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[kind]), gguf.GGMLQuantizationType.F32

    packed = write(tmp_path / "packed.gguf", "small-1", kind)
    wide = write(tmp_path / "wide.gguf", "small-1", encode=decoded)
    assert margins(packed, lines[:12]) == margins(wide, lines[:12])


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"])
def test_types_that_the_package_only_decodes(tmp_path, kind):
    """Blocks of any bits, with scales that keep the values small."""
    _, lines = golden("small-1")
    number = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[number]

    def packed(name, value):
        if value.shape[0] > 2000:  # the vocabulary stays as it is
            return value, gguf.GGMLQuantizationType.F32
        rng = np.random.default_rng(value.size)
        blocks = rng.integers(0, 256, (value.size // block, size), np.uint8)
        for at in SCALES.get(kind, [0]):
            blocks[:, at : at + 2] = np.frombuffer(np.float16(2.0**-14).tobytes(), np.uint8)
        return blocks.reshape(value.shape[0], -1), number

    def decoded(name, value):
        data, found = packed(name, value)
        return (data if found != number else gguf.quants.dequantize(data, number)), gguf.GGMLQuantizationType.F32

    a, b = (write(tmp_path / f"{k}.gguf", "small-1", encode=e) for k, e in (("packed", packed), ("wide", decoded)))
    for dtype in ("f32", "bf16"):
        found = margins(a, lines[:6], dtype)
        assert found == margins(b, lines[:6], dtype) and len(set(found)) > 1


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
    assert facts["gguf"]["head"] == "cls.output" and facts["gguf"]["head_rows_swapped"] is True
    assert facts["gguf"]["rerank_template"] == "none" and facts["gguf"]["pooling_type"] == 4
    assert facts["config"]["quantization"] == "gguf"
    assert facts["tokenizer"]["canonical_prompt"] is True
    n = sum(v.size for v in weights("micro-1").values())
    assert facts["n_parameters"] == n + 2 * weights("micro-1")["token_embd.weight"].shape[1]
    text = ok("inspect", model)
    assert "GGUF version 3" in text and "Q8_0" in text and "swapped" in text
