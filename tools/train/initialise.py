#!/usr/bin/env python3
"""Makes the first weights: token embeddings from the teacher, and a network that starts as a bag-of-words matcher instead of noise.

Trained from random weights, contrastively, a model of this size is still at chance after thousands of queries: the heads that compare a
document with its query have to form first. Here they are put in place by hand, small next to what training makes of them
("mimetic initialisation", arXiv:2305.09828, taken further):

    token embeddings    static vectors whose mean matches the teacher's embedding of a text, learnt in minutes (as Model2Vec, tokenlearn)
    layer 0, head 0     marks tokens behind "<Query" and behind "<Document"
    layer n-3           heads compare each token with all tokens before it (query and key weights are equal) and note how much they look at the query
    layer n-2           heads average the query's and the document's tokens; its MLP multiplies both averages, component by component
    tied output         yes and no differ in the direction in which that product is written

Everything else is small noise. Nothing is frozen afterwards.

usage: initialise.py WORK [SEED]        reads tokenizer.json, examples.jsonl and the teacher's embeddings, writes WORK/initial.pt
"""

import pathlib
import sys

import numpy as np
import tokenizers
import torch
import torch.nn.functional as F

import model as m
import prepare

CONTENT = 192  # dimensions of the hidden state that begin as text meaning; 0..95 of them carry most (principal components)
POOLED = 96
SCORE, MATCH, SEEN_DOC, SEEN_QUERY, SUFFIX, MARK_DOC, MARK_QUERY, CONST = range(248, 256)
CONST_SIZE = 2.0  # what a token without meaning is made of, so that the norm keeps meaningless tokens small


def token_texts(tokenizer):
    return [tokenizer.decode([i]).strip() or " " for i in range(tokenizer.get_vocab_size())]


def damp(table):
    """What RMSNorm leaves of a token's meaning beside the constant component."""
    return table / (table.pow(2).sum(-1, keepdim=True) + CONST_SIZE**2).sqrt()


def static_embeddings(work, tokenizer, seed):
    torch.manual_seed(seed)
    examples = prepare.load(work)
    texts = torch.from_numpy(np.concatenate([np.load(work / "queries.f16.npy"), np.load(work / "texts.f16.npy")])).float()
    strings = [e["query"] for e in examples] + [e["text"] for e in examples]
    keep = torch.tensor([i for i in range(len(strings)) if examples[i % len(examples)]["split"] == "train"])
    # principal axes of the teacher's space, not centred: directions matter, not offsets
    sample = texts[keep[torch.randperm(len(keep))[:50000]]]
    axes = torch.linalg.svd(sample.T @ sample)[0][:, :CONTENT]
    target = texts @ axes
    print(f"  {CONTENT} axes hold {float(target[keep].pow(2).sum(-1).mean()):.3f} of the teacher's space, {POOLED} hold {float(target[keep, :POOLED].pow(2).sum(-1).mean()):.3f}")

    start = torch.from_numpy(prepare.Teacher().embed(token_texts(tokenizer))).float() @ axes
    table = torch.nn.Parameter(F.normalize(start, dim=-1) * 2.0)
    ids = [e.ids[:200] for e in tokenizer.encode_batch([" " + s for s in strings], add_special_tokens=False)]
    optimiser = torch.optim.Adam([table], lr=0.02)
    steps, size = 1200, 4096
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 0.02 * (1 - step / steps)
        pick = keep[torch.randint(len(keep), (size,))]
        rows = [ids[i] or [0] for i in pick.tolist()]
        offsets = torch.tensor([0] + [len(r) for r in rows]).cumsum(0)[:-1]
        pooled = F.embedding_bag(torch.tensor([t for r in rows for t in r]), damp(table), offsets, mode="mean")
        wide = F.cosine_similarity(pooled, target[pick]).mean()
        narrow = F.cosine_similarity(pooled[:, :POOLED], target[pick, :POOLED]).mean()
        loss = 2 - wide - narrow
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"  static embeddings, step {step}: cosine with the teacher {wide:.3f}, in {POOLED} dimensions {narrow:.3f}", flush=True)
    return table.detach(), axes


