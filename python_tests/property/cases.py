"""A case: one small model, one reduction, one batch and one way to use them, as plain numbers and words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LLAVA, NEXT, QWEN2, QWEN25 = "LLaVA-1.5", "LLaVA-NeXT", "Qwen2-VL", "Qwen2.5-VL"
FAMILIES = (LLAVA, NEXT, QWEN2, QWEN25)
TEXTS = ("llama", "mistral", "qwen2")
USES = ("forward", "generate", "beams", "steps", "turns")
CACHES = ("dynamic", "static", "quantized", "offloaded", "none")


@dataclass(frozen=True)
class Case:
    """Everything that a check needs; its ``repr`` is Python that makes it again.

    Attributes:
        number: the draw; seeds weights and pictures.
        family: one of FAMILIES. text: one of TEXTS, the language model of the first two families.
        heads, kv_heads, head_dim, width, layers: of the language model; width is that of its hidden states.
        tied: its head has the weights of its embeddings.
        side: patches on a side of a picture, or of a crop.
        tower: "clip" or "siglip". video: the pictures are videos of two frames (Qwen).
        tower_heads, tower_layers, feature_layer, strategy: of the vision tower.
        attention, dtype: names that transformers and torch know.
        method: a name; two names, of a method for the tower and one for the language model; or, with ``each``, one for
            each layer. hyperparameters: of a method given by one name.
        amount: the other arguments of ``attach``.
        rows: of words (integers) and pictures: (height, width) in pixels for LLaVA-NeXT, in patches otherwise.
        padding: "left", "right", or "none": rows of equal length and no mask. holes: the mask hides words, too.
        use, cache: one of USES, one of CACHES. steps: new tokens, in each of two turns.
        chunk: how many of them a decoding loop reads at once.
    """

    number: int
    family: str
    text: str = "llama"
    heads: int = 2
    kv_heads: int = 1
    head_dim: int = 8
    width: int = 16
    layers: int = 3
    tied: bool = False
    side: int = 3
    tower: str = "clip"
    video: bool = False
    tower_heads: int = 2
    tower_layers: int = 3
    feature_layer: int = -2
    strategy: str = "default"
    attention: str = "sdpa"
    dtype: str = "float32"
    method: str | tuple[str, ...] = "ficoco-v"
    each: bool = False
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    amount: Mapping[str, Any] = field(default_factory=dict)
    rows: tuple[tuple[int | tuple[int, int], ...], ...] = ()
    padding: str = "left"
    holes: bool = False
    use: str = "forward"
    cache: str = "dynamic"
    steps: int = 3
    chunk: int = 1

    @property
    def pictures(self) -> tuple[tuple[int, int], ...]:
        """The pictures of all rows, in order."""
        return tuple(one for row in self.rows for one in row if isinstance(one, tuple))

    @property
    def used_layers(self) -> int:
        """The first layers of the tower, whose output the language model gets."""
        return self.feature_layer if self.feature_layer >= 0 else self.tower_layers + 1 + self.feature_layer
