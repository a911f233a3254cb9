"""One reduction in numbers: what a stage or a method needs to know to say what it costs."""

from __future__ import annotations

from dataclasses import dataclass

from ..ops.costs import Operation

Priced = tuple[Operation, dict[str, int]]  # what runs, and the values of the letters in its formulas


@dataclass(frozen=True)
class Shape:
    """What one reduction meets, in counts.

    Attributes:
        batch: sequences or crops.
        tokens: in each of them, class token or text included.
        visual: of these the ones that may leave. r: those that leave.
        channels: width of a token. heads, kv_heads, head_dim: of the attention.
        class_token: the first token is a class token.
        text: text tokens after the visual ones; after the projector all words of the prompt.
        targets: of each source; a method fills it in for its Compress. neighbours: likewise, that each kept token
            borrows from.
        tower_head_dim: width of a head of the vision tower, for stages after the projector that read its keys; 0: not
            known.
        tower_channels: width of what the vision tower gives; 0: not known, the same.
        frames: that the visual tokens are of, equally many each. ``ficoco cost`` knows of no frames: it leaves this 1.

    Example:
        >>> from ficoco_ext.stages import Filter, Shape
        >>> shape = Shape(batch=1, tokens=577, visual=576, r=42, channels=1024, heads=16, kv_heads=16, head_dim=64,
        ...     class_token=True)
        >>> [operation.name for operation, values in Filter().operations(shape)]
        ['attention_stats']
    """

    batch: int
    tokens: int
    visual: int
    r: int
    channels: int
    heads: int
    kv_heads: int
    head_dim: int
    class_token: bool = False
    text: int = 0
    targets: int = 0
    neighbours: int = 0
    tower_head_dim: int = 0
    tower_channels: int = 0
    frames: int = 1

    @property
    def kept(self) -> int:
        """Visual tokens that stay."""
        return self.visual - self.r

    @property
    def values(self) -> dict[str, int]:
        """The letters of :data:`ficoco_ext.ops.costs.SYMBOLS` that every reduction has."""
        return {
            "b": self.batch,
            "n": self.tokens,
            "l": self.tokens,
            "r": self.r,
            "m": self.kept + self.class_token,
            "u": self.visual,
            "h": self.channels,
            "a": self.heads,
            "k": self.kv_heads,
            "d": self.head_dim,
            "g": self.targets,
        }

    def price(self, operation: Operation, **values: int) -> Priced:
        """``operation`` with the letters of this reduction, and ``values`` for others."""
        return operation, self.values | values
