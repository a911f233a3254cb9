"""Looking at the data: how often each answer is right, and a sheet of scenes with what is asked about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .dataset import GridVQA, Row
from .vocabulary import KINDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INK, _FAINT, _ANSWER = "#1b1f24", "#6a737d", "#0969da"
_COLUMNS, _PANEL, _LINE = 4, 2.9, 0.155  # panels in a row; inches of a panel's side and of a line of text


@dataclass(frozen=True)
class Balance:
    """The answers to one kind of question.

    Attributes:
        kind: of the questions. questions: how many.
        answers: each answer with how often it is right, the commonest first.
    """

    kind: str
    questions: int
    answers: tuple[tuple[str, int], ...]

    @property
    def guess(self) -> float:
        """Share of questions that the commonest answer gets right: what is reached without looking."""
        return self.answers[0][1] / self.questions


def balance(rows: Iterable[Row]) -> tuple[Balance, ...]:
    """The balance of each kind that is there.

    Example:
        >>> from ficoco_ext.gridvqa import Row
        >>> from ficoco_ext.gridvqa.sheet import balance
        >>> [one.guess for one in balance([Row(None, "is there a star ?", "no", "exist", 0)])]
        [1.0]
    """
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        counts.setdefault(row.kind, Counter())[row.answer] += 1
    found = []
    for kind in sorted(counts, key=KINDS.index):
        ordered = sorted(counts[kind].items(), key=lambda pair: (-pair[1], pair[0]))
        found.append(Balance(kind, sum(counts[kind].values()), tuple(ordered)))
    return tuple(found)


def sheet(dataset: GridVQA, rows: Sequence[Row]) -> Figure:
    """The scenes of ``rows``, with questions and answers below each.

    Args:
        dataset: where they are from, for the heading.
        rows: all questions of the scenes to be shown.

    Returns:
        A ``matplotlib.figure.Figure``; :func:`ficoco_ext.viz.save` writes it.

    Raises:
        ImportError: matplotlib is missing. ValueError: no rows.
    """
    from .. import viz

    viz.require()
    from matplotlib.figure import Figure

    scenes: dict[int, list[Row]] = {}
    for row in rows:
        scenes.setdefault(row.scene, []).append(row)
    if not scenes:
        raise ValueError("sheet: rows must hold at least one question, got none")
    columns = min(_COLUMNS, len(scenes))
    lines = max(map(len, scenes.values()))
    down = -(-len(scenes) // columns)
    below, head = 0.12 + _LINE * lines, 0.45
    size = (columns * (_PANEL + 0.35), head + down * (_PANEL + below + 0.2))
    figure = Figure(figsize=size, facecolor="white")
    title = f"split {dataset.split}, seed {dataset.seed}: {len(scenes)} of {dataset.scenes} scenes"
    figure.text(0.15 / size[0], 1 - 0.12 / size[1], title, fontsize=11, color=_INK, va="top", weight="bold")
    for index, (number, asked) in enumerate(scenes.items()):
        left = 0.15 + index % columns * (_PANEL + 0.35)
        top = size[1] - head - index // columns * (_PANEL + below + 0.2)
        box = (left / size[0], (top - _PANEL) / size[1], _PANEL / size[0], _PANEL / size[1])
        axes = figure.add_axes(box)
        axes.imshow(asked[0].image, interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(f"scene {number}", fontsize=7, color=_FAINT, loc="left", pad=2)
        for line, row in enumerate(asked):
            y = (top - _PANEL - 0.07 - line * _LINE) / size[1]
            figure.text(left / size[0], y, row.question, fontsize=6.6, color=_INK, va="top")
            right = (left + _PANEL) / size[0]
            figure.text(right, y, row.answer, fontsize=6.6, color=_ANSWER, va="top", ha="right", weight="bold")
    return figure
