"""``ficoco::bipartite_thin``: a list of tokens, thinned round by round of those that repeat another one.

VisPruner (arXiv 2412.01818) thins what saliency has not chosen in this way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks
from ._greedy_select import ALIKE
from .attention import cosine_map, rows
from .library import define, fake, operator

GRID = 2.0**30  # in float64 scores are compared as multiples of one over this


def _check(features: Tensor, order: Tensor, count: int, step: int, mask: Tensor | None) -> None:
    op = "bipartite_thin"
    checks.floating(op, "features", features)
    checks.shape(op, "features", features, "(B, N, D)", features.dim() == 3, "pass one vector a token")
    b, n, _ = features.shape
    if n > checks.MAX_SEQUENCE:
        checks.fail(op, "features", f"of at most {checks.MAX_SEQUENCE} tokens", features, "split them")
    fits = order.dim() == 2 and order.shape[0] == b and order.shape[1] <= n
    checks.indices(op, "order", order, lambda: f"({b}, L) with L of at most {n}", fits)
    length = order.shape[1]
    if not 0 <= count <= length:
        checks.fail(op, "count", f"in [0, {length}], the length of the list", count, "lower it")
    if step < 1:
        checks.fail(op, "step", "at least 1", step, "pass how many tokens leave in a round")
    if mask is not None:
        if mask.dtype != torch.bool:
            checks.fail(op, "mask", f"({b}, {n}) bool", mask, "True where a token is real", TypeError)
        checks.shape(op, "mask", mask, lambda: f"({b}, {n})", tuple(mask.shape) == (b, n), "one flag for each token")
    checks.same_device(op, "features", features, order=order, mask=mask)


def _check_values(features: Tensor, order: Tensor, count: int, mask: Tensor | None) -> None:
    """What costs nothing to read on the CPU, and would be a synchronization elsewhere."""
    op, n = "bipartite_thin", features.shape[1]
    if features.device.type != "cpu" or not order.numel():
        return
    if not ((order >= 0) & (order < n)).all():
        checks.fail(op, "order", f"indices in [0, {n})", "others", "pass each token at most once")
    real = torch.ones_like(order, dtype=torch.bool) if mask is None else mask.gather(1, order)
    if not (rows(features, order).isfinite().all(-1) | ~real).all():
        checks.fail(op, "features", "finite", "NaN or infinity among them", "check the layer they come from")
    if (fewest := int(real.sum(1).min())) < count:
        checks.fail(op, "count", f"at most {fewest}, the real tokens of every list", count, "lower it")


def shorter(length: int, count: int, step: int) -> int:
    """The length of a list of ``length`` after one round; a longer list is never overtaken by a shorter one."""
    return length - min(step, length - count, (length + 1) // 2)


def specification(features: Tensor, order: Tensor, count: int, step: int, mask: Tensor | None) -> Tensor:
    """(B, ``count``) tokens: what is left of the lists ``order`` (B, L), in the order in which it is left.

    Tokens that ``mask`` (B, N) hides are taken from the list before. Then, while it has more than ``count`` tokens:

    * a is every other token of the list from the first one on, b are those between them;
    * the score of a token of a is its largest cosine with one of b;
    * the r tokens of a with the highest scores leave, r the least of ``step``, how many are too many, and how many a
      has; of equal ones those that are earlier in the list;
    * what is left of a, highest scores first, and then all of b in their order are the new list.

    Vectors are divided by their length, or by 1e-12 if that is shorter. A cosine above 0.99999 is 1. In float64, which
    has no kernels, scores are compared as multiples of 2^-30.
    """
    _check(features, order, count, step, mask)
    _check_values(features, order, count, mask)
    length = order.shape[1]
    listed = rows(features, order)
    cosine = cosine_map(listed, listed)
    cosine = cosine.masked_fill(cosine > ALIKE, 1.0)
    real = torch.ones_like(order, dtype=torch.bool) if mask is None else mask.gather(1, order)
    held = (~real).to(torch.uint8).sort(dim=1, stable=True).indices  # positions in `order`, the real ones first
    left = real.sum(1, keepdim=True)
    while length > count > 0:  # of the longest list there can be; others are done before
        length = shorter(length, count, step)
        held, left = _round(cosine, held, left, count, step)
        held = held[:, :length]
    return order.gather(1, held[:, :count])


def _round(cosine: Tensor, held: Tensor, left: Tensor, count: int, step: int) -> tuple[Tensor, Tensor]:
    """Lists ``held`` (B, L) after one round, and how many of their entries are there: the first ``left`` (B, 1)."""
    a, b, at = held[:, 0::2], held[:, 1::2], torch.arange(held.shape[1], device=held.device)
    evens, odds = (left + 1) // 2, left // 2
    width = a.shape[1]
    between = rows(cosine, a).gather(2, b[:, None, :].expand(-1, width, -1))
    score = between.masked_fill((at[: b.shape[1]] >= odds)[:, None, :], float("-inf")).amax(2)
    if score.dtype == torch.float64:  # copies round differently by their position in a product of torch
        score = (score * GRID).round()
    falling = score.masked_fill(at[:width] >= evens, float("-inf")).sort(dim=1, descending=True, stable=True).indices
    r = torch.minimum(evens, (left - count).clamp(0, step))
    place_a, place_b = at[:width] - r, evens - r + at[: b.shape[1]]
    gone = torch.cat([(place_a < 0) | (at[:width] >= evens), at[: b.shape[1]] >= odds], 1)
    place = torch.cat([place_a, place_b], 1).masked_fill(gone, held.shape[1])
    new = torch.cat([a.gather(1, falling), b], 1).gather(1, place.sort(dim=1, stable=True).indices)
    return torch.where(r > 0, new, held), left - r


define(
    "bipartite_thin",
    "(Tensor features, Tensor order, SymInt count, SymInt step, Tensor? mask) -> Tensor",
    specification,
)


@fake("bipartite_thin")
def _(features, order, count, step, mask):
    _check(features, order, count, step, mask)
    return order.new_empty(order.shape[0], count)


def bipartite_thin(features: Tensor, order: Tensor, count: int, *, step: int = 8, mask: Tensor | None = None) -> Tensor:
    """Thin lists of tokens to ``count`` each: in every round leave those that are most like one between them.

    Args:
        features: (B, N, D), compared by cosine; any strides. float32, float16 or bfloat16 (float64: by the
            specification).
        order: (B, L) int64, the lists: distinct indices of tokens. Their order has a say in who leaves.
        count: how many are left of each list, 0 <= count <= L.
        step: how many leave in a round at most, at least 1.
        mask: (B, N) bool, False for a token that is not there, such as padding. Every list has at least ``count``
            others: checked on the CPU, a promise elsewhere, as is that indices are in range.

    Returns:
        (B, count) int64: tokens of ``order``, in the order in which the last round leaves them
        (``.sort(1).values`` is ascending). :func:`specification` has the rounds.

    Raises:
        ValueError: a shape, count or step that does not fit; on the CPU also indices out of range and features that are
        not finite. TypeError: a wrong dtype.

    Ties: the token that is earlier in the list leaves. Deterministic. CUDA kernels take at most 16384 tokens: take
    fewer frames or smaller pictures, split them, or thin on the CPU. Cost an image: L^2 D FLOPs for the cosines, which
    are held (4 L^2 bytes; CUDA: N^2 of both); then in each of some (L - count) / step rounds a quarter of the list's
    length squared in comparisons: about (L^3 - count^3) / (12 step) in all. That is cubic: for thousands of tokens let
    ``step`` grow with L, or pick by :func:`ficoco_ext.ops.greedy_select`. Source: VisPruner, arXiv 2412.01818.

    Example:
        >>> import torch
        >>> from ficoco_ext.ops import bipartite_thin
        >>> features = torch.tensor([[[1., 0.], [1., .1], [0., 1.], [-1., 0.], [0., 2.]]])
        >>> bipartite_thin(features, torch.tensor([[0, 1, 2, 3, 4]]), 3, step=1)
        tensor([[1, 4, 3]])
    """
    return operator("bipartite_thin", features)(features, order, count, step, mask)
