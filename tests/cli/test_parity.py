"""parity and doctor --deep: what compares backends must find differences where they are."""

import itertools
import json
import math

import pytest
from support import cli, environment, fails, ok, score

PAIRS = [{"query": f"query {q}", "document": f"document {d} about {'this' if d % 2 else 'that'}"} for q in range(3) for d in range(4)]


def lines(pairs):
    return "".join(json.dumps(pair) + "\n" for pair in pairs)


def parity(*args, code=0, **kwargs):
    done = cli("parity", "--json", *args, **kwargs)
    assert done.returncode == code, done.stderr.decode()
    return json.loads(done.stdout)


def test_the_figures_are_those_of_the_scores():
    report = parity("--backends", "cpu:f32,cpu:bf16", "--pairs", "-", stdin=lines(PAIRS))
    a, b = (score(PAIRS, "--dtype", dtype) for dtype in ("f32", "bf16"))
    (d,) = report["distances"]
    margins = [abs(x["margin"] - y["margin"]) for x, y in zip(a, b)]
    scores = [abs(x["score"] - y["score"]) for x, y in zip(a, b)]
    assert math.isclose(d["margin_max"], max(margins), rel_tol=1e-5) and math.isclose(d["margin_mean"], sum(margins) / 12, rel_tol=1e-5)
    assert math.isclose(d["score_max"], max(scores), rel_tol=1e-5) and math.isclose(d["score_mean"], sum(scores) / 12, rel_tol=1e-5)
    assert scores[d["worst"]] == max(scores)
    changed = sum(
        (a[i]["margin"] - a[j]["margin"]) * (b[i]["margin"] - b[j]["margin"]) < 0
        for q in range(3)
        for i, j in itertools.combinations(range(4 * q, 4 * q + 4), 2)
    )
    assert (report["pairs"], report["queries"], d["orders"], d["order_changes"]) == (12, 3, 18, changed)
    assert math.isclose(d["kendall_tau"], 1 - 2 * changed / 18, rel_tol=1e-5)
    assert report["within_tolerance"] is (max(scores) <= 0.05)


def test_default_pairs_and_every_two_backends():
    report = parity("--backends", "cpu:f32,cpu:bf16,cpu")
    assert report["pairs"] == 18 and report["queries"] == 3
    assert [(d["a"], d["b"]) for d in report["distances"]] == [("cpu:f32", "cpu:bf16"), ("cpu:f32", "cpu"), ("cpu:bf16", "cpu")]
    table = ok("parity", "--backends", "cpu:f32,cpu:f32")
    assert "18 pairs of 3 queries" in table and "0 of 45   1.0000" in table and "passed: " in table


def test_the_tolerance_decides(native_bf16):
    if not native_bf16:
        pytest.skip("bf16 is computed in f32 here")
    strict = parity("--backends", "cpu:f32,cpu:bf16", "--tolerance", "1e-9", code=1)
    assert not strict["within_tolerance"] and not strict["distances"][0]["within_tolerance"]
    done = cli("parity", "--backends", "cpu:f32,cpu:bf16", "--tolerance", "1e-9")
    assert done.returncode == 1 and b"FAILS" in done.stdout and b"farthest apart" in done.stdout


@pytest.fixture
def native_bf16():
    return json.loads(ok("doctor", "--json"))["native bf16"] == "yes"


@pytest.mark.parametrize(
    "args, stdin, code, message",
    [
        (["--backends", "cpu"], b"", 2, "at least two"),
        (["--backends", "cpu,"], b"", 2, "expected up to 16 of NAME"),
        (["--backends", "cpu:f31,cpu"], b"", 2, 'found "f31"'),
        (["--backends", "cpu,nothing"], b"", 2, 'no backend "nothing"'),
        (["--backends", "cpu:f16,cpu"], b"", 4, "f16"),
        (["--backends", "cpu,cpu", "--pairs", "-"], b"", 3, "found none"),
        (["--backends", "cpu,cpu", "--pairs", "-"], b'{"query": "q"}\n', 3, 'standard input:1: "document": expected a string'),
        (["--backends", "cpu,cpu", "--pairs", "-"], b'\n{"query"\n', 3, "standard input:2: "),
        (["--backends", "cpu,cpu", "--pairs", "/nonexistent"], b"", 3, "/nonexistent: cannot open"),
        (["--backends", "cpu,cpu", "--tolerance", "2"], b"", 2, "--tolerance"),
    ],
)
def test_errors(args, stdin, code, message):
    assert message in fails(code, "parity", *args, stdin=stdin)


def test_deep_checks_of_our_own_engine():
    report = json.loads(ok("doctor", "--deep", "--json"))
    found = {check["dtype"]: check["result"] for check in report["checks"] if check["backend"] == "cpu"}
    assert found == {"f32": "right", "bf16": "right", "f16": "not supported", "int8": "not supported"}
    assert "check          cpu cpu f32: right" in ok("doctor", "--deep", env=environment())
