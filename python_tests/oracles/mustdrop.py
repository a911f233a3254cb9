"""References of MustDrop (arXiv 2411.10803): windows of alike patches, the key set, the dual filter, cut caches."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def windows(grid: tuple[int, int], side: int) -> list[list[int]]:
    """The patches of each whole window, row by row."""
    found = []
    for top in range(0, grid[0] - side + 1, side):
        for left in range(0, grid[1] - side + 1, side):
            found.append([y * grid[1] + x for y in range(top, top + side) for x in range(left, left + side)])
    return found


def likeness(tokens: Tensor, window: list[int]) -> float:
    """Mean cosine over all ordered pairs of two patches of a window; lengths below 1e-8 count as 1e-8."""
    rows = [tokens[i].double() for i in window]
    total = 0.0
    for i, one in enumerate(rows):
        for j, other in enumerate(rows):
            if i != j:
                total += float(one @ other) / (max(float(one.norm()), 1e-8) * max(float(other.norm()), 1e-8))
    return total / (len(rows) * (len(rows) - 1))


def merged(
    tokens: Tensor, grid: tuple[int, int], count: int, side: int = 3, receiver: str = "last"
) -> tuple[list[int], Tensor, list[int]]:
    """Which patches stay, what they become (M, C), and how many patches each one is.

    The ``count`` most alike windows become one token each, the mean of their patches, where their receiver was.
    """
    every = windows(grid, side)
    score = [likeness(tokens, one) for one in every]
    chosen = sorted(range(len(every)), key=lambda u: (-score[u], u))[:count]
    at = {"last": -1, "centre": (side // 2) * (side + 1)}[receiver]
    gone = {patch for u in chosen for i, patch in enumerate(every[u]) if patch != every[u][at]}
    becomes = {every[u][at]: tokens[every[u]].double().mean(0) for u in chosen}
    kept = [patch for patch in range(grid[0] * grid[1]) if patch not in gone]
    rows = torch.stack([becomes.get(patch, tokens[patch].double()) for patch in kept])
    return kept, rows, [side * side if patch in becomes else 1 for patch in kept]


def key_set(attention: list[float], rate: float) -> list[int]:
    """The ceil(rate n) patches of largest class attention, ascending; of equal ones the first."""
    count = math.ceil(rate * len(attention) - 1e-9)
    order = sorted(range(len(attention)), key=lambda i: (-attention[i], i))
    return sorted(order[:count])


def statistics(attention: Tensor) -> tuple[list[float], list[float]]:
    """Share and peak of each visual token, of head-mean probabilities (T, n) of the text rows."""
    a = attention.double()
    received = a.sum(0)
    total = float(received.sum())
    return [float(one) / total if total else 0.0 for one in received], [float(one) for one in a.max(0).values]


def filtered(attention: Tensor, keys: set[int], gamma: float, alpha: float) -> list[int]:
    """Who stays by thresholds: those that neither leave by both statistics nor are without protection."""
    share, peak = statistics(attention)
    return [i for i in range(len(share)) if share[i] >= gamma or peak[i] >= alpha or i in keys]


def ranked(attention: Tensor, keys: set[int], count: int, gamma: float, alpha: float) -> list[int]:
    """The ``count`` tokens that stay: the key set first, then those of largest max(share / gamma, peak / alpha)."""
    share, peak = statistics(attention)
    worth = [max(one / gamma, other / alpha) for one, other in zip(share, peak, strict=True)]
    order = sorted(range(len(share)), key=lambda i: (i not in keys, -worth[i], i))
    return sorted(order[:count])


def cached(layers: int, stages: list[int], before: int, left: list[int], *, output_aware: bool = True) -> list[int]:
    """How many visual tokens the cache of each layer has after a prompt of ``before`` of them."""
    found, now, reduced = [], before, iter(left)
    for layer in range(layers):
        found.append(now)
        if layer in stages:
            now = next(reduced)
    if output_aware:
        found[stages[0] :] = [left[-1]] * (layers - stages[0])
    return found
