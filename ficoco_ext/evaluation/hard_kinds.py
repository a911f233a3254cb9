"""Where removing visual tokens hurts first: words and documents, digits, positions. A mean over kinds hides it."""

from __future__ import annotations

import re
from collections.abc import Iterable

# How a word of a kind's name may begin; kinds of grid scenes, and of data sets in use.
HARD = {
    "words": ("text", "word", "ocr", "doc", "chart"),
    "digits": ("digit", "numeral"),
    "positions": ("position", "spatial", "ground", "refcoco", "locat"),
}
_NOT = ("doctor",)


def found(kinds: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The kinds that ask for words, digits and positions, known by their names.

    Example:
        >>> from ficoco_ext.evaluation import hard_kinds
        >>> hard_kinds.found(["exist", "text", "OCRBench", "position"])
        {'words': ('text', 'OCRBench'), 'digits': (), 'positions': ('position',)}
        >>> hard_kinds.found(["contextual", "background", "doctors", "DocVQA", "text_2"])["words"]
        ('DocVQA', 'text_2')
    """
    there = tuple(kinds)
    return {what: tuple(kind for kind in there if _any(kind, names)) for what, names in HARD.items()}


def _any(kind: str, names: tuple[str, ...]) -> bool:
    words = re.split(r"[^a-z0-9]+|(?<=[a-z])(?=[0-9])", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind).lower())
    return any(word.startswith(names) and not word.startswith(_NOT) for word in words)


def sentence(kinds: Iterable[str]) -> str:
    """Which kinds show it, and what was not asked.

    Example:
        >>> from ficoco_ext.evaluation import hard_kinds
        >>> print(hard_kinds.sentence(["exist", "text"]))
        Reduction hurts first where words, digits and positions are asked for: look at text. No kind that was asked is \
called after digits or positions: of these the tables say nothing.
    """
    there = found(kinds)
    shown = [kind for of in there.values() for kind in of]
    missing = [what for what, of in there.items() if not of]
    said = "Reduction hurts first where words, digits and positions are asked for"
    said += f": look at {', '.join(dict.fromkeys(shown))}." if shown else "."
    if missing:
        said += f" No kind that was asked is called after {' or '.join(missing)}: of these the tables say nothing."
    return said
