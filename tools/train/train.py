#!/usr/bin/env python3
"""Trains the built-in model: relevance labels and the teacher's graded scores, through the canonical prompt.

usage: train.py WORK [--steps N] [--seed S] [--minutes M] [--out NAME]

Starts from WORK/initial.pt, or goes on from WORK/NAME.pt if that is there (it is written every five minutes and at the end; --minutes
ends a run early, to go on later). Prints losses and, every so often, ranking quality on the development sets.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import random
import re
import sys
import time

import numpy as np
import tokenizers
import torch
import torch.nn.functional as F

import evaluate
import initialise
import model as m
import prepare
import prompt

INSTRUCTIONS = [
    "Retrieve passages that answer the question",
    "Find the document that best matches the query",
    "Given a question, find text that answers it",
    "Given a user question, retrieve the help article that solves it",
    "Given a search query, retrieve relevant documents",
    "Given a term, retrieve its definition",
    "Find the software package that does what is asked for",
    "Given a description, retrieve the entry that it describes",
    "Retrieve documentation relevant to the task",
    "Judge whether the passage is about the topic of the query",
    "Given a sentence, find the text that it comes from",
    "Find relevant text",
    "Which of these documents is useful to the person who asks?",
    "Given a keyword query, retrieve documents about the subject",
    "Retrieve semantically similar text",
    "You are a helpful librarian. Choose texts that satisfy the reader's request.",
]


# "What is X?" with X in the answer is easily learnt and teaches that shared words decide; questions of other forms are few.
FAVOUR = {"wordnet": 0.3, "gcide": 0.3, "foldoc": 0.6, "jargon": 0.6, "perlfaq": 4, "debian-faq": 4, "anarchism": 4, "gnome": 4, "gnucash": 2,
          "anarchism-more": 3, "harden": 2, "debian-handbook": 2, "debian-handbook-more": 2, "chat": 2, "cataclysm": 2, "ask-facts": 2, "ask-cataclysm": 2,
          "wordnet-open": 2, "linux": 0.5, "ask-linux": 0.5}

DECAY = 0.3  # of all steps, at the end


def typo(text, rng):
    at = rng.randrange(len(text))
    kind = rng.random()
    if kind < 0.35 and at + 1 < len(text):
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    if kind < 0.7:
        return text[:at] + text[at + 1 :]
    return text[:at] + rng.choice("abcdefghijklmnoprstuvwy") + text[at:]


def disturb(query, rng):
    """Queries as people type them."""
    kind = rng.random()
    if kind < 0.06:
        return query.lower()
    if kind < 0.07:
        return query.upper()
    if kind < 0.12 and len(query) > 12:
        return typo(query, rng)
    if kind < 0.15:
        return rng.choice(["please tell me: %s", "hello, %s", "%s please", "I need help. %s", "quick question: %s", "can you tell me %s", "%s thanks"]) % query
    if kind < 0.17:
        return query.rstrip("?.!")
    return query


TRAP_SIMILARITY, TRAP_SCORE = 0.3, 0.05
WEIGHT = {"positive": 3.0, "soft": 1.5}  # of a candidate in the pointwise loss


def trap(query, text, rng):
    """Another text with words of the query strewn in: shared words alone do not make an answer."""
    words = text.split()[: rng.choice([15, 25, 40, 60])]
    asked = query.split()
    at = rng.randrange(len(asked))
    parts = [asked[at : at + 4]] if rng.random() < 0.3 else [[w] for w in asked if len(w) > 2 or rng.random() < 0.2]
    for part in parts:
        if rng.random() < 0.8:
            where = rng.randrange(len(words) + 1)
            words[where:where] = [w.lower() if where else w for w in part]
    return " ".join(words)


class Data:
    def __init__(self, work):
        self.examples = prepare.load(work)
        self.queries = np.load(work / "queries.f16.npy")
        self.texts = np.load(work / "texts.f16.npy")
        self.negatives = np.load(work / "negatives.npy")
        self.tokenizer = tokenizers.Tokenizer.from_file(str(work / "tokenizer.json"))
        self.train = [i for i, e in enumerate(self.examples) if e["split"] == "train"]
        self.kinds = {}
        for i in self.train:
            self.kinds.setdefault(self.examples[i]["kind"], []).append(i)
        # kinds are drawn by a power of their size, so that small collections of real questions and instructions count
        self.names = sorted(self.kinds)
        self.weights = [FAVOUR.get(k, 1.0) * len(self.kinds[k]) ** 0.75 for k in self.names]
        self.suffix = self.encode(prompt.SUFFIX)
        self.cache = {}

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def document(self, i, cap):
        ids = self.cache.get(i)
        if ids is None:
            ids = self.cache[i] = np.array(self.encode(" " + self.examples[i]["text"])[:400], np.uint16)
        return ids[:cap].tolist()

    def head(self, instruction, query):
        first = self.encode(f"{prompt.PREFIX}<Instruct>: {instruction}\n<Query>:")
        rest = self.encode(f" {query}\n<Document>:")
        return first + rest, (len(first), len(first) + len(rest) - 2)


def without(query, text, rng):
    """The text without most of the words that it shares with the query: an answer need not repeat the question."""
    asked = {w.lower()[:5] for w in re.findall(r"\w{3,}", query)}
    parts = text.split(" ")
    kept = [w for w in parts if w.strip(".,;:!?()\"'").lower()[:5] not in asked or rng.random() < 0.2]
    return " ".join(kept) if len(kept) >= 4 else text


@dataclasses.dataclass
class Candidate:
    ids: list
    head: int
    text: int  # index of the example whose text it is
    kind: str  # "positive", "soft" (made from the query's source; the teacher judges it), "other", "trap" or "empty"


def targets(similar, kinds):
    """Wanted P(yes): the label's, shaded by the teacher's cosine. A negative that the teacher thinks close may well be relevant."""
    related = 0.005 + 0.80 * torch.sigmoid(14 * (similar - 0.64))
    good = (0.82 + 0.35 * (similar - 0.3)).clamp(0.80, 0.98)
    soft = 0.01 + 0.93 * torch.sigmoid(12 * (similar - 0.46))
    is_kind = lambda kind: torch.tensor([k == kind for k in kinds])
    wanted = torch.where(is_kind("positive"), good, torch.where(is_kind("soft"), soft, related))
    return torch.where(is_kind("trap"), TRAP_SCORE, torch.where(is_kind("empty"), 0.01, wanted))


def draw(data, rng, tokens):
    """One batch: queries with candidates, about so many document tokens."""
    cap = rng.choice([40, 64, 64, 96, 96, 128, 160])
    if rng.random() < 0.04:
        cap, tokens = 400, tokens // 2
    heads, spans, asked, found = [], [], [], []
    used = 0
    while used < tokens:
        kind = rng.choices(data.names, data.weights)[0]
        i = rng.choice(data.kinds[kind])
        e = data.examples[i]
        instruction = prompt.INSTRUCTION if rng.random() < 0.55 else rng.choice(INSTRUCTIONS)
        head, span = data.head(instruction, disturb(e["query"], rng))
        hard = [int(x) for x in data.negatives[i] if x >= 0 and data.examples[x]["split"] == "train"]
        # of each sort of hard negative, near ones more often than far ones
        lexical, semantic = [x for x in hard if x in data.negatives[i][: prepare.HARD]], [x for x in hard if x in data.negatives[i][prepare.HARD :]]
        chosen = rng.sample(lexical[:12], min(len(lexical[:12]), 3)) + rng.sample(semantic, min(len(semantic), 3))
        chosen += [rng.choice(data.kinds[kind]) for _ in range(2)] + [rng.choice(data.train) for _ in range(3)]
        chosen = [x for x in dict.fromkeys(chosen) if data.examples[x]["group"] != e["group"] and data.examples[x]["text"] != e["text"]]
        number = len(heads)
        heads.append(head)
        spans.append(span)
        asked.append(i)
        rows = [(x, "other") for x in chosen]
        if rng.random() >= 0.06:
            rows.append((i, "soft" if e.get("soft") else "positive"))
        apart = rng.random() < 0.3
        rows = [Candidate(data.encode(" " + without(e["query"], data.examples[x]["text"], rng))[:cap] if apart else data.document(x, cap), number, x, kind)
                for x, kind in rows]
        for _ in range(rng.choice([0, 1, 1, 2])):
            other = rng.choice(data.train)
            if data.examples[other]["group"] != e["group"]:
                rows.append(Candidate(data.encode(" " + trap(e["query"], data.examples[other]["text"], rng))[:cap], number, other, "trap"))
        if rng.random() < 0.10:
            rows.append(Candidate(data.encode(rng.choice([" ", " ", " .", " N/A", " none", " -"])), number, i, "empty"))
        used += sum(len(row.ids) + len(data.suffix) for row in rows)
        found += rows
    found.sort(key=lambda row: len(row.ids))
    kinds = [row.kind for row in found]
    batch = m.make_batch(heads, spans, [row.ids for row in found], [row.head for row in found], data.suffix)
    changed = torch.tensor([number for number, kind in enumerate(kinds) if kind == "trap"], dtype=torch.long)
    batch.text_of[torch.isin(batch.text_of, changed)] = -1  # these texts are no longer what the teacher read
    q = torch.from_numpy(data.queries[asked]).float()
    d = torch.from_numpy(data.texts[[row.text for row in found]]).float()
    similar = (q[batch.doc_head] * d).sum(-1)
    similar[changed] = TRAP_SIMILARITY
    return batch, targets(similar, kinds), q, d, similar, kinds


def distance(hidden, number_of, wanted):
    """How far the averages of query or document tokens, in the middle of the network, are from the teacher's embeddings of the texts, as
    1 - cosine, over the meaning's dimensions and over those that are compared; initialise.py says which these are."""
    keep = number_of >= 0
    count, width = wanted.shape
    hidden = F.rms_norm(hidden, hidden.shape[-1:])[keep, :width]  # as a layer sees them: tokens without meaning stay small
    pooled = torch.zeros(count, width).index_add(0, number_of[keep], hidden)
    some = torch.bincount(number_of[keep], minlength=count) > 0
    cosine = lambda n: F.cosine_similarity(pooled[some, :n], wanted[some, :n]).mean()
    return 1 - (cosine(width) + cosine(initialise.POOLED)) / 2


