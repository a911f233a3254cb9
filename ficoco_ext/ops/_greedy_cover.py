"""``ficoco::greedy_cover``: tokens that stay, picked one by one for what each covers that those before do not.

What there is to cover, and by how much each token covers it, is given: MMTok (arXiv 2508.18264) covers the words of a
prompt and the tokens of a picture. :func:`ficoco_ext.ops.greedy_select` with ``coverage`` covers the tokens by cosines,
which it computes itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks
from ._greedy_select import Picked
from .attention import accumulate, rows
from .library import define, fake, operator, result_dtype
from .values import free_to_read

OP = "greedy_cover"


def _check(cover: Tensor, count: int, mask: Tensor | None) -> None:
    checks.floating(OP, "cover", cover)
    remedy = "pass by how much each token covers each thing"
    checks.shape(OP, "cover", cover, "(B, N, R)", cover.dim() == 3, remedy)
    b, n, things = cover.shape
    if not 0 <= count <= n:
        checks.fail(OP, "count", f"in [0, {n}], the number of tokens", count, "lower it")
    if n > checks.MAX_SEQUENCE or things > checks.MAX_SEQUENCE:
        checks.fail(OP, "cover", f"of at most {checks.MAX_SEQUENCE} tokens and things", cover, "split them")
    if mask is not None:
        if mask.dtype != torch.bool:
            checks.fail(OP, "mask", f"({b}, {n}) bool", mask, "True where a token is real", TypeError)
        checks.shape(OP, "mask", mask, lambda: f"({b}, {n})", tuple(mask.shape) == (b, n), "one flag for each token")
    checks.same_device(OP, "cover", cover, mask=mask)


def _check_values(cover: Tensor, count: int, valid: Tensor) -> None:
    """What costs nothing to read on the CPU, and would be a synchronization elsewhere."""
    if not free_to_read(cover):
        return
    if not cover[valid].isfinite().all():
        checks.fail(OP, "cover", "finite", "NaN or infinity among it", "check what it is made of")
    if valid.shape[0] and (fewest := int(valid.sum(1).min())) < count:
        checks.fail(OP, "count", f"at most {fewest}, the real tokens of every row", count, "lower it")


def specification(cover: Tensor, count: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Indices (B, T) in the order of picking and the gain (B, T) of each pick, T = ``count``.

    With m_i the largest of ``cover``_ji over the tokens j picked so far, or 0, the next token is the one with the
    largest sum over things i of max(0, ``cover``_ji - m_i), the lowest index of equal ones. Tokens that ``mask`` (B, N)
    hides are not there. A thing that counts w times has its column times w.
    """
    _check(cover, count, mask)
    b, n, things = cover.shape
    amount = accumulate(cover)
    free = torch.ones(b, n, dtype=torch.bool, device=cover.device) if mask is None else mask.clone()
    _check_values(amount, count, free)
    order = torch.zeros(b, count, dtype=torch.int64, device=cover.device)
    gains, covered = amount.new_zeros(b, count), amount.new_zeros(b, 1, things)
    for step in range(count):
        gain = (amount - covered).clamp_min(0).sum(2)
        best = gain.masked_fill(~free, float("-inf")).argmax(1, keepdim=True)  # of equal ones the first
        order[:, step : step + 1], gains[:, step : step + 1] = best, gain.gather(1, best)
        free = free.scatter(1, best, False)
        covered = torch.maximum(covered, rows(amount, best))
    return order, gains


define("greedy_cover", "(Tensor cover, SymInt count, Tensor? mask) -> (Tensor, Tensor)", specification)


@fake("greedy_cover")
def _(cover, count, mask):
    _check(cover, count, mask)
    order = cover.new_empty(cover.shape[0], count, dtype=torch.int64)
    return order, cover.new_empty(cover.shape[0], count, dtype=result_dtype(cover))


def greedy_cover(cover: Tensor, count: int, *, mask: Tensor | None = None) -> Picked:
    """Pick ``count`` tokens one by one, each the one that covers most of what those before leave uncovered.

    Args:
        cover: (B, N, R), by how much each of N tokens covers each of R things; any finite numbers, of which those below
            0 cover nothing. float32, float16 or bfloat16 (float64: by the specification); any strides. A copy is made
            unless it is float32 with a contiguous last dimension.
        count: tokens to pick, 0 <= count <= N. A first part of the picks is what a smaller ``count`` would pick.
        mask: (B, N) bool, False for a token that is not there, such as padding. Every row has at least ``count``
            others: checked on the CPU, a promise elsewhere.

    Returns:
        order (B, count) int64, distinct indices in the order of picking (``order.sort(1).values`` is ascending); gains
        (B, count) float32, what each added.

    Raises:
        ValueError: a shape or count that does not fit; on the CPU also a cover that is not finite. TypeError: a wrong
            dtype.

    Ties: the lowest index. Deterministic. Cost an image: ``cover`` is 4 N R bytes, read once for the first pick (2 N R
    FLOPs), and for each further pick at most again (nearly always a few of its N rows). Source: MMTok, arXiv
    2508.18264.

    Example:
        >>> import torch
        >>> from ficoco_ext.ops import greedy_cover
        >>> cover = torch.tensor([[[.9, .1, .0], [.8, .1, .1], [.0, .2, .5]]])
        >>> greedy_cover(cover, 2).order
        tensor([[0, 2]])
    """
    return Picked(*operator("greedy_cover", cover)(cover, count, mask))
