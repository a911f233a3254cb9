"""The planner: from a budget to the integer schedule that comes closest to it.

A method and its layers leave one question open: how many tokens go. The planner orders the answers in a row, each
removing one token more than the one before, spread evenly over the layers, and looks for the one whose cost is closest.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from ..amounts import require_numbers
from ..methods import AnyMethod, get_method
from ..schedule import Schedule
from .bill import Cost
from .caches import chosen as chosen_cache
from .hardware import hardware as find_hardware
from .presets import architecture
from .projected import require_crops, tokens_of_picture
from .rows import Row, decoder_row, first_within, projector_row, several_row, tower_row
from .schedules import Schedules, require_images
from .scope import bill

QUANTITIES = {
    "tflops": "TFLOPs",
    "kv_mb": "MB of KV cache",
    "average_tokens": "visual tokens in the mean over the language model's layers",
    "ttft_ms": "ms to the first token",
}


@dataclass(frozen=True)
class Planned:
    """What the planner found.

    Attributes:
        method: its name.
        vision, decoder: the schedules of tower and language model; None where the method does not reduce.
        projector: tokens that stay of a picture after the projector; None likewise.
        quantity, wanted: what was asked for, one of :data:`QUANTITIES`.
        reached: what the schedules cost in it.
        least, most: what can be reached at all.
        cost: all that the schedules cost.
    """

    method: str
    vision: Schedule | None
    projector: int | None
    decoder: Schedule | None
    quantity: str
    wanted: float
    reached: float
    least: float
    most: float
    cost: Cost

    @property
    def schedules(self) -> Schedules:
        """What leaves each part."""
        return Schedules(self.vision, self.projector, self.decoder)

    @property
    def schedule(self) -> Any:
        """The one schedule, or a tuple of those there are; after the projector it is the tokens of a picture."""
        there = tuple(one for one in self.schedules if one is not None)
        return there[0] if len(there) == 1 else there


def _closest(row: Row, cost: Callable[[int], float], wanted: float) -> int:
    """The step whose cost is closest to ``wanted``; of equals the one that removes least."""
    near = first_within(cost, row.start, row.last, wanted)
    before = max(near - 1, row.start)
    steps = [*range(row.start), first_within(cost, row.start, near, cost(before)), before, near]
    return min(steps, key=lambda step: (abs(cost(step) - wanted), step))


def _budget(**given: float | None) -> tuple[str, float]:
    named = {name: value for name, value in given.items() if value is not None}
    if len(named) != 1:
        got = ", ".join(named) or "none"
        raise ValueError(f"plan: give exactly one of {', '.join(given)}, got {got}")
    ((quantity, wanted),) = named.items()
    if isinstance(wanted, bool) or not isinstance(wanted, (int, float)) or not 0 < wanted < math.inf:
        raise ValueError(f"plan: {quantity} must be a positive number, got {wanted!r}")
    return quantity, float(wanted)


def _why_no_layers(name: str, parts: int) -> str:
    if parts == 1:
        return f"must be None: {name} acts after the projector"
    several = "two" if parts == 2 else "three"
    return f"are of one part, and {name} has {several}; leave them out, or plan one part at a time"


def _out_of_reach(
    row: Row, quantity: str, wanted: float, least: float, most: float, floor: int, text: int, names: tuple[str, str]
) -> NoReturn:
    method, model = names
    unit = QUANTITIES[quantity]
    reach = f"{method} {row.where} of {model} with {text} text tokens reaches {least:.4g} to {most:.4g} {unit}"
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
    cache: str | None = None,
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
        floor: visual tokens that stay at least; in the tower and after the projector, of each picture.
        convention: ``"llmviewer"``: of the language model alone, as papers count; ``"matmul"``: of everything
            that runs, as torch counts.
        precision: of weights, activations and cache, see :class:`ficoco_ext.cost.Precision`.
        cache: what layers of the language model keep once the prompt is read, ``"staircase"`` or ``"output-aware"``;
            None: what the method says.

    Returns:
        A :class:`Planned`. Its ``schedule`` is a :class:`ficoco_ext.Schedule`, or after the projector the number of
        tokens that stay of a picture. For a method of several parts, such as ``"ficoco-vl"`` or ``"divprune+fastv"``,
        it is a tuple with one for each, which keep about the same share of what they get, as ``attach`` divides it.

    Raises:
        ValueError: a budget out of reach (the message names the range), none or several, or an unknown name. A method
            that lets the data decide how many tokens leave. NotImplementedError: windows of crops.

    Cost: some tens of evaluations of the cost model, well below a second. Deterministic.

    Example:
        >>> from ficoco_ext import cost
        >>> found = cost.plan("llava-1.5-7b", "ficoco-v", tflops=3.3)
        >>> found.schedule.final, round(found.reached, 3)
        (192, 3.298)
        >>> vision, decoder = cost.plan("llava-1.5-7b", "ficoco-vl", tflops=1.5).schedule
        >>> vision.final, decoder.final
        (90, 18)
        >>> cost.plan("llava-1.5-7b", "divprune", tflops=3.3).projector
        192
    """
    quantity, wanted = _budget(tflops=tflops, kv_mb=kv_mb, average_tokens=average_tokens, ttft_ms=ttft_ms)
    if quantity == "ttft_ms":
        if hardware is None:
            raise ValueError("plan: ttft_ms depends on the device; pass hardware, such as 'h200'")
        convention = "matmul"  # time passes in the tower too
    shape, chosen, device = architecture(model), get_method(method), hardware and find_hardware(hardware)
    require_images(images)
    require_numbers("what reaches a budget", chosen)
    keeps = chosen_cache(cache, chosen)
    if chosen.projector is not None:
        require_crops(shape, chosen.projector)
    visual = images * shape.visual_tokens
    largest = shape.tower.patches
    if chosen.tower is None:
        largest = visual if chosen.projector is None else tokens_of_picture(shape, None)
    if isinstance(floor, bool) or not isinstance(floor, int) or not 1 <= floor <= largest:
        raise ValueError(f"plan: floor must be an integer in [1, {largest}], got {floor!r}")

    @functools.cache
    def whole(left: Schedules) -> Cost:
        rest = {"text_tokens": text_tokens, "images": images, "precision": precision, "hardware": device}
        rest["cache"] = keeps
        return bill(shape, convention, method=chosen, **left._asdict(), **rest)

    def cost(left: Schedules) -> float:
        found = whole(left)
        return float(found.tokens.average if quantity == "average_tokens" else getattr(found, quantity))

    count = sum(one is not None for one in (chosen.tower, chosen.projector, chosen.language_model))
    if layers is not None and (count > 1 or chosen.projector is not None):
        raise ValueError(f"plan: layers {_why_no_layers(chosen.name, count)}")
    if count > 1:
        row = several_row(shape, chosen, images, floor, cost, wanted)
        furthest = several_row(shape, chosen, images, floor, cost, 0.0)
    elif chosen.language_model is not None:
        row = furthest = decoder_row(shape, chosen.language_model, visual, layers, floor)
    elif chosen.projector is not None:
        row = furthest = projector_row(shape, floor)
    else:
        assert chosen.tower is not None
        row = furthest = tower_row(shape, chosen.tower, layers, floor)
    if quantity in ("kv_mb", "average_tokens") or convention == "llmviewer":
        row = dataclasses.replace(row, start=0)  # scoring is free on these scales
    most, least = cost(Schedules()), cost(furthest.at(furthest.last))
    if not least * (1 - 1e-9) <= wanted <= most * (1 + 1e-9):
        _out_of_reach(row, quantity, wanted, least, most, floor, text_tokens, (chosen.name, shape.name))
    found = row.at(_closest(row, lambda step: cost(row.at(step)), wanted))
    return Planned(chosen.name, *found, quantity, wanted, cost(found), least, most, whole(found))
