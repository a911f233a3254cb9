"""How ratios are said everywhere: "3.18x less", "1.90x faster"."""

from __future__ import annotations


def times(full: float, few: float, better: str = "less", worse: str = "more") -> str:
    """How many times ``few`` is less than ``full``.

    Example:
        >>> times(8.45, 2.66), times(10, 12), times(9.7, 3.6, "faster", "slower"), times(3, 3), times(3, 0)
        ('3.18x less', '1.20x more', '2.69x faster', 'the same', '')
    """
    if not full or not few:
        return ""
    ratio = full / few
    if f"{ratio:.2f}" == "1.00":
        return "the same"
    return f"{ratio:.2f}x {better}" if ratio > 1 else f"{1 / ratio:.2f}x {worse}"
