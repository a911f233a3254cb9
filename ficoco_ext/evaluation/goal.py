"""What all methods of a table have in common, where an amount alone does not make them comparable."""

from __future__ import annotations

import math
from dataclasses import dataclass

EQUAL = ("final", "average", "flops")
WHERE = {
    "average": "mean tokens T: every method is given the amount with which T visual tokens enter the attention of a "
    "layer of the language model, in the mean over its layers: T enter it where tower or projector reduces, more enter "
    "and fewer leave where the language model does. A smaller picture is the largest whose grid fits: it may have "
    "fewer.",
    "flops": "FLOPs of T tokens: every method is given the amount with which one prefill, tower, language model and "
    "selection together, costs what it costs with T tokens after the projector if choosing them is free. A smaller "
    "picture is the largest whose grid fits: it may cost less.",
}


@dataclass(frozen=True)
class Goal:
    """What the methods of a table are made equal in, see :data:`WHERE`.

    Attributes:
        equal: ``"average"`` or ``"flops"``.
        tokens: the T of both; or
        keep_ratio: T / all visual tokens of a picture, in (0, 1].

    Raises:
        ValueError: an unknown ``equal``.

    Example:
        >>> from ficoco_ext.evaluation import Goal
        >>> Goal("average", tokens=36).budget, Goal("flops", keep_ratio=0.25).of(144).budget
        ('mean tokens 36', 'FLOPs of 36 tokens')
    """

    equal: str
    tokens: int | None = None
    keep_ratio: float | None = None

    def __post_init__(self) -> None:
        if self.equal not in WHERE:
            raise ValueError(f"Goal: equal must be one of {', '.join(WHERE)}, got {self.equal!r}")

    @property
    def budget(self) -> str:
        """In words."""
        if self.equal == "average":
            return f"mean tokens {self._count}"
        return f"FLOPs of {self._count}" + ("" if self.tokens is None else " tokens")

    @property
    def _count(self) -> str:
        return f"keep_ratio {self.keep_ratio:g}" if self.tokens is None else str(self.tokens)

    def of(self, visual: int) -> Goal:
        """With a number of tokens, of a picture with ``visual`` ones; a ratio is rounded half up, to at least 1.

        Raises:
            ValueError: as many tokens as the picture has, or more: there is nothing to remove.
        """
        count = self.tokens
        if count is None:
            assert self.keep_ratio is not None
            count = max(math.floor(self.keep_ratio * visual + 0.5), 1)
        if count >= visual:
            raise ValueError(f"{self.budget}: tokens must be below the {visual} visual ones of a picture, got {count}")
        return Goal(self.equal, count)
