"""tools/train/evaluate.py on cases worked out by hand, and the sets of questions that were written for it."""

import itertools
import json
import math
import pathlib
import sys

import pytest

TOOLS = pathlib.Path(__file__).resolve().parents[2] / "tools" / "train"
sys.path.insert(0, str(TOOLS))
import evaluate  # noqa: E402


def test_ndcg():
    assert evaluate.ndcg([0.9, 0.1], [0]) == 1
    assert evaluate.ndcg([0.1, 0.9], [0]) == pytest.approx(1 / math.log2(3))
    # Relevant ones at ranks 1 and 3 of 3.
    assert evaluate.ndcg([3, 2, 1], [0, 2]) == pytest.approx((1 + 1 / 2) / (1 + 1 / math.log2(3)))
    assert evaluate.ndcg(list(range(20)), [9]) == 0, "rank 11 is beyond 10"
    assert evaluate.ndcg(list(range(20)), [10]) == pytest.approx(1 / math.log2(11)), "rank 10 is not"
    assert evaluate.ndcg([1] * 11 + [0], range(11)) == 1, "more relevant documents than places"


def test_mrr_and_accuracy():
    assert evaluate.mrr([1, 3, 2], [2]) == 1 / 2
    assert evaluate.mrr([1, 3, 2], [0, 2]) == 1 / 2
    assert evaluate.accuracy([1, 3, 2], [2]) == 0
    assert evaluate.accuracy([1, 3, 2], [1]) == 1


def test_equal_scores_count_against_the_ranker():
    assert evaluate.mrr([0.5, 0.5, 0.5, 0.5], [0]) == 1 / 4
    assert evaluate.accuracy([0.5, 0.5], [0]) == 0
    assert evaluate.mrr([math.nan, 0.1], [0]) == 1 / 2
    assert evaluate.mrr([math.nan, -math.inf], [0]) == 1 / 2


@pytest.mark.parametrize("n, r", [(1, 1), (4, 1), (5, 2), (5, 5), (6, 3)])
def test_expected_is_the_mean_over_all_orders(n, r):
    rows = [evaluate.measure(order, range(r)) for order in itertools.permutations(range(n))]
    assert evaluate.expected(n, r) == pytest.approx([sum(column) / len(rows) for column in zip(*rows)])


def test_expected_beyond_the_tenth_place():
    assert evaluate.expected(20, 1)[0] == pytest.approx(sum(1 / math.log2(i + 2) for i in range(10)) / 20)


def test_bootstrap():
    (mean, low, high), constant = evaluate.bootstrap([(i % 2, 0.25) for i in range(100)])
    assert mean == 0.5 and 0.38 < low < 0.43 and 0.57 < high < 0.62
    assert constant == (0.25, 0.25, 0.25)


def test_bm25():
    ranker = evaluate.BM25(["Red apple", "green apple apple", "a red, red car", "a red, red car"])
    # Three distinct texts of 2, 3 and 4 words; "red" is in two of them, "car" in one.
    assert ranker.mean_length == 3
    idf_red, idf_car = math.log(1 + 1.5 / 2.5), math.log(1 + 2.5 / 1.5)
    short, long = 1.2 * (0.25 + 0.75 * 2 / 3), 1.2 * (0.25 + 0.75 * 4 / 3)
    assert ranker.score("RED", "Red apple") == pytest.approx(idf_red * 2.2 / (1 + short))
    assert ranker.score("red car", "a red, red car") == pytest.approx(idf_red * 2 * 2.2 / (2 + long) + idf_car * 2.2 / (1 + long))
    assert ranker.scores("car cars", ["Red apple", "two cars"]) == [0, pytest.approx(math.log(1 + 3.5 / 0.5) * 2.2 / (1 + short))]
    assert ranker.score("car", "") == 0


