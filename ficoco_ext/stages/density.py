"""Clusters around density peaks: tokens that many others are near, each far from any that more are near (DPC-KNN)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..ops import checks
from ..ops.attention import accumulate

_BLOCK = 512  # rows of distances that are held at once


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

    Cost: 6 B M² D operations, of which no more than 512 rows of distances are held at once. Deterministic. Source:
    Du et al. 2016, as SparseVLM (arXiv 2410.04417) and FlashVID (arXiv 2602.08024) take it, without their noise.

    Example:
        >>> import torch
        >>> from ficoco_ext.stages.density import density_peaks
        >>> tokens = torch.tensor([[[0.0], [0.1], [0.3], [9.0], [9.1]]])
        >>> centres, assignment = density_peaks(tokens, count=2, neighbours=2)
        >>> centres.tolist(), assignment.tolist()
        ([[0, 3]], [[0, 0, 0, 1, 1]])
    """
    _check(op, features, count, neighbours, mask)
    features = accumulate(features.detach())
    score = peak_scores(features, neighbours, mask)
    centres = score.sort(dim=1, descending=True, stable=True).indices[:, :count].sort(1).values
    return centres, _joined(features, centres)


def peak_scores(features: Tensor, neighbours: int, mask: Tensor | None) -> Tensor:
    """(B, M) by which :func:`density_peaks` ranks tokens (B, M, D): log(density times separation), largest first.

    Minus infinity where ``mask`` says that no token is.
    """
    nearest, largest = _nearest(features, min(neighbours, features.shape[1]), mask)
    separation = _separation(features, nearest, largest, mask)
    score = separation.log().sub(nearest).clamp_min(torch.finfo(features.dtype).min)
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


def _distances(rows: Tensor, features: Tensor, mask: Tensor | None) -> Tensor:
    """(B, R, M) distances of ``rows`` to all tokens, exactly 0 between equal ones; infinite to those not there."""
    found = torch.cdist(rows, features, compute_mode="donot_use_mm_for_euclid_dist") / math.sqrt(features.shape[2])
    return found if mask is None else found.masked_fill(~mask.unsqueeze(1), math.inf)


def _nearest(features: Tensor, neighbours: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """(B, M) mean squared distance to the nearest tokens, and (B, 1) the largest distance of all."""
    means, largest = [], []
    for start in range(0, features.shape[1], _BLOCK):
        part = slice(start, start + _BLOCK)
        distance = _distances(features[:, part], features, mask)
        near = distance.topk(neighbours, dim=2, largest=False).values.square()
        there = near.isfinite()
        means.append(near.masked_fill(~there, 0).sum(2) / there.sum(2).clamp_min(1))
        far = distance.masked_fill(distance.isinf(), 0).amax(2)
        largest.append(far if mask is None else far.masked_fill(~mask[:, part], 0))
    return torch.cat(means, 1), torch.cat(largest, 1).amax(1, keepdim=True)


def _separation(features: Tensor, nearest: Tensor, largest: Tensor, mask: Tensor | None) -> Tensor:
    """(B, M) distance to the nearest denser token; the largest distance of all where there is none."""
    index = torch.arange(features.shape[1], device=features.device)
    found = []
    for start in range(0, features.shape[1], _BLOCK):
        part = slice(start, start + _BLOCK)
        own, others = nearest[:, part].unsqueeze(2), nearest.unsqueeze(1)
        denser = (others < own) | ((others == own) & (index < index[part].unsqueeze(1)))
        distance = _distances(features[:, part], features, mask).masked_fill(~denser, math.inf).amin(2)
        found.append(torch.where(distance.isinf(), largest, distance))
    return torch.cat(found, 1)


def _joined(features: Tensor, centres: Tensor) -> Tensor:
    """(B, M) the nearest of the centres; a centre's own."""
    heads = features.gather(1, centres.unsqueeze(-1).expand(-1, -1, features.shape[2]))
    nearest = _distances(features, heads, None).argmin(2)
    own = torch.arange(centres.shape[1], device=centres.device).expand_as(centres)
    return nearest.scatter(1, centres, own)