def listwise(margin, wanted, owner, count):
    """KL divergence between the wanted and the found distribution over each query's documents; both are given as logits."""

    def log_softmax(z):
        most = torch.full((count,), -1e9).scatter_reduce(0, owner, z.detach(), "amax")
        shifted = z - most[owner]
        return shifted - torch.zeros(count).index_add(0, owner, shifted.exp()).log()[owner]

    want = log_softmax(wanted)
    return (want.exp() * (want - log_softmax(margin))).sum() / count


@torch.inference_mode()
def score(model, data, items, yes, no):
    """items: [(instruction, query, [documents])] -> list of lists of margins"""
    out = []
    for instruction, query, documents in items:
        head, span = data.head(instruction or prompt.INSTRUCTION, query)
        docs = [data.encode(" " + d)[:600] for d in documents]
        order = sorted(range(len(docs)), key=lambda i: len(docs[i]))
        with torch.autocast("cpu", torch.bfloat16):
            last, _ = model(m.make_batch([head], [span], [docs[i] for i in order], [0] * len(docs), data.suffix))
        margins = [0.0] * len(docs)
        for i, margin in zip(order, model.margins(last.float(), yes, no).tolist()):
            margins[i] = margin
        out.append(margins)
    return out


def development_sets(data, work):
    """Packages and others held out for development, and the development questions."""
    rng = random.Random(7)
    dev = [i for i, e in enumerate(data.examples) if e["split"] == "dev"]
    sets = {"packages": [], "others": []}
    rng.shuffle(dev)
    for i in dev:
        e = data.examples[i]
        name = "packages" if e["kind"] == "package" else "others"
        if len(sets[name]) >= 120:
            continue
        near = [int(x) for x in data.negatives[i] if x >= 0][:32]
        others = rng.sample(near, min(9, len(near))) + rng.sample(dev, 10)
        others = [x for x in others if data.examples[x]["group"] != e["group"]]
        sets[name].append((None, e["query"], [e["text"]] + [data.examples[x]["text"] for x in others], [i] + others))
    questions = pathlib.Path(__file__).with_name("questions-dev.json")
    if questions.exists():
        sets["questions"] = [(q.get("instruction"), q["query"], [q["answer"]] + q["distractors"], None) for q in json.loads(questions.read_text())]
    return sets


