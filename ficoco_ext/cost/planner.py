"""The planner: from a budget to the integer schedule that comes closest to it.

A method and its layers leave one question open: how many tokens go. The planner orders the answers in a row, each
removing one token more than the one before, spread evenly over the layers, and looks for the one whose cost is closest.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from ..methods import AnyMethod, LanguageMethod, LayerMethod, TowerMethod, get_method
from ..resolve import shared_tokens
from ..schedule import Schedule
from .architecture import Architecture
from .bill import Cost
from .hardware import hardware as find_hardware
from .presets import architecture
from .schedules import decoder_layers, ranges, require_images, tower_layers, whole_grid
from .scope import bill

QUANTITIES = {
    "tflops": "TFLOPs",
    "kv_mb": "MB of KV cache",
    "average_tokens": "visual tokens in the mean over the language model's layers",
    "ttft_ms": "ms to the first token",
}
Pair = tuple[Schedule | None, Schedule | None]


@dataclass(frozen=True)
class Planned:
    """What the planner found.

    Attributes:
        method: its name.
        vision, decoder: the schedules of tower and language model; None where the method does not reduce.
        quantity, wanted: what was asked for, one of :data:`QUANTITIES`.
        reached: what the schedules cost in it.
        least, most: what can be reached at all.
        cost: all that the schedules cost.
    """

    method: str
    vision: Schedule | None
    decoder: Schedule | None
    quantity: str
    wanted: float
    reached: float
    least: float
    most: float
    cost: Cost

    @property
    def schedule(self) -> Schedule | tuple[Schedule, Schedule]:
        """The one schedule, or those of tower and language model."""
        if self.vision is not None and self.decoder is not None:
            return self.vision, self.decoder
        found = self.vision or self.decoder
        assert found is not None
        return found


def spread(
    patches: int,
    layers: Iterable[int],
    total: int,
    *,
    floor: int = 1,
    largest: Sequence[Callable[[int], int]] | None = None,
    before_attention: bool = False,
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

    Example:
        >>> from ficoco_ext.cost import planner
        >>> planner.spread(576, range(11, 23), 512).r
        (43, 43, 43, 43, 43, 43, 43, 43, 42, 42, 42, 42)
        >>> planner.spread(576, range(4, 8), 1000).r
        (250, 250, 75, 0)
    """
    layers = tuple(layers)
    each, more = divmod(total, len(layers))
    left, removed = patches, []
    for index in range(len(layers)):
        most = max(left - floor, 0)
        r = min(each + (index < more), most if largest is None else min(most, largest[index](left)))
        removed.append(r)
        left -= r
    return Schedule(patches, layers, tuple(removed), before_attention)


@dataclass(frozen=True)
class _Row:
    """Answers in a row: ``at(step)`` removes one token more than ``at(step - 1)``, or nothing more if there is nothing.

    Cost never rises from ``start`` on. Before it not all layers reduce yet, and one token more may cost more, for its
    layer begins to score the tokens. For messages: ``where`` it reduces, ``what`` leaves, and a ``hint`` at what
    reaches further.
    """

    at: Callable[[int], Pair]
    start: int
    last: int
    where: str
    hint: str
    what: str = "visual tokens"


