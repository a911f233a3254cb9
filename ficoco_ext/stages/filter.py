"""Filter: which patches of a tower leave, by attention (FiCoCo, arXiv 2411.17686, eq. 1)."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from .. import ops
from ..ops import Attention, QueryKey, costs
from . import needs
from .base import FilterStage, Selection
from .frozen import reject, require_number, require_one_of, value
from .shape import Priced, Shape


@value
class Filter(FilterStage):
    """Names the r most redundant patches: lam * patch attention - (1 - lam) * class attention, and a local penalty.

    Args:
        lam: weight of patch attention in [0, 1]; 1 ignores the class token, 0 is pruning by class attention.
        attention: ``"logits"`` or ``"probs"``: what a QueryKey is turned into, and what the values of a map are.
        redundancy: ``"row"`` (what a patch gives) or ``"column"`` (what it receives).
        normalize: scale both terms to unit L2 norm over the patches.
        penalty: factor >= 1 for the highest score of each window; 1 is off.
        window: side of the windows on the original grid.
    """

    lam: float = 0.65
    attention: str = "logits"
    redundancy: str = "row"
    normalize: bool = True
    penalty: float = 2.0
    window: int = 2

    def __post_init__(self) -> None:
        require_number("Filter", "lam", self.lam, 0, 1)
        require_one_of("Filter", "attention", self.attention, ("logits", "probs"))
        require_one_of("Filter", "redundancy", self.redundancy, ("row", "column"))
        require_one_of("Filter", "normalize", self.normalize, (True, False))
        require_number("Filter", "penalty", self.penalty, 1, math.inf)
        if isinstance(self.window, bool) or not isinstance(self.window, int) or self.window < 1:
            reject("Filter", "window", "an integer >= 1", self.window)

    @property
    def needs(self) -> tuple[str, ...]:
        """A class token for its attention, the grid for the penalty."""
        found = (needs.CLASS_TOKEN_OR_KEYS,) if self.lam < 1 else ()
        return found if self.penalty == 1 else (*found, needs.GRID)

    @property
    def reads(self) -> str:
        """The kind of attention."""
        return self.attention

    def describe(self) -> str:
        """What makes a patch redundant."""
        penalty = "" if self.penalty == 1 else f", local penalty in windows of {self.window} x {self.window}"
        if self.lam == 0:
            return f"least class attention ({self.attention}){penalty}"
        what = "a patch gives" if self.redundancy == "row" else "it receives"
        less = "" if self.lam == 1 else f", less {1 - self.lam:g} of class attention"
        return f"{self.lam:g} of what attention {what} ({self.attention}){less}{penalty}"

    def remedy(self, need: str) -> str:
        """Which term to leave out."""
        return "pass penalty=1" if need == needs.GRID else "pass lam=1, which ignores the class token"

    def operations(self, shape: Shape) -> list[Priced]:
        """Attention statistics."""
        return [shape.price(costs.attention_stats(probs=self.attention == "probs", patches=self.lam != 0))]

    def fused(self) -> dict[str, Any]:
        """All of its fields."""
        return {
            "lam": self.lam,
            "probs": self.attention == "probs",
            "column": self.redundancy == "column",
            "normalize": self.normalize,
            "penalty": self.penalty,
            "window": self.window,
        }

    def check(self, attn: Attention, *, class_token: bool, grid: tuple[int, int] | None) -> None:
        """Raise if this attention lacks what the scores need."""
        if not class_token and self.lam < 1 and not isinstance(attn, QueryKey):
            raise ValueError(
                "Filter: without a class token its row is replaced by the keys' cosine to their mean, and a map "
                "holds no keys; pass attn=QueryKey(query, key), or class_attention=False to do without the term"
            )
        if self.penalty != 1 and grid is None:
            raise ValueError(
                "Filter: the local penalty needs the patches' grid, and their number is not a square; pass "
                "grid=(height, width), or penalty=1 to switch it off"
            )

    def __call__(
        self, attn: Attention, r: int, *, class_token: bool, ids: Tensor | None, grid: tuple[int, int] | None
    ) -> Selection:
        """Select r sources. ``ids`` (B, P) and ``grid`` locate the patches; ``ids`` None means all of the grid."""
        self.check(attn, class_token=class_token, grid=grid)
        class_attention, patch_attention = ops.attention_stats(
            attn,
            class_token=class_token,
            probs=self.attention == "probs",
            column=self.redundancy == "column",
            patches=self.lam != 0,
        )
        chosen = ops.filter(
            patch_attention,
            class_attention,
            r,
            lam=self.lam,
            normalize=self.normalize,
            penalty=self.penalty,
            window=self.window,
            ids=ids,
            grid=grid,
            class_token=class_token,
        )
        read = class_token and self.lam < 1 and self.attention == "probs"
        return Selection(*chosen, class_attention=class_attention if read else None)
