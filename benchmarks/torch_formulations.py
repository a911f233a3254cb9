"""FiCoCo-V's mathematics in the best torch one can write: the baselines that the kernels are measured against.

Same readings as ``ficoco_ext.reduce`` with ``variant="released"``: logits, row means, L2-normalised terms, 2 x 2
penalty, adaptive targets, softmax weights. Batched, no host sync, no N x N map where the mathematics allows it. Where
torch offers two ways both are here, and the benchmark takes the faster of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ficoco_ext.stages import adaptive_targets

LAM, EPS, PENALTY = 0.65, 0.998, 2.0


def _rows(matrix: Tensor, index: Tensor) -> Tensor:
    return matrix.gather(1, index.unsqueeze(-1).expand(-1, -1, matrix.shape[-1]))


def _select(patch_attention: Tensor, class_attention: Tensor, r: int) -> tuple[Tensor, Tensor]:
    score = LAM * F.normalize(patch_attention, dim=-1) - (1 - LAM) * F.normalize(class_attention, dim=-1)
    b, p = score.shape
    side = int(p**0.5)
    cells = score.view(b, side // 2, 2, side // 2, 2).transpose(2, 3).reshape(b, -1, 4)
    best = cells.argmax(-1, keepdim=True)
    high = cells.gather(-1, best)
    cells = cells.scatter(-1, best, torch.where(high > 0, high * PENALTY, high / PENALTY))
    score = cells.view(b, side // 2, side // 2, 2, 2).transpose(2, 3).reshape(b, p)
    order = score.argsort(dim=-1, descending=True, stable=True)
    return order[:, :r].sort(-1).values, order[:, r:].sort(-1).values


def _merge_scatter(tokens: Tensor, sources: Tensor, kept: Tensor, rows: Tensor) -> Tensor:
    """Merge by scatter_add: ``rows`` (B, r, P') are correlations with the kept patches."""
    b, _, m = rows.shape
    k = adaptive_targets(m, EPS)
    values, targets = rows.topk(k, dim=-1)
    weights = values.softmax(-1).flatten(1)
    patches = tokens[:, 1:]
    moved = _rows(patches, sources).repeat_interleave(k, dim=1) * weights.unsqueeze(-1)
    index = targets.flatten(1)
    out = _rows(patches, kept).scatter_add_(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]), moved)
    total = torch.ones(b, m, dtype=tokens.dtype, device=tokens.device).scatter_add_(1, index, weights)
    return torch.cat([tokens[:, :1], out.div_(total.unsqueeze(-1))], dim=1)


def _merge_dense(tokens: Tensor, sources: Tensor, kept: Tensor, rows: Tensor) -> Tensor:
    """Merge by one batched GEMM with the (M, r) weight matrix."""
    k = adaptive_targets(rows.shape[-1], EPS)
    values, targets = rows.topk(k, dim=-1)
    flow = torch.zeros_like(rows).scatter_(-1, targets, values.softmax(-1)).mT
    patches = tokens[:, 1:]
    out = torch.baddbmm(_rows(patches, kept), flow, _rows(patches, sources))
    return torch.cat([tokens[:, :1], out.div_(1 + flow.sum(-1, keepdim=True))], dim=1)


