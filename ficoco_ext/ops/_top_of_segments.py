"""``ficoco::top_of_segments``: of every segment of the tokens, such as a crop, the largest scores, as many as it keeps.

GlobalCom2 (arXiv 2501.05179) gives each crop of a picture its own number of tokens, known on the device alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks
from .attention import accumulate
from .library import define, fake, operator
from .values import free_to_read

OP = "top_of_segments"


def _check(scores: Tensor, segments: Tensor, counts: Tensor, total: int) -> None:
    checks.floating(OP, "scores", scores)
    checks.shape(OP, "scores", scores, "(B, N)", scores.dim() == 2, "pass one score a token")
    b, n = scores.shape
    for name, tensor, wanted, ok in (
        ("segments", segments, f"({n},) or ({b}, {n})", tuple(segments.shape) in ((n,), (b, n))),
        ("counts", counts, f"({b}, G)", counts.dim() == 2 and counts.shape[0] == b),
    ):
        remedy = "the segment of each token" if name == "segments" else "how many tokens stay of each segment"
        if tensor.dtype != torch.int64:
            checks.fail(OP, name, f"{wanted} int64", tensor, f"pass {remedy}", TypeError)
        checks.shape(OP, name, tensor, f"{wanted} int64", ok, f"pass {remedy}")
    checks.same_device(OP, "scores", scores, segments=segments, counts=counts)
    if not 0 <= total <= n:
        checks.fail(OP, "total", f"in [0, {n}], the number of tokens", total, "pass the sum of counts")
    if n > checks.MAX_SEQUENCE or counts.shape[1] > checks.MAX_SEQUENCE:
        checks.fail(OP, "scores", f"of at most {checks.MAX_SEQUENCE} tokens and segments", scores, "split them")


def _check_values(scores: Tensor, segments: Tensor, counts: Tensor, total: int) -> None:
    """What costs nothing to read on the CPU, and would be a synchronization elsewhere."""
    if not free_to_read(scores):
        return
    b, n = scores.shape
    groups = counts.shape[1]
    if segments.numel() and not ((segments >= 0) & (segments < groups)).all():
        checks.fail(OP, "segments", f"in [0, {groups})", "others", "counts has a column for each segment")
    if scores.isnan().any():
        checks.fail(OP, "scores", "numbers", "NaN among them", "check what they are made of")
    sizes = _sizes(segments.expand(b, n), groups)
    if not ((counts >= 0) & (counts <= sizes)).all():
        checks.fail(OP, "counts", "in [0, the tokens of the segment]", "others", "lower what is too much")
    if not (counts.sum(1) == total).all():
        checks.fail(OP, "total", "the sum of counts in every row", total, "pass that sum")


def _sizes(segments: Tensor, groups: int) -> Tensor:
    """(B, G) how many tokens each segment has."""
    return segments.new_zeros(segments.shape[0], groups).scatter_add(1, segments, torch.ones_like(segments))


def specification(scores: Tensor, segments: Tensor, counts: Tensor, total: int) -> Tensor:
    """(B, T) ascending: of every segment g the ``counts`` (B, G) tokens of largest ``scores`` (B, N), T = ``total``.

    ``segments``, (N,) for all rows or (B, N), says which segment has a token. Equal scores: the lowest index. Should
    ``counts`` choose fewer than ``total``, the first of the other tokens come after them; should they choose more, the
    first ``total`` stay.
    """
    _check(scores, segments, counts, total)
    _check_values(scores, segments, counts, total)
    b, n = scores.shape
    segments = segments.expand(b, n)
    falling = accumulate(scores).sort(dim=1, descending=True, stable=True).indices
    segment, order = segments.gather(1, falling).sort(dim=1, stable=True)
    order = falling.gather(1, order)  # segment after segment, in each of them by falling score
    sizes = _sizes(segments, counts.shape[1])
    rank = torch.arange(n, device=scores.device) - (sizes.cumsum(1) - sizes).gather(1, segment)
    leaves = torch.ones(b, n, dtype=torch.uint8, device=scores.device)
    leaves = leaves.scatter(1, order, (rank >= counts.gather(1, segment)).to(torch.uint8))
    return leaves.sort(dim=1, stable=True).indices[:, :total].contiguous()


define(
    "top_of_segments",
    "(Tensor scores, Tensor segments, Tensor counts, SymInt total) -> Tensor",
    specification,
)


@fake("top_of_segments")
def _(scores, segments, counts, total):
    _check(scores, segments, counts, total)
    return scores.new_empty(scores.shape[0], total, dtype=torch.int64)


def top_of_segments(scores: Tensor, segments: Tensor, counts: Tensor, total: int) -> Tensor:
    """Of every segment the tokens of largest score, as many as ``counts`` says, together and ascending.

    How many tokens stay of a segment may be known on the device alone; how many stay in all is known on the host, so
    nothing is read from the device.

    Args:
        scores: (B, N), any floating dtype; larger stays. Infinity is a score, NaN is none.
        segments: (N,) for all rows, or (B, N); int64 in [0, G), the segment of each token, in any order.
        counts: (B, G) int64, how many tokens stay of each segment, on the device of ``scores``.
        total: the sum of ``counts`` in every row.

    Returns:
        (B, total) int64, ascending.

    Raises:
        ValueError: a shape or ``total`` that does not fit; on the CPU also a segment out of range, a score that is NaN,
            more tokens of a segment than it has, counts with another sum. Elsewhere those are promises: what stays is
            then still ``total`` distinct tokens. TypeError: a wrong dtype.

    Ties: the lowest index. Deterministic. Cost an image: its scores and segments, read once; on a GPU N comparisons a
    token. Source: GlobalCom2, arXiv 2501.05179.

    Example:
        >>> import torch
        >>> from ficoco_ext.ops import top_of_segments
        >>> scores = torch.tensor([[.1, .9, .3, .8, .7]])
        >>> top_of_segments(scores, torch.tensor([0, 0, 0, 1, 1]), torch.tensor([[2, 1]]), 3)
        tensor([[1, 2, 3]])
    """
    return operator("top_of_segments", scores)(scores, segments, counts, total)
