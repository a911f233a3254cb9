"""How much tower and language model of one model remove, from what the user asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..methods import LanguageMethod, LayerMethod, TowerMethod
from ..ops import checks
from ..schedule import Plan, Schedule
from ..stages.needs import GRID, WHOLE_GRID
from .families import Family, check_decoder, require_vision, unsupported


@dataclass(frozen=True)
class Amount:
    """``r``, ``keep_ratio`` and ``tokens``, of which one may be given, and ``layers``; as attach takes them."""

    r: Any = None
    keep_ratio: Any = None
    tokens: Any = None
    layers: Any = None

    @classmethod
    def of(cls, **given: Any) -> Amount:
        """Lists become tuples, so that a plan cannot be changed from outside."""
        layers = given.pop("layers", None)
        if isinstance(layers, Iterable):
            layers = tuple(layers)
        elif layers is not None:
            checks.fail("attach", "layers", "a sequence of layer indices", layers, "pass layers=(12, 13)", TypeError)
        held = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        return cls(**held, layers=layers)

    @property
    def given(self) -> dict[str, Any]:
        """Those of the three that are not None."""
        three = {"r": self.r, "keep_ratio": self.keep_ratio, "tokens": self.tokens}
        return {name: value for name, value in three.items() if value is not None}


def _of_mapping(name: str, given: Any) -> Amount:
    known = ("r", "keep_ratio", "tokens", "layers")
    if not isinstance(given, Mapping) or not set(given) <= set(known):
        wanted = f"a dict with some of {', '.join(known)}"
        checks.fail("attach", name, wanted, given, f'pass {name}={{"keep_ratio": 0.5}}', TypeError)
    return Amount.of(**given)


def split(model: Any, family: Family, amount: Amount, vision: Any, decoder: Any) -> tuple[Amount, Amount]:
    """What each of two parts removes: as they were given, or the same share of what each gets."""
    given = amount.given
    if vision is not None or decoder is not None:
        if vision is None or decoder is None or given or amount.layers is not None:
            remedy = 'pass vision={"keep_ratio": 0.5}, decoder={"keep_ratio": 0.5}'
            checks.fail("attach", "vision and decoder", "both given, and no amount or layers beside", given, remedy)
        return _of_mapping("vision", vision), _of_mapping("decoder", decoder)
    if "r" in given or amount.layers is not None or len(given) != 1:
        got = ", ".join([*given, *(["layers"] if amount.layers is not None else [])]) or "nothing"
        wanted = "one of keep_ratio and tokens for both parts together"
        checks.fail("attach", "amount", wanted, got, "or say it for each part: vision={...}, decoder={...}")
    patches = _geometry(model, family).patches
    final = Schedule.build(patches, layers=(0,), **given).final
    between = math.floor(math.sqrt(patches * final) + 0.5)
    return Amount(tokens=between), Amount(keep_ratio=final / between)


def _geometry(model: Any, family: Family) -> Any:
    from . import llava

    require_vision(family)
    llava.check_vision(model)
    return llava.geometry(model)


def vision_schedule(
    model: Any, family: Family, amount: Amount, methods: TowerMethod | tuple[LayerMethod, ...]
) -> Schedule:
    """What the tower removes from every image."""
    geometry = _geometry(model, family)
    own = None if isinstance(methods, tuple) else methods.layers
    layers = own(geometry.last + 1) if own is not None and amount.layers is None else amount.layers
    given = amount.given or dict(_first(methods).amount)
    return Schedule.build(geometry.patches, layers=_vision_layers(layers, geometry), **given)


def _first(methods: Any) -> Any:
    """The method, or the first of several, whose amount counts where none is given."""
    return methods[0] if isinstance(methods, tuple) else methods


def _vision_layers(layers: tuple[Any, ...] | None, geometry: Any) -> tuple[int, ...]:
    """The layers that reduce: given ones within the part of the tower that is used, or the second half of it."""
    last = geometry.last
    if layers is None:
        chosen = tuple(range(geometry.layers // 2, last + 1))
        if not chosen:
            wanted = "given, for the second half of the tower is not used"
            checks.fail("attach", "layers", wanted, f"vision layers up to {last}", f"pass layers of 0 ... {last}")
        return chosen
    remedy = f"of {geometry.layers} layers, the output of layer {last} is the last that is used"
    return _within(layers, 0, last, remedy)


def _within(layers: tuple[Any, ...], first: int, last: int, remedy: str) -> tuple[int, ...]:
    for layer in layers:
        if isinstance(layer, bool) or not isinstance(layer, int):
            checks.fail("attach", "layers", "made of integers", layer, "pass layer indices", TypeError)
        if not first <= layer <= last:
            checks.fail("attach", "layers", f"in {first} ... {last}", str(layer), remedy)
    return layers


def _for_each(methods: Any, layers: Sequence[int]) -> tuple[Any, ...]:
    if not isinstance(methods, tuple):
        return (methods,) * len(layers)
    if len(methods) != len(layers):
        wanted = f"one, or one for each of the {len(layers)} layers"
        checks.fail("attach", "method", wanted, f"{len(methods)}", "name as many methods as layers")
    return methods


def vision_methods(methods: TowerMethod | tuple[LayerMethod, ...], schedule: Schedule) -> tuple[LayerMethod, ...]:
    """One method for each layer of the tower, each able to do what the schedule asks of it."""
    if isinstance(methods, tuple):
        chosen = _for_each(methods, schedule.layers)
    else:
        chosen = methods.of_layers(len(schedule.layers))
    for one, step in zip(chosen, schedule.steps, strict=True):
        before = step.before
        for part, r in one.parts(1 + before, step.r, class_token=True) if step.r else ():
            _check_part(part, r, before, step.layer, schedule.patches)
            before -= r
    return chosen


def _check_part(method: LayerMethod, r: int, before: int, layer: int, patches: int) -> None:
    """Raise if ``method`` cannot remove ``r`` of ``before`` patches in this layer of a tower of ``patches``."""
    most = method.largest(1 + before, class_token=True)
    if r > most:
        wanted = f"at most {most} in layer {layer}, {method.limit} of the {before} patches that enter it"
        checks.fail("attach", "r", wanted, str(r), "remove less, or in more layers")
    targets = method.targets(before - r)
    if targets is not None and targets > before - r:
        wanted = f"at most {before - r}, the patches that layer {layer} leaves"
        checks.fail("attach", "targets", wanted, str(targets), "lower targets, or remove less")
    if WHOLE_GRID in method.needs and before != patches:
        wanted = f"the first that reduces with method {method.name!r}, which needs the whole grid of patches"
        got = f"layer {layer}, which {before} of {patches} patches enter"
        checks.fail("attach", "layers", wanted, got, f"pass one layer, such as layers=({layer},)")


def decoder_plan(
    model: Any, family: Family, methods: LanguageMethod | tuple[LanguageMethod, ...], amount: Amount
) -> tuple[Plan, tuple[LanguageMethod, ...]]:
    """What the language model removes, and one method for each of its layers."""
    language_model = model.model.language_model
    check_decoder(language_model, family)
    several = methods if isinstance(methods, tuple) else (methods,)
    first, last = several[0], len(language_model.layers) - 1
    if len({(one.before_attention, one.rounding) for one in several}) > 1:
        names = ", ".join(one.name for one in several)
        checks.fail("attach", "method", "methods that reduce at the same place of a layer", names, "pass one method")
    own = first.layers(last + 1)
    layers = own if amount.layers is None else amount.layers
    if first.before_attention:
        remedy = "layer 0 caches the whole prompt, which positions and masks count from"
    else:
        remedy = "pass layer indices of the language model"
    layers = _within(layers, int(first.before_attention), last, remedy)
    instead = first.instead_of(layers)
    if instead is not None and layers != own:
        checks.fail("attach", "layers", f"None with method {first.name!r}, or {own}", layers, instead)
    given = amount.given or dict(first.amount)
    stages = given.get("keep_ratio") if not amount.given and amount.layers is None else None
    if isinstance(stages, tuple) and len(stages) != len(layers):
        wanted, remedy = (
            f"given, for {last + 1} layers are too few for {len(stages)} stages",
            "pass keep_ratio and layers",
        )
        checks.fail("attach", "keep_ratio", wanted, "None", remedy)
    if "r" in given and not isinstance(given["r"], (int, tuple)):
        wanted = "an integer or a list with one integer a layer"
        checks.fail("attach", "r", wanted, given["r"], "pass r=14", TypeError)
    Schedule.build(2**20, layers=layers, **given)  # says what is wrong with an amount, in the words for both sides
    plan = Plan(layers=layers, rounding=first.rounding, before_attention=first.before_attention, **given)
    return plan, _for_each(methods, layers)


def check_grid(methods: tuple[LanguageMethod, ...], picture: tuple[int, int] | None) -> None:
    """Raise if a grid is needed where visual tokens are none."""
    for one in methods:
        if GRID in one.needs and picture is None:
            wanted = "one that needs no grid where the visual tokens of a picture are not its whole grid, line by line"
            unsupported("method", wanted, f"{one.name}, which needs the grid", one.remedy(GRID))


def static_count(given: Any, plan: Plan | None) -> bool | int:
    """The promise about visual tokens in a row."""
    if given is False or (given is True and plan is not None):
        return given
    if plan is None:
        remedy = "a tower's counts are always known"
        checks.fail("attach", "static_counts", "False without a method for the language model", given, remedy)
    if not isinstance(given, int) or given < 1:
        remedy = "pass the number of visual tokens in each row"
        checks.fail("attach", "static_counts", "True, False or an integer >= 1", given, remedy, TypeError)
    return given
