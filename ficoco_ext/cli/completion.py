"""What a shell offers for the value of an option. Nothing here imports torch: an answer is to come at once.

Names of methods are read from the files that register them. The other lists are written down; a test compares each
with what the package knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_REGISTERED = re.compile(r'^@register\(\s*"([^"]+)"(?:,\s*rank=(\d+))?', re.MULTILINE)

GEOMETRIES = ("llava-1.5-7b", "llava-1.5-13b")
ARCHITECTURES = (*GEOMETRIES, "llava-next-7b", "llava-next-13b", "qwen2-vl-7b", "qwen2.5-vl-7b", "video-llava-7b")
GPUS = ("a100-80g", "h100", "h200", "l40s", "rtx-4090", "mi300x", "cpu")
CACHES = ("staircase", "output-aware")
DTYPES = ("float32", "float16", "bfloat16")
DEVICES = ("cpu", "cuda")
FAMILIES = ("llava-1.5", "llava-next")  # of --family
KINDS = ("exist", "attr", "position", "count", "text", "digit", "choice")

Complete = Callable[[str], list[str]]


def methods() -> list[str]:
    """Names of the methods of this package, in the order of tables. Those of plug-ins would have to be imported.

    Example:
        >>> methods()[:2]
        ['ficoco-v', 'ficoco-l']
    """
    found = []
    for file in sorted((_PACKAGE / "methods").glob("*.py")):
        found += [(int(rank or 1000), name) for name, rank in _REGISTERED.findall(file.read_text("utf-8"))]
    return [name for _, name in sorted(found)]


def scenes() -> list[str]:
    """Names of the embedded scenes."""
    return sorted(file.stem for file in (_PACKAGE / "data" / "tiny_llava" / "samples").glob("*.png"))


def one_of(names: Iterable[str] | Callable[[], Iterable[str]]) -> Complete:
    """Offers the names that begin with what is typed.

    Example:
        >>> one_of(("even", "geometric"))("g")
        ['geometric']
    """

    def complete(incomplete: str) -> list[str]:
        return [name for name in (names() if callable(names) else names) if name.startswith(incomplete)]

    return complete


def several_of(names: Iterable[str] | Callable[[], Iterable[str]]) -> Complete:
    """The same for the last of several names that are separated by commas; each name once.

    Example:
        >>> several_of(("tome", "topk", "fastv"))("tome,to")
        ['tome,topk']
    """

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        given = before.split(",")
        return [before + comma + name for name in one_of(names)(last) if name not in given]

    return complete
