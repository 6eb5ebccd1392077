"""score: golden values, order, bad lines, and use as a coprocess."""

import hashlib
import json
import math
import subprocess

import pytest
from support import DATA, HANG_S, PROGRAM, SOURCE, environment, fails, score

# f32 sums of another order than PyTorch's; measured far below, wrong arithmetic is far above.
F32_TOLERANCE = 2e-3


def golden(name):
    path = SOURCE / "tests" / "golden" / f"scores-{name}.json"
    cases = json.loads(path.read_text())["cases"]
    lines = []
    for case in cases:
        line = {"query": case["query"], "document": case["document"] * (case.get("repeat") or 1)}
        line["instruction"] = case["instruction"]
        if case.get("max_length"):
            line["max_length"] = case["max_length"]
        lines.append(line)
    return cases, lines


@pytest.mark.golden
@pytest.mark.parametrize("name", ["micro-1", "untied-1", "small-1", "odd-7"])
def test_f32_agrees_with_the_reference(name):
    cases, lines = golden(name)
    results = score(lines, "--model", DATA / name, "--dtype", "f32", "--logits")
    assert [r["index"] for r in results] == list(range(len(cases)))
    for case, result in zip(cases, results):
        assert result["ids_sha256"] == case["ids_sha256"], case["query"]
        assert result["n_tokens"] == case["n_tokens"]
        assert abs(result["margin"] - case["margin"]) <= F32_TOLERANCE, case["query"]
        assert abs(result["yes_logit"] - result["no_logit"] - result["margin"]) < 1e-4
        assert result["score"] == pytest.approx(1 / (1 + math.exp(-result["margin"])), abs=1e-6)


@pytest.mark.golden
@pytest.mark.parametrize("name", ["micro-1", "untied-1", "small-1", "odd-7"])
def test_bf16_is_no_further_from_f32_than_the_reference_in_bf16(name):
    cases, lines = golden(name)
    results = score(lines, "--model", DATA / name, "--dtype", "bf16")
    ours = [abs(r["margin"] - c["margin"]) for r, c in zip(results, cases)]
    theirs = [abs(c["hf_bf16_margin"] - c["margin"]) for c in cases]
    assert sum(ours) <= sum(theirs)
    assert max(ours) <= 1.2 * max(theirs)


def pairs():
    return [{"query": f"query {i % 3}", "document": f"document {i} " + "word " * (i * 7 % 50)} for i in range(20)]


def test_scores_depend_on_nothing_but_the_pair():
    lines = pairs()
    expected = [r["margin"] for r in score(lines, "--dtype", "f32")]
    for options in (["--threads", "1"], ["--threads", "2"], ["--max-batch-tokens", "1"], ["--max-batch-tokens", "300"]):
        assert [r["margin"] for r in score(lines, "--dtype", "f32", *options)] == expected, options
    assert [r["margin"] for r in score(lines[::-1], "--dtype", "f32")][::-1] == expected
    assert [score([line], "--dtype", "f32")[0]["margin"] for line in lines[:3]] == expected[:3]


def test_more_lines_than_a_group_holds():
    results = score([{"query": "q", "document": str(i % 5)} for i in range(600)])
    assert [r["index"] for r in results] == list(range(600))
    assert len({r["margin"] for r in results}) <= 5


def test_bad_lines_are_answered_in_place():
    good = {"query": "q", "document": "d"}
    bad = [b"{", b"[]", {"query": "q"}, {"query": 1, "document": "d"}, {**good, "instruction": 1}, {**good, "max_length": 0}]
    bad += [{**good, "max_length": 3}, {**good, "max_length": 1e30}]
    results = score([good, *bad, b"", good], code=3)
    assert [r["index"] for r in results] == list(range(len(bad) + 2))
    assert all("error" in r for r in results[1:-1])
    assert results[0]["margin"] == results[-1]["margin"]


def test_a_query_that_is_too_long_fails_alone():
    good = {"query": "q", "document": "d"}
    results = score([good, {"query": "long " * 200, "document": "d", "max_length": 100}, good], code=3)
    assert ["error" in r for r in results] == [False, True, False]


def test_texts_that_json_parsers_refuse():
    lone = b'{"query": "q", "document": "a\\ud800b \\udc00 \\ud83d\\ude00 \\\\ud800"}'
    same = {"query": "q", "document": "a\ufffdb \ufffd \U0001f600 \\ud800"}
    raw = b'{"query": "q", "document": "a\xff\xe4\xb8b"}'
    same_raw = {"query": "q", "document": "a\ufffd\ufffdb"}
    nul = b'{"query": "q", "document": "a\\u0000b"}'
    results = score([lone, same, raw, same_raw, nul, {"query": "q", "document": "a"}])
    assert results[0]["replaced"] and "replaced" not in results[1]
    assert results[2]["replaced"]
    assert results[0]["ids_sha256"] == results[1]["ids_sha256"]
    assert results[2]["ids_sha256"] == results[3]["ids_sha256"]
    assert results[4]["n_tokens"] > results[5]["n_tokens"]


def test_instruction_absent_null_and_empty():
    line = {"query": "q", "document": "d"}
    absent, null, empty = score([line, {**line, "instruction": None}, {**line, "instruction": ""}])
    assert absent["margin"] == null["margin"]
    assert empty["n_tokens"] < absent["n_tokens"]


def test_truncation_is_reported():
    cut, whole = score([{"query": "q", "document": "word " * 500, "max_length": 128}, {"query": "q", "document": "d"}])
    assert cut["truncated"] and cut["n_tokens"] == 128
    assert not whole["truncated"]


def test_no_input_is_no_output():
    assert score([]) == []


def test_a_coprocess_gets_its_answers():
    with subprocess.Popen([PROGRAM, "score"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()) as process:
        for i in range(3):
            process.stdin.write(json.dumps({"query": "q", "document": f"d{i}"}).encode() + b"\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["index"] == i
        process.stdin.close()
        assert process.wait(HANG_S) == 0


def test_the_last_line_needs_no_line_end():
    done = subprocess.run([PROGRAM, "score"], input=b'{"query": "q", "document": "d"}', capture_output=True, env=environment(), timeout=HANG_S)
    assert done.returncode == 0 and json.loads(done.stdout)["index"] == 0


def test_ids_are_hashed_as_decimals():
    (result,) = score([{"query": "q", "document": "d"}])
    assert len(bytes.fromhex(result["ids_sha256"])) == hashlib.sha256().digest_size


def test_a_missing_model_has_its_own_code():
    assert "nowhere" in fails(4, "score", "--model", "/nowhere")