def _first_within(cost: Callable[[int], float], low: int, high: int, limit: float) -> int:
    """The first step in ``low`` ... ``high`` that costs no more than ``limit``, else ``high``."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(middle) <= limit else (middle + 1, high)
    return low


def _closest(row: _Row, cost: Callable[[int], float], wanted: float) -> int:
    """The step whose cost is closest to ``wanted``; of equals the one that removes least."""
    near = _first_within(cost, row.start, row.last, wanted)
    before = max(near - 1, row.start)
    steps = [*range(row.start), _first_within(cost, row.start, near, cost(before)), before, near]
    return min(steps, key=lambda step: (abs(cost(step) - wanted), step))


def _largest(methods: Sequence[LayerMethod]) -> list[Callable[[int], int]]:
    """For each layer of a tower the most of its patches that can leave."""
    return [lambda patches, one=one: one.largest(1 + patches, class_token=True) for one in methods]  # type: ignore[misc]


def _tower_row(shape: Architecture, method: TowerMethod, layers: Iterable[int] | None, floor: int) -> _Row:
    chosen, patches = tower_layers("plan", shape, layers, method), shape.tower.patches
    each = method.of_layers(len(chosen))
    if any(map(whole_grid, each[1:])):
        raise ValueError(f"plan: {method.name} needs the whole grid of patches; name one layer")

    largest = _largest(each)

    def at(total: int) -> Pair:
        return spread(patches, chosen, total, floor=floor, largest=largest), None

    few = next((one for one, most in zip(each, largest, strict=True) if most(patches) < patches - 1), None)
    less = "the rest is text" if few is None else f"a layer removes at most {few.limit} of its tokens; name more layers"
    last = len(chosen) * patches
    what = "visual tokens" if shape.crops == 1 else "patches of a crop"
    return _Row(at, len(chosen), last, f"{ranges(chosen)} of the tower", less, what)


def _decoder_row(
    shape: Architecture, method: LanguageMethod, visual: int, layers: Iterable[int] | None, floor: int
) -> _Row:
    chosen = decoder_layers("plan", shape, layers, method)

    def at(total: int) -> Pair:
        return None, spread(visual, chosen, total, floor=floor, before_attention=method.before_attention)

    last = len(chosen) * (visual - floor)
    hint = f"up to layer {chosen[0]} all of them are there; begin earlier, or reduce in the tower"
    return _Row(at, min(len(chosen), last), last, f"{ranges(chosen)} of the language model", hint)


def _both_row(
    shape: Architecture,
    in_tower: TowerMethod,
    in_decoder: LanguageMethod,
    images: int,
    floor: int,
    cost: Callable[[Pair], float],
    wanted: float,
) -> _Row:
    """Tower and language model keep the same share, as ``attach`` divides it; the tower's is fixed here.

    What is left in the end is the coarse step. The row that is returned tunes the language model alone.
    """
    tower = tower_layers("plan", shape, None, in_tower)
    decoder = decoder_layers("plan", shape, None, in_decoder)
    patches, largest = shape.tower.patches, _largest(in_tower.of_layers(len(tower)))
    before = in_decoder.before_attention

    def vision(final: int) -> Schedule:
        return spread(patches, tower, patches - shared_tokens(patches, final), largest=largest)

    def entering(left: Schedule) -> int:
        return images * shape.tokens_with(left.final)

    @functools.cache
    def coarse(step: int) -> float:
        final = patches - step
        left = vision(final)
        visual = entering(left)
        kept = max(math.floor(visual * final / left.final + 0.5), 1)
        return cost((left, spread(visual, decoder, visual - kept, before_attention=before)))

    final = patches - _first_within(coarse, 0, patches - floor, wanted)
    left = vision(final)
    visual = entering(left)

    def at(total: int) -> Pair:
        return left, spread(visual, decoder, total, floor=floor, before_attention=before)

    last = len(decoder) * (visual - floor)
    where = f"{ranges(tower)} of the tower and {ranges(decoder)} of the language model"
    hint = "they keep the same share of what they get; reduce in the tower alone: 'ficoco-v'"
    return _Row(at, min(len(decoder), last), last, where, hint)


def _budget(**given: float | None) -> tuple[str, float]:
    named = {name: value for name, value in given.items() if value is not None}
    if len(named) != 1:
        got = ", ".join(named) or "none"
        raise ValueError(f"plan: give exactly one of {', '.join(given)}, got {got}")
    ((quantity, wanted),) = named.items()
    if isinstance(wanted, bool) or not isinstance(wanted, (int, float)) or not 0 < wanted < math.inf:
        raise ValueError(f"plan: {quantity} must be a positive number, got {wanted!r}")
    return quantity, float(wanted)


def _out_of_reach(
    row: _Row, quantity: str, wanted: float, least: float, most: float, floor: int, text: int, names: tuple[str, str]
) -> NoReturn:
    method, model = names
    unit = QUANTITIES[quantity]
    reach = f"{method} in {row.where} of {model} with {text} text tokens reaches {least:.4g} to {most:.4g} {unit}"
    if wanted > most:
        why = f"{most:.4g} is what it costs when nothing is removed"
    else:
        left = "one" if floor == 1 else str(floor)
        why = f"{least:.4g} is what it costs when all {row.what} but {left} leave as early as possible; {row.hint}"
    raise ValueError(f"plan: {quantity}={wanted:g} is out of reach: {reach}; {why}")


def plan(
    model: Any,
    method: str | AnyMethod,
    *,
    tflops: float | None = None,
    kv_mb: float | None = None,
    average_tokens: float | None = None,
    ttft_ms: float | None = None,
    hardware: Any = None,
    text_tokens: int = 60,
    images: int = 1,
    layers: Iterable[int] | None = None,
    floor: int = 1,
    convention: str = "llmviewer",
    precision: Any = "fp16",
) -> Planned:
    """The integer schedule whose cost comes closest to exactly one of four budgets.

    All layers remove the same number of tokens, or the first ones one more. If that empties the picture before the
    last layer, as a small budget in the language model must, the layers after it remove nothing.

    Args:
        model: what :func:`ficoco_ext.cost.architecture` takes: ``"llava-1.5-7b"``, a config, a directory.
        method: name or value, see :func:`ficoco_ext.get_method`.
        tflops: operations of the prefill / 1e12, in ``convention``.
        kv_mb: size of the KV cache after the prefill / 1e6 bytes.
        average_tokens: visual tokens that enter attention, mean over all layers of the language model.
        ttft_ms: time to the first token by the roofline of ``hardware``, tower included: a lower bound.
        hardware: name or :class:`ficoco_ext.cost.Hardware`; only ``ttft_ms`` needs it.
        text_tokens: tokens of the prompt besides the visual ones.
        images: in the prompt. A tower's schedule is that of every image, a language model's that of all together.
        layers: those that reduce, ascending. None: as ``attach`` has it.
        floor: visual tokens that stay at least.
        convention: ``"llmviewer"``: of the language model alone, as papers count; ``"matmul"``: of everything
            that runs, as torch counts.
        precision: of weights, activations and cache, see :class:`ficoco_ext.cost.Precision`.

    Returns:
        A :class:`Planned`. Its ``schedule`` is a :class:`ficoco_ext.Schedule`; for a method of two parts, such as
        ``"ficoco-vl"``, a tuple of the tower's and the language model's, which keep about the same share of what they
        get, as ``attach`` divides it.

    Raises:
        ValueError: a budget out of reach (the message names the range), none or several, or an unknown name.

    Cost: some tens of evaluations of the cost model, well below a second. Deterministic.

    Example:
        >>> from ficoco_ext import cost
        >>> found = cost.plan("llava-1.5-7b", "ficoco-v", tflops=3.3)
        >>> found.schedule.final, round(found.reached, 3)
        (192, 3.298)
        >>> vision, decoder = cost.plan("llava-1.5-7b", "ficoco-vl", tflops=1.5).schedule
        >>> vision.final, decoder.final
        (90, 18)
    """
    quantity, wanted = _budget(tflops=tflops, kv_mb=kv_mb, average_tokens=average_tokens, ttft_ms=ttft_ms)
    if quantity == "ttft_ms":
        if hardware is None:
            raise ValueError("plan: ttft_ms depends on the device; pass hardware, such as 'h200'")
        convention = "matmul"  # time passes in the tower too
    shape, chosen, device = architecture(model), get_method(method), hardware and find_hardware(hardware)
    require_images(images)
    visual = images * shape.visual_tokens
    largest = visual if chosen.tower is None else shape.tower.patches
    if isinstance(floor, bool) or not isinstance(floor, int) or not 1 <= floor <= largest:
        raise ValueError(f"plan: floor must be an integer in [1, {largest}], got {floor!r}")

    @functools.cache
    def whole(pair: Pair) -> Cost:
        rest = {"text_tokens": text_tokens, "images": images, "precision": precision, "hardware": device}
        return bill(shape, convention, vision=pair[0], decoder=pair[1], method=chosen, **rest)

    def cost(pair: Pair) -> float:
        found = whole(pair)
        return float(found.tokens.average if quantity == "average_tokens" else getattr(found, quantity))

    tower, language_model = chosen.tower, chosen.language_model
    if tower is not None and language_model is not None:
        if layers is not None:
            remedy = "leave them out, or plan one part at a time"
            raise ValueError(f"plan: layers are of one part, and {chosen.name} has two; {remedy}")
        row = _both_row(shape, tower, language_model, images, floor, cost, wanted)
        furthest = _both_row(shape, tower, language_model, images, floor, cost, 0.0)
    elif language_model is not None:
        row = furthest = _decoder_row(shape, language_model, visual, layers, floor)
    else:
        assert tower is not None
        row = furthest = _tower_row(shape, tower, layers, floor)
    if quantity in ("kv_mb", "average_tokens") or convention == "llmviewer":
        row = dataclasses.replace(row, start=0)  # scoring is free on these scales
    most, least = cost((None, None)), cost(furthest.at(furthest.last))
    if not least * (1 - 1e-9) <= wanted <= most * (1 + 1e-9):
        _out_of_reach(row, quantity, wanted, least, most, floor, text_tokens, (chosen.name, shape.name))
    vision, decoder = row.at(_closest(row, lambda step: cost(row.at(step)), wanted))
    found = vision, decoder
    return Planned(chosen.name, vision, decoder, quantity, wanted, cost(found), least, most, whole(found))
