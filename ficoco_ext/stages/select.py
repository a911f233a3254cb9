"""Selects of projected features: which tokens of a picture stay, without a look at any attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import ops
from ..ops import costs
from ..ops._greedy_select import OBJECTIVES
from . import needs
from .features import SelectStage, VisualFeatures
from .frozen import require_number, require_one_of, value
from .positional import hashed, require_seed
from .shape import Priced, Shape

_WORDS = {
    "max-min": "nearest to those that stay",
    "coverage": "that cover least that those that stay do not",
    "log-det": "that add least to the determinant of those that stay",
    "mmr": "like those that stay, or of little saliency",
}


@value
class GreedySelect(SelectStage):
    """Keeps what :func:`ficoco_ext.ops.greedy_select` picks: one token after the other, each the one that adds most.

    The picks of a smaller number are a part of those of a larger one.

    Args:
        objective: ``"max-min"``, ``"coverage"``, ``"log-det"`` or ``"mmr"``.
        weigh: the power of saliency by which a token counts; 0: all alike. ``"mmr"`` needs one above 0. The unit of
            saliency has no influence; where all of it is 0 all tokens count alike.
        trade: of ``"mmr"``, in [0, 1]: 1 is saliency alone, 0 similarity alone.
    """

    objective: str = "max-min"
    weigh: float = 0.0
    trade: float = 0.5

    def __post_init__(self) -> None:
        require_one_of("GreedySelect", "objective", self.objective, OBJECTIVES)
        least = math.ulp(0.0) if self.objective == "mmr" else 0
        require_number("GreedySelect", "weigh", self.weigh, least, math.inf)
        require_number("GreedySelect", "trade", self.trade, 0, 1)

    @property
    def needs(self) -> tuple[str, ...]:
        """Saliency, to weigh by."""
        return (needs.SALIENCY,) if self.weigh else ()

    def describe(self) -> str:
        """What leaves."""
        weighed = f", by saliency to the power of {self.weigh:g}" if self.weigh else ""
        return f"features {_WORDS[self.objective]}{weighed}"

    def operations(self, shape: Shape) -> list[Priced]:
        """The picks."""
        return [shape.price(costs.greedy_select(self.objective), n=shape.visual, h=shape.channels, m=shape.kept)]

    def __call__(self, visual: VisualFeatures, count: int) -> Tensor:
        """(B, ``count``) indices of the tokens that stay, ascending."""
        saliency = relative(required_saliency(self.title, visual), visual.mask) ** self.weigh if self.weigh else None
        picked = ops.greedy_select(
            visual.features.detach(),
            count,
            objective=self.objective,
            saliency=saliency,
            mask=visual.mask,
            trade=self.trade,
        )
        return picked.order.sort(1).values


@value
class SaliencySelect(SelectStage):
    """Keeps the tokens of highest saliency, of equal ones those of the lowest index.

    Those of a smaller number are a part of those of a larger one.
    """

    @property
    def needs(self) -> tuple[str, ...]:
        """Saliency."""
        return (needs.SALIENCY,)

    def describe(self) -> str:
        """What leaves."""
        return "features of least saliency"

    def operations(self, shape: Shape) -> list[Priced]:
        """None: a sort of saliency."""
        return []

    def __call__(self, visual: VisualFeatures, count: int) -> Tensor:
        """(B, ``count``) indices of the tokens that stay, ascending."""
        saliency = required_saliency(self.title, visual)
        if visual.mask is not None:
            saliency = saliency.masked_fill(~visual.mask, -1.0)
        return saliency.sort(dim=1, descending=True, stable=True).indices[:, :count].sort(1).values


@value
class RandomSelect(SelectStage):
    """Keeps tokens by a hash of the seed and their index among the real ones.

    All pictures with the same number of tokens keep the same ones, which are those that
    :class:`ficoco_ext.stages.RandomFilter` keeps with this seed; so do all batches, devices and runs. Those of a
    smaller number are a part of those of a larger one.

    Args:
        seed: an integer in [0, 2**32).
    """

    seed: int = 0

    def __post_init__(self) -> None:
        require_seed("RandomSelect", self.seed)

    def describe(self) -> str:
        """What it hashes."""
        return f"a hash of the position and seed {self.seed}"

    def operations(self, shape: Shape) -> list[Priced]:
        """None: positions are arithmetic on indices."""
        return []

    def __call__(self, visual: VisualFeatures, count: int) -> Tensor:
        """(B, ``count``) indices of the tokens that stay, ascending."""
        b, n, _ = visual.features.shape
        if visual.mask is None:
            score = hashed(torch.arange(n, device=visual.features.device).expand(b, -1), self.seed)
        else:
            score = hashed(visual.mask.cumsum(1) - 1, self.seed).masked_fill(~visual.mask, 2.0**24)  # above all hashes
        falling = score.sort(dim=1, descending=True, stable=True).indices  # by torch, for videos of any length
        return falling[:, n - count :].sort(1).values


@value
class StrideSelect(SelectStage):
    """Keeps every k-th token: of n real ones those at floor((i + 1/2) n / T), for i from 0 to T - 1."""

    def describe(self) -> str:
        """What leaves."""
        return "all but every k-th token"

    def operations(self, shape: Shape) -> list[Priced]:
        """None: positions are arithmetic on indices."""
        return []

    def __call__(self, visual: VisualFeatures, count: int) -> Tensor:
        """(B, ``count``) indices of the tokens that stay, ascending."""
        b, n, _ = visual.features.shape
        odd = 2 * torch.arange(count, device=visual.features.device) + 1
        if visual.mask is None:
            return (odd * n // (2 * count)).repeat(b, 1)
        real = (~visual.mask).to(torch.uint8).sort(dim=1, stable=True).indices  # those that are there, in their order
        return real.gather(1, odd * visual.mask.sum(1, keepdim=True) // (2 * count))


def required_saliency(stage: str, visual: VisualFeatures, name: str = "saliency") -> Tensor:
    """(B, N) saliency, in at least float32.

    Args:
        name: which field of ``visual``, ``"saliency"`` or ``"early_saliency"``.

    Raises:
        ValueError: there is none.
    """
    given: Tensor | None = getattr(visual, name)
    if given is None:
        raise ValueError(
            f"{stage}: {name} is needed, and none was given; pass {name}=(B, N), how much the vision tower looks "
            "at each token"
        )
    saliency = given.detach()
    return saliency.to(torch.promote_types(saliency.dtype, torch.float32))


def relative(saliency: Tensor, mask: Tensor | None) -> Tensor:
    """(B, N) relative to the largest of each picture, so that no power vanishes; where all are 0, 1 each."""
    if mask is not None:
        saliency = saliency.masked_fill(~mask, 0)
    largest = saliency.amax(1, keepdim=True)
    return torch.where(largest > 0, saliency / largest.clamp_min(torch.finfo(saliency.dtype).tiny), 1.0)
