"""Attention maps for ``ficoco show``: what the class token, or a word of the question, looks at without reduction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..models.attention_rows import class_attention, sharpest, word_attention
from ..resolve import TowerFacts
from .checkpoint import Checkpoint
from .word_spans import WordSpans, find_words

Say = Callable[[str], None]


@dataclass(frozen=True)
class AttentionMap:
    """Attention on each patch: probabilities, heads averaged, of the model without reduction.

    Attributes:
        of: ``"class token"`` or the word.
        side, layer: ``"vision"`` or ``"text"``, and which of its layers.
        on_patches: sum over the patches; the rest is on the class token or on text.
        patches: one value for each patch.
    """

    of: str
    side: str
    layer: int
    on_patches: float
    patches: tuple[float, ...]

    @property
    def name(self) -> str:
        """As in the picture."""
        what = "Class token" if self.side == "vision" else f"Word {self.of!r}"
        return f"{what}, {self.side} layer {self.layer}"


def parse(text: str) -> tuple[str | None, int | None]:
    """Of ``class[:LAYER]`` or ``[word:]TOKEN[:LAYER]`` the word, None for the class token, and the layer."""
    kind, colon, rest = text.strip().partition(":")
    if kind not in ("class", "word"):
        kind, rest = "word", text.strip()
    word, last, layer = rest.rpartition(":") if kind == "word" else ("", colon, rest)
    if kind == "word" and (not word or not layer.isdecimal()):  # a colon of the word itself, or none
        word, last, layer = rest, "", ""
    if (kind == "word" and not word.strip()) or (last and not layer.isdecimal()):
        raise ValueError(f"attention must be class, class:LAYER, word:TOKEN or word:TOKEN:LAYER, got {text!r}")
    return (word.strip() if kind == "word" else None), (int(layer) if last else None)


def attention_map(
    checkpoint: Checkpoint,
    inputs: Mapping[str, Any],
    question: str,
    shape: TowerFacts,
    reducing: Sequence[int],
    word: str | None,
    layer: int | None,
    progress: Callable[..., None],
) -> AttentionMap:
    """One map, of the class token or, with ``word``, of a word of the question.

    Args:
        reducing: layers of the tower that reduce; the last of them is the class token's if ``layer`` is None, or else
            the last one whose output is used.
    """
    model = checkpoint.model
    if word is None:
        progress("attention of the class token")
        if layer is None:
            layer = max(reducing, default=shape.used - 1)
        values = class_attention(model, inputs["pixel_values"], layer)
        return _map("class token", "vision", layer, values.tolist())
    progress(f"attention of {word!r}")
    spans = find_words(checkpoint, inputs, question)
    text = _word(word, spans)
    layers = range(model.config.text_config.num_hidden_layers) if layer is None else (layer,)
    maps = word_attention(model, inputs, spans.visual[shape.extra :], text, layers)
    chosen = sharpest(maps)
    return _map(word, "text", chosen, maps[chosen].tolist())


def _word(word: str, found: WordSpans) -> tuple[int, ...]:
    if word.lower() not in found.words:
        raise ValueError(f"attention: the question has no word {word!r}; it has {', '.join(found.words)}")
    return found.words[word.lower()]


def _map(of: str, side: str, layer: int, values: list[float]) -> AttentionMap:
    return AttentionMap(of, side, layer, sum(values), tuple(values))
