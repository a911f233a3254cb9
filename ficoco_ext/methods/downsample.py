"""Smaller pictures: the baseline that a method has to beat (VTC-Bench, ACL 2026)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, NoReturn

from torch import Tensor

from ..ops import checks
from ..stages import Priced, Shape, VisualFeatures
from ..stages.frozen import require_number, value
from ..stages.needs import WHOLE_GRID
from .base import FeatureMethod, Projected, Words
from .registry import register


@value
class Downsample(FeatureMethod):
    """Pictures are resized before the vision tower, so that it gives as few tokens as are to be left.

    Args:
        stretch: the most by which the sides of a picture may change in proportion, at least 1.

    Raises:
        ValueError: a stretch below 1.

    Example:
        >>> from ficoco_ext import get_method
        >>> get_method("downsample").encoded_grid((24, 24), 192), get_method("downsample").encoded_grid((24, 24), 128)
        ((12, 16), (11, 11))
    """

    stretch: float = 4 / 3

    resizes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_number("downsample", "stretch", self.stretch, 1, math.inf)

    @property
    def name(self) -> str:  # type: ignore[override]
        """``"downsample"``."""
        return "downsample"

    @property
    def source(self) -> str:
        """Where it comes from."""
        return "a baseline: no method (VTC-Bench shows that it beats many)"

    @property
    def needs(self) -> tuple[str, ...]:
        """A grid to resize to."""
        return (WHOLE_GRID,)

    def describe(self) -> Words:
        """What becomes of a picture."""
        return Words("detail: the picture is resized before the vision tower", "none", "none")

    def operations(self, shape: Shape) -> list[Priced]:
        """None: the resize is a few operations a pixel; the vision tower saves, and cost counts that there."""
        return []

    def encoded_grid(self, grid: tuple[int, int], count: int) -> tuple[int, int]:
        """The largest (rows, columns) of at most ``count`` cells whose proportion is near that of ``grid``.

        Of grids with equally many cells the one nearest in proportion, then the one of fewer rows.
        """
        rows, columns = grid

        def stretched(one: tuple[int, int]) -> float:
            return round(abs(math.log(one[0] / rows * columns / one[1])), 9)  # equal ones are equal

        sides = range(1, min(rows, count) + 1)
        every = [(r, min(count // r, columns)) for r in sides]
        most = [(r, min(c, math.floor(self.stretch * r * columns / rows + 1e-9))) for r, c in every]
        near = [one for one in most if one[1] and stretched(one) <= math.log(self.stretch) + 1e-9]
        return max(near or every, key=lambda one: (one[0] * one[1], -stretched(one), -one[0]))

    def keep(self, visual: VisualFeatures, count: int) -> NoReturn:
        """Not from features.

        Raises:
            ValueError: always.
        """
        wanted = "a method that chooses among features"
        checks.fail("downsample", "method", wanted, "downsample, which resizes pictures", "attach it, or use 'stride'")

    def __call__(self, visual: VisualFeatures, count: int, planes: Sequence[Tensor] = ()) -> Projected:
        """As :meth:`keep`."""
        self.keep(visual, count)


@register("downsample", rank=170)
def downsample(*, stretch: float = 4 / 3) -> Downsample:
    """Resize every picture before the vision tower, so that fewer tokens come out: a baseline that beats many methods.

    The tower reads the smaller picture with interpolated positions, and saves time too. ``tokens`` and ``keep_ratio``
    are upper bounds: the largest grid with no more cells is taken whose proportion fits, 12 x 16 for 192 of 24 x 24,
    but 11 x 11 for 128. Each token has the position of the patch in its middle.

    Args:
        stretch: the most by which the sides of a picture may change in proportion, at least 1.

    Raises:
        ValueError: a stretch below 1.

    Models whose processor sizes pictures (Qwen-VL, GLM-V, LLaVA-NeXT, InternVL, ...) are refused: give their processor
    fewer pixels instead, such as ``max_pixels`` of Qwen-VL.
    """
    return Downsample(stretch)
