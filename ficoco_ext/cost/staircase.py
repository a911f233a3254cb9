"""A picture of where tokens and operations go: layer by layer, with and without reduction.

matplotlib is imported when a function is called, and figures are made as objects: no backend is chosen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import viz
from .bill import LayerCost
from .compare import Comparison, Side

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ALL, _FEW, _INK = "#8c959f", "#0969da", "#1b1f24"
_PARTS = {"tower": "vision tower", "decoder": "language model"}


def draw(found: Comparison) -> Figure:
    """Tokens that enter each layer, and its operations: on the left the tower, on the right the language model.

    Returns:
        A ``matplotlib.figure.Figure``; :func:`ficoco_ext.viz.save` writes it.

    Raises:
        ImportError: matplotlib is missing.
    """
    viz.require()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), facecolor="white", layout="constrained")
    axes = figure.subplots(2, 2, sharex="col")
    for column, part in enumerate(_PARTS):
        for row, what in enumerate(("tokens", "operations")):
            _panel(axes[row][column], found, part, what)
        axes[0][column].set_title(_PARTS[part], color=_INK)
        axes[1][column].set_xlabel("layer", color=_INK)
    axes[0][0].set_ylabel("tokens that enter", color=_INK)
    axes[1][0].set_ylabel("GFLOP, 2 a multiply-add", color=_INK)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(title(found), color=_INK)
    return figure


def title(found: Comparison) -> str:
    """What the picture is of, in one line."""
    method = "" if found.method is None else f", {found.method.name}"
    images = f"{found.images} image{'s' * (found.images > 1)}"
    return f"{found.shape.name}{method}: {images} and {found.text_tokens} text tokens"


def _panel(axes: Axes, found: Comparison, part: str, what: str) -> None:
    sides: list[tuple[str, Side, str]] = [("all tokens", found.full, _ALL)]
    if found.reduced is not None:
        sides.append(("reduced", found.reduced, _FEW))
    for label, side, colour in sides:
        layers = [one for one in side.running.layers if one.part == part]
        values = [_value(one, what) for one in layers]
        edges = [one.layer - 0.5 for one in layers] + [layers[-1].layer + 0.5]
        axes.stairs(values, edges, label=label, color=colour, fill=label == "reduced", alpha=0.85, linewidth=1.6)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK)


def _value(layer: LayerCost, what: str) -> float:
    return layer.tokens if what == "tokens" else layer.total.operations / 1e9
