#!/usr/bin/env python3
"""Compares our tokenizer with the Hugging Face `tokenizers` library, id by id.

    pip install tokenizers
    xz -dkc tests/golden/tokenizer.json.xz > /tmp/tokenizer.json
    python3 tools/compare_tokenizers.py /tmp/tokenizer.json [--strings 200000] [--seed 1] [--write-sample tests/golden/tokenizer_vectors.json]

Builds src/text and src/base into a shared object of its own and calls it through ctypes. What is compared:
every code point in contexts that show its class and its part in NFC; random strings over all classes, as plain text (the reference without added
tokens), with the added tokens that are not special (its encode_special_tokens), and with all of them; long single runs. --write-sample keeps a part of the random strings as the fixture of tests/unit/test_tokenizer.c.
"""
import argparse
import ctypes
import glob
import json
import os
import random
import subprocess
import sys
import tempfile
import time

from tokenizers import Tokenizer

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


PLAIN, MARKUP, SPECIAL = 0, 1, 2  # QR_TOK_*


class Ids(ctypes.Structure):
    _fields_ = [("id", ctypes.POINTER(ctypes.c_uint32)), ("n", ctypes.c_size_t), ("capacity", ctypes.c_size_t), ("scratch", ctypes.c_void_p)]


class Error(ctypes.Structure):
    _fields_ = [("code", ctypes.c_int), ("msg", ctypes.c_char * 508)]


class Ours:
    def __init__(self, path):
        self.dir = tempfile.TemporaryDirectory()
        so = os.path.join(self.dir.name, "tokenizer.so")
        sources = glob.glob(f"{ROOT}/src/text/*.c") + glob.glob(f"{ROOT}/src/base/*.c")
        subprocess.run(
            ["cc", "-std=c17", "-O2", "-fPIC", "-shared", f"-I{ROOT}/include", f"-I{ROOT}/src", "-o", so, *sources, "-lutf8proc", "-lcrypto"], check=True
        )
        self.lib = ctypes.CDLL(so)
        self.tok, self.err, self.ids = ctypes.c_void_p(), Error(), Ids()
        begin = time.perf_counter()
        if self.lib.qr_tok_open(ctypes.byref(self.tok), path.encode(), ctypes.byref(self.err)):
            raise SystemExit(self.err.msg.decode())
        print(f"opened in {1e3 * (time.perf_counter() - begin):.0f} ms")
        self.lib.qr_tok_encode.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_size_t] + [ctypes.c_void_p] * 4

    def encode(self, text, flags=0):
        data = text.encode()
        self.ids.n = 0
        if self.lib.qr_tok_encode(self.tok, data, len(data), flags, 0, ctypes.addressof(self.ids), None, None, ctypes.addressof(self.err)):
            raise SystemExit(self.err.msg.decode())
        return self.ids.id[: self.ids.n]


def random_strings(rng, n, added):
    """Strings that mix ordinary text with everything that the rules treat specially."""
    words = "the quick Brown fox don't WE'LL it'S I've naïve Straße x_y __init__ foo(); https://a.b/c?d=1 北京 機械学習 テスト 한국어 हिन्दी ภาษา".split()
    spaces = ["\t", "\n", "\r", "\r\n", "\n\n", " ", "  ", "    ", "\x0b", "\x0c", "\x85", "\xa0", "\u1680", "\u2003", "\u2028", "\u2029", "\u202f", "\u3000"]
    odd = ["\x00", "\x1c", "\u180e", "\u200b", "\u200d", "\ufeff", "\ufffd", "\ufe0f", "'", "''", "\u2019", "'s", "'\u017f", "'LL", "'Re", "\u0130", "\u017f"]
    marks = [chr(c) for c in [*range(0x300, 0x370), 0x591, 0x5B0, 0x64B, 0x655, 0x93C, 0x94D, 0xC3C, 0x1715, 0x302A, 0x3099, 0x309A, 0x1D165, 0x1D16D, 0x1E4EC]]
    hangul = [chr(c) for c in [*range(0x1100, 0x1113), *range(0x1161, 0x1176), *range(0x11A7, 0x11C3), 0xAC00, 0xAC01, 0xD7A3]]
    ranges = [(0x20, 0x7F), (0xA0, 0x250), (0x250, 0x600), (0x600, 0x1100), (0x1100, 0x2000), (0x2000, 0x2C00), (0x2C00, 0x3100), (0x3100, 0xA000),
              (0xA000, 0xD800), (0xE000, 0x10000), (0x10000, 0x12000), (0x16000, 0x17000), (0x1B000, 0x20000), (0x1F300, 0x1FB00), (0x2F800, 0x2FA20),
              (0x20000, 0x110000)]
    kinds = [
        lambda: rng.choice(words), lambda: " " + rng.choice(words), lambda: rng.choice(spaces), lambda: rng.choice(spaces) * rng.randint(1, 4),
        lambda: rng.choice(odd), lambda: rng.choice(marks), lambda: "".join(rng.choices(marks, k=rng.randint(1, 5))),
        lambda: "".join(rng.choices(hangul, k=rng.randint(1, 4))), lambda: chr(rng.randrange(*rng.choice(ranges))),
        lambda: "".join(chr(rng.randrange(*r)) for r in [rng.choice(ranges)] for _ in range(rng.randint(1, 6))),
        lambda: str(rng.randint(0, 99999)), lambda: rng.choice("!?.,;:-_()[]{}<>|/\\\"'`~@#$%^&*+=") * rng.randint(1, 5),
        lambda: rng.choice("aeiouACEIknorsuvy") + rng.choice(marks), lambda: rng.choice("abcxyzABC") * rng.randint(1, 90),
        lambda: rng.choice(added) if rng.random() < 0.7 else rng.choice(added)[: rng.randint(1, 8)],
    ]
    for _ in range(n):
        yield "".join(rng.choice(kinds)() for _ in range(rng.randint(1, 14)))


