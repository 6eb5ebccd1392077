"""--dtype int8: taken where it holds, refused with the reason where it does not."""

import json
import re

import pytest

from support import DATA, cli, fails, ok, score

QUERY = "how does a refrigerator work"
DOCUMENTS = [
    "A refrigerator moves heat from its inside to the room by compressing and expanding a coolant.",
    "The compressor squeezes the coolant, which gives off heat in the coils at the back.",
    "Freezers run at minus eighteen degrees.",
    "The museum is closed on Mondays.",
]
PAIRS = [{"query": QUERY, "document": document} for document in DOCUMENTS]


@pytest.fixture(scope="module")
def vnni():
    if json.loads(ok("doctor", "--json"))["native int8"] != "yes":
        message = fails(4, "score", "--model", "builtin", "--dtype", "int8", stdin='{"query":"a","document":"b"}')
        assert "needs a processor with AVX-VNNI" in message
        pytest.skip("this processor does not multiply 8-bit integers; it said so")


def test_a_trained_model_ranks_alike(vnni):
    exact = [r["score"] for r in score(PAIRS, "--model", "builtin", "--dtype", "f32")]
    fast = [r["score"] for r in score(PAIRS, "--model", "builtin", "--dtype", "int8")]
    assert fast != exact and max(abs(a - b) for a, b in zip(fast, exact)) < 0.03
    assert sorted(range(4), key=lambda i: exact[i]) == sorted(range(4), key=lambda i: fast[i])


def test_what_was_found_is_logged(vnni):
    done = cli("rank", QUERY, "--model", "builtin", "--dtype", "int8", "--verbose", stdin="\n".join(DOCUMENTS))
    found = re.search(rb"int8 beside f32 on 36 prompts of our own: Kendall's tau (0\.\d+|1\.000), scores off by (0\.\d+)", done.stderr)
    assert done.returncode == 0 and float(found[1]) >= 0.97 and float(found[2]) <= 0.02


def test_a_model_that_loses_too_much_is_refused(vnni):
    message = fails(4, "score", "--model", DATA / "small-1", "--dtype", "int8", stdin='{"query":"a","document":"b"}')
    assert "would move its scores too far" in message and "Kendall's tau 0.9" in message
