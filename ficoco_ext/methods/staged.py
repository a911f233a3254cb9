"""Staged: a method that differs from layer to layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from ..stages import Priced, Shape
from ..stages.frozen import value
from .base import AnyMethod, LayerMethod, TowerMethod


@value
class Staged(TowerMethod):
    """A method that differs from layer to layer.

    Args:
        name: what it is called in messages.
        rule: function (number of layers that reduce) -> one :class:`Method` or :class:`Split` for each of them. A value
            that can be compared and hashed, such as a function or a frozen dataclass with ``__call__``.
        source: where it comes from.
        layers, amount: as of :class:`Method`.

    A single reduction, as of :func:`ficoco_ext.reduce`, is a stack of one layer.

    Example:
        >>> from ficoco_ext.methods import Staged
        >>> from ficoco_ext import get_method
        >>> def merge_first(layers):
        ...     return (get_method("tome"), *[get_method("topk")] * (layers - 1))
        >>> [one.name for one in Staged("merge-first", merge_first).of_layers(3)]
        ['tome', 'topk', 'topk']
    """

    name: str
    rule: Callable[[int], tuple[LayerMethod, ...]]
    source: str = ""
    layers: Callable[[int], tuple[int, ...]] | None = None
    amount: tuple[tuple[str, Any], ...] = ()

    varies: ClassVar[bool] = True

    @property
    def members(self) -> tuple[AnyMethod, ...]:
        """Those of three layers, in order."""
        return tuple(member for one in self.of_layers(3) for member in one.members)

    def operations(self, shape: Shape) -> list[Priced]:
        """Those of a stack of one layer."""
        return self.of_layers(1)[0].operations(shape)

    def of_layers(self, count: int) -> tuple[LayerMethod, ...]:
        """One method for each of ``count`` reducing layers.

        Raises:
            ValueError: the rule gives another number. TypeError: or something else than methods.
        """
        found = tuple(self.rule(count))
        if len(found) != count:
            raise ValueError(f"{self.name}: its rule must give {count} methods for {count} layers, got {len(found)}")
        for one in found:
            if not isinstance(one, LayerMethod):
                raise TypeError(f"{self.name}: its rule must give a Method or a Split for each layer, got {one!r}")
        return found
