"""How much the projected features are like the words of a prompt, and a select that weighs what differs by that."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .. import ops
from ..ops import checks, costs
from ..ops.attention import TINY, accumulate
from . import needs
from .features import SelectStage, VisualFeatures
from .frozen import reject, require_number, require_one_of, value
from .shape import Priced, Shape

SMALLEST = 1e-6  # added to relevance, and the range of it below which rounding alone tells tokens apart
# Largest theta of "exp": a^2 of the least relevant token is then exp(-9) of that of the most relevant one. From about
# 0.93 on it is below the millionth that the picks take for nothing, and what differs would no longer count.
MOST_THETA = 0.9
BLENDS = ("exp", "linear", "product")


def real(vectors: Tensor, there: Tensor | None) -> Tensor:
    """(B, N, D) without a gradient; 0 for those that are not there, whatever they hold."""
    vectors = vectors.detach()
    return vectors if there is None else vectors.masked_fill(~there.unsqueeze(-1), 0)


def unit(vectors: Tensor) -> Tensor:
    """(B, N, D) divided by their length, or by 1e-12 if that is shorter, in at least float32."""
    return torch.nn.functional.normalize(accumulate(vectors), dim=-1, eps=TINY)


def alike(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the dtype that holds the values of both."""
    dtype = torch.promote_types(one.dtype, other.dtype)
    return one.to(dtype), other.to(dtype)


def required_words(stage: str, visual: VisualFeatures, remedy: str) -> tuple[Tensor, Tensor, Tensor]:
    """Words (B, L, D) of the prompt, their mask (B, L), and how many each picture has, (B, 1), 1 if none.

    Raises:
        ValueError: there are none, or they are not as wide as the features.
    """
    text, there = visual.text, visual.text_mask
    if text is None:
        wanted = "given, as words of the prompt are needed"
        checks.fail(stage, "text", wanted, "None", f"pass the embeddings (B, L, D) of the words, or {remedy}")
    width = visual.features.shape[2]
    ok = text.dim() == 3 and text.shape[2] == width
    where = "pass what the language model's table of embeddings gives for the words"
    checks.shape(stage, "text", text, lambda: f"(B, L, {width}), as wide as the features", ok, where)
    if there is None:
        there = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
    return text, there, there.sum(1, keepdim=True).clamp_min(1)


def likeness(stage: str, visual: VisualFeatures, remedy: str) -> Tensor:
    """(B, N) the mean over a picture's words of the cosine of a token's features with the word; 0 without any word.

    It is the product with the mean of the words at unit length, so no map of words and tokens is made. Words are added
    up in float64 where the device has it: how many are padded does not show.

    Raises:
        ValueError: there are no words, or they are not as wide as the features.
    """
    text, there, count = required_words(stage, visual, remedy)
    words = unit(real(text, there))
    wide = words.dtype if words.device.type == "mps" else torch.float64
    mean = words.sum(1, dtype=wide).div(count).to(words.dtype)
    features = unit(real(visual.features, visual.mask))
    return (features * mean.unsqueeze(1).to(features.dtype)).sum(-1)


def per_picture(score: Tensor, mask: Tensor | None) -> Tensor:
    """(B, N) numbers moved into [0, 1] for each picture, plus 1e-6 divided by their range; 1 each where equal."""
    lowest = score if mask is None else score.masked_fill(~mask, math.inf)
    highest = score if mask is None else score.masked_fill(~mask, -math.inf)
    low, high = lowest.amin(1, keepdim=True), highest.amax(1, keepdim=True)
    spread = high - low
    found = torch.where(spread > SMALLEST, (score - low + SMALLEST) / spread, 1.0)
    return found if mask is None else found.masked_fill(~mask, 1.0)


