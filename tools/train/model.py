"""The Qwen3 forward pass for training, with the documents of a query packed behind one copy of the prompt's head.

The canonical prompt costs about 75 tokens before the document begins. All candidates of a query share them, so a batch holds each head once;
a document's tokens attend to their head and to themselves (a tree mask), with positions that go on from the head's. The result is what
separate prompts would give; export.py has transformers confirm it.

Tokens of a batch are one flat list [T, hidden], so that padding costs nothing outside attention.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn


@dataclasses.dataclass
class Config:
    vocab_size: int = 19968
    hidden_size: int = 256
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    head_dim: int = 64
    intermediate_size: int = 320
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 4096


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        width = c.num_attention_heads * c.head_dim
        self.input_norm = nn.Parameter(torch.ones(c.hidden_size))
        self.post_norm = nn.Parameter(torch.ones(c.hidden_size))
        self.q_norm = nn.Parameter(torch.ones(c.head_dim))
        self.k_norm = nn.Parameter(torch.ones(c.head_dim))
        self.qkv = nn.Parameter(torch.randn(3 * width, c.hidden_size) * 0.02)
        self.o = nn.Parameter(torch.randn(c.hidden_size, width) * 0.003)
        self.gate_up = nn.Parameter(torch.randn(2 * c.intermediate_size, c.hidden_size) * 0.04)
        self.down = nn.Parameter(torch.randn(c.hidden_size, c.intermediate_size) * 0.003)


@dataclasses.dataclass
class Batch:
    """B heads of at most H tokens, M documents (with suffix). Flat tokens: all heads, then all documents. Documents stand in groups,
    because attention pads each to the longest of its group, L."""

    ids: torch.Tensor  # [T]
    positions: torch.Tensor  # [T]
    head_at: torch.Tensor  # [B, H] flat index of each head token; padding repeats index 0
    head_len: torch.Tensor  # [B]
    doc_at: tuple  # by group, [M', L']
    doc_len: tuple  # by group, [M']
    group_head: list  # by group, [M'], of doc_head
    doc_flat: tuple  # by group: where its flat tokens stand in [M' * L']
    doc_head: torch.Tensor  # [M] which head a document belongs to
    head_flat: torch.Tensor  # [Th] where a flat head token stands in [B * H]
    last: torch.Tensor  # [M] flat index of each document's last token
    query_of: torch.Tensor  # [T] head number of query tokens, else -1 (for the auxiliary losses)
    text_of: torch.Tensor  # [T] document number of document tokens (without suffix), else -1


N_GROUPS = 3


def make_batch(heads, query_spans, docs, owner, suffix):
    """heads: token lists; query_spans: [(begin, end)] of the query in each; docs: token lists, best from short to long; owner: head of each."""
    ids, positions, head_at, doc_at, last, query_of, text_of = [], [], [], [], [], [], []
    for number, (head, span) in enumerate(zip(heads, query_spans)):
        head_at.append(list(range(len(ids), len(ids) + len(head))))
        ids += head
        positions += range(len(head))
        query_of += [number if span[0] <= i < span[1] else -1 for i in range(len(head))]
    text_of = [-1] * len(ids)
    for number, (doc, own) in enumerate(zip(docs, owner)):
        begin = len(heads[own])
        whole = doc + suffix
        doc_at.append(list(range(len(ids), len(ids) + len(whole))))
        ids += whole
        positions += range(begin, begin + len(whole))
        text_of += [number] * len(doc) + [-1] * len(suffix)
        last.append(len(ids) - 1)
    query_of += [-1] * (len(ids) - len(query_of))

    def padded(rows):
        width = max(map(len, rows))
        at = torch.zeros(len(rows), width, dtype=torch.long)
        flat = []
        for i, row in enumerate(rows):
            at[i, : len(row)] = torch.tensor(row)
            flat += range(i * width, i * width + len(row))
        return at, torch.tensor([len(row) for row in rows]), torch.tensor(flat)

    t = torch.tensor
    doc_head = t(owner)
    head_at, head_len, head_flat = padded(head_at)
    cuts = [len(docs) * i // N_GROUPS for i in range(N_GROUPS + 1)] if len(docs) >= 4 * N_GROUPS else [0, len(docs)]
    doc_at, doc_len, doc_flat = zip(*(padded(doc_at[a:b]) for a, b in zip(cuts, cuts[1:])))
    group_head = [doc_head[a:b].clone() for a, b in zip(cuts, cuts[1:])]
    return Batch(t(ids), t(positions), head_at, head_len, doc_at, doc_len, group_head, doc_flat, doc_head, head_flat, t(last), t(query_of), t(text_of))


def rotate(x, cos, sin):
    """RoPE; x [T, heads, d], cos and sin [T, 1, d / 2]"""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def attend_group(q, k, v, at, head_at, head_len, flat):
    """Attention of one group's documents, to their heads and to themselves. q, k, v [T, heads, d]; at [M, L] and head_at [M, H]: where their
    tokens are; head_len [M]; flat: which of the M * L are tokens -> [tokens, heads * d].

    softmax over two sets of keys instead of one, so that nothing is copied together. Compiled, half the time of torch's
    scaled_dot_product_attention with a mask on a CPU (18 and 33 ms forward and backward at M 35, L 64, 95 + 64 keys)."""
    heads, d = q.shape[1:]
    (M, L), H = at.shape, head_at.shape[1]
    qd, kd, vd = (x[at].transpose(1, 2) for x in (q, k, v))  # [M, heads, L, d]
    kh, vh = (x[head_at].transpose(1, 2) for x in (k, v))
    see_head = torch.arange(H) < head_len[:, None, None, None]  # [M, 1, 1, H]
    see = torch.arange(L) <= torch.arange(L)[:, None]  # [L, L]
    a = ((qd @ kh.transpose(-1, -2)).float() * d**-0.5).masked_fill(~see_head, float("-inf"))
    b = ((qd @ kd.transpose(-1, -2)).float() * d**-0.5).masked_fill(~see, float("-inf"))
    most = torch.maximum(a.amax(-1, keepdim=True), b.amax(-1, keepdim=True)).detach()
    a, b = (a - most).exp(), (b - most).exp()
    total = a.sum(-1, keepdim=True) + b.sum(-1, keepdim=True)
    out = ((a.to(q.dtype) @ vh) + (b.to(q.dtype) @ vd)) / total.to(q.dtype)
    return out.transpose(1, 2).reshape(M * L, heads * d)[flat]


def attend_last(q, k, v, at, length, head_at, head_len):
    """The same for the last tokens alone: q [M, heads, d] -> [M, heads * d]"""
    keys = torch.cat([head_at, at], 1)
    see = torch.cat([torch.arange(head_at.shape[1]) < head_len[:, None], torch.arange(at.shape[1]) < length[:, None]], 1)
    mask = torch.zeros(see.shape, dtype=q.dtype).masked_fill_(~see, float("-inf"))[:, None, None]
    return F.scaled_dot_product_attention(q[:, :, None], k[keys].transpose(1, 2), v[keys].transpose(1, 2), attn_mask=mask).flatten(1)


def project(c, layer, x, cos, sin, low):
    """x [T, hidden] -> q, k, v [T, heads, d]"""
    a = F.rms_norm(x, x.shape[-1:], layer["input_norm"], c.rms_norm_eps).to(low)
    q, k, v = (y.view(y.shape[0], -1, c.head_dim) for y in F.linear(a, layer["qkv"].to(low)).chunk(3, -1))
    q = rotate(F.rms_norm(q.float(), (c.head_dim,), layer["q_norm"], c.rms_norm_eps), cos, sin)
    k = rotate(F.rms_norm(k.float(), (c.head_dim,), layer["k_norm"], c.rms_norm_eps), cos, sin)
    return q.to(low), k.to(low), v


def complete(c, layer, x, o, low):
    """The rest of a layer after attention: x [T, hidden], o [T, heads * d] -> [T, hidden]"""
    x = x + F.linear(o, layer["o"].to(low)).float()
    a = F.rms_norm(x, x.shape[-1:], layer["post_norm"], c.rms_norm_eps).to(low)
    gate, up = F.linear(a, layer["gate_up"].to(low)).chunk(2, -1)
    return x + F.linear(F.silu(gate) * up, layer["down"].to(low)).float()


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed = nn.Parameter(torch.randn(config.vocab_size, config.hidden_size) * 0.02)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.Parameter(torch.ones(config.hidden_size))
        self.project, self.attend_group, self.complete = project, attend_group, complete

    def compile(self):
        """About twice as fast: on a CPU the small operations between the matrix products cost more than the products. Parts are compiled, not
        the model, which would be compiled anew for many a combination of lengths."""
        self.project, self.attend_group, self.complete = (torch.compile(f, dynamic=True) for f in (project, attend_group, complete))

    def attend(self, q, k, v, batch):
        """q, k, v [T, heads, d] -> [T, heads * d]"""
        B, H = batch.head_at.shape
        heads = (x[batch.head_at].transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).reshape(B * H, -1)[batch.head_flat]
        groups = zip(batch.doc_at, batch.group_head, batch.doc_flat)
        return torch.cat([out] + [self.attend_group(q, k, v, at, batch.head_at[head], batch.head_len[head], flat) for at, head, flat in groups])

    def attend_last(self, q, k, v, batch):
        """The same for the documents' last tokens: [M, heads * d]"""
        out, begin, q = [], 0, q[batch.last]
        for at, length, head in zip(batch.doc_at, batch.doc_len, batch.group_head):
            out.append(attend_last(q[begin : begin + len(at)], k, v, at, length, batch.head_at[head], batch.head_len[head]))
            begin += len(at)
        return torch.cat(out)

    def forward(self, batch, aux_layer=None):
        """Returns hidden states [M, hidden] of the last tokens after the final norm and, if asked for, all [T, hidden] before layer aux_layer."""
        c = self.config
        angle = torch.outer(batch.positions.float(), 1.0 / c.rope_theta ** (torch.arange(0, c.head_dim, 2).float() / c.head_dim))
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        x, aux = F.embedding(batch.ids, self.embed), None
        low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        for i, module in enumerate(self.layers):
            layer = dict(module.named_parameters())
            if i == aux_layer:
                aux = x
            q, k, v = self.project(c, layer, x, cos, sin, low)
            if i < len(self.layers) - 1:
                x = self.complete(c, layer, x, self.attend(q, k, v, batch), low)
            else:
                x = complete(c, layer, x[batch.last], self.attend_last(q, k, v, batch), low)
        return F.rms_norm(x, x.shape[-1:], self.norm, c.rms_norm_eps), aux

    def margins(self, last, yes, no):
        """logit yes - logit no, [M]"""
        return last @ (self.embed[yes] - self.embed[no])
