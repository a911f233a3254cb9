"""A filter of projected features: what it is given, and what it hands on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from .base import Stage, _Plain


class VisualFeatures(NamedTuple):
    """What the vision tower and the projector made of B pictures.

    Attributes:
        features: (B, N, D) projected features, in the order in which the language model reads them.
        mask: (B, N) bool, False for a token that is not there, such as padding, or that may never be picked. None: all
            are real. What a hidden token holds has no influence on what is picked.
        grid: (rows, columns) of the tokens of every picture; None: unknown, or not a whole grid.
        saliency: (B, N), finite and at least 0: how much the vision tower looks at each token.
        text: (B, L, D) embeddings of the words of each picture's prompt.
        text_mask: (B, L) bool, False for a word that is not there. None: all are.
    """

    features: Tensor
    mask: Tensor | None = None
    grid: tuple[int, int] | None = None
    saliency: Tensor | None = None
    text: Tensor | None = None
    text_mask: Tensor | None = None


class SelectStage(Stage):
    """Chooses which of the projected features stay.

    It is called as ``select(visual, count)`` and returns (B, ``count``) int64: ascending, distinct indices of tokens
    that ``visual.mask`` does not hide. Each picture is on its own: what another one of the batch holds, or how it is
    padded, changes nothing. 1 <= ``count`` <= N, a number of the host.
    """

    role: ClassVar[str] = "select"


class _PlainSelect(_Plain, SelectStage):
    pass


SelectStage.plain = _PlainSelect

Select = Callable[[VisualFeatures, int], Any]
