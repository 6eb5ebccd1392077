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
    """B heads of at most H tokens, M documents (with suffix) of at most L tokens. Flat tokens: all heads, then all documents."""

    ids: torch.Tensor  # [T]
    positions: torch.Tensor  # [T]
    head_at: torch.Tensor  # [B, H] flat index of each head token; padding repeats index 0
    head_len: torch.Tensor  # [B]
    doc_at: torch.Tensor  # [M, L]
    doc_len: torch.Tensor  # [M]
    doc_head: torch.Tensor  # [M] which head a document belongs to
    head_flat: torch.Tensor  # [Th] where a flat head token stands in [B * H]
    doc_flat: torch.Tensor  # [Td] where a flat document token stands in [M * L]
    last: torch.Tensor  # [M] flat index of each document's last token
    query_of: torch.Tensor  # [T] head number of query tokens, else -1 (for the auxiliary losses)
    text_of: torch.Tensor  # [T] document number of document tokens (without suffix), else -1


def make_batch(heads, query_spans, docs, owner, suffix):
    """heads: token lists; query_spans: [(begin, end)] of the query in each; docs: token lists; owner: head of each document."""
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

    head_at, head_len, head_flat = padded(head_at)
    doc_at, doc_len, doc_flat = padded(doc_at)
    t = torch.tensor
    return Batch(t(ids), t(positions), head_at, head_len, doc_at, doc_len, t(owner), head_flat, doc_flat, t(last), t(query_of), t(text_of))


def rotate(x, cos, sin):
    """RoPE; x [T, heads, d], cos and sin [T, 1, d / 2]"""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed = nn.Parameter(torch.randn(config.vocab_size, config.hidden_size) * 0.02)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.Parameter(torch.ones(config.hidden_size))

    def attend(self, layer, q, k, v, batch, last_only):
        """q [T or M, heads, d] (M: only the last tokens), k and v [T, heads, d] -> [T or M, heads * d]"""
        heads, d = q.shape[1:]
        B, H = batch.head_at.shape
        M, L = batch.doc_at.shape
        kh, vh = k[batch.head_at], v[batch.head_at]  # [B, H, heads, d]
        kd = torch.cat([kh[batch.doc_head], k[batch.doc_at]], 1).transpose(1, 2)  # [M, heads, H + L, d]
        vd = torch.cat([vh[batch.doc_head], v[batch.doc_at]], 1).transpose(1, 2)
        see_head = torch.arange(H) < batch.head_len[batch.doc_head][:, None]  # [M, H]
        if last_only:
            see = torch.cat([see_head, torch.arange(L) < batch.doc_len[:, None]], 1)[:, None, None, :]
            mask = torch.zeros(see.shape, dtype=q.dtype).masked_fill_(~see, float("-inf"))
            return F.scaled_dot_product_attention(q[:, :, None], kd, vd, attn_mask=mask).reshape(M, heads * d)
        own = torch.ones(L, L, dtype=torch.bool).tril().expand(M, L, L)
        see = torch.cat([see_head[:, None, :].expand(M, L, H), own], 2)[:, None]
        mask = torch.zeros(see.shape, dtype=q.dtype).masked_fill_(~see, float("-inf"))
        out_d = F.scaled_dot_product_attention(q[batch.doc_at].transpose(1, 2), kd, vd, attn_mask=mask)
        out_h = F.scaled_dot_product_attention(q[batch.head_at].transpose(1, 2), kh.transpose(1, 2), vh.transpose(1, 2), is_causal=True)
        flat_d = out_d.transpose(1, 2).reshape(M * L, heads * d)[batch.doc_flat]
        flat_h = out_h.transpose(1, 2).reshape(B * H, heads * d)[batch.head_flat]
        return torch.cat([flat_h, flat_d])

    def forward(self, batch, aux_layer=None):
        """Returns hidden states [M, hidden] of the last tokens after the final norm and, if asked for, all [T, hidden] before layer aux_layer."""
        c = self.config
        width = c.num_attention_heads * c.head_dim
        angle = torch.outer(batch.positions.float(), 1.0 / c.rope_theta ** (torch.arange(0, c.head_dim, 2).float() / c.head_dim))
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        x, aux = F.embedding(batch.ids, self.embed), None
        low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        for i, layer in enumerate(self.layers):
            if i == aux_layer:
                aux = x
            last_only = i == len(self.layers) - 1
            a = F.rms_norm(x, x.shape[-1:], layer.input_norm, c.rms_norm_eps).to(low)
            weight = layer.qkv.to(low)
            if last_only:
                q, kv = F.linear(a[batch.last], weight[:width]), F.linear(a, weight[width:])
                k, v = kv.chunk(2, -1)
            else:
                q, k, v = F.linear(a, weight).chunk(3, -1)
            split = lambda y: y.view(y.shape[0], -1, c.head_dim)
            q = F.rms_norm(split(q).float(), (c.head_dim,), layer.q_norm, c.rms_norm_eps)
            k = F.rms_norm(split(k).float(), (c.head_dim,), layer.k_norm, c.rms_norm_eps)
            q = rotate(q, cos[batch.last], sin[batch.last]) if last_only else rotate(q, cos, sin)
            k = rotate(k, cos, sin)
            o = self.attend(layer, q.to(low), k.to(low), split(v), batch, last_only)
            if last_only:
                x = x[batch.last]
            x = x + F.linear(o, layer.o.to(low)).float()
            m = F.rms_norm(x, x.shape[-1:], layer.post_norm, c.rms_norm_eps).to(low)
            gate, up = F.linear(m, layer.gate_up.to(low)).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, layer.down.to(low)).float()
        return F.rms_norm(x, x.shape[-1:], self.norm, c.rms_norm_eps), aux

    def margins(self, last, yes, no):
        """logit yes - logit no, [M]"""
        return last @ (self.embed[yes] - self.embed[no])
