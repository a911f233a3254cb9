"""The panels of a single reduction or chain: input, kept patches, where the others went, in which layer they left."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..reduction import Reduction
from .canvas import DROPPED, INK, LEAVING, canvas, patch
from .traces import NO_PATCH, Label, count_patches, grid_of, holders, removal_layers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_input(axes: Axes, image: Any, reduction: Reduction, size: float = 10.5) -> None:
    """The picture as the model sees it, under its grid of patches."""
    height, width = grid_of("viz", reduction)
    held = holders(reduction)
    counted = f"{height} x {width}" if NO_PATCH not in held else str(count_patches(held))
    canvas(axes, image, (height, width), f"What the model sees: {counted} patches", size=size)


def draw_kept(axes: Axes, image: Any, reduction: Reduction, item: int = 0) -> None:
    """The patches that are left; removed ones dimmed."""
    height, width = grid_of("viz", reduction)
    left, held = set(reduction.patch_ids[item].tolist()), holders(reduction, item)
    canvas(axes, image, (height, width), f"Kept: {len(left)} of {count_patches(held)} patches")
    for position in range(height * width):
        if position in left:
            patch(axes, position, width, fill=False, edgecolor="white", linewidth=1.1, inset=0.03)
        elif held[position] != NO_PATCH:
            patch(axes, position, width, facecolor=DROPPED, alpha=0.8, linewidth=0)


def _colours(survivors: Sequence[int]) -> dict[int, tuple[float, float, float]]:
    """Hues a golden section apart, so that neighbours in the list differ much; two lightnesses."""
    return {
        position: colorsys.hls_to_rgb(i * 0.618034 % 1, (0.5, 0.62, 0.4)[i % 3], 0.75)
        for i, position in enumerate(survivors)
    }


def draw_holders(axes: Axes, image: Any, reduction: Reduction, item: int = 0, arrows: int = 5) -> None:
    """Where the removed patches went: each has the colour of the survivor that holds it, dropped ones are hatched.

    Args:
        axes: to draw on.
        image: the picture as the model sees it.
        reduction: what happened, in original tokens.
        item: which of the batch.
        arrows: for how many of the largest groups thin arrows lead from the removed patches to their holder.
    """
    height, width = grid_of("viz", reduction)
    held = holders(reduction, item)
    groups: dict[int, list[int]] = {}
    for position, holder in enumerate(held):
        if holder >= 0 and holder != position:
            groups.setdefault(holder, []).append(position)
    dropped = held.count(-1)
    merged = sum(map(len, groups.values()))
    said = [f"{merged} merged into {len(groups)}"] if merged else []
    said += [f"{dropped} dropped"] if dropped else []
    title = f"Where they went: {', '.join(said) or 'no patch was removed'}"
    canvas(axes, image, (height, width), title, dim=0.35)
    colours = _colours(sorted(groups))
    for position, holder in enumerate(held):
        if holder == -1:
            patch(axes, position, width, facecolor=DROPPED, edgecolor="#8b949e", hatch="////", linewidth=0, alpha=0.85)
        elif holder not in (position, NO_PATCH):
            patch(axes, position, width, facecolor=colours[holder], alpha=0.62, linewidth=0)
    for position, colour in colours.items():
        patch(axes, position, width, facecolor=colour, alpha=0.25, linewidth=0)
        patch(axes, position, width, fill=False, edgecolor="white", linewidth=3.2, inset=0.06)
        patch(axes, position, width, fill=False, edgecolor=colour, linewidth=1.9, inset=0.06)
    largest = sorted(groups, key=lambda position: (-len(groups[position]), position))[:arrows]
    for holder in largest:
        end = (holder % width + 0.5, holder // width + 0.5)
        for position in groups[holder]:
            start = (position % width + 0.5, position // width + 0.5)
            style = {"arrowstyle": "-|>", "color": INK, "linewidth": 0.5, "alpha": 0.7, "mutation_scale": 5}
            axes.annotate("", xy=end, xytext=start, arrowprops=style | {"shrinkA": 0, "shrinkB": 2})


def draw_stage(axes: Axes, image: Any, reduction: Reduction, label: Label, item: int = 0) -> None:
    """The patches left after one layer, and in colour those that left in it; earlier ones are dimmed."""
    height, width = grid_of("viz", reduction)
    left, held = set(reduction.patch_ids[item].tolist()), holders(reduction, item)
    leaving = set((reduction.sources[item] - int(reduction.class_token)).tolist())
    name = f"layer {label}" if isinstance(label, int) else label
    canvas(axes, image, (height, width), f"After {name}: {len(left)} left, {len(leaving)} removed there")
    for position in range(height * width):
        if position in left:
            patch(axes, position, width, fill=False, edgecolor="white", linewidth=1.1, inset=0.03)
        elif position in leaving:
            patch(axes, position, width, facecolor=LEAVING, alpha=0.75, linewidth=0)
        elif held[position] != NO_PATCH:
            patch(axes, position, width, facecolor=DROPPED, alpha=0.8, linewidth=0)


def draw_layers(
    axes: Axes, image: Any, reductions: Sequence[Reduction], layers: Sequence[Label], item: int = 0
) -> None:
    """A heat map of the layer in which each patch left; the picture shows where none did."""
    from matplotlib import colormaps
    from matplotlib.patches import Patch

    height, width = grid_of("viz", reductions[-1])
    canvas(axes, image, (height, width), "In which layer each patch left")
    removing = list(layers)
    ramp = colormaps["viridis"]
    colours = {layer: ramp(0.08 + 0.86 * i / max(len(removing) - 1, 1)) for i, layer in enumerate(removing)}
    gone, held = removal_layers(reductions, layers, item), holders(reductions[-1], item)
    for position, layer in enumerate(gone):
        if layer is not None:
            patch(axes, position, width, facecolor=colours[layer], alpha=0.88, linewidth=0)
        elif held[position] != NO_PATCH:
            patch(axes, position, width, fill=False, edgecolor="white", linewidth=1.0, inset=0.03)
    keys = [Patch(color=colours[layer], label=f"{layer}: {gone.count(layer)}") for layer in removing]
    axes.legend(
        handles=keys,
        title="layer: patches removed",
        loc="upper center",
        bbox_to_anchor=(0.5, -0.01),
        borderaxespad=0.2,
        ncols=min(len(keys), 4),
        fontsize=8,
        title_fontsize=8,
        frameon=False,
        handlelength=1.0,
        columnspacing=1.2,
    )
