"""What a notebook shows of a record: a small table and a drawing, in one piece of HTML that needs nothing else.

The HTML is well-formed XML, escaped, and bounded in size for every record.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Any, Protocol

_MOST_CELLS = 10_000  # of a grid that is drawn
_MOST_ROWS = 40  # of a table
_PIXELS = 240  # of the longer side of a grid
_COLOURS = {"left": "#1f6fb2", "merged": "#a9cbe8", "dropped": "#e8e8e8"}


class Record(Protocol):
    """What is shown of a :class:`ficoco_ext.Reduction`."""

    @property
    def source_map(self) -> Any:
        """(B, N) index of the survivor that holds each token, -1 if it was dropped."""

    @property
    def kept(self) -> Any:
        """(B, M) the survivors."""

    @property
    def size(self) -> Any:
        """(B, M, 1) tokens that each survivor stands for."""

    @property
    def class_token(self) -> bool:
        """Whether token 0 is one."""

    @property
    def grid(self) -> tuple[int, int] | None:
        """(height, width) of the patches."""


class Staircase(Protocol):
    """What is shown of a :class:`ficoco_ext.Schedule`."""

    @property
    def patches(self) -> int:
        """Tokens that enter the first layer."""

    @property
    def steps(self) -> Sequence[Any]:
        """Layer, before, r and after of each reducing layer."""

    @property
    def final(self) -> int:
        """Tokens that are left."""

    @property
    def keep_ratio(self) -> float:
        """Their share."""


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """An HTML table; after 40 rows it says how many more there are.

    Example:
        >>> table(["layer"], [[3]])
        '<table><thead><tr><th>layer</th></tr></thead><tbody><tr><td>3</td></tr></tbody></table>'
    """

    def line(cells: Sequence[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    given = list(rows)
    lines = [line(row, "td") for row in given[:_MOST_ROWS]]
    if len(given) > _MOST_ROWS:
        lines.append(f'<tr><td colspan="{len(head)}">{len(given) - _MOST_ROWS} rows more</td></tr>')
    return f"<table><thead>{line(head, 'th')}</thead><tbody>{''.join(lines)}</tbody></table>"


def cells(kinds: Sequence[str], grid: tuple[int, int]) -> str:
    """An SVG of a grid whose cells are ``"left"``, ``"merged"`` or ``"dropped"``, row by row."""
    height, width = grid
    paths = {kind: "".join(_runs(kinds, width, kind)) for kind in _COLOURS}
    drawn = "".join(
        f'<path fill="{_COLOURS[kind]}" d="{path}"><title>{kind}</title></path>' for kind, path in paths.items() if path
    )
    scale = _PIXELS / max(height, width)
    label = ", ".join(f"{sum(one == kind for one in kinds)} {kind}" for kind in _COLOURS)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(label)}" '
        f'width="{width * scale:.0f}" height="{height * scale:.0f}" viewBox="0 0 {width} {height}">{drawn}</svg>'
    )


def _runs(kinds: Sequence[str], width: int, kind: str) -> Iterator[str]:
    """Rectangles over neighbours of one kind in a row, with a gap around each cell's row and run."""
    for row in range(len(kinds) // width):
        column = 0
        for same, members in itertools.groupby(kinds[row * width : (row + 1) * width]):
            count = sum(1 for _ in members)
            if same == kind:
                yield f"M{column + 0.05:.2f} {row + 0.05:.2f}h{count - 0.1:.2f}v0.9h-{count - 0.1:.2f}z"
            column += count


def staircase(before: int, layers: Sequence[int], after: Sequence[int]) -> str:
    """An SVG of the patches that are left after each of ``layers``, which begin with ``before`` of them."""
    first, last = min(layers, default=0), max(layers, default=0)
    x0, width, height = first - 1, last - first + 2, 100.0
    path, level = f"M0 {height}V0", before
    for layer, left in zip(layers, after, strict=True):
        path += f"H{layer - x0 - 0.5:g}V{height * (1 - left / before):.2f}"
        level = left
    path += f"H{width}V{height}z"
    label = f"{before} patches before layer {first}, {level} after layer {last}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(label)}" width="{_PIXELS}" '
        f'height="100" viewBox="0 0 {width} {height:g}" preserveAspectRatio="none">'
        f'<path fill="{_COLOURS["left"]}" d="{path}"><title>{escape(label)}</title></path></svg>'
    )


def reduction(record: Record) -> str:
    """A table of all images of a batch and, where the grid is known, a drawing of the first one.

    Example:
        >>> import torch, ficoco_ext
        >>> query, key = torch.randn(2, 1, 2, 17, 4)
        >>> found = ficoco_ext.reduce(torch.randn(1, 17, 8), ficoco_ext.QueryKey(query, key), 4, return_reduction=True)
        >>> "<td>12</td>" in found._repr_html_()
        True
    """
    first = int(record.class_token)
    rows, drawn = [], ""
    for item in range(record.source_map.shape[0]):
        kinds = _kinds(record, item)[first:]
        counts = [sum(one == kind for one in kinds) for kind in _COLOURS]
        largest = f"{float(record.size[item].max()):g}"
        rows.append([item, len(kinds), *counts, f"{counts[0] / len(kinds):.1%}" if kinds else "", largest])
        if item == 0 and record.grid is not None and 0 < len(kinds) == record.grid[0] * record.grid[1] <= _MOST_CELLS:
            drawn = cells(kinds, record.grid)
        if item == _MOST_ROWS:
            break
    head = ("image", "tokens", *_COLOURS, "kept", "most in one token")
    more = record.source_map.shape[0] - len(rows)
    rest = f"<p>{more} images more</p>" if more else ""
    keys = " ".join(f'<span style="color:{colour}">&#9632;</span> {kind}' for kind, colour in _COLOURS.items())
    below = f"<p>image 0: {keys}</p>{drawn}" if drawn else ""
    return f"<div>{table(head, rows)}{rest}{below}</div>"


def _kinds(record: Record, item: int) -> list[str]:
    """For each original token whether it is left, is merged into another one, or was dropped."""
    kept = record.kept[item].tolist()
    return [
        "dropped" if holder < 0 else "left" if kept[holder] == token else "merged"
        for token, holder in enumerate(record.source_map[item].tolist())
    ]


def schedule(given: Staircase) -> str:
    """The staircase as a drawing and in numbers.

    Example:
        >>> from ficoco_ext import Schedule
        >>> "<td>192</td>" in Schedule.build(576, layers=range(12, 23), tokens=192)._repr_html_()
        True
    """
    steps = given.steps
    drawn = staircase(given.patches, [one.layer for one in steps], [one.after for one in steps]) if steps else ""
    rows = [(one.layer, one.before, one.r, one.after) for one in steps]
    said = f"{given.final} of {given.patches} patches are left, keep ratio {given.keep_ratio:.3f}"
    return f"<div><p>{said}</p>{drawn}{table(('layer', 'before', 'removed', 'after'), rows)}</div>"
