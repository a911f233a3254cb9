"""Fits a recipe of FitPrune to a model: how many visual tokens leave in each layer, from a few prompts, untrained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..cost import Architecture, architecture, prefill
from ..models.layer_watch import watching
from ..ops import QueryKey, checks
from ..schedule import Schedule
from ..stages import Layout
from ..stages.strongest_head import self_and_cross

_OP = "fit"
_STEP = 0.01  # how closely alpha is found
Say = Callable[..., None]


@dataclass(frozen=True)
class Sums:
    """What the visual tokens of one prompt receive without reduction: (layers, n) float64 on the CPU each.

    Attributes:
        visual: from the visual tokens, a mean. text: from the text after them, a sum.
        words: tokens of the prompt that are not visual.
    """

    visual: Tensor
    text: Tensor
    words: int


@dataclass(frozen=True)
class Recipe:
    """How many visual tokens leave in each layer.

    ``attach(model, "fitprune", r=recipe.r, layers=recipe.layers)`` applies it.

    Attributes:
        r: of each of ``layers``.
        ratio: of the language model's FLOPs that was to be saved. saved: that is saved.
        alpha: the share of attention that every layer may lose.
        visual_tokens, text_tokens: of a prompt, the second a mean. samples: prompts that it was fitted to.
    """

    r: tuple[int, ...]
    layers: tuple[int, ...]
    ratio: float
    saved: float
    alpha: float
    visual_tokens: int
    text_tokens: int
    samples: int

    def document(self) -> dict[str, Any]:
        """What is written to a file."""
        return {"method": "fitprune", **asdict(self)}


def fit(model: Any, samples: Iterable[Mapping[str, Any]], ratio: float, *, progress: Say | None = None) -> Recipe:
    """The recipe that saves ``ratio`` of the language model's FLOPs and disturbs its attention least.

    Each prompt is read once without reduction. alpha is the smallest share, found by halving to 0.01, for which enough
    is saved: in each layer, in order, tokens are put in ascending order of what they receive, and as many may leave as
    leave the others at least 1 - alpha of what all received; those leave that may by the attention of the visual tokens
    and by that of the text. Numbers are means over the prompts, rounded down. FLOPs are those of ``ficoco cost`` for
    the mean number of words.

    Args:
        model: one whose language model can be reduced, and is not.
        samples: arguments of the model by name, as its processor makes them, each with at least one picture. All
            prompts must have equally many visual tokens. Tens of them are enough.
        ratio: in (0, 1), such as 0.6.
        progress: called with what is done, how much of it, and of how much.

    Raises:
        ValueError: no samples, prompts without pictures or with unequal numbers of visual tokens, a ratio that is not
            in (0, 1) or cannot be reached; the message says what can be.

    Source: FitPrune, arXiv 2409.10197.

    Example:
        >>> from ficoco_ext.apps.fitting import fit
        >>> recipe = fit(model, [processor(images=image, text=prompt, return_tensors="pt")], 0.6)  # doctest: +SKIP
        >>> handle = ficoco_ext.attach(model, "fitprune", r=recipe.r, layers=recipe.layers)  # doctest: +SKIP
    """
    _check_ratio(ratio)
    layers, sums = measure(model, samples, progress)
    return recipe_of(sums, layers, architecture(model.config), ratio)


def measure(model: Any, samples: Iterable[Mapping[str, Any]], progress: Say | None = None) -> tuple[range, list[Sums]]:
    """The layers that could reduce, and the sums of each prompt in each of them."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []  # of one call: layer by layer, and in each group by group

    def see(layer: int, attn: QueryKey, layout: Layout) -> None:
        visual, text = self_and_cross(attn, layout)
        seen.append((visual.double().cpu(), text.double().cpu(), _words(layout).cpu()))

    found: list[Sums] = []
    with watching(model, see) as layers, torch.inference_mode():
        for number, inputs in enumerate(samples):
            if progress is not None:
                progress("measuring attention", number, None)
            seen.clear()
            model(**inputs, use_cache=False, logits_to_keep=1)
            if not seen:
                checks.fail(_OP, "samples", "prompts with pictures", f"none in sample {number}", "leave it out")
            groups = len(seen) // len(layers)
            for group in range(groups):
                visual, text, words = zip(*seen[group::groups], strict=True)
                rows = zip(torch.stack(visual, 1), torch.stack(text, 1), words[0].tolist(), strict=True)
                found += [Sums(*row) for row in rows]
    if not found:
        checks.fail(_OP, "samples", "at least one prompt with a picture", "none", "pass what the processor makes")
    return layers, found


