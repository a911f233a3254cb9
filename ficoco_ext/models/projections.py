"""What a reduction after the projector did: to each picture, and to what an encoder returned."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reduction import Reduction
from .key_sets import Looked
from .layouts import Layout
from .modalities import Encoded, Modality


class Projection(NamedTuple):
    """What was kept of one picture, or of one video.

    Attributes:
        modality: its kind, ``"image"`` or ``"video"``.
        before: its visual tokens before.
        kept: (T,) int64, ascending: those that stayed, indices into the tokens that the model has of it without
            reduction, ends of lines included.
        grid: (rows, columns) of its tokens, if they are a whole grid.
        reduction: what the method after the projector did, without tokens, to this picture and those that were reduced
            with it, in indices of the tokens that it got: those that the tower left, without line ends. None: nothing
            left there. item: which of its batch this picture is.
    """

    modality: str
    before: int
    kept: Tensor
    grid: tuple[int, int] | None
    reduction: Reduction | None = None
    item: int = 0


class Reduced(NamedTuple):
    """What an encoder returned, reduced.

    Attributes:
        pixels: what was encoded. output: in the model's own form.
        projections: what became of each picture.
        full, made: the features before and after; None where the caller passed reduced ones.
        looked: with key sets, how much each token of the features before is looked at.
    """

    pixels: Any
    output: Any
    projections: tuple[Projection, ...]
    full: Encoded | None = None
    made: Encoded | None = None
    looked: tuple[Looked, ...] | None = None

    @property
    def counts(self) -> tuple[int, ...]:
        """Visual tokens of each picture before."""
        return tuple(one.before for one in self.projections)

    @property
    def removed(self) -> int:
        """Visual tokens that left."""
        return sum(one.before - len(one.kept) for one in self.projections)


def projection(
    modality: Modality, before: int, kept: Tensor, layout: Layout, step: Reduction | None, item: int
) -> Projection:
    """With the tokens that the model itself adds after the features, which stay."""
    after = before + layout.appended
    if layout.appended:
        kept = torch.cat([kept, torch.arange(before, after, device=kept.device)])
    return Projection(modality.name, after, kept, layout.grid, step, item)
