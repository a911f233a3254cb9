"""What a method does, in words, as it says itself: so the words change with its hyperparameters."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .base import AnyMethod
from .registry import METHODS, factories, get_method, hyperparameters, joined_names

_SECOND_HALF = "the second half of the tower, up to the layer that is read"
_USED, _DEEP = 23, 32  # layers of LLaVA-1.5: those of its tower that are read, those of its language model


@dataclass(frozen=True)
class Description:
    """What a method does, in words.

    Attributes:
        name: of the method.
        acts_in: ``"tower"``, ``"projector"``, ``"language model"``, or several of them.
        summary: one sentence or a few.
        filter, correlate, compress: its stages.
        needs: what tokens and attention must have, besides query and key or a map.
        amount: how much leaves if no amount is given. layers: which layers reduce if none are named.
        hyperparameters: names and values that this is said of. meanings: of each, where its documentation says so.
        source: where it comes from.
    """

    name: str
    acts_in: str
    summary: str
    filter: str
    correlate: str
    compress: str
    needs: tuple[str, ...]
    amount: str
    layers: str
    hyperparameters: dict[str, Any]
    meanings: dict[str, str]
    source: str


def _at(layers: tuple[int, ...]) -> str:
    if len(layers) > 2 and layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]} ... {layers[-1]}"
    return ", ".join(map(str, layers))


def _layers(method: AnyMethod) -> str:
    said = []
    if method.tower is not None:
        own = method.tower.layers
        said.append(_SECOND_HALF if own is None else f"{_at(own(_USED))} of {_USED} layers that are read")
    if method.projector is not None:
        said.append("none: after the projector")
    if method.language_model is not None:
        said.append(f"{_at(method.language_model.layers(_DEEP))} of {_DEEP} of the language model")
    return "; ".join(said)


def _acts_in(method: AnyMethod) -> str:
    return " and ".join(_parts(method))


def _parts(method: AnyMethod) -> dict[str, AnyMethod]:
    parts = {"tower": method.tower, "projector": method.projector, "language model": method.language_model}
    return {name: part for name, part in parts.items() if part is not None}


def _data_decide(method: AnyMethod) -> bool:
    return method.language_model is method and method.language_model.data_decides


def _amount(method: AnyMethod) -> str:
    """Its own, or those that all of its parts have."""
    parts = _parts(method)
    own = all(part.amount or _data_decide(part) for part in parts.values())
    if not method.amount and len(parts) > 1 and own:
        return "; ".join(f"{name}: {_amount(part)}" for name, part in parts.items())
    if _data_decide(method):
        return "none: the data decide"
    return ", ".join(f"{key}={value}" for key, value in method.amount) or _none(method)


def _none(method: AnyMethod) -> str:
    """No amount; after the projector there is one cut, and r is of each of several."""
    return f"none: give {'keep_ratio, tokens or r' if method.projector is None else 'keep_ratio or tokens'}"


def _plain(text: str) -> str:
    """One line without marks of a docstring."""
    return " ".join(re.sub(r":(?:func|class):`(?:[\w.]*\.)?(\w+)`", r"\1", text).replace("``", "").split())


def _summary(factory: Callable[..., Any]) -> str:
    return _plain((inspect.getdoc(factory) or "").split("\n\n")[0])


def _meanings(factory: Callable[..., Any]) -> dict[str, str]:
    """The text of each argument in the docstring of ``factory``."""
    block = re.search(r"^Args:\n((?:    .*\n?)+)", inspect.getdoc(factory) or "", re.MULTILINE)
    found: dict[str, str] = {}
    for names, text in re.findall(r"^    ([a-z_, ]+): ((?:.*\n?)(?:     .*\n?)*)", block[1] if block else "", re.M):
        found |= dict.fromkeys(names.split(", "), _plain(text))
    return found


def describe(name: str, **given: Any) -> Description:
    """The method ``name`` in words, with these hyperparameters.

    Raises:
        ValueError, TypeError: as :func:`ficoco_ext.get_method`.

    Example:
        >>> from ficoco_ext import describe
        >>> described = describe("evit")
        >>> described.filter, described.correlate, described.compress
        ('least class attention (probs)', 'one token for all', 'sum weighted by class attention')
        >>> describe("evit", fuse="mean").compress
        'mean weighted by class attention'
    """
    method = get_method(name, **given)
    said = method.describe()
    return Description(
        name=name,
        acts_in=_acts_in(method),
        summary=" ".join(_summary(METHODS[one]) for one in joined_names(name)),
        filter=said.filter,
        correlate=said.correlate,
        compress=said.compress,
        needs=method.needs,
        amount=_amount(method),
        layers=_layers(method),
        hyperparameters=hyperparameters(name) | given,
        meanings={key: text for one in reversed(factories(name)) for key, text in _meanings(one).items()},
        source=method.source,
    )
