"""Methods as compositions of stages, and the registry that names them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch

from .base import AnyMethod, LanguageMethod, LayerMethod, Method, TowerMethod, square_grid
from .baselines import pool, random
from .decoder import DecoderMethod, VisionAndDecoder
from .description import Description, describe
from .evit import evit
from .ficoco import ficoco_v, topk
from .ficoco_l import ficoco_l, ficoco_vl
from .hybrid import prune_then_merge
from .prumerge import prumerge, prumerge_plus
from .pruning import fastv, pyramiddrop
from .staged import Split, Staged
from .tome import tome

METHODS: dict[str, Callable[..., AnyMethod]] = {
    "ficoco-v": ficoco_v,
    "ficoco-l": ficoco_l,
    "ficoco-vl": ficoco_vl,
    "topk": topk,
    "tome": tome,
    "prune-then-merge": prune_then_merge,
    "evit": evit,
    "prumerge": prumerge,
    "prumerge+": prumerge_plus,
    "pool": pool,
    "random": random,
    "fastv": fastv,
    "pyramiddrop": pyramiddrop,
}


def hyperparameters(name: str) -> dict[str, Any]:
    """Hyperparameters of the method ``name`` and their defaults.

    Example:
        >>> from ficoco_ext.methods import hyperparameters
        >>> hyperparameters("fastv")
        {'layer': 2}
    """
    if METHODS[name] is ficoco_vl:
        vision, decoder = hyperparameters("ficoco-v"), hyperparameters("ficoco-l")
        differ = {key: (value, decoder[key]) for key, value in vision.items() if decoder.get(key, value) != value}
        return vision | decoder | differ
    parameters = inspect.signature(METHODS[name]).parameters
    return {key: parameter.default for key, parameter in parameters.items()}


def get_method(method: str | AnyMethod, **hyperparameters: Any) -> AnyMethod:
    """The method of that name with these hyperparameters, or the given method as it is.

    Raises:
        ValueError: unknown name. TypeError: a hyperparameter that the method does not have.
    """
    if isinstance(method, AnyMethod):
        if hyperparameters:
            names = ", ".join(hyperparameters)
            raise TypeError(
                f"method: {names} can be given with a method's name, not with a Method, whose stages hold them"
            )
        return method
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"method must be a Method or one of {', '.join(map(repr, METHODS))}, got {method!r}")
    if not torch.compiler.is_compiling():  # tracing looks through the cache and warns of it
        try:
            kinds = tuple(map(type, hyperparameters.values()))  # 1 == True, but only one of them may be legal
            return _built(METHODS[method], method, tuple(hyperparameters.items()), kinds)
        except TypeError:  # a value that cannot be hashed, or a name that is not known: say so below
            pass
    return _build(method, hyperparameters)


@functools.lru_cache(maxsize=256)
def _built(factory: Any, method: str, given: tuple[tuple[str, Any], ...], kinds: tuple[type, ...]) -> AnyMethod:
    return _build(method, dict(given))


def _build(method: str, given: dict[str, Any]) -> AnyMethod:
    known = hyperparameters(method)
    for name in given:
        if name not in known:
            raise TypeError(f"method {method!r} has no hyperparameter {name!r}; it has {', '.join(known)}")
    return METHODS[method](**given)


__all__ = [
    "METHODS",
    "AnyMethod",
    "DecoderMethod",
    "Description",
    "LanguageMethod",
    "LayerMethod",
    "Method",
    "Split",
    "Staged",
    "TowerMethod",
    "VisionAndDecoder",
    "describe",
    "evit",
    "fastv",
    "ficoco_l",
    "ficoco_v",
    "ficoco_vl",
    "get_method",
    "hyperparameters",
    "pool",
    "prumerge",
    "prumerge_plus",
    "prune_then_merge",
    "pyramiddrop",
    "random",
    "square_grid",
    "tome",
    "topk",
]
