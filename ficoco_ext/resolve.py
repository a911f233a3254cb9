"""Which layers remove how many tokens: the rules that ``attach`` and the cost model share.

Facts of a model and what a method is asked for go in; a :class:`~ficoco_ext.Schedule` of the vision tower and a
:class:`~ficoco_ext.Plan` of the language model come out, each with one method for each of its layers. Every function
takes ``op``, the name of the caller, for its messages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .amounts import Amount
from .methods import FeatureMethod, LanguageMethod, LayerMethod, TowerMethod
from .ops import checks
from .schedule import Plan, Schedule
from .stages import Crops
from .stages.needs import CLASS_TOKEN, CROPS, WHOLE_GRID
from .stages.windows import require_multiple

# One method for all layers, or one for each.
TowerMethods = TowerMethod | tuple[LayerMethod, ...]
DecoderMethods = LanguageMethod | tuple[LanguageMethod, ...]


@dataclass(frozen=True)
class TowerFacts:
    """A vision tower in which patches can leave.

    Attributes:
        grid: (height, width) of an image's patches.
        layers: all of them. used: the first ones, whose output the language model gets.
        extra: visual tokens of an image besides its patches: 1 if the class token goes to the language model.
        class_token: it has one, before the patches.
    """

    grid: tuple[int, int]
    layers: int
    used: int
    extra: int = 0
    class_token: bool = True

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class LanguageModelFacts:
    """A language model.

    Attributes:
        layers: how many it has.
        first: the first one that can reduce: after every one before it, features of the vision tower (DeepStack) are
            added to all visual tokens, which must be there.
    """

    layers: int
    first: int = 0


@dataclass(frozen=True)
class ProjectorPlan:
    """What leaves every picture after the projector.

    Attributes:
        method: who decides which.
        keep_ratio: the share of a picture's tokens that stays; or
        tokens: how many stay, a number or a function of the grid (rows, columns), which gets None where a picture's
            tokens are no whole grid.
    """

    method: FeatureMethod
    keep_ratio: float | None = None
    tokens: int | Callable[[tuple[int, int] | None], int] | None = None

    def count(self, before: int, grid: tuple[int, int] | None = None, crops: Crops | None = None) -> int:
        """Tokens that stay of a picture of ``before``: at least 1, and never more than there are.

        Where the data decide it is what is asked for; how many really stay is what :attr:`method` says.

        Raises:
            ValueError, TypeError: the function of the grid gives no number of at least 1.
        """
        wanted = self._wanted(before, grid, crops)
        if not self.method.resizes or grid is None or wanted == before:
            return wanted
        rows, columns = self.method.encoded_grid(grid, wanted)
        return rows * columns

    def acting(self, before: int, count: int) -> FeatureMethod:
        """The method, knowing the share that is asked for, of pictures of ``before`` tokens of which ``count`` stay."""
        if self.keep_ratio is None and not self.method.data_decides:
            return self.method
        return self.method.asked(count / before if self.keep_ratio is None else self.keep_ratio)

    def _wanted(self, before: int, grid: tuple[int, int] | None, crops: Crops | None) -> int:
        if self.keep_ratio is not None:
            number = self.method.number(before, crops, self.keep_ratio)
            if number is not None:
                return number
            return max(math.floor(self.keep_ratio * before + 0.5), 1) if before else 0
        wanted = self.tokens(grid) if callable(self.tokens) else self.tokens
        if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
            remedy = f"it is called with the grid, here {grid}"
            checks.fail("forward", "tokens", "a function that returns an integer >= 1", repr(wanted), remedy, TypeError)
        return min(wanted, before)

    def removes(self, before: int) -> bool:
        """Whether a picture of ``before`` tokens loses any."""
        return callable(self.tokens) or self.count(before) < before

    @property
    def amount(self) -> str:
        """How many stay, in words."""
        if self.keep_ratio is not None:
            return f"{self.keep_ratio:g} of the tokens of a picture"
        return (
            "a number of tokens that its grid decides"
            if callable(self.tokens)
            else f"{self.tokens} tokens of a picture"
        )


def tower_layers(op: str, facts: TowerFacts, methods: TowerMethods, layers: Sequence[Any] | None) -> tuple[int, ...]:
    """The layers of the tower that reduce: given ones, the method's own, or the second half up to the last in use.

    Raises:
        ValueError: layers that do not exist or are not used. TypeError: no integers. NotImplementedError: a method that
        needs a class token, in a tower without one.
    """
    _require_class_token(op, facts, methods)
    last = facts.used - 1
    own = None if isinstance(methods, tuple) else methods.layers
    if layers is None and own is None:
        chosen = tuple(range(facts.layers // 2, facts.used))
        if not chosen:
            wanted = "given, for the second half of the tower is not used"
            checks.fail(op, "layers", wanted, f"vision layers up to {last}", f"pass layers of 0 ... {last}")
        return chosen
    if layers is None:
        assert own is not None
        layers = own(facts.used)
    remedy = f"of {facts.layers} layers, the output of layer {last} is the last that is used"
    return _require_layers(op, tuple(layers), 0, last, "the tower", remedy)


def _require_class_token(op: str, facts: TowerFacts, methods: TowerMethods) -> None:
    several = methods if isinstance(methods, tuple) else (methods,)
    wanting = None if facts.class_token else next((one for one in several if CLASS_TOKEN in one.needs), None)
    if wanting is not None:
        remedy = "this tower has none; use one that does without, such as 'ficoco-v', 'tome' or 'topk'"
        got = f"{wanting.name!r} as it is given here"
        checks.fail(op, "method", "one that needs no class token", got, remedy, NotImplementedError)


def tower_schedule(
    op: str, facts: TowerFacts, methods: TowerMethods, amount: Amount
) -> tuple[Schedule, tuple[LayerMethod, ...]]:
    """What the tower removes from every image, and one method for each layer of it.

    Raises:
        ValueError, TypeError: an amount, layers or methods that do not fit.
    """
    layers = tower_layers(op, facts, methods, amount.layers)
    given = amount.given or dict(_first(methods).amount)
    if callable(given.get("r")):  # a method's own amount may depend on the number of patches
        given = {"r": given["r"](facts.patches)}
    schedule = Schedule.build(facts.patches, layers=layers, **given)
    chosen = _one_for_each(op, methods, layers) if isinstance(methods, tuple) else methods.of_layers(len(layers))
    schedule = _in_units(op, schedule, chosen, exact="r" in given)
    said = amount.share_of or next(iter(given.items()))
    for one, step in zip(chosen, schedule.steps, strict=True):
        before = step.before
        first = facts.class_token
        for part, r in one.parts(first + before, step.r, class_token=first) if step.r else ():
            _require_possible(op, facts, part, r, before, step.layer, said)
            before -= r
    return schedule, chosen


def _in_units(op: str, schedule: Schedule, methods: Sequence[LayerMethod], *, exact: bool) -> Schedule:
    """The schedule of methods of which some remove several tokens together, or after the MLP of a layer.

    An ``exact`` r must be a multiple of what leaves together; else it is rounded down, so that a few more tokens stay.
    """
    units = [one.unit for one in methods]
    for r, unit in zip(schedule.r, units, strict=True):
        if exact:
            require_multiple(op, r, unit)
    late = tuple(layer for layer, one in zip(schedule.layers, methods, strict=True) if one.after_mlp)
    if not late and max(units) == 1:
        return schedule
    whole = tuple(r - r % unit for r, unit in zip(schedule.r, units, strict=True))
    return replace(schedule, r=whole, after_mlp=late)


def _require_possible(
    op: str, facts: TowerFacts, method: LayerMethod, r: int, before: int, layer: int, said: tuple[str, Any]
) -> None:
    """Raise if ``method`` cannot remove ``r`` of ``before`` patches in this layer, as the amount ``said`` has it."""
    most = method.largest(facts.class_token + before, class_token=facts.class_token)
    if r > most:
        name, value = said
        wanted = f"at most {most} in layer {layer}, {method.limit} of the {before} patches that enter it"
        got = str(r)
        if name != "r":
            wanted, got = f"such that r is {wanted}", f"{value}, which removes {r}"
        remedy = f"{method.name} removes at most {method.limit} of what enters a layer; remove less, or in more layers"
        checks.fail(op, name, wanted, got, remedy)
    targets = method.targets(before - r)
    if targets is not None and targets > before - r:
        wanted = f"at most {before - r}, the patches that layer {layer} leaves"
        checks.fail(op, "targets", wanted, str(targets), "lower targets, or remove less")
    if WHOLE_GRID in method.needs and before != facts.patches:
        wanted = f"the first that reduces with method {method.name!r}, which needs the whole grid of patches"
        got = f"layer {layer}, which {before} of {facts.patches} patches enter"
        checks.fail(op, "layers", wanted, got, f"pass one layer, such as layers=({layer},)")


def require_single_patches(
    op: str, model: str, methods: Iterable[LayerMethod], remedy: str = "pass part='language_model'"
) -> None:
    """Raise if one of ``methods``, which reduce the crops of a picture in the tower, removes several patches together.

    Of a group that is removed together, such as a window, a part may be padding. ``model``: its name, for the message.

    Raises:
        NotImplementedError: naming the method.
    """
    windows = next((one for one in methods if one.unit > 1), None)
    if windows is not None:
        wanted = f"one that removes single patches in the vision tower of {model}"
        got = f"{windows.name}, of whose windows padding may be a part"
        checks.fail(op, "method", wanted, got, remedy, NotImplementedError)


def decoder_layers(
    op: str, facts: LanguageModelFacts, methods: DecoderMethods, layers: Sequence[Any] | None
) -> tuple[int, ...]:
    """The layers of the language model that reduce: given ones, or the method's own.

    Raises:
        ValueError: layers that do not exist, or that the method cannot have. TypeError: no integers.
    """
    several = methods if isinstance(methods, tuple) else (methods,)
    first, last = _first(methods), facts.layers - 1
    order, rounding = {one.before_attention for one in several}, {one.rounding for one in several}
    for kinds, wanted in (
        (order, "methods that all reduce before, or all after, the attention of a layer"),
        (rounding, "methods that all round survivors in one way"),
    ):
        if len(kinds) > 1:
            checks.fail(op, "method", wanted, ", ".join(one.name for one in several), "pass one method")
    own = first.layers(facts.layers)
    if first.before_attention:
        remedy = "layer 0 caches the whole prompt, from which positions and masks are counted"
    else:
        remedy = "pass layer indices of the language model"
    given = own if layers is None else tuple(layers)
    if facts.first:
        remedy = _after_deepstack(op, facts, first, given)
    lowest = max(int(first.before_attention), facts.first)
    chosen = _require_layers(op, given, lowest, last, "the language model", remedy)
    instead = first.instead_of(chosen)
    if instead is not None and chosen != own:
        checks.fail(op, "layers", f"None with method {first.name!r}, or {own}", chosen, instead)
    return chosen


def _after_deepstack(op: str, facts: LanguageModelFacts, method: LanguageMethod, layers: tuple[Any, ...]) -> str:
    """Why layers of ``layers`` that come before the first one that can reduce are refused, and what to pass.

    Raises:
        ValueError: no layer can reduce.
    """
    if facts.first >= facts.layers:
        got = f"{facts.layers}, after each of which DeepStack adds features of the vision tower"
        checks.fail(op, "layers of the language model", f"more than {facts.first}", got, "reduce another part")
    integers = (layer for layer in layers if isinstance(layer, int))
    later = tuple(layer for layer in integers if facts.first <= layer < facts.layers) or (facts.first,)
    instead = method.instead_of((facts.first,)) or f"pass layers={later}"
    why = f"DeepStack adds features of the vision tower to every visual token after layers 0 ... {facts.first - 1}"
    return f"{why}, so layer {facts.first} is the first that can reduce; {instead}"


def decoder_plan(
    op: str, facts: LanguageModelFacts, methods: DecoderMethods, amount: Amount, *, alone: bool = True
) -> tuple[Plan, tuple[LanguageMethod, ...]]:
    """What the language model removes, and one method for each layer of it.

    ``alone``: no other part of the model reduces, so that an amount is that of the language model.

    Raises:
        ValueError, TypeError: an amount, layers or methods that do not fit.
    """
    layers = decoder_layers(op, facts, methods, amount.layers)
    first = _first(methods)
    if _data_decide(op, methods):
        for name, value in amount.given.items():
            wanted, remedy = f"None with method {first.name!r}, which decides by the data", "leave it out"
            checks.fail(op, name, wanted, value, remedy)
        plan = Plan(layers=layers, before_attention=first.before_attention, by_data=True)
        return plan, _one_for_each(op, methods, layers)
    given = amount.given or dict(first.amount)
    stages = given.get("keep_ratio") if not amount.given and amount.layers is None else None
    if isinstance(stages, tuple) and len(stages) != len(layers):
        wanted = f"given, for {facts.layers} layers are too few for {len(stages)} stages"
        each = "pass it for all parts together, or vision={...} and decoder={...} with a keep_ratio each"
        checks.fail(op, "keep_ratio", wanted, "None", "pass keep_ratio and layers" if alone else each)
    if "r" in given and not isinstance(given["r"], (int, tuple)):
        wanted = "an integer or a list with one integer a layer"
        checks.fail(op, "r", wanted, given["r"], "pass r=14", TypeError)
    Schedule.build(2**20, layers=layers, **given)  # raises for a wrong amount, in the same words as for the tower
    plan = Plan(layers=layers, rounding=first.rounding, before_attention=first.before_attention, **given)
    return plan, _one_for_each(op, methods, layers)


def require_whole_first_layer(op: str, layers: Sequence[int]) -> None:
    """Raise if layer 0 is one of the reducing ``layers``, from which on an output-aware cache is cut."""
    if layers[0] == 0:
        remedy = "all lengths are counted from the cache of layer 0; leave it out, or pass cache='staircase'"
        checks.fail(op, "layers", "from 1 on with an output-aware cache", str(tuple(layers)), remedy)


def _data_decide(op: str, methods: DecoderMethods) -> bool:
    """Whether the data decide how many tokens leave, in every layer.

    Raises:
        ValueError: in some layers only.
    """
    several = methods if isinstance(methods, tuple) else (methods,)
    said = {one.data_decides for one in several}
    if len(said) > 1:
        wanted = "methods that all, or none, decide by the data how many tokens leave"
        checks.fail(op, "method", wanted, ", ".join(one.name for one in several), "pass one method")
    return said == {True}


def projector_plan(op: str, method: FeatureMethod, amount: Amount) -> ProjectorPlan:
    """What is removed after the projector.

    Raises:
        ValueError, TypeError: an amount that does not fit.
    """
    given = amount.given or dict(method.amount)
    if amount.layers is not None:
        remedy = "leave it out" if CROPS not in method.needs else "a picture's crops differ in number; say keep_ratio"
        checks.fail(
            op, "layers", f"None with method {method.name!r}, which acts after the projector", amount.layers, remedy
        )
    if len(given) != 1 or "r" in given:
        got = ", ".join(given) or "nothing"
        why = "a picture's crops differ in number; " if CROPS in method.needs else ""
        wanted = f"one of keep_ratio and tokens with method {method.name!r}"
        checks.fail(op, "amount", wanted, got, f"{why}pass keep_ratio=0.25")
    ((name, value),) = given.items()
    if name == "tokens" and callable(value):
        return ProjectorPlan(method, tokens=value)
    if isinstance(value, tuple):
        checks.fail(op, name, "one value: it acts once", str(list(value)), "pass one", TypeError)
    Schedule.build(2**20, layers=(0,), **given)  # raises for a wrong value, in the same words as for the tower
    return ProjectorPlan(method, **given)


def _first(methods: Any) -> Any:
    """The method, or the first of several, whose own amount is used where none is given."""
    return methods[0] if isinstance(methods, tuple) else methods


def _one_for_each(op: str, methods: Any, layers: tuple[int, ...]) -> tuple[Any, ...]:
    """One method for each layer: the same for all, or as many as there are layers."""
    if not isinstance(methods, tuple):
        return (methods,) * len(layers)
    if len(methods) != len(layers):
        wanted = f"one, or one for each of the {len(layers)} layers"
        checks.fail(op, "method", wanted, f"{len(methods)}", "name as many methods as layers")
    return methods


def _require_layers(op: str, layers: tuple[Any, ...], first: int, last: int, part: str, remedy: str) -> tuple[int, ...]:
    """``layers``, if they are integers in ``first`` ... ``last``, ascending and distinct, and at least one."""
    for layer in layers:
        if isinstance(layer, bool) or not isinstance(layer, int):
            checks.fail(op, "layers", "made of integers", layer, "pass layer indices", TypeError)
        if not first <= layer <= last:
            checks.fail(op, "layers", f"in {first} ... {last} of {part}", str(layer), remedy)
    Schedule.build(1, layers=layers, r=0)  # raises for none, and for layers that are not ascending
    return layers
