"""A select that covers the words of a prompt and the tokens of a picture."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import ops
from ..ops import costs
from . import needs
from .features import SelectStage, VisualFeatures
from .frozen import reject, require_number, require_one_of, value
from .relevance import alike, real, required_words
from .shape import Priced, Shape


@value
class CoverSelect(SelectStage):
    """Keeps tokens that together cover the words of the prompt and the tokens of the picture best, one after the other.

    Token j covers word m by softmax over j of cos(word m, token j) / tau_text, divided by the number of words, and
    token i by alpha times softmax over j of cos(token i, token j) / tau_vision, divided by the number of tokens. What
    is covered best by the tokens picked so far counts; the lowest index of equal ones. For a picture without words its
    tokens alone are covered. The picks of a smaller number are a part of those of a larger one.

    The cover of all words and tokens is held: 4 N (N + L) bytes for N tokens and L words of a picture, twice while it
    is made.

    Args:
        tau_text: temperature for words, at least 1e-6. tau_vision: for tokens. They fit the width of the features that
            they were chosen for, and no other.
        alpha: how much the tokens of a picture count beside the words, at least 0.
        cover_words: False covers the tokens alone.
        before_projector: compare tokens with each other by what the vision tower gave, before the projector. False: by
            the projected features, which words are always compared with.
    """

    tau_text: float = 0.02
    tau_vision: float = 0.2
    alpha: float = 0.5
    cover_words: bool = True
    before_projector: bool = True

    def __post_init__(self) -> None:
        stage = "CoverSelect"
        for name in ("cover_words", "before_projector"):
            require_one_of(stage, name, getattr(self, name), (True, False))
        for name in ("tau_text", "tau_vision"):
            require_number(stage, name, getattr(self, name), 1e-6, math.inf)
        require_number(stage, "alpha", self.alpha, 0, math.inf)
        if self.alpha == 0 and not self.cover_words:
            reject(stage, "alpha", "above 0 without words, as nothing else is covered", self.alpha)

    @property
    def needs(self) -> tuple[str, ...]:
        """Words to cover, and features before the projector to compare."""
        asked = {needs.TEXT: self.cover_words, needs.TOWER_FEATURES: self.before_projector}
        return tuple(need for need, wanted in asked.items() if wanted)

    def describe(self) -> str:
        """What leaves."""
        covered = "words of the prompt and tokens" if self.cover_words else "tokens"
        return f"features that cover least of the {covered} that those that stay do not"

    def operations(self, shape: Shape) -> list[Priced]:
        """Cosines of tokens with each other and with words, and the picks."""
        words = shape.text if self.cover_words else 0
        own = shape.tower_channels if self.before_projector and shape.tower_channels else shape.channels
        things = shape.visual + words
        with_words = [shape.price(costs.COSINES, n=shape.visual, c=words, h=shape.channels)] if words else []
        return [
            shape.price(costs.COSINES, n=shape.visual, c=shape.visual, h=own),
            *with_words,
            shape.price(costs.GREEDY_COVER, n=shape.visual, c=things, m=shape.kept),
        ]

    def __call__(self, visual: VisualFeatures, count: int) -> Tensor:
        """(B, ``count``) indices of the tokens that stay, ascending."""
        cover = self.cover(visual)
        return ops.greedy_cover(cover, count, mask=visual.mask).order.sort(1).values

    def cover(self, visual: VisualFeatures) -> Tensor:
        """(B, N, L + N), by how much each token covers each word and each token; without words (B, N, N).

        Raises:
            ValueError: words or features before the projector are needed, and there are none.
        """
        mask, own = visual.mask, self._own(visual)
        scores = ops.cosines(own, own).div_(self.tau_vision)
        weights = self._weight_of_tokens(mask, scores)
        if self.cover_words:
            text, there, count = required_words(self.title, visual, "take cover_words=False, or 'divprune'")
            features, asked = alike(real(visual.features, mask), real(text, there))
            of_words = ops.cosines(features, asked).div_(self.tau_text)
            scores = torch.cat([of_words.to(scores.dtype), scores], 2)
            weights = torch.cat([there / count.to(weights.dtype), weights], 1)
        if mask is not None:
            scores.masked_fill_(~mask.unsqueeze(-1), -math.inf)
        return scores.softmax(1).mul_(weights.unsqueeze(1))

    def _own(self, visual: VisualFeatures) -> Tensor:
        """What tokens are compared with each other by; 0 for those not there."""
        if not self.before_projector:
            return real(visual.features, visual.mask)
        if visual.tower_features is None:
            raise ValueError(
                f"{self.title}: features before the projector are needed, and there are none; pass tower_features="
                "(B, N, C), or take before_projector=False"
            )
        return real(visual.tower_features, visual.mask)

    def _weight_of_tokens(self, mask: Tensor | None, scores: Tensor) -> Tensor:
        """(B, N) what each token counts as something to cover."""
        counted = scores.new_ones(scores.shape[:2]) if mask is None else mask.to(scores.dtype)
        return self.alpha * counted / counted.sum(1, keepdim=True)
