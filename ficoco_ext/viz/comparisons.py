"""The figure of several methods on one picture: one row a method, attention maps above, a legend below."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..reduction import Reduction
from .canvas import DROPPED, FAINT, INK, require
from .overviews import spread
from .panels import draw_input
from .sheets import Sheet
from .steps import (
    DROPPED_HERE,
    MERGED_BEFORE,
    MERGED_HERE,
    SHARE,
    TRACED,
    draw_after,
    draw_groups,
    draw_heat,
    draw_shares,
    mark_traced,
)
from .traces import Label, Trace, checked, count_patches, grid_of, groups, holders, named

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches: margins, and around a panel what its heading, its title and its note need.
_EDGE, _GAP, _HEADING, _TITLE, _NOTE, _LINE, _LEGEND = 0.25, 0.14, 0.34, 0.24, 0.3, 0.21, 0.24
_LETTER = {
    "bold": 0.0092,
    "normal": 0.008,
}  # inches a letter is wide, on average and a little more, for a point of size


@dataclass(frozen=True)
class Story:
    """What one method did with the picture.

    Attributes:
        name: the method's.
        reductions: of the layers in order, in indices of the picture's patches; at least one.
        layers: a name for the layer of each of them.
        trace: of a patch, or None.
    """

    name: str
    reductions: Sequence[Reduction]
    layers: Sequence[Label]
    trace: Trace | None = None


@dataclass(frozen=True)
class Heat:
    """An attention map: what it is of, and one value for each patch.

    ``shares``: the values are shares, and their sum is said; else they are scores.
    """

    title: str
    values: Sequence[float]
    shares: bool = True


def comparison(
    image: Any,
    stories: Sequence[Story],
    *,
    heats: Sequence[Heat] = (),
    title: str = "",
    panels: int = 8,
    item: int = 0,
    sheet: Sheet | None = None,
) -> Figure:
    """Several methods under each other: merge groups, where a traced patch is, and the patches after each layer.

    Args:
        image: PIL image as the model sees it.
        stories: one for each method, all on one grid.
        heats: attention maps, beside the input.
        title: one line above.
        panels: most layers to show of a method; of more, so many evenly spread, the first and the last among them.
        item: which of the batch of every reduction.
        sheet: of a picture of several crops, whose cells are the grid; its borders and padding are drawn.

    Returns:
        A ``matplotlib.figure.Figure``; :func:`ficoco_ext.viz.save` writes it.

    Raises:
        ImportError: matplotlib is missing. ValueError: no story, no reduction in one, no grid or another one, a map of
            another size, less than one panel, layers of another number.
    """
    require()
    from matplotlib.figure import Figure

    grid = _common_grid(stories, heats, panels, item)
    shown = [spread(len(story.reductions), panels) for story in stories]
    traced = any(story.trace is not None for story in stories)
    columns = max(1 + traced + max(map(len, shown)), 1 + len(heats), 2)
    across = min(max(20 / columns - _GAP, 2.5), 3.6)
    down = min(across * image.height / image.width, 2 * across)
    high = _TITLE + down + _NOTE
    keys = _legend(stories, item)
    width = 2 * _EDGE + columns * across + (columns - 1) * _GAP
    fit = max(1, int((width - 2 * _EDGE) / 2.15))  # entries of the legend in one line
    below = _EDGE / 2 + _LEGEND * -(-len(keys) // fit)
    heading = textwrap.wrap(title, int((width - 2 * _EDGE) / _LETTER["bold"] / 12), max_lines=3, placeholder=" ...")
    above = 0.24 + _LINE * len(heading)
    height = above + high + len(stories) * (_HEADING + high) + below
    figure = Figure(figsize=(width, height), facecolor="white")

    def panel(column: int, top: float) -> Axes:
        """Axes ``top`` inches below the upper edge, with room for a title above."""
        left = _EDGE + column * (across + _GAP)
        return figure.add_axes(
            (left / width, 1 - (top + _TITLE + down) / height, across / width, down / height), label=f"{column} {top}"
        )

    def line(text: str, top: float, left: float, size: float, weight: str = "normal") -> None:
        room = int((width - left - _EDGE) / _LETTER[weight] / size)
        said = textwrap.shorten(text, max(room, 12), placeholder=" ...")
        figure.text(left / width, 1 - top / height, said, color=INK, va="top", fontsize=size, weight=weight)

    for number, text in enumerate(heading):
        line(text, 0.14 + number * _LINE, _EDGE, 12, "bold")
    indent = _EDGE + 0.1 * max(len(story.name) for story in stories) + 0.15  # after the longest name
    first = panel(0, above)
    draw_input(first, image, stories[0].reductions[-1], size=9)
    for column, heat in enumerate(heats, 1):
        draw_heat(panel(column, above), image, heat.values, grid, heat.title, sheet, heat.shares)
    for number, (story, steps) in enumerate(zip(stories, shown, strict=True)):
        top = above + high + number * (_HEADING + high)
        line(story.name, top + 0.08, _EDGE, 11, "bold")
        line(summary(story, len(steps), item, sheet), top + 0.08, indent, 10)
        row = functools.partial(panel, top=top + _HEADING)
        _draw_story(story, steps, row, image, grid, traced, item, sheet)
    for patch in {story.trace.patch for story in stories if story.trace is not None}:
        mark_traced(first, patch, grid[1])
    if sheet is not None:
        for axes in figure.axes:
            sheet.mark(axes)
    figure.legend(
        handles=keys,
        loc="lower left",
        bbox_to_anchor=(_EDGE / width, _EDGE / 4 / height),
        ncols=min(fit, len(keys)),
        borderaxespad=0,
        borderpad=0,
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        handlelength=1.4,
        columnspacing=1.6,
    )
    return figure


def _draw_story(
    story: Story,
    steps: Sequence[int],
    panel: Callable[[int], Axes],
    image: Any,
    grid: tuple[int, int],
    traced: bool,
    item: int,
    sheet: Sheet | None,
) -> None:
    """One row: merge groups, where the traced patch is if one is traced, and the patches after each of ``steps``."""
    draw_groups(panel(0), image, story.reductions[-1], item=item)
    names = named("viz", story.reductions, story.layers)
    if story.trace is not None:
        draw_shares(panel(1), image, story.trace, grid, sheet)
    for column, step in enumerate(steps, 1 + traced):
        axes, name = panel(column), names[step]
        text = f"layer {name}" if isinstance(name, int) else name
        moved = None if story.trace is None else story.trace.steps[step]
        draw_after(axes, image, story.reductions[step], f"After {text}", item=item, step=moved)
        if story.trace is not None:
            mark_traced(axes, story.trace.patch, grid[1])


def summary(story: Story, shown: int, item: int = 0, sheet: Sheet | None = None) -> str:
    """One line about a method: what is left, where the others are, and how many of its layers are shown.

    Of a picture on a ``sheet`` also how many are left of each crop, line by line.
    """
    last = story.reductions[-1]
    held, members = holders(last, item), groups(last, item)
    left = sum(holder == position for position, holder in enumerate(held))
    merged, dropped = sum(map(len, members.values())) - len(members), held.count(-1)
    said = [f"{count_patches(held)} -> {left} patches"]
    said += [f"{merged} merged into {len(members)} of them"] if merged else []
    said += [f"{dropped} dropped"] if dropped else []
    if sheet is not None:
        thumbnail, *crops = sheet.per_crop(last.kept[item].tolist())
        said.append(f"{thumbnail} in the thumbnail, {' + '.join(map(str, crops))} in the crops")
    count = len(story.reductions)
    said += [f"{shown} of {count} reducing layers are shown"] if shown < count else []
    return "; ".join(said)


def _common_grid(stories: Sequence[Story], heats: Sequence[Heat], panels: int, item: int) -> tuple[int, int]:
    if not stories:
        raise ValueError("viz: stories is empty; pass what at least one method did")
    if panels < 1:
        raise ValueError(f"viz: panels must be at least 1, got {panels}")
    grids = {grid_of("viz", checked("viz", story.reductions, item)[-1]) for story in stories}
    if len(grids) > 1:
        raise ValueError(f"viz: stories must be about one grid of patches, got {sorted(grids)}")
    (grid,) = grids
    for heat in heats:
        if len(heat.values) != grid[0] * grid[1]:
            wanted = f"{grid[0] * grid[1]} values, one a patch"
            raise ValueError(f"viz: heats must have {wanted}, got {len(heat.values)} in {heat.title!r}")
    return grid


def _legend(stories: Sequence[Story], item: int) -> list[Any]:
    """Entries for what occurs somewhere in the figure."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    last = [story.reductions[-1] for story in stories]
    chains = any(len(story.reductions) > 1 for story in stories)
    keys: list[Any] = [Patch(facecolor="#d8dee4", edgecolor=FAINT, label="left")]
    if any(groups(one, item) for one in last):
        keys.append(Patch(color=MERGED_HERE, label="merged in this layer"))
        keys += [Patch(color=MERGED_BEFORE, label="merged before")] if chains else []
        dot = {"marker": "o", "markersize": 6, "markeredgecolor": "white", "linestyle": "none"}
        keys.append(Line2D([], [], color="#2f9e44", **dot, label="holds its group"))  # type: ignore[arg-type]
        keys.append(Patch(facecolor="#d8dee4", edgecolor="#2f9e44", linewidth=2, label="group: mean colour"))
    if any(-1 in holders(one, item) for one in last):
        keys.append(Patch(color=DROPPED_HERE, label="dropped in this layer"))
        keys += [Patch(color=DROPPED, label="dropped before")] if chains else []
        keys.append(Patch(facecolor=DROPPED, edgecolor="#8b949e", hatch="////", linewidth=0, label="dropped: no group"))
    if any(story.trace is not None for story in stories):
        keys.append(Patch(facecolor="none", edgecolor=TRACED, linewidth=2, label="the traced patch"))
        keys.append(Line2D([], [], color=SHARE, marker=">", markersize=5, label="where it went"))
        dot = {"marker": "o", "markersize": 7, "markeredgecolor": "white", "linestyle": "none"}
        keys.append(Line2D([], [], color=SHARE, **dot, label="share of it (area)"))  # type: ignore[arg-type]
    return keys
