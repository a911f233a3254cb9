"""FiCoCo-V's mathematics in the best torch one can write: the baselines that the kernels are measured against.

Same readings as ``ficoco_ext.reduce`` with ``variant="released"``: logits, row means, L2-normalised terms, 2 x 2
penalty, adaptive targets, softmax weights. Batched, no host sync, no N x N map where the mathematics allows it. Where
torch offers two ways both are here, and the benchmark takes the faster of them. ``grid`` has even sides; None is a
square. Without a class token its row is replaced by the keys' cosine to their mean.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ficoco_ext.stages import adaptive_targets

LAM, EPS, PENALTY = 0.65, 0.998, 2.0


def _rows(matrix: Tensor, index: Tensor) -> Tensor:
    return matrix.gather(1, index.unsqueeze(-1).expand(-1, -1, matrix.shape[-1]))


def select(
    patch_attention: Tensor, class_attention: Tensor, r: int, grid: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Redundancy, sources and kept, in patches: a class token is not counted."""
    score = LAM * F.normalize(patch_attention, dim=-1) - (1 - LAM) * F.normalize(class_attention, dim=-1)
    b, p = score.shape
    height, width = grid or (int(p**0.5), int(p**0.5))
    cells = score.view(b, height // 2, 2, width // 2, 2).transpose(2, 3).reshape(b, -1, 4)
    best = cells.argmax(-1, keepdim=True)
    high = cells.gather(-1, best)
    cells = cells.scatter(-1, best, torch.where(high > 0, high * PENALTY, high / PENALTY))
    score = cells.view(b, height // 2, width // 2, 2, 2).transpose(2, 3).reshape(b, p)
    order = score.argsort(dim=-1, descending=True, stable=True)
    return score, order[:, :r].sort(-1).values, order[:, r:].sort(-1).values


def links(rows: Tensor, alpha: str = "softmax") -> tuple[Tensor, Tensor]:
    """Weights and targets, among the kept patches, of correlations ``rows`` (B, r, P')."""
    values, targets = rows.topk(adaptive_targets(rows.shape[-1], EPS), dim=-1)
    return values.softmax(-1) if alpha == "softmax" else values / values.sum(-1, keepdim=True), targets


def merge_scatter(
    tokens: Tensor, sources: Tensor, kept: Tensor, weights: Tensor, targets: Tensor, first: int
) -> Tensor:
    """Merge by scatter_add."""
    k, b, m = targets.shape[-1], *kept.shape
    weights = weights.to(tokens.dtype).flatten(1)
    patches = tokens[:, first:]
    moved = _rows(patches, sources).repeat_interleave(k, dim=1) * weights.unsqueeze(-1)
    index = targets.flatten(1)
    out = _rows(patches, kept).scatter_add_(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]), moved)
    total = torch.ones(b, m, dtype=tokens.dtype, device=tokens.device).scatter_add_(1, index, weights)
    out = out.div_(total.unsqueeze(-1))
    return torch.cat([tokens[:, :1], out], dim=1) if first else out


def merge_dense(tokens: Tensor, sources: Tensor, kept: Tensor, weights: Tensor, targets: Tensor, first: int) -> Tensor:
    """Merge by one batched GEMM with the (M, r) weight matrix."""
    flow = tokens.new_zeros(*sources.shape, kept.shape[1]).scatter_(-1, targets, weights.to(tokens.dtype)).mT
    patches = tokens[:, first:]
    out = torch.baddbmm(_rows(patches, kept), flow, _rows(patches, sources))
    out = out.div_(1 + flow.sum(-1, keepdim=True))
    return torch.cat([tokens[:, :1], out], dim=1) if first else out


def key_typicality(key: Tensor) -> Tensor:
    """What stands for class attention where there is no class token."""
    keys = key.mean(1)
    return -F.cosine_similarity(keys.mean(1, keepdim=True), keys, dim=-1)


