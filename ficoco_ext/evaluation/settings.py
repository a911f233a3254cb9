"""What is compared: methods, each with an amount."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..apps.checkpoint import Checkpoint
from ..io.suggest import did_you_mean
from ..methods import METHODS, AnyMethod, get_method, hyperparameters, is_name
from ..models import AttachPlan, Handle, attach, resolve
from ..schedule import geometric
from ..stages.needs import TEXT
from .goal import EQUAL, Goal

UNREDUCED = "unreduced"
SCHEDULES = ("even", "geometric")
# What a method has to beat at the same number of tokens in the language model; random several times, as one draw may
# be lucky. Those that are not installed are left out.
BASELINES: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"random-{seed}": ("random", {"part": "projector", "seed": seed}) for seed in range(3)},
    "stride": ("stride", {}),
    "downsample": ("downsample", {}),
}


@dataclass(frozen=True)
class Setting:
    """One way to reduce.

    Attributes:
        method: a name, a method, or one for each layer, as :func:`ficoco_ext.attach` takes it; None reduces nothing.
        amount: what attach takes for it: one of ``keep_ratio`` (kept at the end), ``tokens`` and ``r``, or ``vision``
            and ``decoder``. Empty: the method's own.
        hyperparameters: of a method given by name.
        layers: that reduce; None: the method's own.
        label: what it is called; None: the method's name.
        goal: what its amount is to reach; :func:`ficoco_ext.evaluation.evaluate` then finds the amount, see
            :class:`ficoco_ext.evaluation.Goal`.
        group: several settings with one are also shown as one row, with the spread over them.
    """

    method: str | AnyMethod | Sequence[str | AnyMethod] | None
    amount: Mapping[str, Any] = field(default_factory=dict)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[int, ...] | None = None
    label: str | None = None
    goal: Goal | None = None
    group: str | None = None

    @property
    def name(self) -> str:
        """The label, or the method's name."""
        if self.label is not None:
            return self.label
        if self.method is None:
            return UNREDUCED
        several = [self.method] if isinstance(self.method, (str, AnyMethod)) else list(self.method)
        return ", ".join(dict.fromkeys(one if isinstance(one, str) else one.name for one in several))

    @property
    def budget(self) -> str:
        """The amount in words; of a ratio for each layer the last, which is what is kept in the end.

        Example:
            >>> from ficoco_ext.evaluation import Setting
            >>> Setting("topk", {"keep_ratio": 0.25}).budget, Setting("fastv").budget
            ('keep_ratio 0.25', 'own amount')
        """
        if self.method is None:
            return "all tokens"
        if self.goal is not None:
            return self.goal.budget
        last = {
            name: value[-1] if name == "keep_ratio" and isinstance(value, (list, tuple)) and value else value
            for name, value in self.amount.items()
        }
        return ", ".join(f"{name} {value}" for name, value in last.items()) or "own amount"

    @property
    def seeded(self) -> bool:
        """The method draws by a ``seed`` that is not fixed here."""
        known = isinstance(self.method, str) and is_name(self.method) and "seed" in hyperparameters(self.method)
        return known and "seed" not in self.hyperparameters

    def built(self, seed: int) -> Any:
        """The method with its hyperparameters; of a sequence each.

        Raises:
            ValueError, TypeError: an unknown method or hyperparameter.
        """
        given = {**self.hyperparameters, **({"seed": seed} if self.seeded else {})}
        if isinstance(self.method, (str, AnyMethod)):
            return get_method(self.method, **given)
        assert self.method is not None
        return tuple(get_method(one, **given) for one in self.method)

    def attach(self, checkpoint: Checkpoint, seed: int, wrap: Callable[[Any], Any] = lambda method: method) -> Handle:
        """:func:`ficoco_ext.attach` with all of it, and of the method what ``wrap`` makes of it.

        For a method that reads words, what the chat template writes is none.
        """
        method = self.built(seed)
        after = method.projector if isinstance(method, AnyMethod) else None
        words = checkpoint.template_ids if after is not None and TEXT in after.needs else None
        return attach(checkpoint.model, wrap(method), layers=self.layers, words=words, **self.amount)

    def resolve(self, model: Any, seed: int) -> AttachPlan:
        """:func:`ficoco_ext.models.resolve` with all of it."""
        return resolve(model, self.built(seed), layers=self.layers, **self.amount)

    def describe(self) -> dict[str, Any]:
        """Plain values that identify it, for JSON: the amount, and the goal that it was found for.

        Hyperparameters are those given and the defaults of today, so that a run is not continued with others; without
        the seed, if it is the run's. Of several methods each name has its own.
        """
        method = self.method if isinstance(self.method, str) or self.method is None else _stable(self.method)
        layers = None if self.layers is None else list(self.layers)
        return {
            "name": self.name,
            "method": method,
            "hyperparameters": _plain(self._whole()),
            "amount": _plain(self.amount),
            "layers": layers,
            "seeded": self.seeded,
            **({} if self.goal is None else {"goal": {"equal": self.goal.equal, "tokens": self.goal.tokens}}),
        }

    def _whole(self) -> dict[str, Any]:
        """Hyperparameters with the defaults of methods given by name."""
        if self.method is None or isinstance(self.method, AnyMethod):
            return dict(self.hyperparameters)
        if isinstance(self.method, str):
            return self._whole_of(self.method)
        return {one: self._whole_of(one) for one in self.method if isinstance(one, str)}

    def _whole_of(self, name: str) -> dict[str, Any]:
        known = hyperparameters(name) if is_name(name) else {}
        without = ("seed",) if self.seeded else ()
        return {key: value for key, value in {**known, **self.hyperparameters}.items() if key not in without}


