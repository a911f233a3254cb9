"""Suggestions for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(got: object, known: Iterable[str]) -> str:
    """The end of an error message: the known names that look most like ``got``, or nothing if none does.

    Example:
        >>> did_you_mean("ficoco", ["ficoco-v", "tome"])
        "; did you mean 'ficoco-v'?"
        >>> did_you_mean("something else", ["ficoco-v", "tome"])
        ''
    """
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(str(got).lower(), by_lower, n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(by_lower[name]) for name in close)}?" if close else ""
