"""Pictures of a reduction: which patches are left, where the others went, and in which layer.

Works on :class:`ficoco_ext.Reduction` records and a PIL image; no model is needed. matplotlib is imported when a
function is called, and figures are made as objects: no backend is chosen and no window opened.
"""

from __future__ import annotations

import colorsys
import textwrap
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .reduction import Reduction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Label = int | str  # what a layer is called in a legend

_FORMATS = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")
_INK, _FAINT, _DROPPED, _WRONG, _LEAVING = "#1b1f24", "#6a737d", "#20242a", "#b42318", "#e8590c"


def require(path: Path | str | None = None) -> None:
    """Raise early what drawing, and writing to ``path``, would raise late.

    Raises:
        ImportError: matplotlib is missing. ValueError: a kind of file it cannot write. FileNotFoundError: no folder.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(f'pictures need matplotlib ({error}); pip install "ficoco_ext[viz]"') from error
    if path is None:
        return
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(f"picture must end in one of {', '.join(_FORMATS)}, got {path.name!r}")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"no folder {path.absolute().parent} for the picture {path.name}")


def _records(reductions: Reduction | Sequence[Reduction], item: int) -> tuple[Reduction, ...]:
    records = (reductions,) if isinstance(reductions, Reduction) else tuple(reductions)
    if not records:
        raise ValueError("visualize: reductions is empty; run the model once, or nothing was removed")
    if records[-1].grid is None:
        raise ValueError("visualize: the reduction knows no grid; pass grid=(height, width) to ficoco_ext.reduce")
    if not 0 <= item < records[-1].kept.shape[0]:
        raise ValueError(f"visualize: item must be in [0, {records[-1].kept.shape[0] - 1}], got {item}")
    return records


def _grid(reduction: Reduction) -> tuple[int, int]:
    assert reduction.grid is not None
    return reduction.grid


def holders(reduction: Reduction, item: int = 0) -> list[int]:
    """For each patch of the original grid the patch that holds it now: itself if it is left, -1 if it was dropped.

    Example:
        >>> import torch, ficoco_ext
        >>> from ficoco_ext import visualize
        >>> tokens, (q, k) = torch.randn(1, 5, 8), torch.randn(2, 1, 2, 5, 4)
        >>> r = ficoco_ext.reduce(tokens, ficoco_ext.QueryKey(q, k), 2, return_reduction=True)
        >>> len(visualize.holders(r))
        4
    """
    first = int(reduction.class_token)
    kept = reduction.kept[item].tolist()
    places = reduction.source_map[item].tolist()[first:]
    return [-1 if place < 0 else kept[place] - first for place in places]


def removal_layers(reductions: Sequence[Reduction], layers: Sequence[Label], item: int = 0) -> list[Label | None]:
    """For each patch of the original grid the layer that removed it, None if it is left."""
    first = int(reductions[-1].class_token)
    gone: list[Label | None] = [None] * (_grid(reductions[-1])[0] * _grid(reductions[-1])[1])
    for reduction, layer in zip(reductions, layers, strict=True):
        for token in reduction.sources[item].tolist():
            gone[token - first] = layer
    return gone


def _canvas(axes: Axes, image: Any, grid: tuple[int, int], title: str, dim: float = 0.0) -> None:
    """The picture, one unit a patch, faded by ``dim`` towards white, with thin lines between patches."""
    import numpy as np

    pixels = np.asarray(image.convert("RGB"), dtype=float) / 255
    height, width = grid
    axes.imshow(pixels * (1 - dim) + dim, extent=(0, width, height, 0), interpolation="nearest", aspect="auto")
    axes.set_box_aspect(image.height / image.width)
    lines = {"color": "white", "alpha": 0.35, "linewidth": 0.4}
    axes.hlines(range(1, height), 0, width, **lines)  # type: ignore[arg-type]
    axes.vlines(range(1, width), 0, height, **lines)  # type: ignore[arg-type]
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(title, fontsize=10.5, color=_INK, loc="left", pad=7)


def _patch(axes: Axes, place: int, width: int, **style: Any) -> None:
    from matplotlib.patches import Rectangle

    inset = style.pop("inset", 0.0)
    corner = (place % width + inset, place // width + inset)
    axes.add_patch(Rectangle(corner, 1 - 2 * inset, 1 - 2 * inset, **style))


def draw_input(axes: Axes, image: Any, reduction: Reduction) -> None:
    """The picture as the model sees it, under its grid of patches."""
    height, width = _grid(reduction)
    _canvas(axes, image, (height, width), f"What the model sees: {height} x {width} patches")


def draw_kept(axes: Axes, image: Any, reduction: Reduction, item: int = 0) -> None:
    """The patches that are left; removed ones dimmed."""
    height, width = _grid(reduction)
    left = set(reduction.patch_ids[item].tolist())
    _canvas(axes, image, (height, width), f"Kept: {len(left)} of {height * width} patches")
    for place in range(height * width):
        if place in left:
            _patch(axes, place, width, fill=False, edgecolor="white", linewidth=1.1, inset=0.03)
        else:
            _patch(axes, place, width, facecolor=_DROPPED, alpha=0.8, linewidth=0)


def _colours(survivors: Sequence[int]) -> dict[int, tuple[float, float, float]]:
    """Hues a golden section apart, so that neighbours in the list differ much; two lightnesses."""
    return {
        place: colorsys.hls_to_rgb(i * 0.618034 % 1, (0.5, 0.62, 0.4)[i % 3], 0.75) for i, place in enumerate(survivors)
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
    height, width = _grid(reduction)
    held = holders(reduction, item)
    groups: dict[int, list[int]] = {}
    for place, holder in enumerate(held):
        if holder >= 0 and holder != place:
            groups.setdefault(holder, []).append(place)
    dropped = sum(holder < 0 for holder in held)
    merged = sum(map(len, groups.values()))
    said = [f"{merged} merged into {len(groups)}"] if merged else []
    said += [f"{dropped} dropped"] if dropped else []
    title = f"Where they went: {', '.join(said) or 'nobody left'}"
    _canvas(axes, image, (height, width), title, dim=0.35)
    colours = _colours(sorted(groups))
    for place, holder in enumerate(held):
        if holder < 0:
            _patch(axes, place, width, facecolor=_DROPPED, edgecolor="#8b949e", hatch="////", linewidth=0, alpha=0.85)
        elif holder != place:
            _patch(axes, place, width, facecolor=colours[holder], alpha=0.62, linewidth=0)
    for place, colour in colours.items():
        _patch(axes, place, width, facecolor=colour, alpha=0.25, linewidth=0)
        _patch(axes, place, width, fill=False, edgecolor="white", linewidth=3.2, inset=0.06)
        _patch(axes, place, width, fill=False, edgecolor=colour, linewidth=1.9, inset=0.06)
    largest = sorted(groups, key=lambda place: (-len(groups[place]), place))[:arrows]
    for holder in largest:
        end = (holder % width + 0.5, holder // width + 0.5)
        for place in groups[holder]:
            start = (place % width + 0.5, place // width + 0.5)
            style = {"arrowstyle": "-|>", "color": _INK, "linewidth": 0.5, "alpha": 0.7, "mutation_scale": 5}
            axes.annotate("", xy=end, xytext=start, arrowprops=style | {"shrinkA": 0, "shrinkB": 2})


def draw_stage(axes: Axes, image: Any, reduction: Reduction, label: Label, item: int = 0) -> None:
    """The patches left after one layer, and in colour those that left in it; earlier ones are dimmed."""
    height, width = _grid(reduction)
    left = set(reduction.patch_ids[item].tolist())
    leaving = set((reduction.sources[item] - int(reduction.class_token)).tolist())
    name = f"layer {label}" if isinstance(label, int) else label
    _canvas(axes, image, (height, width), f"After {name}: {len(left)} left, {len(leaving)} removed there")
    for place in range(height * width):
        if place in left:
            _patch(axes, place, width, fill=False, edgecolor="white", linewidth=1.1, inset=0.03)
        elif place in leaving:
            _patch(axes, place, width, facecolor=_LEAVING, alpha=0.75, linewidth=0)
        else:
            _patch(axes, place, width, facecolor=_DROPPED, alpha=0.8, linewidth=0)


def draw_layers(
    axes: Axes, image: Any, reductions: Sequence[Reduction], layers: Sequence[Label], item: int = 0
) -> None:
    """A heat map of the layer in which each patch left; the picture shows where none did."""
    from matplotlib import colormaps
    from matplotlib.patches import Patch

    height, width = _grid(reductions[-1])
    _canvas(axes, image, (height, width), "In which layer each patch left")
    removing = list(layers)
    ramp = colormaps["viridis"]
    colours = {layer: ramp(0.08 + 0.86 * i / max(len(removing) - 1, 1)) for i, layer in enumerate(removing)}
    gone = removal_layers(reductions, layers, item)
    for place, layer in enumerate(gone):
        if layer is not None:
            _patch(axes, place, width, facecolor=colours[layer], alpha=0.88, linewidth=0)
        else:
            _patch(axes, place, width, fill=False, edgecolor="white", linewidth=1.0, inset=0.03)
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


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` places, evenly spread, the first and the last among them.

    Example:
        >>> from ficoco_ext.visualize import spread
        >>> spread(28, 4), spread(3, 4)
        ([0, 9, 18, 27], [0, 1, 2])
    """
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def overview(
    image: Any,
    reductions: Reduction | Sequence[Reduction],
    *,
    layers: Sequence[Label] | None = None,
    title: str = "",
    answers: Sequence[tuple[str, str, str, str]] = (),
    wrong: Collection[tuple[int, int]] = (),
    item: int = 0,
    stages: bool = False,
) -> Figure:
    """All four views beside each other, with what was asked and answered below.

    Args:
        image: PIL image as the model sees it.
        reductions: one, or those of the layers in order (``handle.reductions``, or for a method in the language model
            what :func:`ficoco_ext.models.pictures.picture_reductions` makes of them).
        layers: index or name of the layer of each of them, all different; None counts from 0.
        title: one line above.
        answers: rows of question, known answer (may be empty), answer with all tokens, answer with reduction.
        wrong: (row, column) of answers to print in red.
        item: which of the batch.
        stages: a second row of panels, one for each layer that removed something; of more than four, four of them,
            the first and the last included.

    Returns:
        A ``matplotlib.figure.Figure``; :func:`save` writes it.

    Raises:
        ImportError: matplotlib is missing. ValueError: no reduction, no grid, no such item, layers of another number.
    """
    require()
    from matplotlib.figure import Figure

    records = _records(reductions, item)
    layers = list(range(len(records))) if layers is None else list(layers)
    if len(layers) != len(records):
        raise ValueError(f"visualize: layers must name one layer a reduction, got {len(layers)} for {len(records)}")
    if len(set(layers)) != len(layers):
        raise ValueError(f"visualize: layers must all be different, got {layers}")
    rows = min(len(answers), 8)
    legend = 0.35 + 0.19 * -(-len(records) // 4)  # inches below the fourth panel
    caption = 0.2 + 0.21 * (rows + bool(rows))
    panel, top = 4.0, 0.75
    high = panel * image.height / image.width
    gap = legend + 0.35 if stages else 0.0  # the second row has headings
    below = caption if stages else max(legend, caption)
    size = (4 * panel + 0.75, high * (1 + stages) + gap + top + below)
    figure = Figure(figsize=size, facecolor="white")
    axes = figure.subplots(1 + stages, 4, squeeze=False)
    edges = {"left": 0.2 / size[0], "right": 1 - 0.2 / size[0], "top": 1 - top / size[1], "bottom": below / size[1]}
    figure.subplots_adjust(**edges, wspace=0.03, hspace=gap / high)
    draw_input(axes[0, 0], image, records[-1])
    draw_kept(axes[0, 1], image, records[-1], item)
    draw_holders(axes[0, 2], image, records[-1], item)
    draw_layers(axes[0, 3], image, records, layers, item)
    if stages:
        shown = spread(len(records), 4)
        for place, step in zip(axes[1], shown, strict=False):
            draw_stage(place, image, records[step], layers[step], item)
        for place in axes[1, len(shown) :]:
            place.remove()
    figure.text(0.2 / size[0], 1 - 0.2 / size[1], title, fontsize=12.5, color=_INK, va="top", weight="bold")
    if rows:
        _caption(figure, answers[:rows], wrong, (below - 0.1) / size[1], 0.21 / size[1], 0.2 / size[0])
    return figure


def _caption(
    figure: Figure,
    answers: Sequence[tuple[str, ...]],
    wrong: Collection[tuple[int, int]],
    top: float,
    line: float,
    left: float,
) -> None:
    """Questions and answers as columns under the first three panels; the legend has the place under the fourth."""
    columns = [("Question", 46, left), ("Truth", 14, 0.25), ("All tokens", 42, 0.33), ("Reduced", 42, 0.54)]
    known = any(truth for _, truth, *_ in answers)
    for column, (heading, width, x) in enumerate(columns):
        if column == 1 and not known:
            continue
        figure.text(x, top, heading, fontsize=9, color=_FAINT, va="top")
        for row, entry in enumerate(answers):
            text = textwrap.shorten(entry[column], width, placeholder=" ...") or "(nothing)"
            colour = _WRONG if (row, column) in wrong else _INK
            figure.text(x, top - (row + 1) * line, text, fontsize=9.5, color=colour, va="top")


def save(figure: Figure, path: Path | str, dpi: int = 120) -> None:
    """Write ``figure``; the ending of ``path`` says in which format.

    Raises:
        ValueError: an ending that is not known. FileNotFoundError: no such folder.
    """
    require(path)
    figure.savefig(path, dpi=dpi)
