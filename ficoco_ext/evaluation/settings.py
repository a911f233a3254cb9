"""What is compared: methods, each with an amount."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..io.suggest import did_you_mean
from ..methods import METHODS, AnyMethod, get_method, hyperparameters, is_name
from ..models import Handle, attach
from ..schedule import geometric

UNREDUCED = "unreduced"
SCHEDULES = ("even", "geometric")
# What a method has to beat at the same number of tokens in the language model; random several times, as one draw may
# be lucky.
BASELINES: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"random-{seed}": ("random", {"part": "projector", "seed": seed}) for seed in range(3)},
    "stride": ("stride", {}),
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
    """

    method: str | AnyMethod | Sequence[str | AnyMethod] | None
    amount: Mapping[str, Any] = field(default_factory=dict)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[int, ...] | None = None
    label: str | None = None

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

    def attach(self, model: Any, seed: int) -> Handle:
        """:func:`ficoco_ext.attach` with all of it."""
        return attach(model, self.built(seed), layers=self.layers, **self.amount)

    def describe(self) -> dict[str, Any]:
        """Plain values that identify it, for JSON.

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
            with three seeds, and every k-th token.

    Raises:
        ValueError: an unknown method or label, one given twice, or an amount out of range; nothing is clamped.
            ``"geometric"`` with ``tokens`` or without layers. ``baselines`` without an amount.

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
    amounts: list[dict[str, Any]] = [{"keep_ratio": ratio} for ratio in dict.fromkeys(keep_ratios)]
    amounts += [{"tokens": count} for count in dict.fromkeys(tokens)]
    return [
        Setting(
            name,
            _staged(amount, layers[label]) if schedule == "geometric" and _repeats(name, layers.get(label)) else amount,
            given_to.get(label, {}),
            layers.get(label),
            label if label != name else None,
        )
        for amount in amounts or [{}]
        for label, name in named.items()
    ]


def _add_baselines(named: dict[str, str], given: dict[str, dict[str, Any]], amount: bool) -> None:
    """Those whose labels are free, with the hyperparameters that make them what they are."""
    if not amount:
        raise ValueError("baselines have no amount of their own; give keep_ratios or tokens")
    for label, (name, own) in BASELINES.items():
        if label not in named:
            named[label] = name
            given[label] = {**own, **given.get(label, {})}


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
