"""Salient tokens of an early layer with what lies around them, then salient ones of a late layer (HiPrune)."""

from __future__ import annotations

import torch
from torch import Tensor

from . import needs
from .features import SelectStage, VisualFeatures
from .frozen import require_number, value
from .select import required_saliency
from .shape import Priced, Shape


@value
class AnchorSelect(SelectStage):
    """Keeps anchors, their neighbours, and salient tokens until there are enough.

    Of T tokens round(T alpha / 5) are anchors, those of highest early saliency (half a token goes to the even number).
    Buffers are the neighbours of anchors above, below, left and right, within the grid, and within the frame of a
    video; without a grid those before and after, among the tokens that are there. Then those of highest saliency
    follow. Anchors and buffers that are more than T lose buffers, those of least early saliency. Among equals the
    lowest index comes first.

    Args:
        alpha: about the share of T that anchors and buffers take, in [0, 5]. 0: saliency alone decides. At 5 all are
            anchors.
    """

    alpha: float = 0.1

    def __post_init__(self) -> None:
        require_number("AnchorSelect", "alpha", self.alpha, 0, 5)

    @property
    def needs(self) -> tuple[str, ...]:
        """Saliency, and that of an early layer if there can be anchors."""
        return (needs.SALIENCY, needs.EARLY_SALIENCY) if self.alpha else (needs.SALIENCY,)

    def describe(self) -> str:
        """What leaves."""
        around = ", except around those of most early saliency" if self.alpha else ""
        return f"features of least saliency{around}"

    def operations(self, shape: Shape) -> list[Priced]:
        """None: sorts of saliency."""
        return []

    def __call__(self, visual: VisualFeatures, count: int) -> Tensor:
        """(B, ``count``) indices of the tokens that stay, ascending."""
        saliency = required_saliency(self.title, visual)
        real = torch.ones_like(saliency, dtype=torch.bool) if visual.mask is None else visual.mask
        score, tier = saliency.masked_fill(~real, 0), real.to(torch.int8)
        anchors = round(count * self.alpha / 5)
        if anchors:
            early = required_saliency(self.title, visual, "early_saliency")
            best = early.masked_fill(~real, -1.0).sort(dim=1, descending=True, stable=True).indices[:, :anchors]
            anchor = torch.zeros_like(real).scatter(1, best, True)
            buffer = _around(anchor, visual, real) & real & ~anchor
            tier = tier + buffer.to(torch.int8) + 2 * anchor.to(torch.int8)
            score = torch.where(buffer, early.to(score.dtype), score)
        order = score.sort(dim=1, descending=True, stable=True).indices
        by_tier = tier.gather(1, order).sort(dim=1, descending=True, stable=True).indices
        return order.gather(1, by_tier[:, :count]).sort(dim=1).values


def _around(marked: Tensor, visual: VisualFeatures, real: Tensor) -> Tensor:
    """(B, N) bool: what lies above, below, left or right of a marked token of the same frame, not across an edge.

    Without a grid, before or after it among the ``real`` tokens of its frame.
    """
    (b, n), frames = marked.shape, visual.frames
    if visual.grid is None:
        order = (~real).view(b, frames, n // frames).to(torch.uint8).sort(dim=2, stable=True).indices  # real ones first
        line = marked.view_as(order).gather(2, order)
        beside = torch.zeros_like(line)
        beside[..., 1:] |= line[..., :-1]
        beside[..., :-1] |= line[..., 1:]
        return torch.zeros_like(beside).scatter(2, order, beside).view(b, n)
    if visual.grid[0] % frames:
        raise ValueError(
            f"AnchorSelect: grid must have equally many rows for each of {frames} frames, got {visual.grid}; pass that "
            "of all frames, one below the other"
        )
    grid = marked.view(b, frames, visual.grid[0] // frames, visual.grid[1])
    found = torch.zeros_like(grid)
    found[:, :, 1:] |= grid[:, :, :-1]
    found[:, :, :-1] |= grid[:, :, 1:]
    found[..., 1:] |= grid[..., :-1]
    found[..., :-1] |= grid[..., 1:]
    return found.view(b, n)
