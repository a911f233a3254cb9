"""Two reductions of one model: one in its vision tower, one in its language model."""

from __future__ import annotations

from typing import Any

from ..stages.frozen import value
from .base import AnyMethod, LanguageMethod, TowerMethod


@value
class VisionAndDecoder(AnyMethod):
    """Two reductions of one model: one in its vision tower, one in its language model.

    Args:
        vision, decoder: the two methods. How much each removes unless ``amount`` says so is not taken from them.
        amount: what attach and cost take for ``keep_ratio`` or ``tokens`` of both together where they are given none.

    Example:
        >>> from ficoco_ext.methods import VisionAndDecoder
        >>> from ficoco_ext import get_method
        >>> both = VisionAndDecoder(get_method("topk"), get_method("fastv"))
    """

    vision: TowerMethod
    decoder: LanguageMethod
    amount: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:  # type: ignore[override]
        """The names of both."""
        return f"{self.vision.name} + {self.decoder.name}"

    @property
    def source(self) -> str:
        """Where both come from."""
        return "; ".join(dict.fromkeys((self.vision.source, self.decoder.source)))

    @property
    def members(self) -> tuple[AnyMethod, ...]:
        """Those of both."""
        return *self.vision.members, *self.decoder.members

    @property
    def tower(self) -> TowerMethod:
        """The method of the vision tower."""
        return self.vision

    @property
    def language_model(self) -> LanguageMethod:
        """The method of the language model."""
        return self.decoder
