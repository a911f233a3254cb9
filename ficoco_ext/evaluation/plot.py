"""A picture of accuracy against cost. matplotlib is imported when it is called; no backend is chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import viz
from .markdown import percent
from .results import Results
from .summary import Line, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _FAINT = "#1b1f24", "#8c959f"
_MARKERS = "osD^vP*X<>hp"


def draw(results: Results, summary: Summary) -> Figure:
    """Mean accuracy with its interval over the prefill's FLOPs: a line a method, the unreduced model across.

    Returns:
        A ``matplotlib.figure.Figure``; :func:`ficoco_ext.viz.save` writes it.

    Raises:
        ImportError: matplotlib is missing. ValueError: no setting has both an accuracy and a cost.
    """
    viz.require()
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    full, *settings = summary.lines
    methods: dict[str, list[Line]] = {}
    for line in settings:
        if line.mean is not None and line.cost is not None:
            methods.setdefault(line.name, []).append(line)
    if not methods:
        raise ValueError("plot: no setting has an accuracy and a cost; run some to their end")
    figure = Figure(figsize=(10, 5.8), facecolor="white", layout="constrained")
    axes = figure.subplots()
    ramp = colormaps["tab10" if len(methods) <= 10 else "tab20"]
    for number, (name, lines) in enumerate(methods.items()):
        _method(axes, name, lines, ramp(number % ramp.N), _MARKERS[number % len(_MARKERS)])
    if full.mean is not None:
        text = f"{full.name} {percent(full.mean.value)}"
        axes.axhline(100 * full.mean.value, color=_INK, linestyle="--", linewidth=1.2, label=text)
        axes.axhspan(100 * full.mean.low, 100 * full.mean.high, color=_FAINT, alpha=0.15, linewidth=0)
    axes.set_xlabel("FLOPs of a prefill, percent of the unreduced model's", color=_INK)
    axes.set_ylabel(f"accuracy, mean of {', '.join(summary.mean_of)}, percent", color=_INK)
    axes.set_title(
        f"{results.document['model']}: {summary.questions} questions about {summary.scenes} scenes, "
        "95 % intervals of resampled scenes",
        fontsize=10.5,
        color=_INK,
        loc="left",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=_FAINT, alpha=0.25, linewidth=0.6)
    axes.tick_params(colors=_INK)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure


def _method(axes: Axes, name: str, lines: list[Line], colour: Any, marker: str) -> None:
    points = [(100 * line.cost["flops_ratio"], line.mean) for line in lines if line.cost and line.mean]
    points.sort(key=lambda point: point[0])  # two amounts may cost the same
    x, found = [ratio for ratio, _ in points], [mean for _, mean in points]
    y = [100 * mean.value for mean in found]
    below = [max(100 * (mean.value - mean.low), 0) for mean in found]
    above = [max(100 * (mean.high - mean.value), 0) for mean in found]
    axes.errorbar(
        x,
        y,
        yerr=[below, above],
        label=name,
        color=colour,
        marker=marker,
        markersize=5,
        linewidth=1.5,
        elinewidth=0.8,
        capsize=2,
        alpha=0.9,
    )
