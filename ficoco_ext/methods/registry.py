"""The methods by name. A file in this package that registers a method is all that a new one takes.

Methods of other packages come by entry points of the group ``ficoco_ext.methods``, each of which names a module that
registers what it has::

    [project.entry-points."ficoco_ext.methods"]
    mine = "my_package.my_method"
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any, TypeVar

import torch

from ..io.suggest import did_you_mean
from .base import AnyMethod
from .combined import Combined

Factory = Callable[..., AnyMethod]
F = TypeVar("F", bound=Factory)

GROUP = "ficoco_ext.methods"
METHODS: dict[str, Factory] = {}


@dataclass(frozen=True)
class _Entry:
    """What is known of a name besides its factory; see :func:`register`."""

    rank: int = 1000
    passes_to: tuple[Factory, ...] = ()
    preset_of: str | None = None


_ENTRIES: dict[str, _Entry] = {}


def register(
    name: str, *, rank: int = 1000, passes_to: tuple[Factory, ...] = (), preset_of: str | None = None
) -> Callable[[F], F]:
    """Make a factory known as the method ``name``: to ``reduce``, ``attach``, ``cost``, the command line and the docs.

    Args:
        name: what it is called everywhere; not taken by another factory.
        rank: where it stands in tables: lower ranks first, equal ones by name.
        passes_to: the factories that its ``**hyperparameters`` go to, if it passes them on; each gets those it has.
        preset_of: the method that this one is with an amount, if it is nothing else; a comparison of all methods leaves
            it out.

    Raises:
        ValueError: a name that is no text, or is taken.

    Example:
        >>> from ficoco_ext import METHODS, get_method
        >>> from ficoco_ext.methods import register
        >>> @register("mildly")
        ... def mildly():
        ...     "Merge neighbours."
        ...     return get_method("tome")
        >>> "mildly" in METHODS, METHODS.pop("mildly") is mildly
        (True, True)
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"register: name must be a text, got {name!r}")

    def known(factory: F) -> F:
        taken = METHODS.get(name)
        if taken is not None and _identity(taken) != _identity(factory):
            raise ValueError(f"register: {name!r} is taken by {'.'.join(_identity(taken))}; choose another name")
        METHODS[name] = factory
        _ENTRIES[name] = _Entry(rank, passes_to, preset_of)
        ordered = sorted(METHODS.items(), key=lambda item: (_entry(item[0]).rank, item[0]))
        METHODS.clear()
        METHODS.update(ordered)
        return factory

    return known


def _identity(factory: Factory) -> tuple[str, str]:
    """The same for a module that is loaded anew."""
    return factory.__module__, factory.__qualname__


def _entry(name: str) -> _Entry:
    return _ENTRIES.get(name, _Entry())


def load_plugins() -> None:
    """Import the modules that other packages name by entry points; one that fails is reported by a warning."""
    for point in metadata.entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:
            message = f"ficoco_ext: the plug-in {point.name!r} ({point.value}) failed and its methods are missing"
            warnings.warn(f"{message}: {type(error).__name__}: {error}", RuntimeWarning, stacklevel=2)


def distinct() -> tuple[str, ...]:
    """The names of all methods but those that are another one with an amount.

    Example:
        >>> from ficoco_ext import METHODS, methods
        >>> sorted(set(METHODS) - set(methods.distinct()))
        ['balanced', 'fast', 'quality']
    """
    return tuple(name for name in METHODS if _entry(name).preset_of is None)


def joined_names(method: str) -> tuple[str, ...]:
    """The names of the methods in ``method``: itself, or several joined by "+", each for a part of the model.

    Raises:
        ValueError: a name that is not known.

    Example:
        >>> from ficoco_ext.methods import joined_names
        >>> joined_names("prumerge+"), joined_names("divprune + ficoco-l"), joined_names("prumerge++fastv")
        (('prumerge+',), ('divprune', 'ficoco-l'), ('prumerge+', 'fastv'))
    """
    if is_name(method):
        return _split(method)
    pieces = [piece.strip() for piece in method.split("+")] if isinstance(method, str) else []
    unknown = next((piece for piece in pieces if piece and piece not in METHODS), None)
    if len(pieces) > 1 and unknown is not None:
        near = did_you_mean(unknown, METHODS)
        raise ValueError(f"method must be names of methods joined by '+', got {method!r} with {unknown!r}{near}")
    near = did_you_mean(method, METHODS)
    raise ValueError(f"method must be a Method or one of {', '.join(map(repr, METHODS))}, got {method!r}{near}")


