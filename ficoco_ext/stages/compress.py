"""Compress: sources merge into their targets (FiCoCo, arXiv 2411.17686, eq. 2; ToMe, arXiv 2210.09461)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import ops
from ..ops import costs
from .base import CompressStage, Links, Selection
from .frozen import value
from .shape import Priced, Shape


@value
class Compress(CompressStage):
    """Merges sources into targets, all at once, into weighted means.

    Args:
        size_weighted: a token counts as many times as the original tokens it stands for (ToMe). False: every token
            counts once in each reduction (FiCoCo).
    """

    size_weighted: bool = False

    def describe(self) -> str:
        """How sources are merged."""
        return "mean weighted by size" if self.size_weighted else "mean, a target counting once"

    def operations(self, shape: Shape) -> list[Priced]:
        """Every source goes into its targets."""
        return [shape.price(costs.COMPRESS)]

    def fused(self) -> dict[str, Any]:
        """Its one field."""
        return {"size_weighted": self.size_weighted}

    def fused_in_sequence(self) -> dict[str, Any]:
        """The same."""
        return self.fused()

    def __call__(
        self, tokens: Tensor, selection: Selection, links: Links, *, size: Tensor | None, size_weighted: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, M, C), size (B, M, 1) and source_map (B, N); ``size_weighted`` adds to the stage's own choice."""
        return ops.compress(
            tokens,
            selection.sources,
            selection.kept,
            links.targets,
            links.weights,
            size=size,
            size_weighted=self.size_weighted or size_weighted,
        )
