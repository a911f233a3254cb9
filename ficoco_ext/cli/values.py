"""The values of options: text that a user typed, as numbers, names and arguments."""

from __future__ import annotations

import ast
import re
from typing import Any

_BOOLEANS = {"true": True, "false": False}  # as shells and configuration files write them
_MOST_INTEGERS = 10_000  # of a range: more layers or seeds than there are


def assignments(given: list[str] | None) -> dict[str, Any]:
    """``["lam=0.5", "variant=paper"]`` as a dictionary; values are Python literals, true or false, or else strings.

    Raises:
        ValueError: not of the form key=value, or a key twice.

    Example:
        >>> assignments(["lam=0.5", "variant=paper", "class_attention=False"])
        {'lam': 0.5, 'variant': 'paper', 'class_attention': False}
        >>> assignments(["thresholds=true", "name='true'"])
        {'thresholds': True, 'name': 'true'}
    """
    found: dict[str, Any] = {}
    for text in given or []:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key.isidentifier():
            raise ValueError(f"--set must be key=value, got {text!r}")
        if key in found:
            raise ValueError(f"--set {key} is given twice")
        try:
            found[key] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            found[key] = _BOOLEANS.get(value.strip(), value.strip())
    return found


def integers(option: str, text: str, count: int | None = None) -> tuple[int, ...]:
    """``"12,13"`` as integers; with ``count`` exactly so many. ``12-22`` names a range.

    Example:
        >>> integers("--layers", "3,12-14")
        (3, 12, 13, 14)
    """
    found: list[int] = []
    try:
        for part in text.split(","):
            low, dash, high = part.strip().partition("-")
            named = range(int(low), int(high) + 1) if dash else range(int(low), int(low) + 1)
            if named.stop - named.start > _MOST_INTEGERS:
                raise ValueError
            found += named
    except ValueError:
        raise ValueError(
            f"{option} must be integers separated by commas, or ranges of at most {_MOST_INTEGERS}, got {text!r}"
        ) from None
    if not found or (count is not None and len(found) != count):
        raise ValueError(f"{option} must be {count or 'some'} integers separated by commas, got {text!r}")
    return tuple(found)


def pixels(option: str, text: str) -> tuple[int, int]:
    """``"480x640"`` as (height, width).

    Example:
        >>> pixels("--picture", "480x640")
        (480, 640)
    """
    found = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", text)
    if found is None:
        raise ValueError(f"{option} must be HEIGHTxWIDTH in pixels, such as 480x640, got {text!r}")
    return int(found[1]), int(found[2])


def ratios(option: str, text: str) -> tuple[float, ...]:
    """``"0.5,0.25"`` as numbers.

    Example:
        >>> ratios("--keep-ratio", "0.5,0.25")
        (0.5, 0.25)
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} must be numbers separated by commas, got {text!r}") from None


def removal(keep_ratio: str | None, r: str | None, tokens: int | None) -> dict[str, Any]:
    """What ``--keep-ratio``, ``--r`` and ``--tokens`` say, as ``attach`` takes it; empty if none is given.

    Raises:
        ValueError: several of them, or no numbers.

    Example:
        >>> removal("0.25", None, None), removal(None, "3,4", None)
        ({'keep_ratio': 0.25}, {'r': (3, 4)})
    """
    found: dict[str, Any] = {
        "keep_ratio": None if keep_ratio is None else _one_or_all(ratios("--keep-ratio", keep_ratio)),
        "r": None if r is None else _one_or_all(integers("--r", r)),
        "tokens": tokens,
    }
    found = {name: value for name, value in found.items() if value is not None}
    if len(found) > 1:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in found)
        raise ValueError(f"give one of --keep-ratio, --r and --tokens, got {names}")
    return found


def _one_or_all(values: tuple[Any, ...]) -> Any:
    return values[0] if len(values) == 1 else values


def names(text: str) -> tuple[str, ...]:
    """``"tome, topk"`` as names.

    Example:
        >>> names("tome, topk")
        ('tome', 'topk')
    """
    return tuple(part.strip() for part in text.split(",") if part.strip())