def _stats_heads(query: Tensor, key: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    factor = scale / query.shape[1]
    patch = (query[:, :, 1:] @ key[:, :, 1:].mean(2).unsqueeze(-1)).sum(1).squeeze(-1) * factor
    cls = (key[:, :, 1:] @ query[:, :, 0].unsqueeze(-1)).sum(1).squeeze(-1) * factor
    return patch, cls


def reduce_heads_scatter(tokens: Tensor, query: Tensor, key: Tensor, r: int) -> Tensor:
    """Head by head, summed afterwards; merge by scatter."""
    scale = query.shape[-1] ** -0.5
    sources, kept = _select(*_stats_heads(query, key, scale), r)
    _, h, _, d = query.shape
    index = (sources + 1)[:, None, :, None].expand(-1, h, -1, d)
    rows = (query.gather(2, index) @ key[:, :, 1:].mT).sum(1) * (scale / h)
    return _merge_scatter(tokens, sources, kept, rows.gather(2, kept[:, None].expand(-1, r, -1)))


def _concatenated(query: Tensor, key: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    b, h, n, d = query.shape
    q, k = query.transpose(1, 2).reshape(b, n, h * d), key.transpose(1, 2).reshape(b, n, h * d)
    factor = d**-0.5 / h
    patch = torch.bmm(q[:, 1:], k[:, 1:].mean(1).unsqueeze(-1)).squeeze(-1) * factor
    cls = torch.bmm(k[:, 1:], q[:, 0].unsqueeze(-1)).squeeze(-1) * factor
    sources, kept = _select(patch, cls, r)
    rows = torch.bmm(_rows(q, sources + 1), _rows(k, kept + 1).mT) * factor
    return sources, kept, rows


def reduce_concatenated_scatter(tokens: Tensor, query: Tensor, key: Tensor, r: int) -> Tensor:
    """Heads side by side: the mean over heads of inner products is one inner product; merge by scatter."""
    return _merge_scatter(tokens, *_concatenated(query, key, r))


def reduce_concatenated_dense(tokens: Tensor, query: Tensor, key: Tensor, r: int) -> Tensor:
    """Heads side by side; merge by GEMM."""
    return _merge_dense(tokens, *_concatenated(query, key, r))


def reduce_map(tokens: Tensor, attn: Tensor, r: int) -> Tensor:
    """From an explicit (B, N, N) map; merge by scatter."""
    sources, kept = _select(attn[:, 1:, 1:].mean(-1), attn[:, 0, 1:], r)
    rows = _rows(attn, sources + 1)[:, :, 1:].gather(2, kept[:, None].expand(-1, r, -1))
    return _merge_scatter(tokens, sources, kept, rows)


def reduce_map_dense(tokens: Tensor, attn: Tensor, r: int) -> Tensor:
    """From an explicit (B, N, N) map; merge by GEMM."""
    sources, kept = _select(attn[:, 1:, 1:].mean(-1), attn[:, 0, 1:], r)
    rows = _rows(attn, sources + 1)[:, :, 1:].gather(2, kept[:, None].expand(-1, r, -1))
    return _merge_dense(tokens, sources, kept, rows)


def _pairs(best: Tensor, nearest: Tensor, tokens: int, r: int, stable: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Sources, kept and targets from the best odd partner of every even patch; token 0 is a class token."""
    order = torch.argsort(best, dim=-1, descending=True, stable=True)[:, :r] if stable else best.topk(r, dim=-1).indices
    edges = order.sort(-1).values
    sources = 2 * edges + 2
    stays = torch.ones(best.shape[0], tokens, dtype=torch.bool, device=best.device).scatter_(1, sources, False)
    places = stays.cumsum(1) - 1
    index = torch.arange(tokens, device=best.device).expand_as(places)
    kept = places.new_empty(best.shape[0], tokens - r + 1)  # the last place takes what leaves
    kept = kept.scatter_(1, torch.where(stays, places, tokens - r), index)[:, :-1]
    return sources, kept, places.gather(1, 2 * nearest.gather(1, edges) + 1)


def _metric(key: Tensor) -> Tensor:
    """The scale of a head-mean key does not matter to its cosine."""
    return key[:, 0] if key.shape[1] == 1 else key.sum(1)


def match_unit(key: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bipartite matching with all keys at unit length; stable order."""
    metric = F.normalize(_metric(key), dim=-1, eps=1e-12)
    best, nearest = torch.bmm(metric[:, 2::2], metric[:, 1::2].mT).max(-1)
    return _pairs(best, nearest, key.shape[2], r, stable=True)


def match_unit_topk(key: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """As before by topk, whose order among equals is nobody's promise."""
    metric = F.normalize(_metric(key), dim=-1, eps=1e-12)
    best, nearest = torch.bmm(metric[:, 2::2], metric[:, 1::2].mT).max(-1)
    return _pairs(best, nearest, key.shape[2], r, stable=False)


def match_late(key: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """Even keys keep their length until their best partner is found, which it does not change; by topk."""
    metric = _metric(key)
    even, odd = metric[:, 2::2], F.normalize(metric[:, 1::2], dim=-1, eps=1e-12)
    best, nearest = torch.bmm(even, odd.mT).max(-1)
    return _pairs(best / even.norm(dim=-1).clamp(min=1e-12), nearest, key.shape[2], r, stable=False)