def test_reliability():
    rows = evaluate.reliability([(0.0, False), (0.04, True), (0.1, False), (1.0, True)])
    assert [row["count"] for row in rows] == [2, 1, 0, 0, 0, 0, 0, 0, 0, 1]
    assert rows[0]["mean_score"] == pytest.approx(0.02) and rows[0]["share_relevant"] == 0.5
    assert evaluate.calibration_error(rows) == pytest.approx((2 * 0.48 + 0.1 + 0) / 4)
    picture = evaluate.plot(rows, "a < b")
    assert picture.startswith("<svg") and "a &lt; b" in picture and picture.count("<circle") == 3


def test_a_set_of_lines(tmp_path):
    good = {"query": "q", "documents": ["x", "y"], "relevant": [1]}
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps(good) + "\n\n" + json.dumps(good | {"instruction": "i"}) + "\n")
    items, collection = evaluate.load_set(str(path))
    assert [item.get("instruction") for item in items] == [None, "i"] and collection == ["x", "y", "x", "y"]
    for relevant in [], [2], [1, 1], [-1]:
        path.write_text(json.dumps(good | {"relevant": relevant}))
        with pytest.raises(ValueError, match="entry 1"):
            evaluate.load_set(str(path))


# ------------------------------------------------------------------------------------------------------------------------- the questions


def entries(name):
    return json.loads((TOOLS / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "name, prefix, n, n_paraphrase, n_instructions", [("questions.json", "c", 80, 20, 10), ("questions-dev.json", "d", 30, 8, 3)]
)
def test_questions(name, prefix, n, n_paraphrase, n_instructions):
    all_entries = entries(name)
    assert [entry["id"] for entry in all_entries] == [f"{prefix}{i:02d}" for i in range(1, n + 1)]
    assert sum("paraphrase" in entry for entry in all_entries) >= n_paraphrase
    assert sum("instruction" in entry for entry in all_entries) >= n_instructions
    for entry in all_entries:
        assert set(entry) - {"instruction", "paraphrase"} == {"id", "query", "answer", "distractors"}
        assert len(entry["distractors"]) == 7
        shared = evaluate.content_words(entry["query"]) & evaluate.content_words(entry["answer"])
        assert bool(shared) != entry.get("paraphrase", False), f"{entry['id']} shares {shared}"
        for text in [entry["query"], entry["answer"], *entry["distractors"]]:
            assert text == " ".join(text.split())


def test_no_text_occurs_twice():
    both = entries("questions.json") + entries("questions-dev.json")
    texts = [text for entry in both for text in (entry["query"], entry["answer"], *entry["distractors"])]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", ["questions.json", "questions-dev.json"])
def test_length_does_not_give_the_answer_away(name):
    all_entries = entries(name)
    answers = [len(entry["answer"].split()) for entry in all_entries]
    distractors = [len(text.split()) for entry in all_entries for text in entry["distractors"]]
    ratio = (sum(answers) / len(answers)) / (sum(distractors) / len(distractors))
    assert 0.85 < ratio < 1.15
    # Ranking by length must not find it much more often than chance does, one time in eight.
    for sign in 1, -1:
        found = [evaluate.mrr([sign * len(t) for t in (e["answer"], *e["distractors"])], [0]) for e in all_entries]
        assert sum(found) / len(found) < 0.45, "chance is 0.34"


def test_candidates_of_questions():
    path = TOOLS / "questions.json"
    plain, more = evaluate.questions(path), evaluate.questions(path, evaluate.N_ADDED)
    assert {len(item["documents"]) for item in plain} == {8} and {len(item["documents"]) for item in more} == {20}
    for entry, item, larger in zip(entries("questions.json"), plain, more):
        assert item["documents"][item["relevant"][0]] == larger["documents"][larger["relevant"][0]] == entry["answer"]
        assert set(item["documents"]) < set(larger["documents"]) and len(set(larger["documents"])) == 20
    assert evaluate.questions(path) == plain
    assert {item["relevant"][0] for item in plain} == set(range(8)), "the answer is at every place"
    assert len(evaluate.questions(path, paraphrase=True)) == sum("paraphrase" in entry for entry in entries("questions.json"))
