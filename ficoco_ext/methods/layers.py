"""Which layers reduce where none are named: rules that several methods share."""

from __future__ import annotations

from ..stages.frozen import value


def last_layer(used: int) -> tuple[int, ...]:
    """The last of a tower's ``used`` layers.

    Example:
        >>> from ficoco_ext.methods.layers import last_layer
        >>> last_layer(23)
        (22,)
    """
    return (used - 1,)


class FixedLayers:
    """Base of a rule that leaves no choice: the method's own hyperparameters say where it reduces."""

    def instead_of(self, layers: tuple[int, ...]) -> str:
        """What to do instead of naming ``layers``."""
        raise NotImplementedError


@value
class LayerBefore(FixedLayers):
    """The one layer before ``layer``."""

    layer: int

    def __call__(self, layers: int) -> tuple[int, ...]:
        return (self.layer - 1,)

    def instead_of(self, layers: tuple[int, ...]) -> str:
        """The hyperparameter that gives the last of ``layers``."""
        return f"say layer={max(layers, default=0) + 1}, the first block that sees fewer tokens"
