"""A filter that keeps what differs: patches picked one by one, each for what it adds to those picked before."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import ops
from ..ops import Attention, QueryKey, costs
from ..ops._greedy_select import OBJECTIVES
from . import needs
from .base import FilterStage, Selection
from .frozen import require_number, require_one_of, value
from .shape import Priced, Shape

_WORDS = {
    "max-min": "are nearest to those that stay",
    "coverage": "cover least that those that stay do not",
    "log-det": "add least to the determinant of those that stay",
    "mmr": "are like those that stay, or get little class attention",
}


@value
class GreedyFilter(FilterStage):
    """Names the r patches that :func:`ficoco_ext.ops.greedy_select` does not pick, by the keys' means over heads.

    Redundancy is the turn at which a patch was picked as a share of all patches, and 1 for those that leave.

    Args:
        objective: ``"max-min"``, ``"coverage"``, ``"log-det"`` or ``"mmr"``.
        weigh: the power of class attention by which a patch counts; 0: all alike. ``"mmr"`` needs one above 0.
        trade: of ``"mmr"``, in [0, 1]: 1 is class attention alone, 0 similarity alone.
    """

    objective: str = "max-min"
    weigh: float = 0.0
    trade: float = 0.5

    def __post_init__(self) -> None:
        require_one_of("GreedyFilter", "objective", self.objective, OBJECTIVES)
        least = math.ulp(0.0) if self.objective == "mmr" else 0
        require_number("GreedyFilter", "weigh", self.weigh, least, math.inf)
        require_number("GreedyFilter", "trade", self.trade, 0, 1)

    @property
    def needs(self) -> tuple[str, ...]:
        """Keys to compare, and a class token to weigh by."""
        return (needs.QUERY_AND_KEY, needs.CLASS_TOKEN_OR_KEYS) if self.weigh else (needs.QUERY_AND_KEY,)

    def describe(self) -> str:
        """What leaves."""
        weighed = f", by class attention to the power of {self.weigh:g}" if self.weigh else ""
        return f"patches whose keys {_WORDS[self.objective]}{weighed}"

    def operations(self, shape: Shape) -> list[Priced]:
        """The picks, and the class attention that weighs them."""
        picks = costs.greedy_select(self.objective)
        priced = [shape.price(picks, n=shape.visual, h=shape.head_dim, m=shape.kept)]
        if not self.weigh:
            return priced
        return [shape.price(costs.attention_stats(probs=True, patches=False)), *priced]

    def __call__(
        self, attn: Attention, r: int, *, class_token: bool, ids: Tensor | None, grid: tuple[int, int] | None
    ) -> Selection:
        """Select r sources among the patches that are left, wherever they are."""
        if not isinstance(attn, QueryKey):
            raise ValueError(
                "GreedyFilter: picking compares keys, and a map holds none; pass attn=QueryKey(query, key)"
            )
        features = attn.key.detach().mean(1)[:, int(class_token) :]
        b, patches, _ = features.shape
        seen = self._class_attention(attn, class_token) if self.weigh else None
        saliency = None if seen is None else self._saliency(seen)
        picked = ops.greedy_select(
            features, patches - r, objective=self.objective, saliency=saliency, trade=self.trade
        ).order
        turns = torch.arange(patches - r, device=picked.device, dtype=torch.float32) / max(patches, 1)
        redundancy = torch.ones(b, patches, device=picked.device).scatter(1, picked, turns.expand(b, -1))
        chosen = ops.filter(redundancy, redundancy, r, lam=1.0, class_token=class_token)
        return Selection(*chosen, class_attention=seen if class_token else None)

    def _class_attention(self, attn: QueryKey, class_token: bool) -> Tensor:
        """(B, P) probabilities; without a class token, the scores that take their place, from 0 on."""
        seen, _ = ops.attention_stats(
            QueryKey(attn.query.detach(), attn.key.detach(), attn.scale),
            class_token=class_token,
            probs=True,
            column=False,
            patches=False,
        )
        return seen if class_token else seen - seen.amin(1, keepdim=True)

    def _saliency(self, seen: Tensor) -> Tensor:
        """(B, P) relative to the largest, so that no power vanishes; where all are 0 all count alike."""
        largest = seen.amax(1, keepdim=True)
        return torch.where(largest > 0, seen / largest.clamp_min(torch.finfo(seen.dtype).tiny), 1.0) ** self.weigh