def construct(config, table, tokenizer):
    model = m.Model(config)
    d, heads, width = config.head_dim, config.num_attention_heads, config.num_attention_heads * config.head_dim
    low = [d // 2 - 1, d - 1]  # the pair of dimensions that RoPE turns least: as good as no position
    with torch.no_grad():
        e = model.embed
        e.normal_(0, 0.02)
        e[:, :CONTENT] += table
        e[:, CONST] = CONST_SIZE
        mark = {"<Query": MARK_QUERY, "<Document": MARK_DOC}
        for text, dimension in mark.items():
            row = tokenizer.token_to_id(text)
            e[row] = 0
            e[row, dimension] = 4
        for token in tokenizer.get_added_tokens_decoder():
            e[token, :CONTENT] = 0
            e[token, SUFFIX] = 1
        for text in ("Ċ", "ĊĊ"):  # the last token is one: its hidden state is to hold the averages alone
            e[tokenizer.token_to_id(text), :CONTENT] = 0
            e[tokenizer.token_to_id(text), SUFFIX] = 1
        answers = [tokenizer.token_to_id(text) for text in ("yes", "no")]
        e[answers] = e[answers].mean(0)
        e[answers, SCORE] = torch.tensor([1.0, -1.0])

        def rows(layer, part, head):  # part 0: query, 1: key, 2: value
            return layer.qkv[part * width + head * d : part * width + (head + 1) * d]

        # segments
        first = model.layers[0]
        q, k, v = (rows(first, part, 0).zero_() for part in range(3))
        q[low[0], CONST] = 20
        k[low[0], MARK_QUERY] = k[low[0], MARK_DOC] = 20
        k[low[1], CONST] = 20  # other tokens, at a right angle; the norm of keys leaves none of them small
        v[0, MARK_QUERY] = v[1, MARK_DOC] = 0.25
        first.o[SEEN_QUERY, 0] = 1
        first.o[SEEN_DOC, 1] = 1

        # comparison: the slow half of each head's dimensions holds a random projection of the meaning, equal for query and key
        match = model.layers[-3]
        slow = [j for j in range(d) if j % (d // 2) >= d // 4]
        match.q_norm.fill_(0.5)
        match.k_norm.fill_(0.5)
        match.q_norm[slow] = match.k_norm[slow] = 1.5
        for head in range(heads):
            projection = torch.linalg.qr(torch.randn(CONTENT, len(slow)))[0].T
            for part in (0, 1):
                rows(match, part, head).zero_()[slow, :CONTENT] += projection
            rows(match, 2, head)[0] = 0
            rows(match, 2, head)[0, SEEN_QUERY] = 0.5
            rows(match, 2, head)[0, SEEN_DOC] = -1.0
            match.o[MATCH, head * d] = 0.25

        # averages: heads 0 and 1 look at the document, 2 and 3 at the query
        pool = model.layers[-2]
        for head in range(heads):
            q, k, v = (rows(pool, part, head).zero_() for part in range(3))
            q[low[0], CONST] = 20
            k[low[1], CONST] = 4  # what is neither: at a right angle to the question
            seen = {SEEN_DOC: 8, SUFFIX: -16} if head < 2 else {SEEN_QUERY: 8, SEEN_DOC: -16}
            for dimension, value in seen.items():
                k[low[0], dimension] = value
            begin, count = (0, d) if head % 2 == 0 else (d, POOLED - d)
            v[torch.arange(count), torch.arange(begin, begin + count)] = 1
            into = begin + (POOLED if head < 2 else 0)
            pool.o[torch.arange(into, into + count), head * d + torch.arange(count)] += 5
            if head == 1:
                v[count, MATCH] = 1
                pool.o[MATCH, head * d + count] = 1
        at = torch.arange(POOLED)
        n = config.intermediate_size
        for sign, base in ((1, 0), (-1, POOLED)):  # silu(a) b + silu(-a) (-b) = a b
            pool.gate_up[base + at] = 0
            pool.gate_up[n + base + at] = 0
            pool.gate_up[base + at, at] = sign * 1.0
            pool.gate_up[n + base + at, POOLED + at] = sign * 1.0
            pool.down[SCORE, base + at] = 0.06
    return model


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    work, seed = pathlib.Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    tokenizer = tokenizers.Tokenizer.from_file(str(work / "tokenizer.json"))
    if not (work / "static.pt").exists():
        table, axes = static_embeddings(work, tokenizer, seed)
        torch.save({"table": table, "axes": axes}, work / "static.pt")
    static = torch.load(work / "static.pt")
    table, axes = static["table"], static["axes"]
    config = m.Config(vocab_size=tokenizer.get_vocab_size())
    torch.manual_seed(seed)
    model = construct(config, table, tokenizer)
    torch.save({"model": model.state_dict(), "axes": axes}, work / "initial.pt")
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")


if __name__ == "__main__":
    main()