def is_name(method: object) -> bool:
    """Whether ``method`` is the name of a method, or several joined by "+".

    Example:
        >>> from ficoco_ext.methods import is_name
        >>> is_name("divprune+fastv"), is_name("divprune+fast+v"), is_name(3)
        (True, False, False)
    """
    return isinstance(method, str) and bool(_split(method))


def _split(method: str) -> tuple[str, ...]:
    """Every way to cut the text is tried, because a name may end with "+" itself. Empty: none gives names alone."""
    method = method.strip()
    if method in METHODS:
        return (method,)
    for at in (at for at, letter in enumerate(method) if letter == "+"):
        first = method[:at].strip()
        if first in METHODS and (rest := _split(method[at + 1 :])):
            return (first, *rest)
    return ()


def factories(name: str) -> tuple[Factory, ...]:
    """Those that have the hyperparameters of the method ``name``: its own, or those that it passes them to."""
    return tuple(one for part in joined_names(name) for one in _entry(part).passes_to or (METHODS[part],))


def hyperparameters(name: str) -> dict[str, Any]:
    """Hyperparameters of the method ``name`` and their defaults; a tuple where its parts have different ones.

    Example:
        >>> from ficoco_ext.methods import hyperparameters
        >>> hyperparameters("fastv"), hyperparameters("ficoco-vl")["variant"]
        ({'layer': 2}, ('released', 'paper'))
    """
    found: dict[str, list[Any]] = {}
    for factory in factories(name):
        for key, parameter in inspect.signature(factory).parameters.items():
            found.setdefault(key, []).append(parameter.default)
    return {
        key: values[0] if all(one == values[0] for one in values) else tuple(values) for key, values in found.items()
    }


def part_after_projector(name: str) -> dict[str, Any]:
    """With which ``part`` the method ``name`` acts after the projector, as a hyperparameter; empty: it has none there.

    Example:
        >>> from ficoco_ext.methods import part_after_projector
        >>> part_after_projector("topk"), part_after_projector("divprune+fastv"), part_after_projector("mustdrop")
        ({'part': 'projector'}, {'part': 'projector'}, {})
    """
    if "part" not in hyperparameters(name):
        return {}
    try:
        get_method(name, part="projector")
    except ValueError:  # it can act in several parts, and this is none of them
        return {}
    return {"part": "projector"}


def get_method(method: str | AnyMethod, **hyperparameters: Any) -> AnyMethod:
    """The method of that name with these hyperparameters, or the given method as it is.

    Names joined by "+", such as ``"divprune+ficoco-l"``, make a :class:`ficoco_ext.methods.Combined`, whose methods act
    in a part of the model each. Of the hyperparameters each gets those that it has.

    Raises:
        ValueError: unknown name; two methods for one part. TypeError: a hyperparameter that the method does not have.
    """
    if isinstance(method, AnyMethod):
        if hyperparameters:
            names = ", ".join(hyperparameters)
            raise TypeError(
                f"method: {names} can be given with a method's name, not with a Method, whose stages hold them"
            )
        return method
    parts = joined_names(method)
    if not torch.compiler.is_compiling():  # tracing looks through the cache and warns of it
        try:
            kinds = tuple(map(type, hyperparameters.values()))  # 1 == True, but only one of them may be legal
            return _built(tuple(METHODS[name] for name in parts), method, tuple(hyperparameters.items()), kinds)
        except TypeError:  # a value that cannot be hashed, or a name that is not known: say so below
            pass
    return _build(method, hyperparameters)


@functools.lru_cache(maxsize=256)
def _built(
    factories: tuple[Any, ...], method: str, given: tuple[tuple[str, Any], ...], kinds: tuple[type, ...]
) -> AnyMethod:
    return _build(method, dict(given))


def _build(method: str, given: dict[str, Any]) -> AnyMethod:
    known = hyperparameters(method)
    for name in given:
        if name not in known:
            has = ", ".join(known) or "none"
            near = did_you_mean(name, known)
            raise TypeError(f"method {method!r} has no hyperparameter {name!r}; it has {has}{near}")
    parts = joined_names(method)
    if len(parts) == 1:
        return METHODS[parts[0]](**given)
    own = (hyperparameters(name) for name in parts)
    return Combined.of(
        *(
            METHODS[name](**{key: value for key, value in given.items() if key in has})
            for name, has in zip(parts, own, strict=True)
        )
    )
