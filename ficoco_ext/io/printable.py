"""Text of others on a terminal: what would steer it is shown instead."""

from __future__ import annotations

import unicodedata

_STEERS = ("Cc", "Cs", "Zl", "Zp")  # control characters, bytes that are no text, separators of lines and paragraphs
_TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # make later text run the other way


def printable(text: str, keep: str = "") -> str:
    r"""``text`` with everything that would move a cursor, change colours, or fake a line written as an escape.

    Args:
        text: of a user, a file or a model.
        keep: characters that may stay; a line end only where the text has lines and none of them can pass for ours.

    Example:
        >>> from ficoco_ext.io.printable import printable
        >>> print(printable("is there\ta \x1b[31mstar ?"))
        is there\ta \x1b[31mstar ?
    """
    if text.isprintable():
        return text
    return "".join(one if one in keep or not _steers(one) else _escaped(one) for one in text)


def _steers(one: str) -> bool:
    return unicodedata.category(one) in _STEERS or one in _TURNS


def _escaped(one: str) -> str:
    return one.encode("unicode_escape").decode("ascii")
