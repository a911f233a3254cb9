"""The study of every method by its name, and its part of docs/accuracy.md, which is written and not typed.

    python benchmarks/accuracy.py methods-by-name --split dev --scenes 100 --page docs/accuracy.md \\
        --json benchmarks/results/accuracy_methods_by_name.json

A method that is registered takes part without being listed here. Remove the results before a new one is to be measured:
a run goes on with the same settings alone.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from ficoco_ext.apps import checkpoint
from ficoco_ext.evaluation import Results, Setting, settings_of
from ficoco_ext.evaluation.settings import BASELINES
from ficoco_ext.methods import METHODS, distinct, hyperparameters

KINDS = ("exist", "attr", "position", "text", "digit")
ALL_KINDS = (*KINDS, "count", "choice")
HARD_KINDS = ("text", "digit", "position")
BEGIN, END = "<!-- methods-by-name -->", "<!-- end of methods-by-name -->"
# Besides the defaults, where a method has these choices: what they change can be judged on this model.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "divprune, merge": ("divprune", {"merge": True}),
    "scope, alpha 0": ("scope", {"alpha": 0.0}),
    "scope, column": ("scope", {"saliency": "column"}),
    "cdpruner, no text": ("cdpruner", {"relevance": "none"}),
    "mmtok, no text": ("mmtok", {"cover_words": False}),
    "visionzip, column": ("visionzip", {"saliency": "column"}),
    "vispruner, column": ("vispruner", {"saliency": "column"}),
    "topk, projector": ("topk", {"part": "projector"}),
}


def methods_by_name(budgets: tuple[float, ...] = (36, 18)) -> list[Setting]:
    """Every method that is registered, as it is by default, and the baselines, at numbers of tokens left in the end.

    What the embedded model cannot do is left out; :func:`refused` says why.
    """
    left_out = refused(budgets)
    return [one for one in _by_name(budgets) if (one.name, one.budget) not in left_out]


def refused(budgets: tuple[float, ...] = (36, 18)) -> dict[tuple[str, str], str]:
    """Why settings of :func:`methods_by_name` are left out, by name and budget."""
    found = {}
    for setting in _by_name(budgets):
        try:
            setting.resolve(embedded().model, 0)
        except (ValueError, NotImplementedError) as error:
            found[setting.name, setting.budget] = str(error)
    return found


def _by_name(budgets: tuple[float, ...]) -> list[Setting]:
    known = {
        label: (name, given)
        for label, (name, given) in VARIANTS.items()
        if name in METHODS and given.keys() <= hyperparameters(name).keys()
    }
    named = [name for name in distinct() if name not in {name for name, _ in BASELINES.values()}]
    given = {label: given for label, (_, given) in known.items()}
    labels = [*named, "random, tower=random", *(f"{label}={name}" for label, (name, _) in known.items())]
    counts = [int(count) for count in budgets]
    found = settings_of(labels, tokens=counts, hyperparameters=given, baselines=True)
    # ToMe removes at most half of what enters a layer: its default layers are too few for an eighth.
    return found + [Setting("tome", {"tokens": count}, {}, tuple(range(7)), "tome, layers 0 to 6") for count in counts]


@functools.cache
def embedded() -> Any:
    """The model that is asked, loaded once."""
    return checkpoint.load(None, torch.float32, torch.device("cpu"))


def table(results: Results) -> str:
    """The table of the page: a row a method, in percent with 95 % intervals, at both numbers of tokens."""
    five, seven = (
        {(line.name, line.budget): line for line in results.summary(kinds).lines} for kinds in (KINDS, ALL_KINDS)
    )
    budgets = [f"tokens {count}" for count in (36, 18)]
    head = [
        "method",
        *(f"{n}, {what}" for n in (36, 18) for what in ("five kinds", "all seven", "word, digit, position")),
    ]
    rows = [[*head, "tokens, mean", "FLOPs"], ["---"] * 9]
    full = "unreduced", "all tokens"
    rows.append(["all tokens", *_cells(five, seven, full), *["-"] * 3, "144, 144", "100, 100"])
    for name in dict.fromkeys(name for name, _ in five if name != "unreduced"):
        cells = [cell for budget in budgets for cell in _cells(five, seven, (name, budget))]
        costs = [five[name, budget].cost if (name, budget) in five else None for budget in budgets]
        mean = [f"{cost['visual_tokens']['average']:.0f}" if cost else "-" for cost in costs]
        flops = [f"{100 * cost['flops_ratio']:.0f}" if cost else "-" for cost in costs]
        rows.append([f"`{name}`", *cells, ", ".join(mean), ", ".join(flops)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cells(five: dict[Any, Any], seven: dict[Any, Any], key: tuple[str, str]) -> list[str]:
    if key not in five:
        return ["-"] * 3
    means = [found[key].mean for found in (five, seven)]
    said = [f"{100 * one.value:.1f} ({100 * one.low:.1f} to {100 * one.high:.1f})" for one in means]
    return [*said, ", ".join(f"{100 * five[key].kinds[kind].value:.0f}" for kind in HARD_KINDS)]


def part_of_page(results: Results) -> str:
    """What stands between the marks: what was asked, the table, and what is not in it."""
    run = results.document["run"]["data"]["gridvqa"]
    summary = results.summary(KINDS)
    caption = f"{summary.questions} questions about {summary.scenes} scenes of the split `{run['split']}`:"
    left_out = [f"- `{name}`, {budget}: {why}" for (name, budget), why in refused().items()]
    return "\n\n".join([caption, table(results), "Not in the table:", "\n".join(left_out or ["- nothing"])])


def between_marks(page: str) -> tuple[str, str, str]:
    """What stands before, between and after the marks of a page, which keeps them.

    Raises:
        ValueError: a page without them.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"page must have the marks {BEGIN} and {END} once each")
    before, rest = page.split(BEGIN)
    between, after = rest.split(END)
    return before + BEGIN, between.strip(), END + after


def write_part(page: Path, results: Results) -> None:
    """Put :func:`part_of_page` between the marks of the file ``page``.

    Raises:
        ValueError: a page without them.
    """
    before, _, after = between_marks(page.read_text())
    page.write_text(f"{before}\n\n{part_of_page(results)}\n\n{after}")