def measure(model, data, sets, yes, no):
    model.eval()
    out = []
    for name, items in sets.items():
        scores = score(model, data, [item[:3] for item in items], yes, no)
        rank = [evaluate.mrr(s, [0]) for s in scores]
        first = sum(torch.sigmoid(torch.tensor(s[0])).item() for s in scores) / len(scores)
        rest = sum(torch.sigmoid(torch.tensor(s[1:])).mean().item() for s in scores) / len(scores)
        out.append(f"{name} MRR {sum(rank) / len(rank):.3f} (P {first:.2f} : {rest:.2f})")
    model.train()
    return ", ".join(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--tokens", type=int, default=5000, help="document tokens a batch")
    parser.add_argument("--lr", type=float, default=1.2e-3)
    parser.add_argument("--out", default="trained")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="without torch.compile, which needs g++")
    parser.add_argument("--measure", type=int, default=500)
    a = parser.parse_args()

    data = Data(a.work)
    yes, no = data.tokenizer.token_to_id("yes"), data.tokenizer.token_to_id("no")
    torch.manual_seed(a.seed)
    model = m.Model(m.Config(vocab_size=data.tokenizer.get_vocab_size()))
    config = model.config
    initial = torch.load(a.work / "initial.pt")
    model.load_state_dict(initial["model"])
    axes = initial["axes"]
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and n != "embed"]
    groups = [
        {"params": matrices, "lr": a.lr, "weight_decay": 0.02},
        {"params": [p for p in model.parameters() if p.ndim == 1], "lr": a.lr, "weight_decay": 0.0},
        {"params": [model.embed], "lr": a.lr * 0.3, "weight_decay": 0.0},
    ]
    for g in groups:
        g["base"] = g["lr"]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-8, fused=True)
    step, spent = 0, 0.0
    path = a.work / f"{a.out}.pt"
    if path.exists():
        state = torch.load(path)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        step, spent = state["step"], state["spent"]
        print(f"going on at step {step}")

    def save(path):
        state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step, "spent": spent + time.time() - began}
        torch.save(state, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)

    if a.compile:
        model.compile()
    sets = development_sets(data, a.work)
    began = saved = time.time()
    print(f"step {step}: {measure(model, data, sets, yes, no)}", flush=True)
    sums, seen = [0.0] * 4, [0, 0, 0]
    while step < a.steps and time.time() - began < a.minutes * 60:
        progress = step / a.steps
        # warm-up, constant, then down to nothing: a longer run can go on from the end of the constant part
        rate = min(1.0, (step + 1) / 100, (1 - progress) / DECAY)
        if step == round(a.steps * (1 - DECAY)):
            save(a.work / f"{a.out}-constant.pt")
        for g in optimiser.param_groups:
            g["lr"] = g["base"] * rate
        # a batch depends on the seed and the step alone, so that a run that was cut goes on as it would have
        rng = random.Random(f"{a.seed}/{step}")
        batch, wanted, q, d, similar, kinds = draw(data, rng, a.tokens)
        with torch.autocast("cpu", torch.bfloat16):
            last, middle = model(batch, aux_layer=config.num_hidden_layers - 2)
        margin = model.margins(last.float(), yes, no)
        # the label's side and the other weigh the same
        weight = torch.tensor([WEIGHT.get(kind, 1.0) for kind in kinds])
        point = (F.binary_cross_entropy_with_logits(margin, wanted, reduction="none") * weight).sum() / weight.sum()
        bonus = torch.tensor([0.5 if kind == "positive" else 0.0 for kind in kinds])
        want = torch.where(torch.tensor([kind == "empty" for kind in kinds]), -4.0, 20 * similar + bonus)
        ranks = listwise(margin, want, batch.doc_head, len(q))
        near_q = distance(middle.float(), batch.query_of, q @ axes)
        near_d = distance(middle.float(), batch.text_of, d @ axes)
        loss = point + 0.7 * ranks + (1.0 + 5.0 * (1 - progress) ** 2) * (near_q + near_d)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        for i, value in enumerate((point, ranks, near_q, near_d)):
            sums[i] += value.item()
        seen = [seen[0] + 1, seen[1] + len(d), seen[2] + len(batch.ids)]
        if step % 50 == 0:
            n, seconds = seen[0], time.time() - began
            print(f"step {step}: pointwise {sums[0] / n:.4f}, listwise {sums[1] / n:.4f}, query {sums[2] / n:.3f}, document {sums[3] / n:.3f}; "
                  f"{seen[1] / n:.0f} pairs and {seen[2] / n:.0f} tokens a step, {(spent + seconds) / 60:.1f} min", flush=True)
            sums, seen = [0.0] * 4, [0, 0, 0]
        if step % a.measure == 0:
            print(f"step {step}: {measure(model, data, sets, yes, no)}", flush=True)
        if time.time() - saved > 300:
            save(path)
            saved = time.time()
    save(path)
    print(f"step {step}: {measure(model, data, sets, yes, no)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
