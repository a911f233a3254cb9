"""Where the patches of a picture of several crops are: the geometry of LLaVA-NeXT. Numbers of the host alone."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..ops import checks


@dataclass(frozen=True)
class Crops:
    """One picture as a thumbnail and a grid of crops, each of ``side`` x ``side`` patches.

    The crops side by side are the canvas. The picture fills the valid rectangle of it and the rest is padding, which
    the language model never gets. The thumbnail is the whole picture, squeezed to a square, without padding.

    The language model gets the thumbnail, patch by patch, then each row of the valid rectangle with one line end.

    Attributes:
        side: patches of a side of a crop.
        grid: (rows, columns) of crops, without the thumbnail.
        rectangle: (top, bottom, left, right) of the valid rectangle, in patches of the canvas, ends excluded. Of a very
            long and thin picture it may be empty.

    Example:
        >>> from ficoco_ext.stages import Crops
        >>> crops = Crops.of((480, 640), [(336, 672), (672, 336), (672, 672)], 24, 336)
        >>> crops.grid, crops.rectangle, crops.valid, crops.before
        ((2, 2), (6, 42, 0, 48), (432, 432, 432, 432), 2340)
        >>> crops.after(144)
        756
    """

    side: int
    grid: tuple[int, int]
    rectangle: tuple[int, int, int, int]

    @classmethod
    def of(cls, size: tuple[int, int], pinpoints: Sequence[Sequence[int]], side: int, pixels: int) -> Crops:
        """The crops that transformers makes of a picture.

        Args:
            size: (height, width) of the picture, in pixels.
            pinpoints: the (height, width) that a canvas can have, in pixels.
            side: patches of a side of a crop. pixels: its pixels.

        Raises:
            ValueError: a size that is not two numbers of at least 1, no pinpoint, or one that is no multiple of
                ``pixels``; ``side`` or ``pixels`` below 1. TypeError: one of these two is no integer, or
                ``pinpoints`` no sequence.
        """
        _require_count("side", side, "pass image_size // patch_size of the config's vision tower")
        _require_count("pixels", pixels, "pass image_size of the config's vision tower")
        height, width = _size("size", size)
        canvas = best_canvas((height, width), pinpoints)
        if canvas[0] % pixels or canvas[1] % pixels:
            wanted = f"multiples of {pixels}, the pixels of a crop"
            checks.fail("crops", "pinpoints", wanted, str(canvas), "pass the config's image_grid_pinpoints")
        grid = canvas[0] // pixels, canvas[1] // pixels
        rows, columns = grid[0] * side, grid[1] * side
        if width / height > columns / rows:
            top = (rows - int(round(height * (columns / width), 7))) // 2
            return cls(side, grid, (top, rows - top, 0, columns))
        left = (columns - int(round(width * (rows / height), 7))) // 2
        return cls(side, grid, (0, rows, left, columns - left))

    @property
    def patches(self) -> int:
        """Patches of the thumbnail, and of each crop with its padding."""
        return self.side * self.side

    @property
    def count(self) -> int:
        """Crops without the thumbnail."""
        return self.grid[0] * self.grid[1]

    @property
    def lines(self) -> int:
        """Rows of the valid rectangle, each of which has a line end."""
        return self.rectangle[1] - self.rectangle[0]

    @property
    def columns(self) -> int:
        """Columns of the valid rectangle."""
        return self.rectangle[3] - self.rectangle[2]

    @property
    def parts(self) -> tuple[tuple[int, int, int, int], ...]:
        """For each crop (top, bottom, left, right) of its valid patches, in its own rows and columns."""
        top, bottom, left, right = self.rectangle
        found = []
        for row in range(self.grid[0]):
            for column in range(self.grid[1]):
                rows = _overlap(top, bottom, row * self.side, self.side)
                columns = _overlap(left, right, column * self.side, self.side)
                found.append((*rows, *columns))
        return tuple(found)

    @property
    def valid(self) -> tuple[int, ...]:
        """For each crop the number of its patches that are no padding; may be 0."""
        return tuple((bottom - top) * (right - left) for top, bottom, left, right in self.parts)

    @property
    def tokens(self) -> int:
        """Patches of the thumbnail and of the valid rectangle: what the language model gets, without line ends."""
        return self.patches + self.lines * self.columns

    @property
    def before(self) -> int:
        """Tokens of the language model without reduction, line ends included."""
        return self.tokens + self.lines

    def after(self, left: int) -> int:
        """Tokens of the language model if ``left`` patches of every crop stay, padding leaving first."""
        return left + sum(min(one, left) for one in self.valid) + self.lines

    @property
    def origins(self) -> list[tuple[int, int]]:
        """(crop, patch) of every token but line ends, in the order of the language model; crop 0 is the thumbnail."""
        top, bottom, left, right = self.rectangle
        g, (_, across) = self.side, self.grid
        canvas = [
            (1 + y // g * across + x // g, y % g * g + x % g) for y in range(top, bottom) for x in range(left, right)
        ]
        return [(0, patch) for patch in range(self.patches)] + canvas

    @property
    def line_ends(self) -> tuple[int, ...]:
        """Which tokens of the language model are line ends, without reduction."""
        return tuple(self.patches + line * (self.columns + 1) + self.columns for line in range(self.lines))


def best_canvas(size: tuple[int, int], pinpoints: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The (height, width) of ``pinpoints`` that shows most pixels of a picture; of those the one with least padding.

    Of equal ones the first. ``size``: (height, width) of the picture.
    """
    height, width = size
    if not isinstance(pinpoints, Sequence) or isinstance(pinpoints, str):
        wanted, remedy = "a sequence of (height, width)", "pass image_grid_pinpoints"
        checks.fail("crops", "pinpoints", wanted, checks.describe(pinpoints), remedy, TypeError)
    if not pinpoints:
        checks.fail("crops", "pinpoints", "at least one (height, width)", "none", "pass image_grid_pinpoints")

    best, most = (0, 0), (-1, 0)
    for one in pinpoints:  # a loop, not max(key=...), which torch.compile cannot trace
        canvas = _size("pinpoints", one)
        scale = min(canvas[1] / width, canvas[0] / height)
        shown = min(int(width * scale) * int(height * scale), height * width)
        rank = shown, shown - canvas[0] * canvas[1]
        if rank > most:
            best, most = canvas, rank
    return best


