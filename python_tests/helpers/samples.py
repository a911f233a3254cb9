"""Every overload of every operator, with every optional argument given and left out."""

from __future__ import annotations

import pytest
import torch

from helpers.backends import BACKENDS
from helpers.ops import links, partition, query_key


def samples(b=2, n=20, dtype=torch.float32):
    """(overload, arguments) with every overload and every optional argument given and left out."""
    query, key = query_key(b, 4, 2, n, 8, dtype)
    sources, kept = partition(b, n, 6, True)
    targets, weights = links(b, 6, n - 6, 2, True)
    attn = torch.randn(b, 3, n, n).to(dtype)
    scores = [torch.randn(b, n - 1).to(dtype) for _ in range(2)]
    ids = torch.arange(n - 1).repeat(b, 1)
    tokens, size = torch.randn(b, n, 12).to(dtype), torch.randint(1, 5, (b, n, 1)).float()
    yield "attention_stats", (query, key, 0.3, True, False, False, True)
    yield "attention_stats", (query, key, 0.3, False, False, True, True)
    yield "attention_stats", (query, key, 0.3, True, True, False, True)
    yield "attention_stats", (query, key, 0.3, True, True, True, False)
    yield "attention_stats.map", (attn, True, False, True)
    yield "attention_stats.map", (attn.mean(1), False, True, True)
    yield "filter", (*scores, None, 6, 0.35, True, 1.0, 2, 0, 0, True)
    yield "filter", (*scores, ids, 6, 0.65, False, 2.0, 2, 5, (n + 4) // 5, True)
    yield "filter", (*scores, None, 0, 1.0, False, 2.0, 2, 1, n - 1, False)
    yield "correlate", (query, key, sources, kept, 2, 0.3, "softmax", True, False)
    yield "correlate", (query, key, sources, kept, 1, 0.3, "ratio", True, True)
    yield "correlate.map", (attn, sources, kept, 3, "average", True)
    yield "correlate.key", (key, sources, kept, 2, "softmax", True)
    yield "compress", (tokens, sources, kept, targets, weights, None, False)
    yield "compress", (tokens, sources, kept, targets, weights, size, True)
    yield "compress", (tokens, sources, kept, targets[..., :0], weights[..., :0], size, False)
    rest = (True, True, 2.0, 2, 5, (n + 4) // 5)  # column, normalize, penalty, window, grid
    yield "reduce", (tokens, query, key, 0.3, ids, size, 6, 2, True, 0.6, False, *rest, "logits", "softmax", True)
    yield "reduce", (tokens, query, key, 0.3, ids, None, 6, 1, True, 0.0, True, *rest, "probs", "ratio", False)
    rows = (False, *rest[1:])
    yield "reduce", (tokens, query, key, 0.3, ids, size, 6, 2, True, 0.35, True, *rows, "probs", "ratio", True)
    yield "reduce", (tokens, query, key, 0.3, ids, None, 6, 2, True, 0.35, True, *rest, "probs", "softmax", False)
    yield "reduce", (tokens, query, key, 0.3, ids, None, 6, 2, True, 0.35, True, *rows, "logits", "softmax", False)
    yield "reduce", (tokens, query, key, 0.3, ids[:, :1].expand(b, n), None, 6, 3, False, 1.0, False, *rest, "key",
                     "average", False)  # fmt: skip
    yield "reduce.map", (tokens, attn, ids, size, 6, 2, True, 0.6, False, *rest, "logits", "softmax", False)
    yield "reduce.map", (tokens, attn, ids, None, 6, 0, True, 0.6, False, *rest, "logits", "softmax", False)
    yield "greedy_select", (tokens, 5, "max-min", None, None, 0.5)
    yield "greedy_select", (tokens, 7, "coverage", torch.rand(b, n) + 0.5, torch.arange(n).repeat(b, 1) > 3, 0.5)
    yield "greedy_select", (tokens, 6, "log-det", torch.rand(b, n) + 0.5, None, 0.5)
    yield "greedy_select", (tokens, 6, "mmr", torch.rand(b, n) + 0.5, None, 0.3)
    yield "cosines", (tokens, torch.randn(b, 7, 12).to(dtype))
    yield "greedy_cover", (torch.rand(b, n, n + 3).to(dtype), 5, None)
    yield "greedy_cover", (torch.randn(b, n, 7).to(dtype), 6, torch.arange(n).repeat(b, 1) > 3)
    yield "bipartite_thin", (tokens, partition(b, n, n - 2, False)[0], 4, 3, None)
    yield "bipartite_thin", (tokens, torch.arange(n - 1, -1, -1).repeat(b, 1), 7, 8, torch.arange(n).repeat(b, 1) > 3)
    yield "match", (key, 6, True, False)
    yield "match", (key, 4, True, True)
    yield "match", (attn.mean(1)[:, None, :, :7], 0, False, False)
    visual, text = torch.arange(2, n - 4).repeat(b, 1), torch.arange(n - 4, n).repeat(b, 1)
    gone, left = partition(b, n - 6, 5, False)
    chosen, mask = (visual.gather(1, gone), visual.gather(1, left), text), torch.arange(n).repeat(b, 1) > 0
    yield "token_attention", (query, key, visual, text, torch.rand(b, 2, 4), mask, 0.3, True, True, True)
    yield "token_attention", (query, key, visual, text, torch.rand(b, 1, 4), None, 0.3, False, False, True)
    how = (0.6, "softmax", False, False, True)  # gamma, alpha, probs, column, causal
    yield "correlate.tokens", (query, key, *chosen, torch.rand(b, 4), mask, 2, 0.3, *how)
    how = (0.5, "ratio", True, True, True)
    yield "correlate.tokens", (query, key, *chosen, torch.rand(b, 4), None, 2, 0.3, *how)
    yield "to_sequence", (visual, gone, left, links(b, 5, n - 11, 2, False)[0], n)
    sequence = (tokens, query, key, 0.3, visual)
    ranked, linked = (0.6, "mean", "sum", 1.0, 2, 0, 0), ("logits", 0.6, "sum", "softmax", False)
    yield "reduce_sequence", (*sequence, mask, None, size, 5, 2, 4, "logits", *ranked, *linked)
    ranked, linked = (0.3, "sum", "mean", 2.0, 2, 3, (n - 6) // 3 + 1), ("probs", 0.5, "mean", "ratio", True)
    cells = torch.arange(n - 6).repeat(b, 1)
    yield "reduce_sequence", (*sequence, None, cells, None, 5, 2, 4, "probs", *ranked, *linked)
    yield "reduce_sequence", (*sequence, mask, None, None, 5, 0, 4, "last", *ranked, *linked)
    yield "window_similarity", (tokens, 1 if n % 5 else 5, n if n % 5 else n // 5, 2)
    asking = torch.arange(4).repeat(b, 1) != torch.arange(b)[:, None] + 1
    yield "received_from", (query, key, visual, text, asking, mask, 0.3, True, True)
    yield "received_from", (query, key, visual, text, asking, None, 0.3, False, False)
    segments = (torch.arange(n) % 3).repeat(b, 1)
    yield "top_of_segments", (scores[0].repeat(1, 2)[:, :n], segments, torch.tensor([[1, 0, 3]]).repeat(b, 1), 4)


REDUCTIONS = [index for index, (name, _) in enumerate(samples()) if name in ("reduce", "reduce.map")]
SAMPLES = [pytest.param(index, id=f"{name}-{index}") for index, (name, _) in enumerate(samples())]


def sample(index, **options):
    torch.manual_seed(index)
    return list(samples(**options))[index]


def operator(name):
    return BACKENDS["cpu"].find(name)
