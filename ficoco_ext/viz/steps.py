"""The panels of a comparison: patches after one layer, merge groups, where one patch went, an attention map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..io.images import rgb
from ..reduction import Reduction
from .canvas import DROPPED, INK, canvas, patch_points
from .colours import group_colours, mean_colours
from .sheets import Sheet
from .traces import NO_PATCH, Trace, TraceStep, grid_of, groups, holders

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MERGED_HERE, MERGED_BEFORE, DROPPED_HERE = "#f59f00", "#a98f6b", "#8f1d2c"
TRACED, SHARE = "#e600ac", "#00b8d9"
MOST_ARROWS = 12  # in one panel; more hide each other
_READABLE = 11  # points that a patch must be wide for a number in it


def tint(axes: Axes, grid: tuple[int, int], colours: Mapping[int, Any], alpha: float | None) -> None:
    """Cover patches with colours, ``alpha`` None: with their own. One image, however many patches."""
    import numpy as np
    from matplotlib.colors import to_rgba

    height, width = grid
    cover = np.zeros((height * width, 4))
    for position, colour in colours.items():
        cover[position] = to_rgba(colour, alpha)
    axes.imshow(
        cover.reshape(height, width, 4), extent=(0, width, height, 0), interpolation="nearest", aspect="auto", zorder=1
    )


def frames(axes: Axes, positions: Sequence[int], width: int, inset: float = 0.04, **style: Any) -> None:
    """A square around each of some patches."""
    from matplotlib.collections import PolyCollection

    squares = []
    for position in positions:
        left, top = position % width + inset, position // width + inset
        right, low = left + 1 - 2 * inset, top + 1 - 2 * inset
        squares.append([(left, top), (right, top), (right, low), (left, low)])
    axes.add_collection(PolyCollection(squares, **({"facecolor": "none"} | style)))


def _note(axes: Axes, text: str) -> None:
    axes.set_xlabel(text, fontsize=8, color=INK, loc="left", labelpad=4)


def _percent(share: float) -> str:
    return "< 1 %" if 0 < share < 0.01 else f"{share:.0%}".replace("%", " %")


def draw_after(
    axes: Axes, image: Any, reduction: Reduction, name: str, *, item: int = 0, step: TraceStep | None = None
) -> None:
    """The patches after one layer: left, merged away or dropped, there or before; with ``step`` what it moved."""
    grid = grid_of("viz", reduction)
    width = grid[1]
    first = int(reduction.class_token)
    held = holders(reduction, item)
    here = {token - first for token in reduction.sources[item].tolist()}
    left = [position for position, holder in enumerate(held) if holder == position]
    merged = {position: MERGED_HERE if position in here else MERGED_BEFORE for position in _others(held, merged=True)}
    dropped = {position: DROPPED_HERE if position in here else DROPPED for position in _others(held, merged=False)}
    canvas(axes, image, grid, f"{name}: {len(left)} left", size=9)
    tint(axes, grid, merged, 0.78)
    tint(axes, grid, dropped, 0.88)
    there = [0 if holder == position else -1 for position, holder in enumerate(held)]
    _outline(axes, there, {0: "white"}, grid, min(1.2, patch_points(axes, width) / 12))
    counts = {"merged": len(here & set(merged)), "dropped": len(here & set(dropped))}
    _note(axes, ", ".join(f"{count} {what} here" for what, count in counts.items() if count))
    if step is not None:
        _draw_moves(axes, step, width)


def _others(held: Sequence[int], *, merged: bool) -> list[int]:
    removed = [position for position, holder in enumerate(held) if holder not in (position, NO_PATCH)]
    return [position for position in removed if (held[position] >= 0) == merged]


def _draw_moves(axes: Axes, step: TraceStep, width: int) -> None:
    """Arrows of one layer, as wide as what they carry, and dots as large as what each survivor holds."""
    unit = patch_points(axes, width)
    for move in step.moves[:MOST_ARROWS]:
        style = {
            "arrowstyle": "-|>",
            "color": SHARE,
            "linewidth": 0.9 + 2.2 * move.share,
            "mutation_scale": 4 + 5 * move.share,
        }
        axes.annotate(
            "", xy=_centre(move.target, width), xytext=_centre(move.source, width), arrowprops=style | {"shrinkB": 1}
        )
    positions = list(step.shares)
    if positions:
        across, down = zip(*(_centre(position, width) for position in positions), strict=True)
        area = [(0.75 * unit) ** 2 * max(step.shares[position], 0.04) for position in positions]
        axes.scatter(across, down, s=area, color=SHARE, edgecolor="white", linewidth=0.6, zorder=4)


def _centre(position: int, width: int) -> tuple[float, float]:
    return position % width + 0.5, position // width + 0.5


def draw_groups(axes: Axes, image: Any, reduction: Reduction, *, item: int = 0) -> None:
    """Merge groups: each in the mean colour of its pixels, outlined in a colour of its own; dropped patches hatched."""
    grid = grid_of("viz", reduction)
    width = grid[1]
    held, members = holders(reduction, item), groups(reduction, item)
    dropped = _others(held, merged=False)
    canvas(axes, image, grid, "Merge groups" if members else "What is left", size=9)
    fills, colours = mean_colours(image, members, grid), group_colours(held, list(members), grid)
    tint(axes, grid, {position: fills[holder] for holder, positions in members.items() for position in positions}, 1.0)
    frames(axes, dropped, width, inset=0, facecolor=DROPPED, edgecolor="#8b949e", hatch="////", linewidth=0, alpha=0.9)
    unit = patch_points(axes, width)
    alone = [position for position, holder in enumerate(held) if holder == position and position not in members]
    frames(axes, alone, width, edgecolor="white", linewidth=min(1.0, unit / 16))
    _outline(axes, held, colours, grid, min(2.2, unit / 6))
    across, down = [], []
    for holder in members:
        x, y = _centre(holder, width)
        across.append(x)
        down.append(y)
    axes.scatter(
        across,
        down,
        s=(0.42 * unit) ** 2,
        color=[colours[holder] for holder in members],
        edgecolor="white",
        linewidth=min(1.0, unit / 14),
        zorder=4,
    )
    merged = sum(map(len, members.values())) - len(members)
    said = [f"{merged} merged into {len(members)}"] if merged else []
    said += [f"{len(alone)} alone"] if alone else []
    _note(axes, ", ".join(said + ([f"{len(dropped)} dropped"] if dropped else [])))


def _outline(
    axes: Axes, held: Sequence[int], colours: Mapping[int, Any], grid: tuple[int, int], linewidth: float
) -> None:
    """Lines inside each group's border, in its colour."""
    from matplotlib.collections import LineCollection

    height, width = grid
    lines, of_line, inset = [], [], 0.07
    for position, holder in enumerate(held):
        if holder not in colours:
            continue
        row, column = divmod(position, width)
        near = {
            "top": held[position - width] if row else None,
            "low": held[position + width] if row < height - 1 else None,
            "left": held[position - 1] if column else None,
            "right": held[position + 1] if column < width - 1 else None,
        }
        top, low, left, right = row + inset, row + 1 - inset, column + inset, column + 1 - inset
        # A line runs on to the patch's edge where the group continues there.
        from_, to = (column if near["left"] == holder else left), (column + 1 if near["right"] == holder else right)
        up, down = (row if near["top"] == holder else top), (row + 1 if near["low"] == holder else low)
        sides = {
            "top": [(from_, top), (to, top)],
            "low": [(from_, low), (to, low)],
            "left": [(left, up), (left, down)],
            "right": [(right, up), (right, down)],
        }
        for side, line in sides.items():
            if near[side] != holder:
                lines.append(line)
                of_line.append(colours[holder])
    axes.add_collection(LineCollection(lines, colors=of_line, linewidths=linewidth, capstyle="projecting"))


