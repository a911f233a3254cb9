"""The data of the page: every run's moves, layer by layer, and the colours of its merge groups, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...reduction import Reduction
from ..colours import neighbours
from ..traces import groups, holders, transfers

MILLION = 1_000_000  # a weight is written in millionths: a share of a patch is off by less than a millionth a layer
GROUP_COLOURS = 12  # --group-0 and so on in page.css
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"

Layer = tuple[str, int]  # side, index


@dataclass(frozen=True)
class Answer:
    """What the model said. ``right`` is None where that is not known."""

    text: str
    right: bool | None = None


@dataclass(frozen=True)
class Asked:
    """A question, its answer if that is known, and what the model says with all tokens."""

    question: str
    answer: Answer
    truth: str | None = None


@dataclass(frozen=True)
class Run:
    """One method at one keep ratio.

    Attributes:
        method, keep_ratio: which.
        reductions: of the layers in order, in indices of the picture's patches; empty if ``refused``.
        layers: side and index of the layer of each of them.
        answer: to the page's question, or None.
        refused: why this method cannot be run at this ratio, or None.
    """

    method: str
    keep_ratio: float
    reductions: Sequence[Reduction] = ()
    layers: Sequence[Layer] = ()
    answer: Answer | None = None
    refused: str | None = None


def records(
    runs: Sequence[Run], sides: Mapping[str, int], grid: tuple[int, int], item: int
) -> tuple[list[str], list[float], list[list[dict[str, Any]]]]:
    """Methods in the order given, keep ratios from most to least kept, and what happened in each pair of them.

    Raises:
        ValueError: a pair that is missing or there twice, or a layer that its side does not have.
    """
    methods = list(dict.fromkeys(run.method for run in runs))
    ratios = sorted({run.keep_ratio for run in runs}, reverse=True)
    found = {(run.method, run.keep_ratio): run for run in runs}
    if len(found) != len(runs):
        raise ValueError("page: each method must be given once for each keep ratio, got one twice")
    for method in methods:
        for ratio in ratios:
            if (method, ratio) not in found:
                raise ValueError(f"page: every method must be given at every keep ratio, {method} is not at {ratio}")
    return methods, ratios, [[record(found[one, ratio], sides, grid, item) for ratio in ratios] for one in methods]


def record(run: Run, sides: Mapping[str, int], grid: tuple[int, int], item: int = 0) -> dict[str, Any]:
    """One run as JSON has it, see ``model.js``."""
    if run.refused is not None:
        return {"refused": run.refused}
    numbers = [_number(layer, sides) for layer in run.layers]
    if numbers != sorted(set(numbers)) or len(numbers) != len(run.reductions):
        raise ValueError(f"page: layers must be ascending, one a reduction, got {list(run.layers)} for {run.method}")
    steps = [
        {"layer": number, "moves": moves(reduction, item)}
        for number, reduction in zip(numbers, run.reductions, strict=True)
    ]
    answer = None if run.answer is None else {"text": run.answer.text, "right": run.answer.right}
    return {"answer": answer, "steps": steps, "colours": colours(run.reductions, grid, item)}


def _number(layer: Layer, sides: Mapping[str, int]) -> int:
    """The layer's index among those of all sides."""
    side, index = layer
    if side not in sides or not 0 <= index < sides[side]:
        raise ValueError(f"page: {side} layer {index} is none of the layers, {dict(sides)}")
    before = list(sides).index(side)
    return sum(list(sides.values())[:before]) + index


def moves(reduction: Reduction, item: int = 0) -> list[list[int]]:
    """What one reduction did with each patch that it removed.

    Returns:
        For each source ``[source, target]`` if the target got all of it, or ``[source, target, weight, target, weight,
        ...]`` with weights in millionths that sum to a million. Target -1: dropped. The first target is the one that
        holds the source from then on; the others follow by weight.
    """
    held = holders(reduction, item)
    found = []
    for source, parts in transfers(reduction, item):
        rest = 1.0 - sum(weight for _, weight in parts)
        weights = _millionths([*parts, (-1, max(rest, 0.0))])
        ordered = sorted(weights, key=lambda one: (one[0] != held[source], -one[1], one[0]))
        row = [source, *(number for part in ordered for number in part)]
        found.append(row if len(ordered) > 1 else row[:2])
    return found


def _millionths(parts: Sequence[tuple[int, float]]) -> list[tuple[int, int]]:
    """Weights that sum to one as integers that sum to a million, without zeros; largest remainders are rounded up."""
    exact = [weight * MILLION for _, weight in parts]
    whole = [int(value) for value in exact]
    missing = MILLION - sum(whole)
    for at in sorted(range(len(parts)), key=lambda at: (whole[at] - exact[at], at))[:missing]:
        whole[at] += 1
    return [(target, weight) for (target, _), weight in zip(parts, whole, strict=True) if weight]


def colours(reductions: Sequence[Reduction], grid: tuple[int, int], item: int = 0) -> str:
    """A colour for every patch that holds others after some layer, the same in all layers: one digit (base 36) a patch.

    ``.`` stands for a patch that never holds another one. Groups that touch in any layer get different colours as long
    as there are enough; where there are not, borders still separate them.
    """
    touching: dict[int, set[int]] = {}
    for reduction in reductions:
        near = neighbours(holders(reduction, item), grid)
        holding = groups(reduction, item).keys()
        for holder in holding:
            touching.setdefault(holder, set()).update(near[holder] & holding)
    used = [0] * GROUP_COLOURS
    chosen: dict[int, int] = {}
    for holder in sorted(touching, key=lambda one: (-len(touching[one]), one)):
        taken = [chosen[other] for other in touching[holder] if other in chosen]
        best = min(range(GROUP_COLOURS), key=lambda colour: (taken.count(colour), used[colour], colour))
        chosen[holder] = best
        used[best] += 1
    return "".join(_DIGITS[chosen[patch]] if patch in chosen else "." for patch in range(grid[0] * grid[1]))
