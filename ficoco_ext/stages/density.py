"""Clusters around density peaks: tokens that many others are near, each far from any that more are near (DPC-KNN)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..ops import checks
from ..ops.attention import accumulate

_BLOCK = 512  # rows of distances that are compared at once
_STRIP = 64  # rows of distances that are computed at once


def density_peaks(
    features: Tensor, count: int, neighbours: int, mask: Tensor | None = None, *, op: str = "density_peaks"
) -> tuple[Tensor, Tensor]:
    """``count`` tokens as centres of clusters, and the cluster of every token.

    D_ij = \\|x_i - x_j\\| / sqrt(D) is the distance. The density of a token is exp of the negative mean of D² to the
    ``neighbours`` tokens nearest to it, itself included. Its separation is the distance to the nearest denser token;
    of two that are equally dense the one of lower index is denser, and the densest of all gets the largest distance
    there is. Centres are the tokens of largest density times separation. Each other token joins the centre nearest to
    it. Equal ones: the lowest index. Both factors are compared as logarithms, in which nothing underflows.

    Args:
        features: (B, M, D), any floating dtype.
        count: centres, in 1 ... M.
        neighbours: at least 1; with more than there are tokens, all of them.
        mask: (B, M) bool, False for tokens that are not there: no token is compared with them. Centres of a row that
            has fewer tokens than ``count`` are all of its tokens, and some that are not there, which none joins.
        op: the caller, for messages.

    Returns:
        centres (B, count) int64, indices of tokens, ascending; assignment (B, M) int64, for each token which of the
        centres it belongs to, in 0 ... count - 1. That of a token that is not there means nothing.

    Raises:
        ValueError: wrong rank, shape or number. TypeError: wrong dtype.

    Cost: 3 operations a channel for each of about M (M + 64) / 2 distances of a row, which are held (4 B M² bytes).
    Deterministic. Source: Du et al. 2016, as SparseVLM (arXiv 2410.04417) and FlashVID (arXiv 2602.08024) take it,
    without their noise.

    Example:
        >>> import torch
        >>> from ficoco_ext.stages.density import density_peaks
        >>> tokens = torch.tensor([[[0.0], [0.1], [0.3], [9.0], [9.1]]])
        >>> centres, assignment = density_peaks(tokens, count=2, neighbours=2)
        >>> centres.tolist(), assignment.tolist()
        ([[0, 3]], [[0, 0, 0, 1, 1]])
    """
    _check(op, features, count, neighbours, mask)
    distance = distances(accumulate(features.detach()))
    score = peak_scores(distance, neighbours, mask)
    centres = score.sort(dim=1, descending=True, stable=True).indices[:, :count].sort(1).values
    return centres, _joined(distance, centres)


def distances(features: Tensor) -> Tensor:
    """(B, M, M) \\|x_i - x_j\\| / sqrt(D) of tokens (B, M, D), exactly 0 between equal ones.

    Differences are added up, as products cancel where one channel is much larger than the others. Each distance is
    computed once, except within strips of rows.
    """
    b, m, d = features.shape
    found = features.new_empty(b, m, m)
    for start in range(0, m, _STRIP):
        rows, others = slice(start, start + _STRIP), slice(start, m)
        part = torch.cdist(features[:, rows], features[:, others], compute_mode="donot_use_mm_for_euclid_dist")
        part = part / math.sqrt(d)
        found[:, rows, others], found[:, others, rows] = part, part.mT
    return found


def computed(tokens: int) -> int:
    """How many distances of so many tokens :func:`distances` computes.

    Example:
        >>> from ficoco_ext.stages.density import computed
        >>> computed(10), computed(640)
        (100, 225280)
    """
    return sum(min(_STRIP, tokens - start) * (tokens - start) for start in range(0, tokens, _STRIP))


def peak_scores(distance: Tensor, neighbours: int, mask: Tensor | None) -> Tensor:
    """(B, M) by which :func:`density_peaks` ranks tokens: log(density times separation), largest first.

    Minus infinity where ``mask`` says that no token is.

    Args:
        distance: (B, M, M) of :func:`distances`. neighbours, mask: as of :func:`density_peaks`.
    """
    nearest, largest = _nearest(distance, min(neighbours, distance.shape[1]), mask)
    separation = _separation(distance, nearest, largest, mask)
    score = separation.log().sub(nearest).clamp_min(torch.finfo(distance.dtype).min)
    if mask is not None:
        score = score.masked_fill(~mask, -math.inf)
    return score


def _check(op: str, features: Tensor, count: int, neighbours: int, mask: Tensor | None) -> None:
    checks.floating(op, "features", features)
    m = features.shape[1] if features.dim() == 3 else 0
    checks.shape(op, "features", features, lambda: "(B, M, D)", features.dim() == 3, "one row of features a token")
    for name, number, most in (("count", count, m), ("neighbours", neighbours, math.inf)):
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= most:
            wanted = f"an integer in 1 ... {m}, the tokens" if name == "count" else "an integer >= 1"
            checks.fail(op, name, wanted, repr(number), f"pass another {name}")
    if mask is not None:
        fits = mask.dtype == torch.bool and mask.shape == features.shape[:2]
        checks.shape(op, "mask", mask, lambda: f"{tuple(features.shape[:2])} bool", fits, "False for no token")


def _nearest(found: Tensor, neighbours: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """(B, M) mean squared distance to the nearest tokens, and (B, 1) the largest distance of all."""
    means, largest = [], []
    for start in range(0, found.shape[1], _BLOCK):
        part = slice(start, start + _BLOCK)
        distance = found[:, part] if mask is None else found[:, part].masked_fill(~mask.unsqueeze(1), math.inf)
        near = distance.topk(neighbours, dim=2, largest=False).values.square()
        there = near.isfinite()
        means.append(near.masked_fill(~there, 0).sum(2) / there.sum(2).clamp_min(1))
        far = distance.masked_fill(distance.isinf(), 0).amax(2)
        largest.append(far if mask is None else far.masked_fill(~mask[:, part], 0))
    return torch.cat(means, 1), torch.cat(largest, 1).amax(1, keepdim=True)


def _separation(found: Tensor, nearest: Tensor, largest: Tensor, mask: Tensor | None) -> Tensor:
    """(B, M) distance to the nearest denser token; the largest distance of all where there is none."""
    index = torch.arange(found.shape[1], device=found.device)
    parts = []
    for start in range(0, found.shape[1], _BLOCK):
        part = slice(start, start + _BLOCK)
        own, others = nearest[:, part].unsqueeze(2), nearest.unsqueeze(1)
        denser = (others < own) | ((others == own) & (index < index[part].unsqueeze(1)))
        denser = denser if mask is None else denser & mask.unsqueeze(1)
        distance = found[:, part].masked_fill(~denser, math.inf).amin(2)
        parts.append(torch.where(distance.isinf(), largest, distance))
    return torch.cat(parts, 1)


def _joined(distance: Tensor, centres: Tensor) -> Tensor:
    """(B, M) the nearest of the centres; a centre's own."""
    nearest = distance.gather(2, centres.unsqueeze(1).expand(-1, distance.shape[1], -1)).argmin(2)
    own = torch.arange(centres.shape[1], device=centres.device).expand_as(centres)
    return nearest.scatter(1, centres, own)
