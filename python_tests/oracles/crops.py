"""References of what is done to a picture of several crops: unpadding and packing (LLaVA-NeXT), padding first, and
GlobalCom2 (arXiv 2501.05179). Written from the geometry's description, cell by cell.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Cell(NamedTuple):
    """One patch of a picture: ``crop`` 0 is the thumbnail, crops follow row by row; ``patch`` counts row by row."""

    crop: int
    patch: int


def best_resolution(size: tuple[int, int], pinpoints: list[tuple[int, int]]) -> tuple[int, int]:
    """The canvas (height, width) on which most of the picture's pixels are shown, then least canvas is wasted."""
    height, width = size
    best, most, least = None, 0, math.inf
    for high, wide in pinpoints:
        scale = min(wide / width, high / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        wasted = wide * high - shown
        if shown > most or (shown == most and wasted < least):
            best, most, least = (high, wide), shown, wasted
    assert best is not None
    return best


class Canvas:
    """The crops side by side, and the rectangle of it that the picture fills.

    Args:
        size: (height, width) of the picture. pinpoints: canvases. side: patches of a crop's side. pixels: its pixels.
    """

    def __init__(self, size, pinpoints, side: int, pixels: int) -> None:
        self.side, (height, width) = side, size
        canvas = best_resolution(size, [tuple(one) for one in pinpoints])
        self.grid = canvas[0] // pixels, canvas[1] // pixels
        self.high, self.wide = self.grid[0] * side, self.grid[1] * side
        self.rows, self.columns = range(self.high), range(self.wide)
        if width / height > self.wide / self.high:
            pad = (self.high - int(round(height * (self.wide / width), 7))) // 2
            self.rows = range(pad, self.high - pad)
        else:
            pad = (self.wide - int(round(width * (self.high / height), 7))) // 2
            self.columns = range(pad, self.wide - pad)

    def cell(self, y: int, x: int) -> Cell:
        """Which patch of which crop is at row ``y`` and column ``x`` of the canvas."""
        crop = (y // self.side) * self.grid[1] + x // self.side
        return Cell(1 + crop, (y % self.side) * self.side + x % self.side)

    def is_valid(self, cell: Cell) -> bool:
        """Whether a patch is no padding. All of the thumbnail are none."""
        if cell.crop == 0:
            return True
        row, column = divmod(cell.crop - 1, self.grid[1])
        y, x = row * self.side + cell.patch // self.side, column * self.side + cell.patch % self.side
        return y in self.rows and x in self.columns

    @property
    def crops(self) -> int:
        """Crops without the thumbnail."""
        return self.grid[0] * self.grid[1]

    def valid(self, crop: int) -> list[int]:
        """The patches of a crop that are no padding."""
        return [patch for patch in range(self.side**2) if self.is_valid(Cell(crop, patch))]

    def order(self, kept: list[list[int]] | None = None) -> list[Cell | str]:
        """What the language model gets: cells, and "end" for the ends of lines.

        Args:
            kept: for the thumbnail and each crop the patches that stay; None: all.
        """
        stays = None if kept is None else {Cell(crop, patch) for crop, own in enumerate(kept) for patch in own}
        found: list[Cell | str] = [Cell(0, patch) for patch in range(self.side**2)]
        for y in self.rows:
            found += [self.cell(y, x) for x in self.columns]
            found.append("end")
        return [one for one in found if stays is None or one == "end" or one in stays]


def padding_first(canvas: Canvas, crop: int, removals: list[int]) -> list[tuple[int, int]]:
    """For each reducing layer of one crop: padding patches that leave, and patches that the method then removes."""
    left = canvas.side**2 - len(canvas.valid(crop))
    found = []
    for removed in removals:
        empty = min(left, removed)
        found.append((empty, removed - empty))
        left -= empty
    return found


# GlobalCom2


def richness(canvas: Canvas, thumbnail: list[float], cells: str = "thumbnail") -> list[float]:
    """z of each crop: the thumbnail's scores that fall to it."""
    g, (rows, columns) = canvas.side, canvas.grid
    if cells == "thumbnail":
        tall, wide = max(g // rows, 1), max(g // columns, 1)
        found = [0.0] * canvas.crops
        for patch, score in enumerate(thumbnail):
            y, x = divmod(patch, g)
            found[min(y // tall, rows - 1) * columns + min(x // wide, columns - 1)] += score
        return found
    resized, found = resize(canvas, thumbnail), [0.0] * canvas.crops
    for cell, score in resized.items():
        found[cell.crop - 1] += score
    share = g * g / max(len(canvas.rows) * len(canvas.columns), 1)
    return [one * share for one in found]


def resize(canvas: Canvas, thumbnail: list[float]) -> dict[Cell, float]:
    """The thumbnail's map stretched over the valid rectangle: bilinear, centres of cells, edges clamped."""
    g, high, wide = canvas.side, len(canvas.rows), len(canvas.columns)

    def along(index: int, length: int) -> tuple[int, int, float]:
        at = min(max((index + 0.5) * g / length - 0.5, 0.0), g - 1.0)
        low = min(int(at), g - 1)
        return low, min(low + 1, g - 1), at - low

    found = {}
    for i, y in enumerate(canvas.rows):
        top, bottom, down = along(i, high)
        for j, x in enumerate(canvas.columns):
            left, right, across = along(j, wide)
            upper = thumbnail[top * g + left] * (1 - across) + thumbnail[top * g + right] * across
            lower = thumbnail[bottom * g + left] * (1 - across) + thumbnail[bottom * g + right] * across
            found[canvas.cell(y, x)] = upper * (1 - down) + lower * down
    return found


def ratios(z: list[float], keep: float, temperature: float = 10.0) -> list[float]:
    """r of each crop: the share of its valid patches that stays."""
    most = max(z)
    weights = [math.exp((one - most) / temperature) for one in z]
    softmax = [one / (sum(weights) + 1e-8) for one in weights]
    mean = sum(softmax) / len(softmax)
    return [min(1.0, keep * (1 + one - mean)) for one in softmax]


def floor(value: float) -> int:
    """Largest integer, where products of decimal shares may be a little below one."""
    return math.floor(value + 1e-9)


def exact_counts(valid: list[int], share: list[float], total: int) -> list[int]:
    """Counts that sum to ``total``, in proportion to valid patches times share, at most all of a crop."""
    full: set[int] = set()
    while True:
        rest = total - sum(valid[crop] for crop in full)
        weight = sum(valid[crop] * share[crop] for crop in range(len(valid)) if crop not in full)
        wanted = [
            float(valid[crop]) if crop in full else (rest * valid[crop] * share[crop] / weight if weight else 0.0)
            for crop in range(len(valid))
        ]
        over = {crop for crop in range(len(valid)) if crop not in full and wanted[crop] > valid[crop]}
        if not over:
            break
        full |= over
    counts = [floor(one) for one in wanted]
    order = sorted(range(len(valid)), key=lambda crop: (-round(1e6 * (wanted[crop] - counts[crop])), crop))
    for crop in [one for one in order if counts[one] < valid[one]][: total - sum(counts)]:
        counts[crop] += 1
    return counts


def globalcom2(
    canvas: Canvas,
    scores: list[list[float]],
    keep: float,
    *,
    temperature: float = 10.0,
    alpha: float = 0.5,
    normalize: bool = True,
    cells: str = "thumbnail",
    budget: str = "exact",
) -> list[list[int]]:
    """The patches that stay of the thumbnail and of each crop.

    Args:
        scores: of the thumbnail and of each crop, one for each patch.
    """
    kept = [best(list(enumerate(scores[0])), floor(keep * canvas.side**2))]
    valid = [len(canvas.valid(1 + crop)) for crop in range(canvas.crops)]
    share = ratios(richness(canvas, scores[0], cells), keep, temperature)
    if budget == "floor":
        counts = [floor(n * r) for n, r in zip(valid, share, strict=True)]
    else:
        counts = exact_counts(valid, share, floor(keep * sum(valid)))
    everywhere = resize(canvas, scores[0])
    for crop, count in enumerate(counts, start=1):
        own = canvas.valid(crop)
        seen = [everywhere[Cell(crop, patch)] for patch in own]
        local = [scores[crop][patch] for patch in own]
        if normalize:
            seen, local = unit(seen), unit(local)
        mixed = [alpha * one + (1 - alpha) * other for one, other in zip(seen, local, strict=True)]
        kept.append(best(list(zip(own, mixed, strict=True)), count))
    return kept


def unit(values: list[float]) -> list[float]:
    """Divided by their length."""
    length = max(math.sqrt(sum(one * one for one in values)), 1e-12)
    return [one / length for one in values]


def best(scored: list[tuple[int, float]], count: int) -> list[int]:
    """The ``count`` patches of largest score, ascending; of equal ones the first."""
    return sorted(patch for patch, _ in sorted(scored, key=lambda one: (-one[1], one[0]))[:count])