def _stable(method: Any) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", repr(method))  # addresses differ from run to run


def _plain(value: Any) -> Any:
    """Mappings and tuples as JSON has them."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def settings_of(
    methods: Sequence[str],
    *,
    keep_ratios: Sequence[float] = (),
    tokens: Sequence[int] = (),
    hyperparameters: Mapping[str, Mapping[str, Any]] | None = None,
    layers: Mapping[str, tuple[int, ...]] | None = None,
    schedule: str = "even",
    baselines: bool = False,
    equal: Sequence[str] = ("final",),
) -> list[Setting]:
    """Every method with every amount, budget by budget.

    Args:
        methods: names, also several joined by "+", or ``label=name`` for a method that is compared under another label,
            such as ``"paper=ficoco-v"`` with ``hyperparameters={"paper": {"variant": "paper"}}``.
        keep_ratios: visual tokens kept at the end / all, in (0, 1].
        tokens: visual tokens kept at the end. With neither each method has its own amount.
        hyperparameters, layers: by label.
        schedule: of keep ratios in several layers of the tower: ``"even"`` removes the same number in each,
            ``"geometric"`` the same share, :func:`ficoco_ext.schedule.geometric`, and needs the ``layers`` of every
            method that has no single layer of its own. Methods of other parts are left alone.
        baselines: add those of :data:`BASELINES` that ``methods`` does not name: random dropping after the projector
            with three seeds, every k-th token, and a smaller picture.
        equal: what the methods of a table have in common: ``"final"``, what is left in the end, as ``attach`` takes an
            amount; or, for a fair comparison of methods of different parts, ``"average"`` or ``"flops"``, see
            :class:`ficoco_ext.evaluation.Goal`. Several give a table each.

    Raises:
        ValueError: an unknown method or label, one given twice, or an amount out of range; nothing is clamped.
            ``"geometric"`` with ``tokens`` or without layers. ``baselines``, or another ``equal`` than ``"final"``,
            without an amount. An unknown ``equal``, or one that goes with no schedule.

    Example:
        >>> from ficoco_ext.evaluation import settings_of
        >>> [f"{one.name}: {one.budget}" for one in settings_of(["tome", "fastv"], keep_ratios=[0.5])]
        ['tome: keep_ratio 0.5', 'fastv: keep_ratio 0.5']
    """
    named: dict[str, str] = {}
    for text in methods:
        label, equals, name = (part.strip() for part in text.partition("="))
        if not is_name(name if equals else label):
            several = "several of them joined by '+', or LABEL=METHOD"
            raise ValueError(f"methods must be among {', '.join(METHODS)}, {several}, got {text!r}")
        if label in named or label == UNREDUCED:
            raise ValueError(f"methods must have labels of their own, got {label!r} twice; write another=NAME")
        named[label] = name if equals else label
    given_to = {label: dict(given) for label, given in (hyperparameters or {}).items()}
    if baselines:
        _add_baselines(named, given_to, bool(keep_ratios or tokens))
    if not named:
        raise ValueError(f"methods must name at least one of {', '.join(METHODS)}, got none")
    for what, of in (("hyperparameters", given_to), ("layers", layers or {})):
        if unknown := [label for label in of if label not in named]:
            raise ValueError(f"{what} must be of one of {', '.join(named)}, got {', '.join(unknown)}")
    for ratio in keep_ratios:
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio <= 1:
            raise ValueError(f"keep_ratios must be in (0, 1], got {ratio!r}")
    for count in tokens:
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"tokens must be integers >= 1, got {count!r}")
    layers = layers or {}
    _schedule_fits(schedule, named, layers, tokens)
    _equal_fits(equal, schedule, bool(keep_ratios or tokens))
    amounts: list[dict[str, Any]] = [{"keep_ratio": ratio} for ratio in dict.fromkeys(keep_ratios)]
    amounts += [{"tokens": count} for count in dict.fromkeys(tokens)]

    def setting(label: str, name: str, amount: dict[str, Any], what: str) -> Setting:
        goal = None if what == "final" else Goal(what, **amount)
        if schedule == "geometric" and _repeats(name, layers.get(label)):
            amount = _staged(amount, layers[label])
        own, shown = given_to.get(label, {}), label if label != name else None
        group = name if baselines and name == "random" and BASELINES.get(label) == (name, own) else None
        return Setting(name, amount if goal is None else {}, own, layers.get(label), shown, goal, group)

    chosen = [(what, amount) for what in dict.fromkeys(equal) for amount in amounts or [{}]]
    return [setting(label, name, amount, what) for what, amount in chosen for label, name in named.items()]


def _add_baselines(named: dict[str, str], given: dict[str, dict[str, Any]], amount: bool) -> None:
    """Those whose labels are free, with the hyperparameters that make them what they are."""
    if not amount:
        raise ValueError("baselines have no amount of their own; give keep_ratios or tokens")
    for label, (name, own) in BASELINES.items():
        if label not in named and name in METHODS:
            named[label] = name
            given[label] = {**own, **given.get(label, {})}


def _equal_fits(equal: Sequence[str], schedule: str, amount: bool) -> None:
    if unknown := [what for what in equal if what not in EQUAL]:
        near = did_you_mean(unknown[0], EQUAL)
        raise ValueError(f"equal must be among {', '.join(EQUAL)}, got {unknown[0]!r}{near}")
    if not equal:
        raise ValueError(f"equal must name at least one of {', '.join(EQUAL)}, got none")
    if set(equal) == {"final"}:
        return
    if not amount:
        raise ValueError(f"equal {', '.join(equal)} needs a number of tokens; give keep_ratios or tokens")
    if schedule != "even":
        raise ValueError(f"schedule {schedule!r} goes with equal 'final' alone, got {', '.join(equal)}")


def _repeats(name: str, layers: tuple[int, ...] | None) -> bool:
    """Whether a method reduces in several layers of the tower, and nowhere else."""
    method = get_method(name)
    if method.tower is None or method.projector is not None or method.language_model is not None:
        return False
    return method.tower.layers is None if layers is None else len(layers) > 1


def _schedule_fits(
    schedule: str, named: Mapping[str, str], layers: Mapping[str, tuple[int, ...]], tokens: Sequence[int]
) -> None:
    if schedule not in SCHEDULES:
        near = did_you_mean(schedule, SCHEDULES)
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}{near}")
    if schedule == "even":
        return
    if tokens:
        raise ValueError(f"schedule 'geometric' goes with keep ratios, got tokens {', '.join(map(str, tokens))}")
    if bare := [label for label, name in named.items() if label not in layers and _repeats(name, None)]:
        raise ValueError(
            f"schedule 'geometric' needs the layers of {', '.join(bare)}; give them, as --layers {bare[0]}=1-4"
        )


def _staged(amount: Mapping[str, Any], layers: tuple[int, ...]) -> dict[str, Any]:
    return {name: geometric(value, len(layers)) for name, value in amount.items()}
