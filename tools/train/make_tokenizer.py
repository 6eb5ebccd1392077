#!/usr/bin/env python3
"""Trains the built-in model's tokenizer: the real Qwen3 tokenizer.json with a vocabulary of its own.

Normaliser, pre-tokeniser (the regular expression), decoder and special tokens are taken from the real file, which the test data hold;
only vocabulary and merges are new. The prompt's own words are made single tokens, so that a pair costs as few tokens as possible.

usage: make_tokenizer.py WORK [VOCABULARY]      reads WORK/pairs.jsonl, writes WORK/tokenizer.json
"""

import json
import lzma
import pathlib
import random
import re
import sys

import tokenizers

import prompt

ROOT = pathlib.Path(__file__).resolve().parents[2]
# How much of each kind the vocabulary is learnt from. Technical documentation repeats its own words; general English must not drown in it.
SHARE = {"linux": 0.3, "linux-more": 0.1, "python3.11-more": 0.2}


def texts(path):
    rng = random.Random(1)
    for line in open(path, encoding="utf-8"):
        pair = json.loads(line)
        if rng.random() < SHARE.get(pair["kind"], 1.0):
            yield pair["query"]
            yield pair["text"]
            if rng.random() < 0.3:  # queries are often typed in lower case
                yield pair["text"].lower()
    for _ in range(100000):
        # without the special tokens: the learner would take them for words
        yield from re.split(r"<\|im_\w+\|>|</?think>", prompt.text("", "", ""))
        yield "yes"
        yield "no"


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    work = pathlib.Path(sys.argv[1])
    size = int(sys.argv[2]) if len(sys.argv) > 2 else 19968
    real = json.loads(lzma.open(ROOT / "tests/golden/tokenizer.json.xz").read())
    added = real["added_tokens"]

    learner = tokenizers.Tokenizer.from_str(json.dumps(real))
    learner.model = tokenizers.models.BPE()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size - len(added), initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False, limit_alphabet=256, max_token_length=24
    )
    learner.train_from_iterator(texts(work / "pairs.jsonl"), trainer)
    model = json.loads(learner.to_str())["model"]
    vocab = [token for token, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    real["model"]["vocab"] = {token: i for i, token in enumerate(vocab)}
    real["model"]["merges"] = model["merges"]
    for i, token in enumerate(added):
        token["id"] = len(vocab) + i
    text = json.dumps(real, ensure_ascii=False, indent=1)
    (work / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    made = tokenizers.Tokenizer.from_str(text)
    print(f"{made.get_vocab_size()} tokens, prompt of {len(made.encode(prompt.text('', '', '')).ids)} tokens")
    for word in ("yes", "no"):
        assert len(made.encode(word).ids) == 1, word


if __name__ == "__main__":
    main()
