"""The mathematics of methods in a language model, in the best torch one can write: baselines of the decoder's kernels.

Batched, no host sync, no N x N map: only rows of the attention that are asked for. Query and key (B, H, T, d) with as
many key heads as query heads, all of them causal, without padding. ``visual`` (B, n) ascending columns.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rows(query: Tensor, key: Tensor, of: Tensor, probs: bool) -> Tensor:
    """(B, R, T) attention of the tokens ``of`` (B, R), averaged over heads: probabilities, or logits."""
    index = of[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[-1])
    chosen, scale = query.gather(2, index), query.shape[-1] ** -0.5
    if not probs:
        flat, keys = (t.transpose(1, 2).flatten(2) for t in (chosen, key))
        return torch.bmm(flat, keys.mT) * (scale / query.shape[1])
    later = torch.arange(key.shape[2], device=key.device) > of[..., None]
    return (chosen @ key.mT * scale).masked_fill(later[:, None], -torch.inf).softmax(-1).mean(1)


def last_token_scores(query: Tensor, key: Tensor, visual: Tensor) -> Tensor:
    """(B, n) what the last token attends to (FastV)."""
    last = torch.full_like(visual[:, :1], key.shape[2] - 1)
    return rows(query, key, last, True)[:, 0].gather(1, visual)


def fastv(hidden: Tensor, query: Tensor, key: Tensor, visual: Tensor, r: int) -> Tensor:
    """The sequence without the r visual tokens that the last token attends to least."""
    scores = last_token_scores(query, key, visual)
    gone = visual.gather(1, scores.topk(r, dim=-1, largest=False).indices)
    stays = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device).scatter_(1, gone, False)
    positions = stays.cumsum(1) - 1
    columns = torch.arange(hidden.shape[1], device=hidden.device).expand_as(positions)
    kept = torch.empty_like(positions[:, : hidden.shape[1] - r + 1])  # the last entry collects what leaves
    kept = kept.scatter_(1, torch.where(stays, positions, hidden.shape[1] - r), columns)[:, :-1]
    return hidden.gather(1, kept[..., None].expand(-1, -1, hidden.shape[-1]))


def correlate(
    query: Tensor, key: Tensor, sources: Tensor, candidates: Tensor, others: Tensor, k: int, gamma: float, probs: bool
) -> tuple[Tensor, Tensor]:
    """Targets and weights (B, r, k): directly and by way of the others, with weight 1 / R each (FiCoCo eq. 4).

    Under the causal mask only later others know of sources, so with ``probs`` the way is by those that attend to both.
    """
    of_sources, of_others = rows(query, key, sources, probs), rows(query, key, others, probs)

    def columns(matrix: Tensor, of: Tensor) -> Tensor:
        return matrix.gather(2, of[:, None].expand(-1, matrix.shape[1], -1))

    there = columns(of_others, sources).mT if probs else columns(of_sources, others)
    indirect = torch.bmm(there, columns(of_others, candidates)) / others.shape[1]
    values, targets = (gamma * columns(of_sources, candidates) + (1 - gamma) * indirect).topk(k, dim=-1)
    return targets, values / values.sum(-1, keepdim=True) if probs else values.softmax(-1)