class Report:
    def __init__(self):
        self.failed = 0

    def run(self, name, cases):
        n = bad = 0
        for text, got, want in cases:
            n += 1
            if got != want:
                bad += 1
                if bad <= 5:
                    print(f"  {ascii(text)[:200]}\n    got  {got[:40]}\n    want {want[:40]}")
        print(f"{name}: {n} strings, {bad} mismatches", flush=True)
        self.failed += bad


def main():
    args = argparse.ArgumentParser()
    args.add_argument("tokenizer")
    args.add_argument("--strings", type=int, default=200000)
    args.add_argument("--seed", type=int, default=1)
    args.add_argument("--write-sample")
    args = args.parse_args()

    with open(args.tokenizer, encoding="utf-8") as f:
        parsed = json.load(f)
    added = [t["content"] for t in parsed["added_tokens"]]
    markup = Tokenizer.from_file(args.tokenizer)
    markup.encode_special_tokens = True
    references = {
        PLAIN: Tokenizer.from_str(json.dumps({**parsed, "added_tokens": []})),
        MARKUP: markup,
        SPECIAL: Tokenizer.from_file(args.tokenizer),
    }
    ours, report = Ours(args.tokenizer), Report()

    def compare(texts, flags=PLAIN):
        batch = []
        for text in texts:
            batch.append(text)
            if len(batch) == 2000:
                yield from pairs(batch, flags)
                batch = []
        yield from pairs(batch, flags)

    def pairs(batch, flags):
        for text, want in zip(batch, references[flags].encode_batch(batch, add_special_tokens=False)):
            yield text, ours.encode(text, flags), want.ids

    points = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    # All contexts of one code point in a string, apart enough not to meet.
    report.run("every code point", compare(f"a{x}b 1 {x}{x} x\n a\u0345{x}\u0334\u0301 z {x}\u0300\u0327\n'{x}" for x in points))
    rng = random.Random(args.seed)
    report.run("random, plain", compare(random_strings(rng, args.strings, added)))
    report.run("random, markup", compare(random_strings(rng, args.strings, added), MARKUP))
    report.run("random, all added tokens", compare(random_strings(rng, args.strings, added), SPECIAL))
    long = ["a" * 20000, " " * 20000, "\n" * 5000, "1" * 5000, "\U0001F600" * 5000, "a\u0301\u0327" * 5000, "e" + "\u0301\u0327" * 40, " \n" * 5000,
            "北京" * 5000, "".join(rng.choices("abcdefgh", k=50000)), "".join(rng.choices("的一是不了人我在有他", k=20000)), "!" * 9999 + "\n" * 77,
            "word " * 30000, "\u0e01\u0e34" * 9000]
    report.run("long runs", compare(long))

    if args.write_sample:
        rng = random.Random(args.seed + 1)
        texts = list(random_strings(rng, 1600, added))
        plain, *others = ([e.ids for e in references[k].encode_batch(texts, add_special_tokens=False)] for k in (PLAIN, SPECIAL, MARKUP))
        sample = [[t, p, *([] if o == p else o for o in rest)] for t, p, *rest in zip(texts, plain, *others)]
        with open(args.write_sample, "w", encoding="ascii") as f:
            f.write("[\n" + ",\n".join(json.dumps(s, separators=(",", ":")) for s in sample) + "\n]\n")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
