"""What ``ficoco eval`` compares: methods, amounts, layers and hyperparameters as they are typed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import values

if TYPE_CHECKING:
    from ..evaluation import Setting

RATIOS = "0.5,0.25,0.15,0.1"
FIELD = "0.333,0.222,0.111"  # 192, 128 and 64 of the 576 tokens of LLaVA-1.5, as papers compare
FIRST_TOKEN = "1,8"
EQUAL = ("final", "average", "flops")


def settings(
    methods: str | None,
    keep_ratios: str | None,
    tokens: str | None,
    layers: list[str] | None,
    schedule: str,
    set_: list[str] | None,
    *,
    baselines: bool,
    protocol: bool,
    equal: str | None,
) -> list[Setting]:
    """What the options of ``ficoco eval`` that say what is compared come to; each is None where it was not given."""
    from ..evaluation import settings_of
    from ..methods import METHODS, distinct

    chosen = list(distinct() if methods is None else values.names(methods))
    presets = set(chosen).isdisjoint(distinct()) and set(chosen) <= set(METHODS)  # they have amounts of their own
    baselines = baselines or protocol
    if equal is None:
        equal = "average,flops" if protocol else "final"
    if keep_ratios is None and tokens is None:
        if protocol:
            keep_ratios = FIELD
        elif baselines or equal != "final" or not presets:
            keep_ratios = RATIOS
    return settings_of(
        chosen,
        keep_ratios=() if keep_ratios is None else values.ratios("--keep-ratios", keep_ratios),
        tokens=() if tokens is None else values.integers("--tokens", tokens),
        hyperparameters=_hyperparameters(set_),
        layers=_layers(layers, chosen),
        schedule=schedule,
        baselines=baselines,
        equal=values.names(equal),
    )


def batches(given: str | None, protocol: bool) -> tuple[int, ...]:
    """Batch sizes at which the first token is timed."""
    if given is None:
        given = FIRST_TOKEN if protocol else None
    return () if given is None else values.integers("--first-token", given)


def _hyperparameters(given: list[str] | None) -> dict[str, dict[str, Any]]:
    """``["topk.variant=paper"]`` by label."""
    found: dict[str, dict[str, Any]] = {}
    for text in given or []:
        label, dot, rest = text.partition(".")
        if not dot or "=" in label:
            raise ValueError(f"--set must be METHOD.KEY=VALUE, got {text!r}")
        for key, value in values.assignments([rest]).items():
            if key in found.setdefault(label.strip(), {}):
                raise ValueError(f"--set {label}.{key} is given twice")
            found[label.strip()][key] = value
    return found


def _layers(given: list[str] | None, methods: list[str]) -> dict[str, tuple[int, ...]]:
    """``["2-4", "tome=1-4"]`` by label; what names none is for all others that act in layers."""
    found: dict[str, tuple[int, ...]] = {}
    for text in sorted(given or [], key=lambda one: "=" in one):
        label, equals, numbers = text.rpartition("=")
        one = values.integers("--layers", numbers)
        found |= {label.strip(): one} if equals else dict.fromkeys(_in_layers(methods), one)
    return found


def _in_layers(methods: list[str]) -> list[str]:
    """The labels of those that do not act after the projector alone."""
    from ..methods import get_method

    found = []
    for text in methods:
        label, equals, name = (part.strip() for part in text.partition("="))
        try:
            method = get_method(name if equals else label)
        except ValueError:  # what is wrong with it is said where settings are made
            continue
        if method.projector is not method:
            found.append(label)
    return found
