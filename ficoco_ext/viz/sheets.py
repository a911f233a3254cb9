"""A picture of several crops on one sheet: the thumbnail, and beside it the crops in their places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from ..io.images import rgb
from ..reduction import Reduction
from .canvas import INK
from .traces import NO_PATCH

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Sheet:
    """Where the patches of a picture of several crops are drawn, on one grid of cells.

    The thumbnail is at the upper left. One empty column separates it from the canvas, on which the crops lie side by
    side. Cells of the canvas outside the valid rectangle are padding.

    Attributes:
        side: patches of a side of a crop.
        grid: (rows, columns) of crops.
        rectangle: (top, bottom, left, right) of the valid rectangle in patches of the canvas, ends excluded.

    Example:
        >>> from ficoco_ext.viz import Sheet
        >>> sheet = Sheet(2, (1, 2), (0, 2, 1, 3))
        >>> sheet.cells_across, sheet.cells, sheet.padding
        (7, (0, 1, 7, 8, 4, 5, 11, 12), (3, 6, 10, 13))
        >>> sheet.place(11)
        'canvas 1,1'
    """

    side: int
    grid: tuple[int, int]
    rectangle: tuple[int, int, int, int]

    @property
    def cells_down(self) -> int:
        """Rows of cells."""
        return self.grid[0] * self.side

    @property
    def cells_across(self) -> int:
        """Columns of cells."""
        return (1 + self.grid[1]) * self.side + 1

    @cached_property
    def cells(self) -> tuple[int, ...]:
        """The cell of each patch: the thumbnail's, then the valid ones of the canvas, each row by row."""
        top, bottom, left, right = self.rectangle
        thumbnail = self._block(0, self.side, 0, self.side)
        return (*thumbnail, *self._block(top, bottom, self.side + 1 + left, self.side + 1 + right))

    @cached_property
    def padding(self) -> tuple[int, ...]:
        """The cells of the canvas in which there is no patch of the picture."""
        valid = set(self.cells)
        canvas = self._block(0, self.cells_down, self.side + 1, self.cells_across)
        return tuple(cell for cell in canvas if cell not in valid)

    def _block(self, top: int, bottom: int, left: int, right: int) -> Iterator[int]:
        return (row * self.cells_across + column for row in range(top, bottom) for column in range(left, right))

    def laid(self, reduction: Reduction) -> Reduction:
        """A reduction of the picture's patches, in their order, as one of cells; other cells hold :data:`NO_PATCH`.

        Raises:
            ValueError: it is of another number of patches, or has a class token.
        """
        patches = len(self.cells)
        if reduction.class_token or reduction.source_map.shape[1] != patches:
            got = f"{reduction.source_map.shape[1]}{' with a class token' if reduction.class_token else ''}"
            raise ValueError(f"Sheet: reduction must be of the {patches} patches of the picture, got {got}")
        cells = torch.tensor(self.cells)
        kept, order = cells[reduction.kept].sort(1)
        rank = torch.nn.functional.pad(order.argsort(1), (0, 1), value=-1)  # -1, of what is held by none, is the last

        def moved(positions: torch.Tensor) -> torch.Tensor:
            last = rank.shape[1] - 1
            found = rank.gather(1, torch.where(positions < 0, last, positions).flatten(1))
            return found.view_as(positions)

        source_map = kept.new_full((len(kept), self.cells_down * self.cells_across), NO_PATCH)
        source_map[:, cells] = moved(reduction.source_map)
        return replace(
            reduction,
            kept=kept,
            size=reduction.size.gather(1, order.unsqueeze(-1)),
            sources=cells[reduction.sources],
            targets=moved(reduction.targets),
            source_map=source_map,
            grid=(self.cells_down, self.cells_across),
        )

    def spread(self, values: Sequence[float]) -> list[float]:
        """One value for each patch as one for each cell, 0 where there is no patch."""
        found = [0.0] * (self.cells_down * self.cells_across)
        for cell, value in zip(self.cells, values, strict=True):
            found[cell] = value
        return found

    def per_crop(self, cells: Sequence[int]) -> list[int]:
        """How many of ``cells`` are in the thumbnail, and in each crop, line by line."""
        found = [0] * (1 + self.grid[0] * self.grid[1])
        for cell in cells:
            row, column = divmod(cell, self.cells_across)
            across = (column - self.side - 1) // self.side
            found[0 if column < self.side else 1 + row // self.side * self.grid[1] + across] += 1
        return found

    def place(self, cell: int) -> str:
        """Where a patch is, as ``thumbnail ROW,COLUMN`` or ``canvas ROW,COLUMN``."""
        row, column = divmod(cell, self.cells_across)
        return f"thumbnail {row},{column}" if column < self.side else f"canvas {row},{column - self.side - 1}"

    def picture(self, crops: Sequence[Any]) -> Any:
        """One PIL image of the sheet. ``crops``: PIL images of equal size, the thumbnail first."""
        from PIL import Image

        pixels = crops[0].width
        gap = round(pixels / self.side)
        made = Image.new("RGB", ((1 + self.grid[1]) * pixels + gap, self.grid[0] * pixels), "white")
        made.paste(rgb(crops[0]), (0, 0))
        for number, crop in enumerate(crops[1:]):
            row, column = divmod(number, self.grid[1])
            made.paste(rgb(crop), ((1 + column) * pixels + gap, row * pixels))
        return made

    def mark(self, axes: Axes) -> None:
        """Cover padding and what is outside, and draw the borders of thumbnail and crops, over a panel of the sheet."""
        from matplotlib.collections import PolyCollection
        from matplotlib.patches import Rectangle

        for left, top, width in ((0, self.side, self.side), (self.side, 0, 1)):
            down = self.cells_down - top
            axes.add_patch(Rectangle((left, top), width, down, facecolor="white", linewidth=0, zorder=2))
        squares = []
        for cell in self.padding:
            row, column = divmod(cell, self.cells_across)
            squares.append([(column, row), (column + 1, row), (column + 1, row + 1), (column, row + 1)])
        style = {"facecolor": "#eef1f4", "edgecolor": "#b6bec8", "hatch": "...", "linewidth": 0}
        axes.add_collection(PolyCollection(squares, zorder=2, **style))  # type: ignore[arg-type]
        corners = [(0, 0)]
        corners += [
            (self.side + 1 + column * self.side, row * self.side)
            for row in range(self.grid[0])
            for column in range(self.grid[1])
        ]
        for corner in corners:
            border = {"fill": False, "edgecolor": INK, "linewidth": 1.3, "zorder": 3, "clip_on": False}
            axes.add_patch(Rectangle(corner, self.side, self.side, **border))  # type: ignore[arg-type]
