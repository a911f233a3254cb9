"""All words of the grid scenes, their questions and the embedded model's tokenizer."""

from __future__ import annotations

COLORS = {
    "red": (215, 35, 35),
    "green": (35, 165, 55),
    "blue": (40, 70, 220),
    "yellow": (240, 215, 40),
    "purple": (150, 50, 190),
    "cyan": (50, 205, 215),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
PLURALS = {shape: shape + ("es" if shape == "cross" else "s") for shape in SHAPES}
_SIGNS = "stop exit open cafe taxi hotel bank park shop bus zoo gym"
_GOODS = "pizza milk tea book fire home sale lake"
WORDS = (*_SIGNS.split(), *_GOODS.split())
QUADRANTS = ("top_left", "top_right", "bottom_left", "bottom_right")
LETTERS = ("A", "B", "C")
KINDS = ("exist", "attr", "position", "count", "text", "digit", "choice")
"""Kinds of questions, after the benchmarks that they resemble: existence (POPE), attribute, position and count (GQA),
a word or a digit read (TextVQA), multiple choice (ScienceQA)."""

PAD, BOS, EOS, IMAGE, UNKNOWN = "<pad>", "<s>", "</s>", "<image>", "<unk>"
_FRAME = "user assistant : ? is there a the what color shape object word digit written shown how many objects shapes"
_MORE = "where which left right of in image yes no"


def vocabulary() -> tuple[str, ...]:
    """All words; a word's index is its token id."""
    words = [PAD, BOS, EOS, IMAGE, UNKNOWN, *_FRAME.split(), *_MORE.split(), *COLORS, *SHAPES, *PLURALS.values()]
    words += [*map(str, range(10)), *WORDS, *QUADRANTS, *LETTERS]
    return tuple(dict.fromkeys(words))
