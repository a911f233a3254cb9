"""Answers in a row, each of which removes one token more than the one before: what the planner searches in."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..amounts import Amount
from ..methods import AnyMethod, LanguageMethod, LayerMethod, TowerMethod
from ..resolve import projector_plan
from ..schedule import Schedule
from .architecture import Architecture
from .projected import entering_with, tokens_of_picture
from .schedules import Schedules, decoder_layers, ranges, shares, tower_layers, whole_grid

_AFTER = "after the projector"


@dataclass(frozen=True)
class Row:
    """Answers in a row: ``at(step)`` removes one token more than ``at(step - 1)``, or nothing more if there is nothing.

    Cost never rises from ``start`` on. Before it not all layers reduce yet, and one token more may cost more, for its
    layer begins to score the tokens. For messages: ``where`` it reduces, ``what`` leaves, and a ``hint`` at what
    reaches further.
    """

    at: Callable[[int], Schedules]
    start: int
    last: int
    where: str
    hint: str
    what: str = "visual tokens"


def spread(
    patches: int,
    layers: Iterable[int],
    total: int,
    *,
    floor: int = 1,
    largest: Sequence[Callable[[int], int]] | None = None,
    before_attention: bool = False,
    unit: int = 1,
) -> Schedule:
    """A schedule whose layers are asked to remove ``total`` tokens together, all the same or one more in the first.

    Args:
        patches: tokens that enter the first layer.
        layers: those that reduce, ascending.
        total: how many tokens the layers would remove if there were enough. A layer that meets fewer leaves ``floor``,
            so that a large total takes the tokens away in the first layers.
        floor: tokens that stay.
        largest: for each layer a function (tokens that enter it) -> the most that it can remove, such as half of them
            with bipartite matching; None: all.
        before_attention: the layers reduce before their attention.
        unit: how many tokens leave a layer together; what is no multiple of it stays.

    Example:
        >>> from ficoco_ext.cost import rows
        >>> rows.spread(576, range(11, 23), 512).r
        (43, 43, 43, 43, 43, 43, 43, 43, 42, 42, 42, 42)
        >>> rows.spread(576, range(4, 8), 1000).r
        (250, 250, 75, 0)
    """
    layers = tuple(layers)
    each, more = divmod(total, len(layers))
    left, removed = patches, []
    for index in range(len(layers)):
        most = max(left - floor, 0)
        r = min(each + (index < more), most if largest is None else min(most, largest[index](left)))
        r -= r % unit
        removed.append(r)
        left -= r
    return Schedule(patches, layers, tuple(removed), before_attention)


def first_within(cost: Callable[[int], float], low: int, high: int, limit: float) -> int:
    """The first step in ``low`` ... ``high`` that costs no more than ``limit``, up to rounding, else ``high``."""
    limit *= 1 + 1e-9
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(middle) <= limit else (middle + 1, high)
    return low


def _largest(methods: Sequence[LayerMethod]) -> list[Callable[[int], int]]:
    """For each layer of a tower the most of its patches that can leave."""
    return [lambda patches, one=one: one.largest(1 + patches, class_token=True) for one in methods]  # type: ignore[misc]


def tower_row(shape: Architecture, method: TowerMethod, layers: Iterable[int] | None, floor: int) -> Row:
    """Of a method of the tower alone."""
    chosen, patches = tower_layers("plan", shape, layers, method), shape.tower.patches
    each = method.of_layers(len(chosen))
    if any(map(whole_grid, each[1:])):
        raise ValueError(f"plan: {method.name} needs the whole grid of patches; name one layer")

    largest = _largest(each)

    def at(step: int) -> Schedules:
        left = spread(patches, chosen, step * method.unit, floor=floor, largest=largest, unit=method.unit)
        return Schedules(vision=_where(left, each))

    few = next((one for one, most in zip(each, largest, strict=True) if most(patches) < patches - 1), None)
    less = "the rest is text" if few is None else f"a layer removes at most {few.limit} of its tokens; name more layers"
    last = len(chosen) * patches // method.unit
    what = "visual tokens" if shape.crops == 1 else "patches of a crop"
    return Row(at, len(chosen), last, f"in {ranges(chosen)} of the tower", less, what)


def _where(schedule: Schedule, methods: Sequence[LayerMethod]) -> Schedule:
    """``schedule``, which says which of its layers reduce after their MLP, by the method of each."""
    late = tuple(layer for layer, one in zip(schedule.layers, methods, strict=True) if one.after_mlp)
    return dataclasses.replace(schedule, after_mlp=late) if late else schedule


def decoder_row(
    shape: Architecture, method: LanguageMethod, visual: int, layers: Iterable[int] | None, floor: int
) -> Row:
    """Of a method of the language model alone, which ``visual`` tokens enter."""
    chosen = decoder_layers("plan", shape, layers, method)

    def at(total: int) -> Schedules:
        left = spread(visual, chosen, total, floor=floor, before_attention=method.before_attention)
        return Schedules(decoder=left)

    last = len(chosen) * (visual - floor)
    hint = f"up to layer {chosen[0]} all of them are there; begin earlier, or reduce before the language model"
    return Row(at, min(len(chosen), last), last, f"in {ranges(chosen)} of the language model", hint)


def projector_row(shape: Architecture, floor: int) -> Row:
    """Of a method after the projector alone."""
    before = tokens_of_picture(shape, None)

    def at(total: int) -> Schedules:
        return Schedules(projector=before - total)

    what = "visual tokens" if shape.pictures == 1 else "visual tokens of a crop"
    return Row(at, min(1, before - floor), before - floor, _AFTER, "the rest is text", what)


def several_row(
    shape: Architecture, method: AnyMethod, images: int, floor: int, cost: Callable[[Schedules], float], wanted: float
) -> Row:
    """Of a method of several parts, which keep the same share of what they get each, as ``attach`` divides it.

    What is left of a picture in the end is the coarse step. It fixes all parts but the last, which the row tunes alone.
    """
    parts = _Parts(shape, method, images)

    @functools.cache
    def coarse(final: int) -> float:
        return cost(parts.whole(final))

    most = parts.tokens - floor
    final = parts.tokens - first_within(lambda step: coarse(parts.tokens - step), 0, most, wanted)
    hint = f"they keep the same share of what they get; {parts.further}"
    return dataclasses.replace(parts.tail(final, floor), where=parts.where, hint=hint)


class _Parts:
    """The parts of a method, the last one of which is tuned."""

    def __init__(self, shape: Architecture, method: AnyMethod, images: int) -> None:
        self.shape, self.method, self.images = shape, method, images
        self.tower, self.decoder = method.tower, method.language_model
        self.tokens = tokens_of_picture(shape, None) if self.tower is None else shape.tower.patches
        self.largest: list[Callable[[int], int]] = []
        named = []
        if self.tower is not None:
            self.in_tower = tower_layers("plan", shape, None, self.tower)
            self.largest = _largest(self.tower.of_layers(len(self.in_tower)))
            named.append(f"in {ranges(self.in_tower)} of the tower")
        if method.projector is not None:
            named.append(_AFTER)
        if self.decoder is not None:
            self.in_decoder = decoder_layers("plan", shape, None, self.decoder)
            named.append(f"in {ranges(self.in_decoder)} of the language model")
        self.where = f"{', '.join(named[:-1])} and {named[-1]}"
        self.further = "reduce in the tower alone: 'ficoco-v'" if self.decoder is not None else "the rest is text"
        if self.decoder is not None and method.projector is not None:
            self.further = "reduce after the projector alone: 'divprune'"

    def leading(self, final: int) -> tuple[Schedules, float]:
        """All parts but the last where ``final`` tokens are left in the end, and the share that the last one keeps."""
        amounts = iter(shares("plan", self.shape, self.method, Amount(tokens=final), patches=self.tokens))
        vision = projector = None
        left: float = self.tokens
        if self.tower is not None:
            gone = self.tokens - next(amounts).tokens
            vision = spread(self.tokens, self.in_tower, gone, largest=self.largest, unit=self.tower.unit)
            vision = _where(vision, self.tower.of_layers(len(self.in_tower)))
            left = vision.final
        if self.method.projector is not None and self.decoder is not None:
            amount = next(amounts)
            before = tokens_of_picture(self.shape, vision)
            projector = projector_plan("plan", self.method.projector, amount).count(before)
            left *= projector / before
        return Schedules(vision, projector), final / left

    def entering(self, leading: Schedules) -> int:
        """Tokens that enter the last part: of a picture, or of the prompt in the language model."""
        each = tokens_of_picture(self.shape, leading.vision) if leading.projector is None else leading.projector
        return each if self.decoder is None else entering_with(self.shape, each, self.images)

    def at(self, leading: Schedules, total: int, floor: int) -> Schedules:
        """With ``total`` tokens that the last part is asked to remove."""
        before = self.entering(leading)
        if self.decoder is None:
            return leading._replace(projector=before - total)
        left = spread(before, self.in_decoder, total, floor=floor, before_attention=self.decoder.before_attention)
        return leading._replace(decoder=left)

    def whole(self, final: int) -> Schedules:
        """All parts where ``final`` tokens are left in the end."""
        leading, share = self.leading(final)
        before = self.entering(leading)
        return self.at(leading, before - min(max(math.floor(before * share + 0.5), 1), before), 1)

    def tail(self, final: int, floor: int) -> Row:
        """The row of the last part after the others, which leave as much as for ``final``."""
        leading, _ = self.leading(final)
        before = self.entering(leading)
        count = 1 if self.decoder is None else len(self.in_decoder)
        last = count * max(before - floor, 0)
        return Row(lambda total: self.at(leading, total, floor), min(count, last), last, "", "")
