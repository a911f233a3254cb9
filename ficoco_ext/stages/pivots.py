"""A select by pivots: long features and words, and the tokens that are least like them."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from ..ops import checks, costs
from ..ops.attention import rows
from . import needs
from .features import SelectStage, VisualFeatures
from .frozen import reject, value
from .shape import Priced, Shape

FINEST = 2.0**-32  # of cosines in float64: those that differ by less are equal, as rounding would tell them apart


@value
class PivotSelect(SelectStage):
    """Keeps the features of largest L1 norm, the pivots, and those with the lowest cosine to one of them or a word.

    Each pivot in turn picks its part of the tokens that are missing among those that none has picked: first those of
    the picture, largest norm first, then the words of the prompt of largest norm. All pick equally many, or the first
    ones one more. Of equal norms and cosines the lowest index counts.

    Args:
        pivots: how many of the picture, at least 1, and how many words. If fewer tokens stay than there are pivots of
            the picture, these are the ones of largest norm. A prompt with fewer words has fewer pivots.
    """

    pivots: tuple[int, int] = (4, 4)

    def __post_init__(self) -> None:
        given = self.pivots
        pair = isinstance(given, tuple) and len(given) == 2
        if not pair or not all(isinstance(one, int) and not isinstance(one, bool) for one in given):
            reject("PivotSelect", "pivots", "two integers: of the picture, and words", given)
        if given[0] < 1 or given[1] < 0:
            reject("PivotSelect", "pivots", "at least (1, 0): of the picture, and words", given)

    @property
    def needs(self) -> tuple[str, ...]:
        """Words, if some are to be pivots."""
        return (needs.TEXT,) if self.pivots[1] else ()

    def describe(self) -> str:
        """What leaves."""
        words = f" and of {self.pivots[1]} words" if self.pivots[1] else ""
        return f"features most like the {self.pivots[0]} of largest norm{words}"

    def operations(self, shape: Shape) -> list[Priced]:
        """Cosines with all pivots, if so many words are there."""
        images = min(self.pivots[0], shape.kept)
        if images == shape.kept:
            return []
        return [shape.price(costs.COSINES, n=shape.visual, c=images + self.pivots[1])]

    def __call__(self, visual: VisualFeatures, count: int) -> Tensor:
        """(B, ``count``) indices of the tokens that stay, ascending."""
        features = visual.features.detach()
        images = min(self.pivots[0], count)
        longest = _longest(features, visual.mask, images)
        if images == count:
            return longest.sort(1).values
        text, there = self._words(visual, features)
        pivots = torch.cat([rows(features, longest), text], 1)
        real = torch.cat([there.new_ones(longest.shape), there], 1)
        everywhere = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        free = (everywhere if visual.mask is None else visual.mask).scatter(1, longest, False)
        flags = pick_in_turn(cosines_in_steps(pivots, features), real, free, count - images).scatter(1, longest, True)
        return (~flags).to(torch.uint8).sort(dim=1, stable=True).indices[:, :count].clone()

    def _words(self, visual: VisualFeatures, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, P, D) words of largest norm and (B, P) bool, which of them are there."""
        if not self.pivots[1]:
            return features[:, :0], features.new_zeros(features.shape[0], 0, dtype=torch.bool)
        if visual.text is None:
            raise ValueError(
                f"{self.title}: words of the prompt are needed, and none were given; pass text=(B, L, D), their "
                "embeddings, or take no words as pivots: text_pivots=0"
            )
        width = features.shape[2]
        fits = visual.text.shape[2] == width
        remedy = "pass their embeddings in the language model"
        checks.shape(self.title, "text", visual.text, lambda: f"(B, L, {width}) like features", fits, remedy)
        text = visual.text.detach().to(features.dtype)
        longest = _longest(text, visual.text_mask, min(self.pivots[1], text.shape[1]))
        if visual.text_mask is None:
            return rows(text, longest), torch.ones_like(longest, dtype=torch.bool)
        there = visual.text_mask.gather(1, longest)
        return rows(text, longest).masked_fill(~there.unsqueeze(-1), 0), there


def _longest(vectors: Tensor, mask: Tensor | None, count: int) -> Tensor:
    """(B, ``count``) indices of the vectors of largest L1 norm, largest first; those that are not there come last."""
    norm = torch.linalg.vector_norm(vectors, 1, dim=2, dtype=torch.float64).float()  # rounded: no order of sums matters
    if mask is not None:
        norm = norm.masked_fill(~mask, -1.0)
    return norm.sort(dim=1, descending=True, stable=True).indices[:, :count]


def cosines_in_steps(pivots: Tensor, features: Tensor) -> Tensor:
    """(B, P, N); in float64 in units of :data:`FINEST`."""
    cosine = ops.cosines(features, pivots).mT
    return (cosine / FINEST).round() if cosine.dtype == torch.float64 else cosine


def pick_in_turn(cosine: Tensor, real: Tensor, free: Tensor, missing: int) -> Tensor:
    """(B, N) bool: ``missing`` of the ``free`` tokens, which the pivots that are ``real`` (B, P) pick in turn."""
    every = real.sum(1, keepdim=True)
    part, rest = missing // every, missing % every
    at = torch.arange(cosine.shape[2], device=cosine.device)
    picked = torch.zeros_like(free)
    for pivot in range(cosine.shape[1]):
        before = real[:, :pivot].sum(1, keepdim=True)
        quota = (part + (before < rest)) * real[:, pivot : pivot + 1]
        order = cosine[:, pivot].masked_fill(~free, float("inf")).sort(dim=1, stable=True).indices
        chosen = torch.zeros_like(free).scatter(1, order, at < quota)
        picked, free = picked | chosen, free & ~chosen
    return picked