@value
class RelevanceSelect(SelectStage):
    """Keeps tokens that differ and are relevant, one after the other, each the one that raises a determinant most.

    The determinant is that of K over the tokens that stay. With S_ij the cosine of features i and j, and w_i the
    relevance, the mean cosine with the words of the prompt moved into [0, 1] for each picture, K_ij is

    * ``blend="exp"``: a_i S_ij a_j with a = exp(theta / (2 (1 - theta)) w): theta 0 is S;
    * ``blend="linear"``: (1 - theta) S_ij + theta w_i S_ij w_j;
    * ``blend="product"``: w_i S_ij w_j.

    Once no token raises it by a millionth of what the first did, relevance decides, then the lowest index. Where all
    tokens are equally relevant, and for a picture without words, w is 1. The picks of a smaller number are a part of
    those of a larger one, with 1 block.

    Args:
        relevance: ``"words"``, or ``"none"``: w is 1 and no words are needed.
        theta: how much relevance counts; not with ``"product"``. In [0, 0.9] with ``"exp"``, else in [0, 1).
        blend: ``"exp"``, ``"linear"`` or ``"product"``.
        blocks: 2 cuts the tokens that are there into two halves, in their order, which are treated as two pictures:
            floor(n / 2) of n tokens first, of which floor(T / 2) of T stay; so the second half has one more if odd.
        sign: -1 makes those relevant that are least like the words.
    """

    relevance: str = "words"
    theta: float = 0.5
    blend: str = "exp"
    blocks: int = 1
    sign: int = 1

    def __post_init__(self) -> None:
        stage = "RelevanceSelect"
        require_one_of(stage, "relevance", self.relevance, ("words", "none"))
        require_number(stage, "theta", self.theta, 0, 1)
        if self.theta == 1:
            reject(stage, "theta", "below 1; blend='product' is relevance alone", self.theta)
        require_one_of(stage, "blend", self.blend, BLENDS)
        if self.blend == "exp" and self.theta > MOST_THETA:
            why = "above it what differs does not count any more"
            reject(stage, "theta", f"at most {MOST_THETA} with blend='exp' ({why}; or take 'product')", self.theta)
        require_one_of(stage, "blocks", self.blocks, (1, 2))
        require_one_of(stage, "sign", self.sign, (1, -1))

    @property
    def needs(self) -> tuple[str, ...]:
        """Words, if they say what is relevant."""
        return (needs.TEXT,) if self.relevance == "words" else ()

    def describe(self) -> str:
        """What leaves."""
        least = "features that add least to the determinant of those that stay"
        halves = ", in each half of the picture" if self.blocks == 2 else ""
        if self.relevance == "none":
            return least + halves
        return f"{least}, weighed by {'' if self.sign == 1 else 'un'}likeness to the words of the prompt{halves}"

    def operations(self, shape: Shape) -> list[Priced]:
        """The likeness to the words, and the picks of each block."""
        weighed = self.relevance == "words"
        width = shape.channels * (2 if weighed and self.blend == "linear" else 1)
        picks = costs.greedy_select("log-det")
        shares = _shares(shape.kept, self.blocks)
        priced = [shape.price(picks, n=shape.visual, h=width, m=share) for share in shares]
        return [shape.price(costs.LIKENESS, n=shape.visual, w=shape.text), *priced] if weighed else priced

    def __call__(self, visual: VisualFeatures, count: int) -> Tensor:
        """(B, ``count``) indices of the tokens that stay, ascending."""
        score = None
        if self.relevance == "words":
            remedy = "take relevance='none', or 'divprune', which read none"
            score = self.sign * likeness(self.title, visual, remedy)
        picked = []
        for mask, share in self._parts(visual, count):
            features, weight = self._weighed(visual.features.detach(), score, mask)
            found = ops.greedy_select(features, share, objective="log-det", saliency=weight, mask=mask)
            picked.append(found.order)
        return torch.cat(picked, 1).sort(1).values

    def _parts(self, visual: VisualFeatures, count: int) -> Iterator[tuple[Tensor | None, int]]:
        """The tokens of each block as a mask, and how many of them stay."""
        if self.blocks == 1:
            yield visual.mask, count
            return
        b, n, _ = visual.features.shape
        mask = visual.mask
        if mask is None:
            mask = torch.ones(b, n, dtype=torch.bool, device=visual.features.device)
        turn = mask.cumsum(1)  # of a real token, from 1 on
        first = turn <= mask.sum(1, keepdim=True) // 2
        yield from zip((mask & first, mask & ~first), _shares(count, 2), strict=True)

    def _weighed(self, features: Tensor, score: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Features and factors a with K_ij = a_i cos(i, j) a_j."""
        if score is None:
            return features, None
        weight = per_picture(score, mask)
        if self.blend == "product":
            return features, weight
        if self.blend == "exp":  # relative to the largest, so that none overflows
            power = self.theta / (2 * (1 - self.theta))
            return features, (power * (weight - weight.amax(1, keepdim=True))).exp()
        own, relevant = math.sqrt(1 - self.theta), math.sqrt(self.theta) * weight
        plain = unit(real(features, mask))
        both = torch.cat([own * plain, relevant.unsqueeze(-1).to(plain.dtype) * plain], -1)
        return both, (1 - self.theta + relevant * relevant).sqrt()


def _shares(count: int, blocks: int) -> tuple[int, ...]:
    """How many tokens of each block stay."""
    return (count,) if blocks == 1 else (count // 2, count - count // 2)
