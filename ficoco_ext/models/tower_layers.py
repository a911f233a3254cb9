"""Which layers of a vision tower are read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, NoReturn

from torch import nn

from ..ops import checks
from .tower_families import TowerBody


def at_path(owner: Any, path: str) -> Any:
    """What a dotted path leads to from ``owner``; an empty one to itself."""
    return reduce(getattr, path.split("."), owner) if path else owner


def layers_of(tower: nn.Module, body: TowerBody) -> Any:
    """The list of the layers of a tower."""
    return at_path(tower, body.layers)


def read_layer_of(core: Any, tower: nn.Module, body: TowerBody) -> int:
    """The last layer with full attention of those whose output reaches the projector.

    Raises:
        NotImplementedError: there is none.
    """
    count = len(layers_of(tower, body))
    selected = getattr(core.config, "vision_feature_layer", -1)
    chosen = selected if isinstance(selected, (list, tuple)) else [selected]
    last = max(one if one >= 0 else count + 1 + one for one in chosen) - 1  # hidden_states[0] enters the first layer
    full = full_layers_of(tower, body)
    usable = [layer for layer in full if layer <= last]
    if not usable:
        remedy = "use a method that reads nothing in the vision tower, such as 'divprune'"
        got = f"{body.full_layers or 'vision_feature_layer'}={list(full) if body.full_layers else selected}"
        refuse("vision tower", "one with a layer that attends to whole pictures before the projector", got, remedy)
    return max(usable)


def next_layer_of(core: Any, tower: nn.Module, body: TowerBody) -> int:
    """The layer that reads what the projector gets: after :func:`read_layer_of`, or that one if it is the last."""
    return min(read_layer_of(core, tower, body) + 1, len(layers_of(tower, body)) - 1)


def early_layer_of(tower: nn.Module, body: TowerBody, asked: int | float | None, last: int) -> int:
    """The layer of the early saliency: the nearest one with full attention at or before the one that is asked for.

    Where there is none, the first one with full attention.

    Args:
        asked: a layer, counted from 0; or a share of the layers, of which it is the last; None: the one published.
        last: the layer in which saliency is read.

    Raises:
        ValueError: there is no such layer, or it comes after ``last``.
    """
    count = len(layers_of(tower, body))
    share = body.early if asked is None else asked
    layer = share if isinstance(share, int) else max(round(share * count), 1) - 1
    if not 0 <= layer <= last:
        wanted = f"a layer in [0, {last}], the one in which saliency is read, of {count}, or a share up to it"
        checks.fail("attach", "early_layer", wanted, asked, "name an earlier one")
    full = full_layers_of(tower, body)
    return max((one for one in full if one <= layer), default=min(full))


def full_layers_of(tower: nn.Module, body: TowerBody) -> Sequence[int]:
    """The layers that attend to whole pictures."""
    if body.full_layers is None:
        return range(len(layers_of(tower, body)))
    return list(getattr(tower.config, body.full_layers))


def refuse(argument: str, wanted: str, got: str, remedy: str) -> NoReturn:
    """Raise NotImplementedError for a tower that does not have what is asked for."""
    checks.fail("attach", argument, wanted, got, remedy, NotImplementedError)