def stats_heads(query: Tensor, key: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Patch attention (row) and class attention of the logits, head by head."""
    factor = query.shape[-1] ** -0.5 / query.shape[1]
    patch = (query[:, :, first:] @ key[:, :, first:].mean(2).unsqueeze(-1)).sum(1).squeeze(-1) * factor
    if not first:
        return patch, key_typicality(key)
    return patch, (key[:, :, 1:] @ query[:, :, 0].unsqueeze(-1)).sum(1).squeeze(-1) * factor


def concatenate(query: Tensor) -> Tensor:
    """(B, N, H d) with the heads side by side; free for (B, N, H, d) in memory."""
    b, h, n, d = query.shape
    return query.transpose(1, 2).reshape(b, n, h * d)


def stats_concatenated(query: Tensor, key: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Patch attention (row) and class attention of the logits, heads side by side."""
    q, k, factor = concatenate(query), concatenate(key), query.shape[-1] ** -0.5 / query.shape[1]
    patch = torch.bmm(q[:, first:], k[:, first:].mean(1).unsqueeze(-1)).squeeze(-1) * factor
    if not first:
        return patch, key_typicality(key)
    return patch, torch.bmm(k[:, 1:], q[:, 0].unsqueeze(-1)).squeeze(-1) * factor


def rows_concatenated(query: Tensor, key: Tensor, sources: Tensor, kept: Tensor, first: int) -> Tensor:
    """Correlations (B, r, P') of the sources with the kept patches."""
    q, k, factor = concatenate(query), concatenate(key), query.shape[-1] ** -0.5 / query.shape[1]
    return torch.bmm(_rows(q, sources + first), _rows(k, kept + first).mT) * factor


def reduce_heads_scatter(
    tokens: Tensor, query: Tensor, key: Tensor, r: int, first: int = 1, grid: tuple[int, int] | None = None
) -> Tensor:
    """Head by head, summed afterwards; merge by scatter."""
    _, h, _, d = query.shape
    _, sources, kept = select(*stats_heads(query, key, first), r, grid)
    index = (sources + first)[:, None, :, None].expand(-1, h, -1, d)
    rows = (query.gather(2, index) @ key[:, :, first:].mT).sum(1) * (d**-0.5 / h)
    rows = rows.gather(2, kept[:, None].expand(-1, r, -1))
    return merge_scatter(tokens, sources, kept, *links(rows), first)


def reduce_concatenated_scatter(
    tokens: Tensor, query: Tensor, key: Tensor, r: int, first: int = 1, grid: tuple[int, int] | None = None
) -> Tensor:
    """Heads side by side: the mean over heads of inner products is one inner product; merge by scatter."""
    _, sources, kept = select(*stats_concatenated(query, key, first), r, grid)
    rows = rows_concatenated(query, key, sources, kept, first)
    return merge_scatter(tokens, sources, kept, *links(rows), first)


def reduce_concatenated_dense(
    tokens: Tensor, query: Tensor, key: Tensor, r: int, first: int = 1, grid: tuple[int, int] | None = None
) -> Tensor:
    """Heads side by side; merge by GEMM."""
    _, sources, kept = select(*stats_concatenated(query, key, first), r, grid)
    rows = rows_concatenated(query, key, sources, kept, first)
    return merge_dense(tokens, sources, kept, *links(rows), first)


def _select_map(attn: Tensor, r: int, grid: tuple[int, int] | None) -> tuple[Tensor, Tensor, Tensor]:
    _, sources, kept = select(attn[:, 1:, 1:].mean(-1), attn[:, 0, 1:], r, grid)
    return sources, kept, _rows(attn, sources + 1)[:, :, 1:].gather(2, kept[:, None].expand(-1, r, -1))


def reduce_map(tokens: Tensor, attn: Tensor, r: int, grid: tuple[int, int] | None = None) -> Tensor:
    """From an explicit (B, N, N) map; merge by scatter."""
    sources, kept, rows = _select_map(attn, r, grid)
    return merge_scatter(tokens, sources, kept, *links(rows), 1)


def reduce_map_dense(tokens: Tensor, attn: Tensor, r: int, grid: tuple[int, int] | None = None) -> Tensor:
    """From an explicit (B, N, N) map; merge by GEMM."""
    sources, kept, rows = _select_map(attn, r, grid)
    return merge_dense(tokens, sources, kept, *links(rows), 1)


def _pairs(best: Tensor, nearest: Tensor, tokens: int, r: int, stable: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Sources, kept and targets from the best odd partner of every even patch; token 0 is a class token."""
    order = torch.argsort(best, dim=-1, descending=True, stable=True)[:, :r] if stable else best.topk(r, dim=-1).indices
    edges = order.sort(-1).values
    sources = 2 * edges + 2
    stays = torch.ones(best.shape[0], tokens, dtype=torch.bool, device=best.device).scatter_(1, sources, False)
    positions = stays.cumsum(1) - 1
    index = torch.arange(tokens, device=best.device).expand_as(positions)
    kept = positions.new_empty(best.shape[0], tokens - r + 1)  # the last entry collects what leaves
    kept = kept.scatter_(1, torch.where(stays, positions, tokens - r), index)[:, :-1]
    return sources, kept, positions.gather(1, 2 * nearest.gather(1, edges) + 1)


def _metric(key: Tensor) -> Tensor:
    """The scale of a head-mean key does not matter to its cosine."""
    return key[:, 0] if key.shape[1] == 1 else key.sum(1)


def match_unit(key: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bipartite matching with all keys at unit length; stable order."""
    metric = F.normalize(_metric(key), dim=-1, eps=1e-12)
    best, nearest = torch.bmm(metric[:, 2::2], metric[:, 1::2].mT).max(-1)
    return _pairs(best, nearest, key.shape[2], r, stable=True)


def match_unit_topk(key: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """As ``match_unit``, by topk, which promises no order among equals."""
    metric = F.normalize(_metric(key), dim=-1, eps=1e-12)
    best, nearest = torch.bmm(metric[:, 2::2], metric[:, 1::2].mT).max(-1)
    return _pairs(best, nearest, key.shape[2], r, stable=False)


def match_late(key: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """Even keys keep their length until their best partner is found, which it does not change; by topk."""
    metric = _metric(key)
    even, odd = metric[:, 2::2], F.normalize(metric[:, 1::2], dim=-1, eps=1e-12)
    best, nearest = torch.bmm(even, odd.mT).max(-1)
    return _pairs(best / even.norm(dim=-1).clamp(min=1e-12), nearest, key.shape[2], r, stable=False)
