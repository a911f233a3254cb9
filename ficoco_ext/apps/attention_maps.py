"""Attention maps for ``ficoco show``: what the class token, or a word of the question, looks at without reduction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..models.attention_rows import class_attention, sharpest, word_attention
from ..resolve import TowerFacts
from ..stages import Crops
from .checkpoint import Checkpoint, sheet_of
from .word_spans import WordSpans, find_words

Say = Callable[[str], None]


@dataclass(frozen=True)
class AttentionMap:
    """Attention on each patch: probabilities, heads averaged, of the model without reduction.

    Of a picture of several crops the class token is that of each crop: their maps are divided by the number of crops,
    so that together they are one class token's. Padding and line ends are no patches.

    Attributes:
        of: ``"class token"`` or the word.
        side, layer: ``"vision"`` or ``"text"``, and which of its layers.
        on_patches: sum over the patches; the rest is on the class token or on text.
        patches: one value for each patch, or for each cell of a sheet, 0 where there is no patch.
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
    crops: Crops | None = None,
) -> AttentionMap:
    """One map, of the class token or, with ``word``, of a word of the question.

    Args:
        reducing: layers of the tower that reduce; the last of them is the class token's if ``layer`` is None, or else
            the last one whose output is used.
        crops: of the picture, if it is of several; the map is then of the cells of its sheet.
    """
    model, sheet = checkpoint.model, sheet_of(crops)
    if word is None:
        progress("attention of the class token")
        if layer is None:
            layer = max(reducing, default=shape.used - 1)
        values = class_attention(model, inputs["pixel_values"].flatten(0, -4), layer)
        if crops is None or sheet is None:
            return _map("class token", "vision", layer, values[0].tolist())
        of_patches = [float(values[crop, patch]) / (1 + crops.count) for crop, patch in crops.origins]
        return _map("class token", "vision", layer, sheet.spread(of_patches))
    progress(f"attention of {word!r}")
    spans = find_words(checkpoint, inputs, question)
    text = _word(word, spans)
    layers = range(model.config.text_config.num_hidden_layers) if layer is None else (layer,)
    ends = set() if crops is None else set(crops.line_ends)
    visual = [position for token, position in enumerate(spans.visual[shape.extra :]) if token not in ends]
    maps = word_attention(model, inputs, visual, text, layers)
    chosen = sharpest(maps)
    found = maps[chosen].tolist()
    return _map(word, "text", chosen, found if sheet is None else sheet.spread(found))


def _word(word: str, found: WordSpans) -> tuple[int, ...]:
    if word.lower() not in found.words:
        raise ValueError(f"attention: the question has no word {word!r}; it has {', '.join(found.words)}")
    return found.words[word.lower()]


def _map(of: str, side: str, layer: int, values: list[float]) -> AttentionMap:
    return AttentionMap(of, side, layer, sum(values), tuple(values))