def _overlap(first: int, last: int, start: int, length: int) -> tuple[int, int]:
    """Which of ``length`` rows from ``start`` on are in [first, last), counted from ``start``; equal ends: none."""
    begin = min(max(first - start, 0), length)
    return begin, max(min(last - start, length), begin)


def _require_count(name: str, got: object, remedy: str) -> None:
    whole = isinstance(got, int) and not isinstance(got, bool)
    if not whole or got < 1:  # type: ignore[operator]  # an integer, once whole
        kind = ValueError if whole else TypeError
        checks.fail("crops", name, "an integer of at least 1", checks.describe(got), remedy, kind)


def whole_pair(size: Any) -> tuple[int, int] | None:
    """``size`` as two integers of at least 1, of Python or of numpy; None if it is something else."""
    held = tuple(size) if isinstance(size, Sequence) and not isinstance(size, str) else ()
    whole = tuple(one if type(one) is int else _integer(one) for one in held)
    return (whole[0], whole[1]) if len(whole) == 2 and min(whole) >= 1 else None


def _integer(number: Any) -> int:
    """A number of another type than int as one; 0 if it is none."""
    if isinstance(number, bool):
        return 0
    try:
        return operator.index(number)
    except TypeError:
        return 0


def _size(name: str, size: Sequence[int]) -> tuple[int, int]:
    found = whole_pair(size)
    if found is None:
        checks.fail("crops", name, "(height, width), integers of at least 1", repr(size), "pass pixels")
    return found
