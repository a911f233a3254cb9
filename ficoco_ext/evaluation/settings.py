"""What is compared: methods, each with an amount."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..methods import METHODS, AnyMethod, get_method, hyperparameters
from ..models import Handle, attach

UNREDUCED = "unreduced"


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
        known = isinstance(self.method, str) and self.method in METHODS and "seed" in hyperparameters(self.method)
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
        """Plain values that tell it from others, for JSON."""
        method = self.method if isinstance(self.method, str) or self.method is None else _stable(self.method)
        layers = None if self.layers is None else list(self.layers)
        return {
            "name": self.name,
            "method": method,
            "hyperparameters": dict(self.hyperparameters),
            "amount": _plain(self.amount),
            "layers": layers,
        }


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
) -> list[Setting]:
    """Every method with every amount, budget by budget.

    Args:
        methods: names, or ``label=name`` for a method that is compared under another label, such as
            ``"paper=ficoco-v"`` with ``hyperparameters={"paper": {"variant": "paper"}}``.
        keep_ratios: visual tokens kept at the end / all, in (0, 1].
        tokens: visual tokens kept at the end. With neither each method has its own amount.
        hyperparameters, layers: by label.

    Raises:
        ValueError: an unknown method or label, one given twice, or an amount out of range; nothing is clamped.

    Example:
        >>> from ficoco_ext.evaluation import settings_of
        >>> [f"{one.name}: {one.budget}" for one in settings_of(["tome", "fastv"], keep_ratios=[0.5])]
        ['tome: keep_ratio 0.5', 'fastv: keep_ratio 0.5']
    """
    named: dict[str, str] = {}
    for text in methods:
        label, equals, name = (part.strip() for part in text.partition("="))
        if (name if equals else label) not in METHODS:
            raise ValueError(f"methods must be among {', '.join(METHODS)}, or LABEL=METHOD, got {text!r}")
        if label in named or label == UNREDUCED:
            raise ValueError(f"methods must have labels of their own, got {label!r} twice; write another=NAME")
        named[label] = name if equals else label
    if not named:
        raise ValueError(f"methods must name at least one of {', '.join(METHODS)}, got none")
    for what, given in (("hyperparameters", hyperparameters or {}), ("layers", layers or {})):
        if unknown := [label for label in given if label not in named]:
            raise ValueError(f"{what} must be of one of {', '.join(named)}, got {', '.join(unknown)}")
    for ratio in keep_ratios:
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio <= 1:
            raise ValueError(f"keep_ratios must be in (0, 1], got {ratio!r}")
    for count in tokens:
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"tokens must be integers >= 1, got {count!r}")
    amounts: list[dict[str, Any]] = [{"keep_ratio": ratio} for ratio in dict.fromkeys(keep_ratios)]
    amounts += [{"tokens": count} for count in dict.fromkeys(tokens)]
    return [
        Setting(
            name,
            amount,
            dict((hyperparameters or {}).get(label, {})),
            (layers or {}).get(label),
            label if label != name else None,
        )
        for amount in amounts or [{}]
        for label, name in named.items()
    ]