def draw_shares(axes: Axes, image: Any, trace: Trace, grid: tuple[int, int], sheet: Sheet | None = None) -> None:
    """Where one patch is in the end: survivors shaded by the share of it that they hold."""
    from matplotlib import colormaps

    width = grid[1]
    canvas(axes, image, grid, f"Patch {_place(trace.patch, width, sheet)} in the end", dim=0.55, size=9)
    most = max(trace.shares.values(), default=1.0)
    ramp = colormaps["GnBu"]
    tint(axes, grid, {position: ramp(0.35 + 0.65 * share / most) for position, share in trace.shares.items()}, 0.92)
    unit = patch_points(axes, width)
    frames(axes, list(trace.shares), width, inset=0, edgecolor=INK, linewidth=min(0.8, unit / 18))
    for position, share in trace.shares.items():
        if share >= 0.01 and unit >= _READABLE:
            colour = "white" if share / most > 0.5 else INK
            across, down = _centre(position, width)
            style = {"fontsize": min(8.0, 0.5 * unit), "color": colour, "ha": "center", "va": "center_baseline"}
            axes.text(across, down, f"{100 * share:.0f}", **style)  # type: ignore[arg-type]
    mark_traced(axes, trace.patch, width)
    if trace.shares:
        position, share = next(iter(trace.shares.items()))
        said = f"{_percent(share)} in {_place(position, width, sheet)}"
        said += f", rest in {len(trace.shares) - 1} more" if len(trace.shares) > 1 else ""
    else:
        said = "nothing is left of it"
    _note(axes, said + (f"; {_percent(trace.dropped)} dropped" if trace.dropped and trace.shares else ""))


def mark_traced(axes: Axes, patch: int, width: int) -> None:
    """A frame around the traced patch."""
    unit = patch_points(axes, width)
    frames(axes, [patch], width, inset=-0.08, edgecolor="white", linewidth=min(3.4, unit / 4), zorder=5, clip_on=False)
    frames(axes, [patch], width, inset=-0.08, edgecolor=TRACED, linewidth=min(2.0, unit / 7), zorder=6, clip_on=False)


def draw_heat(
    axes: Axes,
    image: Any,
    values: Sequence[float],
    grid: tuple[int, int],
    title: str,
    sheet: Sheet | None = None,
    shares: bool = True,
) -> None:
    """A map over the picture in grey; the brightest patch has the largest value, which is above 0.

    ``shares``: the values are shares of something, such as attention, and their sum is said.
    """
    from matplotlib import colormaps

    width, most = grid[1], max(values)
    canvas(axes, rgb(image).convert("L"), grid, title, size=9)
    ramp, parts = colormaps["inferno"], [value / most if most else 0.0 for value in values]
    # What gets little attention stays recognisable.
    tint(axes, grid, {position: (*ramp(part)[:3], 0.45 + 0.4 * part) for position, part in enumerate(parts)}, None)
    position = max(range(len(values)), key=lambda one: values[one])
    total = f"{_percent(sum(values))} on patches, " if shares else ""
    _note(axes, f"{total}most {most:.2g} at {_place(position, width, sheet)}")


def _place(position: int, width: int, sheet: Sheet | None) -> str:
    """Row and column, of several crops those in the thumbnail or on the canvas."""
    return f"{position // width},{position % width}" if sheet is None else sheet.place(position)
