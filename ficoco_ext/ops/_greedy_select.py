"""``ficoco::greedy_select``: tokens that stay, picked one by one because each adds most to those picked before.

Four objectives share one loop: ``max-min`` (DivPrune, arXiv 2503.02175), ``coverage`` (SCOPE, arXiv 2510.24214, and
facility location), ``log-det`` (the greedy MAP of a determinantal point process, CDPruner, arXiv 2506.10967) and
``mmr`` (maximal marginal relevance).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import checks
from .attention import cosine_map
from .library import define, fake, operator, result_dtype
from .values import free_to_read

OBJECTIVES = ("max-min", "coverage", "log-det", "mmr")
ALIKE = 0.99999  # a cosine above this is 1: rounding would decide between equal tokens; as in csrc/params.h
# In float64 gains that differ by less than this share of the largest one so far are equal: torch does not add up its
# matrix products in one order. Kernels, which do, compare gains as they are.
TIED = {torch.float64: 1e-12}
SMALLEST = 1e-10  # determinant's factor below which log-det does not divide
EXHAUSTED = 1e-6  # share of the first factor below which the rest of the tokens adds nothing


def _check(
    features: Tensor, count: int, objective: str, saliency: Tensor | None, mask: Tensor | None, trade: float
) -> None:
    op = "greedy_select"
    checks.floating(op, "features", features)
    checks.shape(op, "features", features, "(B, N, D)", features.dim() == 3, "pass one vector a token")
    b, n, _ = features.shape
    if objective not in OBJECTIVES:
        checks.fail(op, "objective", f"one of {', '.join(OBJECTIVES)}", objective, "pick one of them")
    if not 0 <= count <= n:
        checks.fail(op, "count", f"in [0, {n}], the number of tokens", count, "lower it")
    if n > checks.MAX_SEQUENCE:
        checks.fail(op, "features", f"of at most {checks.MAX_SEQUENCE} tokens", features, "split them")
    if not 0 <= trade <= 1:
        checks.fail(op, "trade", "in [0, 1]", trade, "1 looks at saliency alone, 0 at similarity alone")
    if objective == "mmr" and saliency is None:
        checks.fail(op, "saliency", f"({b}, {n}) for mmr", "None", "pass it, or take max-min")
    if saliency is not None:
        checks.floating(op, "saliency", saliency)
        checks.shape(op, "saliency", saliency, lambda: f"({b}, {n})", tuple(saliency.shape) == (b, n), "one a token")
    if mask is not None:
        if mask.dtype != torch.bool:
            checks.fail(op, "mask", f"({b}, {n}) bool", mask, "True where a token is real", TypeError)
        checks.shape(op, "mask", mask, lambda: f"({b}, {n})", tuple(mask.shape) == (b, n), "one flag for each token")
    checks.same_device(op, "features", features, saliency=saliency, mask=mask)


def _check_values(similarity: Tensor, count: int, saliency: Tensor, valid: Tensor) -> None:
    """What costs nothing to read on the CPU, and would be a synchronization elsewhere."""
    op = "greedy_select"
    if not free_to_read(similarity):
        return
    pairs = valid[:, :, None] & valid[:, None, :]
    if not similarity[pairs].isfinite().all():
        checks.fail(op, "features", "finite", "NaN or infinity among them", "check the layer they come from")
    if not ((saliency >= 0) & saliency.isfinite())[valid].all():
        checks.fail(op, "saliency", "finite and at least 0", "others", "shift it, or take its exponential")
    if valid.shape[0] and (fewest := int(valid.sum(1).min())) < count:
        checks.fail(op, "count", f"at most {fewest}, the real tokens of every row", count, "lower it")


def specification(
    features: Tensor, count: int, objective: str, saliency: Tensor | None, mask: Tensor | None, trade: float
) -> tuple[Tensor, Tensor]:
    """Indices (B, T) in the order of picking and the gain (B, T) of each pick, T = ``count``.

    With C the picked tokens, s the saliency (1 without one) and S_ij the cosine of features i and j, the next token is
    the one with the largest gain among the rest, the lowest index of equal ones:

    * ``max-min``: s_j min over C of (1 - S_jc); the first has the farthest nearest neighbour.
    * ``coverage``: s_j sum over tokens i of max(0, S_ij - m_i), where m_i is the largest S_ic over C, or 0.
    * ``log-det``: what j multiplies the determinant of K = s_i S_ij s_j over C with. Once that is below a millionth of
      the first one's, the rest of the tokens adds nothing, and saliency alone decides.
    * ``mmr``: trade s_j - (1 - trade) max over C of S_jc; the first has the largest saliency.

    Vectors are divided by their length, or by 1e-12 if that is shorter. A cosine above 0.99999 is 1, with oneself or
    with another token, so a copy of a token gains exactly what that one does. Tokens that ``mask`` (B, N) hides are not
    there. In float64, which has no kernels, gains that differ by less than 1e-12 of the largest so far are equal.
    """
    _check(features, count, objective, saliency, mask, trade)
    b, n, _ = features.shape
    similarity = cosine_map(features, features)
    similarity = similarity.masked_fill(similarity > ALIKE, 1.0)
    weight = similarity.new_ones(b, n) if saliency is None else saliency.to(similarity.dtype)
    valid = torch.ones(b, n, dtype=torch.bool, device=features.device) if mask is None else mask
    _check_values(similarity, count, weight, valid)
    chosen = _OBJECTIVES[objective](similarity, weight, valid, trade)
    order = torch.zeros(b, count, dtype=torch.int64, device=features.device)
    gains = similarity.new_zeros(b, count)
    free, scale = valid.clone(), similarity.new_zeros(b, 1)
    for step in range(count):
        gain, rank = chosen.gains(step)
        scale = torch.maximum(scale, rank.masked_fill(~free, 0).abs().amax(1, keepdim=True))
        rank = rank.masked_fill(~free, float("-inf"))
        equal = rank >= rank.amax(1, keepdim=True) - TIED.get(rank.dtype, 0.0) * scale
        best = equal.to(torch.uint8).argmax(1, keepdim=True)  # the first
        order[:, step : step + 1], gains[:, step : step + 1] = best, gain.gather(1, best)
        free = free.scatter(1, best, False)
        chosen.pick(best)
    return order, gains


class _Chosen:
    """What one objective remembers of the picked tokens: rows of B images at once."""

    def __init__(self, similarity: Tensor, saliency: Tensor, valid: Tensor, trade: float) -> None:
        self.similarity, self.saliency, self.valid, self.trade = similarity, saliency, valid, trade
        self.start()

    def start(self) -> None:
        """Before the first pick."""

    def gains(self, step: int) -> tuple[Tensor, Tensor]:
        """(B, N) gains before the ``step``-th pick, and what decides."""
        raise NotImplementedError

    def pick(self, best: Tensor) -> None:
        """(B, 1) is picked."""

    def row(self, best: Tensor) -> Tensor:
        """(B, N) similarities of one token of each row."""
        return self.similarity.gather(1, best.unsqueeze(-1).expand(-1, -1, self.similarity.shape[2])).squeeze(1)


class _Nearest(_Chosen):
    def start(self) -> None:
        self.nearest = torch.full_like(self.saliency, float("-inf"))

    def pick(self, best: Tensor) -> None:
        self.nearest = torch.maximum(self.nearest, self.row(best))


class _MaxMin(_Nearest):
    def gains(self, step: int) -> tuple[Tensor, Tensor]:
        nearest = self.nearest
        if step == 0:
            itself = torch.eye(nearest.shape[1], dtype=torch.bool, device=nearest.device)
            others = self.similarity.masked_fill(itself | ~self.valid[:, None, :], float("-inf"))
            nearest = others.amax(2) if nearest.shape[1] else nearest
            nearest = nearest.masked_fill(nearest == float("-inf"), -1.0)  # a token alone is as far as can be
        gain = self.saliency * (1 - nearest)
        return gain, gain


class _Mmr(_Nearest):
    def gains(self, step: int) -> tuple[Tensor, Tensor]:
        if step == 0:
            return self.trade * self.saliency, self.saliency
        gain = self.trade * self.saliency - (1 - self.trade) * self.nearest
        return gain, gain


class _Coverage(_Chosen):
    def start(self) -> None:
        self.covered = torch.zeros_like(self.saliency)

    def gains(self, step: int) -> tuple[Tensor, Tensor]:
        more = (self.similarity - self.covered[:, None, :]).clamp_min(0)
        gain = self.saliency * more.masked_fill(~self.valid[:, None, :], 0.0).sum(2)
        return gain, gain

    def pick(self, best: Tensor) -> None:
        self.covered = torch.maximum(self.covered, self.row(best))


class _LogDet(_Chosen):
    def start(self) -> None:
        diagonal = self.similarity.diagonal(dim1=1, dim2=2)
        self.factor = self.saliency * diagonal * self.saliency
        self.columns: list[Tensor] = []  # of the Cholesky factor
        self.first = self.factor.new_zeros(self.factor.shape[0], 1)
        self.free = self.valid

    def gains(self, step: int) -> tuple[Tensor, Tensor]:
        largest = self.factor.masked_fill(~self.free, float("-inf")).amax(1, keepdim=True)
        if step == 0:
            self.first = largest
        self.exhausted = (largest < EXHAUSTED * self.first) | (largest <= 0)
        return self.factor, torch.where(self.exhausted, self.saliency, self.factor)

    def pick(self, best: Tensor) -> None:
        kernel = self.saliency.gather(1, best) * self.row(best) * self.saliency
        for column in self.columns:
            kernel = kernel - column * column.gather(1, best)
        column = kernel / self.factor.gather(1, best).clamp_min(SMALLEST).sqrt()
        column = column.masked_fill(self.exhausted, 0.0)
        self.columns.append(column)
        self.factor = self.factor - column * column
        self.free = self.free.scatter(1, best, False)


_OBJECTIVES = {"max-min": _MaxMin, "coverage": _Coverage, "log-det": _LogDet, "mmr": _Mmr}

define(
    "greedy_select",
    "(Tensor features, SymInt count, str objective, Tensor? saliency, Tensor? mask, float trade) -> (Tensor, Tensor)",
    specification,
)


@fake("greedy_select")
def _(features, count, objective, saliency, mask, trade):
    _check(features, count, objective, saliency, mask, trade)
    order = features.new_empty(features.shape[0], count, dtype=torch.int64)
    return order, features.new_empty(features.shape[0], count, dtype=result_dtype(features))


class Picked(NamedTuple):
    """What :func:`greedy_select` returns."""

    order: Tensor
    gains: Tensor


def greedy_select(
    features: Tensor,
    count: int,
    *,
    objective: str,
    saliency: Tensor | None = None,
    mask: Tensor | None = None,
    trade: float = 0.5,
) -> Picked:
    """Pick ``count`` tokens one by one, each the one that adds most to those before.

    Args:
        features: (B, N, D), compared by cosine; any strides. float32, float16 or bfloat16 (float64: by the
            specification).
        count: tokens to pick, 0 <= count <= N. A first part of the picks is what a smaller ``count`` would pick.
        objective: ``"max-min"``, ``"coverage"``, ``"log-det"`` or ``"mmr"``; :func:`specification` has the formulas.
        saliency: (B, N), finite and at least 0: how much each token counts. None: all alike; ``mmr`` needs one.
        mask: (B, N) bool, False for a token that is not there, such as padding. Every row has at least ``count``
            others: checked on the CPU, a promise elsewhere.
        trade: of ``mmr``, in [0, 1]: 1 is saliency alone, 0 is similarity alone.

    Returns:
        order (B, count) int64, distinct indices in the order of picking (``order.sort(1).values`` is ascending); gains
        (B, count) float32, what each added.

    Raises:
        ValueError: a shape, count, objective or trade that does not fit; on the CPU also values that are not finite,
            and negative saliency. TypeError: a wrong dtype.

    Ties: the lowest index, so a copy is never picked before the token that it repeats. Deterministic. CUDA kernels take
    at most 16384 tokens: take fewer frames or smaller pictures, split them, or reduce on the CPU. Cost an image: N^2 D
    FLOPs for the cosines, which are held (4 N^2 bytes); then 2 N T, with ``coverage`` at most 2 N^2 T (nearly always
    far fewer), with ``log-det`` N T^2. Sources: DivPrune, arXiv 2503.02175; SCOPE, arXiv 2510.24214; CDPruner, arXiv
    2506.10967.

    Example:
        >>> import torch
        >>> from ficoco_ext.ops import greedy_select
        >>> features = torch.tensor([[[1., 0.], [1., .1], [0., 1.], [-1., 0.]]])
        >>> greedy_select(features, 3, objective="max-min").order
        tensor([[3, 0, 2]])
    """
    return Picked(*operator("greedy_select", features)(features, count, objective, saliency, mask, float(trade)))
