"""The figure of one method: all panels beside each other, with what was asked and answered below."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from ..reduction import Reduction
from .canvas import FAINT, INK, WRONG, require
from .panels import draw_holders, draw_input, draw_kept, draw_layers, draw_stage
from .sheets import Sheet
from .traces import Label, checked, grid_of, named

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` indices, evenly spread, the first and the last among them; of one, the last.

    Example:
        >>> from ficoco_ext.viz import spread
        >>> spread(28, 4), spread(3, 4)
        ([0, 9, 18, 27], [0, 1, 2])
    """
    if count <= most:
        return list(range(count))
    if most == 1:
        return [count - 1]
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
    sheet: Sheet | None = None,
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
        sheet: of a picture of several crops, whose cells are the grid; its borders and padding are drawn.

    Returns:
        A ``matplotlib.figure.Figure``; :func:`save` writes it.

    Raises:
        ImportError: matplotlib is missing. ValueError: no reduction, no grid, no such item, layers of another number.
    """
    require()
    from matplotlib.figure import Figure

    records = checked("viz", reductions, item)
    grid_of("viz", records[-1])
    layers = named("viz", records, layers)
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
        for panel, step in zip(axes[1], shown, strict=False):
            draw_stage(panel, image, records[step], layers[step], item)
        for panel in axes[1, len(shown) :]:
            panel.remove()
    if sheet is not None:
        for each in figure.axes:
            sheet.mark(each)
    figure.text(0.2 / size[0], 1 - 0.2 / size[1], title, fontsize=12.5, color=INK, va="top", weight="bold")
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
    """Questions and answers as columns under the first three panels; the legend is under the fourth."""
    columns = [("Question", 46, left), ("Truth", 14, 0.25), ("All tokens", 42, 0.33), ("Reduced", 42, 0.54)]
    known = any(truth for _, truth, *_ in answers)
    for column, (heading, width, x) in enumerate(columns):
        if column == 1 and not known:
            continue
        figure.text(x, top, heading, fontsize=9, color=FAINT, va="top")
        for row, entry in enumerate(answers):
            text = textwrap.shorten(entry[column], width, placeholder=" ...") or "(nothing)"
            colour = WRONG if (row, column) in wrong else INK
            figure.text(x, top - (row + 1) * line, text, fontsize=9.5, color=colour, va="top")