def _words(layout: Layout) -> Tensor:
    """(B,) real tokens that are not visual."""
    b, n = layout.visual.shape
    return torch.full((b,), layout.tokens - n) if layout.real is None else layout.real.sum(1) - n


def recipe_of(sums: Sequence[Sums], layers: Sequence[int], shape: Architecture, ratio: float) -> Recipe:
    """The recipe of prompts that were measured."""
    _check_ratio(ratio)
    numbers = sorted({one.visual.shape[1] for one in sums})
    if len(numbers) > 1:
        wanted = "prompts with equally many visual tokens"
        checks.fail(_OP, "samples", wanted, f"{numbers[0]} and {numbers[-1]}", "fit each number by itself")
    visual, words = numbers[0], round(sum(one.words for one in sums) / len(sums))
    full = _flops(shape, layers, (0,) * len(layers), visual, words)

    def saved(r: tuple[int, ...]) -> float:
        return 1 - _flops(shape, layers, r, visual, words) / full

    low, high = 0.0, 1.0
    best = counts(sums, high)
    if saved(best) < ratio:
        least = math.floor(1000 * saved(best)) / 1000
        remedy = "the prompts' own words and the first layers are left"
        checks.fail(_OP, "ratio", f"at most {least:g} for prompts of {visual} visual tokens", repr(ratio), remedy)
    while high - low > _STEP:
        middle = (low + high) / 2
        tried = counts(sums, middle)
        if saved(tried) >= ratio:
            high, best = middle, tried
        else:
            low = middle
    return Recipe(best, tuple(layers), ratio, saved(best), high, visual, words, len(sums))


def counts(sums: Sequence[Sums], alpha: float) -> tuple[int, ...]:
    """Tokens that leave in each layer if it may lose the share ``alpha`` of its attention: means, rounded down."""
    each = [_removed(one, alpha) for one in sums]
    means = [sum(column) // len(each) for column in zip(*each, strict=True)]
    return tuple(means)


def _removed(one: Sums, alpha: float) -> list[int]:
    """Tokens of one prompt that leave in each layer; at least one stays."""
    left, removed = torch.ones(one.visual.shape[1], dtype=torch.bool), []
    for visual, text in zip(one.visual, one.text, strict=True):
        leaves = _may_leave(visual, left, alpha) & _may_leave(text, left, alpha)
        if int(leaves.sum()) == int(left.sum()):
            leaves[int((visual * text * leaves).argmax())] = False
        removed.append(int(leaves.sum()))
        left &= ~leaves
    return removed


def _may_leave(received: Tensor, left: Tensor, alpha: float) -> Tensor:
    """(n,) bool: the longest run of those that are ``left``, least first, without which the rest has enough."""
    order = received.masked_fill(~left, torch.inf).sort(stable=True).indices[: int(left.sum())]
    rest = received[order].flip(0).cumsum(0).flip(0)  # from each on; without the first k tokens it is rest[k]
    after = torch.cat([rest[1:], rest.new_zeros(1)])
    enough = after >= received.sum() * (1 - alpha)
    leaves = torch.zeros_like(left)
    leaves[order[: int(enough.sum())]] = True
    return leaves


def _flops(shape: Architecture, layers: Sequence[int], r: tuple[int, ...], visual: int, words: int) -> float:
    """Operations of the language model."""
    return prefill(
        shape,
        decoder=Schedule(visual, tuple(layers), r),
        visual_tokens=visual,
        text_tokens=words,
        include_tower=False,
        include_projector=False,
        include_head=False,
    ).total.operations


def _check_ratio(ratio: float) -> None:
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio < 1:
        checks.fail(_OP, "ratio", "a number in (0, 1)", ratio, "pass the share of FLOPs to save, such as 0.6")
