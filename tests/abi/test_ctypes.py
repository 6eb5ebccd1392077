"""The library from Python, through nothing but its C interface: golden scores, and the same from many threads at once."""

import concurrent.futures
import json
import math

import pytest

import capi

# f32 arithmetic against f32 arithmetic in another order of sums; the largest difference seen is 1e-5 on margins of up to 20.
MARGIN_TOLERANCE = 2e-4
# The score comes from the unrounded difference, the margin is that difference as f32: half a unit in its last place, times the slope 1/4.
SCORE_TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def lib(build, sanitized):
    if sanitized:
        pytest.skip("Python itself would have to be built with the sanitizer")
    return capi.load(build / "libqwen-rerank.so")


@pytest.fixture(scope="module")
def engine(lib, testdata):
    engine = capi.Engine(lib, testdata / "micro-1", dtype=capi.DTYPE_F32, threads=2)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def cases(source):
    return json.loads((source / "tests/golden/scores-micro-1.json").read_text())["cases"]


def arguments(case):
    return dict(query=case["query"], documents=[case["document"] * case.get("repeat", 1)], instruction=case["instruction"],
                max_length=case.get("max_length") or 0)  # fmt: skip


def test_golden_scores(engine, cases):
    for case in cases:
        (result,) = engine.score(**arguments(case))
        where = case["query"][:40], case["document"][:40]
        assert result.flags & capi.DONE
        assert result.n_tokens == case["n_tokens"], where
        assert bytes(result.ids_sha256).hex() == case["ids_sha256"], where
        assert result.margin == pytest.approx(case["margin"], abs=MARGIN_TOLERANCE), where
        assert result.score == pytest.approx(1 / (1 + math.exp(-result.margin)), abs=SCORE_TOLERANCE), where


def test_threads_get_equal_results(engine, cases):
    def all_margins():
        return [engine.score(**arguments(case))[0].margin for case in cases]

    alone = all_margins()
    with concurrent.futures.ThreadPoolExecutor(6) as pool:  # ctypes drops Python's lock during a call
        for margins in pool.map(lambda _: all_margins(), range(6)):
            assert margins == alone


def test_many_documents_equal_each_alone(engine, cases):
    documents = [case["document"] for case in cases if not case.get("repeat")]
    together = engine.score("What is Python?", documents)
    assert [r.margin for r in together] == [engine.score("What is Python?", [d])[0].margin for d in documents]


def test_open_fails_with_a_message(lib):
    with pytest.raises(RuntimeError, match="no-such-folder"):
        capi.Engine(lib, "no-such-folder")


def test_two_engines_live_side_by_side(lib, testdata, engine):
    other = capi.Engine(lib, testdata / "untied-1", dtype=capi.DTYPE_F32, threads=1)
    first = engine.score("a", ["b"])[0].margin
    assert other.score("a", ["b"])[0].margin != first
    other.close()
    assert engine.score("a", ["b"])[0].margin == first
