"""Methods as compositions of stages, and the registry that names them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch

from .base import Method, square_grid
from .ficoco import ficoco_v, topk
from .tome import tome

METHODS: dict[str, Callable[..., Method]] = {"ficoco-v": ficoco_v, "topk": topk, "tome": tome}


def get_method(method: str | Method, **hyperparameters: Any) -> Method:
    """The method of that name with these hyperparameters, or the given :class:`Method` as it is.

    Raises:
        ValueError: unknown name. TypeError: a hyperparameter that the method does not have.
    """
    if isinstance(method, Method):
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
def _built(factory: Any, method: str, hyperparameters: tuple[tuple[str, Any], ...], kinds: tuple[type, ...]) -> Method:
    return _build(method, dict(hyperparameters))


def _build(method: str, hyperparameters: dict[str, Any]) -> Method:
    factory = METHODS[method]
    known = list(inspect.signature(factory).parameters)
    for name in hyperparameters:
        if name not in known:
            raise TypeError(f"method {method!r} has no hyperparameter {name!r}; it has {', '.join(known)}")
    return factory(**hyperparameters)


__all__ = ["METHODS", "Method", "ficoco_v", "get_method", "square_grid", "tome", "topk"]
