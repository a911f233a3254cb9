"""What a run found: a document that can be written, continued, and summarised again without the model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ..io import files
from . import document, first_token, groups
from .settings import Setting
from .statistics import Bootstrap, Estimate, Spread, Tally
from .summary import Line, Summary

FORMAT = "ficoco eval 1"
UNDECIDED = "?"  # among the verdicts of a cell: neither right nor wrong
APART = "count"  # of grid scenes: not in the mean unless asked for, a model of this size hardly counts


class Results:
    """The document of a run.

    Args:
        document: as :func:`ficoco_ext.evaluation.evaluate` makes it.

    Example:
        >>> from ficoco_ext.evaluation import Results
        >>> results = Results.load("out.json")  # doctest: +SKIP
        >>> results.paired("ficoco-v", "topk", "keep_ratio 0.25")  # doctest: +SKIP
        Estimate(value=0.031, low=0.012, high=0.05, error=0.0098)
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document

    @classmethod
    def load(cls, path: Path | str) -> Results:
        """Read a document.

        Raises:
            FileNotFoundError: no such file. ValueError: not such a document, or one that contradicts itself.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"results file not found: {path}")
        try:
            found = json.loads(path.read_text())
        except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, an integer or lists without end
            raise ValueError(f"results file {path} must be JSON of ficoco eval: {error}") from None
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError(f"results file {path} must be written by ficoco eval in the format {FORMAT!r}")
        document.check(found, f"results file {path}")
        return cls(found)

    def save(self, path: Path | str) -> None:
        """Write the document at once: a reader finds the old one or the new one, never a part."""
        files.write_text(path, _text(self.document))

    @property
    def names(self) -> tuple[tuple[str, str], ...]:
        """(name, budget) of every setting, the unreduced model first."""
        return tuple((one["name"], one["budget"]) for one in self.document["settings"])

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of questions that were asked."""
        return tuple(dict.fromkeys(kind for table in self.document["tables"] for kind in table["kinds"]))

    def find(self, name: str, budget: str | None = None) -> int:
        """The number of a setting; the unreduced model has no budget.

        Raises:
            ValueError: none, or several budgets and none named.
        """
        found = [i for i, (a, b) in enumerate(self.names) if a == name and (budget in (None, b) or i == 0)]
        if len(found) != 1:
            there = "; ".join(f"{a} at {b}" for a, b in self.names)
            raise ValueError(f"setting must be one of {there}, got {name!r} at {budget!r}")
        return found[0]

    def cells(self, setting: int) -> list[dict[str, Any]]:
        """What a setting answered, one for each seed; empty if a seed is missing."""
        found = [cell for cell in self.document["cells"] if cell["setting"] == setting]
        return found if len(found) == len(self.document["settings"][setting]["seeds"]) else []

    def _table(self, cell: dict[str, Any]) -> int:
        tables = self.document["tables"]
        return next(i for i, table in enumerate(tables) if table["seed"] in (None, cell["seed"]))

    def answers(self, setting: int, seed: int) -> list[str]:
        """What was said to every question of one seed."""
        words = self.document["words"]
        cell = next(one for one in self.document["cells"] if (one["setting"], one["seed"]) == (setting, seed))
        return [words[index] for index in cell["answers"]]

    @cached_property
    def _first_scene(self) -> list[int]:
        """For each table the number of its first scene among those of all."""
        starts = [0]
        for table in self.document["tables"]:
            starts.append(starts[-1] + max(table["scene"]) + 1)
        return starts

    def tally(self, setting: int, seed: int | None = None) -> Tally:
        """Right answers of a setting by scene and kind, of one seed or of all."""
        kinds, right, scene, kind = self.kinds, list[bool](), list[int](), list[int]()
        for cell in self.cells(setting):
            if seed in (None, cell["seed"]):
                number = self._table(cell)
                table, first = self.document["tables"][number], self._first_scene[number]
                number_of = [kinds.index(one) for one in table["kinds"]]
                right += [one == "1" for one in cell["right"]]
                scene += [first + one for one in table["scene"]]
                kind += [number_of[one] for one in table["kind"]]
        return Tally.of(right, scene, kind, (self._first_scene[-1], len(kinds)))

    @cached_property
    def bootstrap(self) -> Bootstrap:
        """The resamples of this run's scenes, the same for all settings."""
        return Bootstrap(self._first_scene[-1])

    def paired(self, a: int | str, b: int | str, budget: str | None = None, kinds: Sequence[str] = ()) -> Estimate:
        """Mean accuracy of ``a`` less that of ``b`` on the same questions.

        Args:
            a, b: numbers of settings, or names at ``budget``.
            budget: of settings given by name.
            kinds: in the mean; none: as :meth:`summary` has it.

        Raises:
            ValueError: no such setting, or one without answers.
        """
        chosen = self._chosen(kinds)
        found = [one if isinstance(one, int) else self.find(one, budget) for one in (a, b)]
        for setting in found:
            if not self.cells(setting):
                raise ValueError(f"paired: setting {' at '.join(self.names[setting])} has no answers to all questions")
        return self._difference(found[0], found[1], chosen)

    def _seeded(self, setting: int) -> bool:
        return bool(self.document["settings"][setting].get("seeded"))

    def _each(self, setting: int, chosen: list[int]) -> dict[int, float]:
        """The mean of every seed."""
        seeds = [cell["seed"] for cell in self.cells(setting)]
        return {seed: self.bootstrap.mean_value(self.tally(setting, seed), chosen) for seed in seeds}

    def _difference(self, a: int, b: int, chosen: list[int]) -> Estimate:
        found = self.bootstrap.difference(self.tally(a), self.tally(b), chosen)
        if not (self._seeded(a) or self._seeded(b)):
            return found
        one, other = self._each(a, chosen), self._each(b, chosen)
        seeds = one if len(one) >= len(other) else other
        once = next(iter(one.values())), next(iter(other.values()))  # of rows, what draws nothing ran with one seed
        each = [one.get(seed, once[0]) - other.get(seed, once[1]) for seed in seeds]
        return found.at_least(Spread.of(each).error)

    def agreement(self, setting: int) -> float:
        """Share of questions answered as the unreduced model answers them."""
        words, same, asked = self.document["words"], 0, 0
        full = {self._table(cell): cell["answers"] for cell in self.cells(0)}
        for cell in self.cells(setting):
            pairs = list(zip(cell["answers"], full[self._table(cell)], strict=True))
            same += sum(words[x] == words[y] for x, y in pairs)
            asked += len(pairs)
        return same / asked

    def undecided(self, setting: int) -> int | None:
        """Answers of a setting that could be called neither right nor wrong; None of a judge that always decides."""
        cells = self.cells(setting)
        decides = self.document["run"]["asking"]["judge"] == "exact"
        return None if decides or not cells else sum(cell["right"].count(UNDECIDED) for cell in cells)

    def _chosen(self, kinds: Sequence[str]) -> list[int]:
        if unknown := [kind for kind in kinds if kind not in self.kinds]:
            raise ValueError(f"mean_of must be among {', '.join(self.kinds)}, got {', '.join(unknown)}")
        if not kinds:
            grid = "gridvqa" in self.document["run"]["data"]
            kinds = [kind for kind in self.kinds if not (grid and kind == APART)] or list(self.kinds)
        return [self.kinds.index(kind) for kind in kinds]

    def summary(self, mean_of: Sequence[str] = ()) -> Summary:
        """Accuracy, its uncertainty, agreement and cost of every setting.

        Args:
            mean_of: kinds in the mean; none: all, but of grid scenes without "count".

        Raises:
            ValueError: a kind that was not asked.
        """
        chosen = self._chosen(mean_of)
        lines = tuple(
            groups.with_groups(self, chosen, [self._line(number, chosen) for number in range(len(self.names))])
        )
        tables = self.document["tables"]
        return Summary(
            lines,
            tuple(self.kinds[kind] for kind in chosen),
            self.kinds,
            sum(len(table["kind"]) for table in tables),
            self._first_scene[-1],
            tuple(f"row {row}, field {field!r}: {reason}" for table in tables for row, field, reason in table["bad"]),
        )

    def _line(self, setting: int, chosen: list[int]) -> Line:
        held, cells = self.document["settings"][setting], self.cells(setting)
        name, budget = self.names[setting]
        if not cells:
            why = held["impossible"] or "not all of it was run"
            return Line(name, budget, None, {}, None, None, None, None, None, None, why)
        tally, seconds = self.tally(setting), sum(cell["seconds"] for cell in cells)
        kinds = dict(zip(self.kinds, self.bootstrap.kinds(tally), strict=True))
        spread = Spread.of(list(self._each(setting, chosen).values()))
        mean = self.bootstrap.mean(tally, chosen)
        compared = setting > 0 and self.cells(0)
        return Line(
            name,
            budget,
            mean.at_least(spread.error) if self._seeded(setting) else mean,
            kinds,
            self._difference(setting, 0, chosen) if compared else None,
            self.agreement(setting) if self.cells(0) else None,
            spread,
            held["cost"],
            seconds,
            sum(len(cell["right"]) for cell in cells) / seconds if seconds else None,
            held["remark"],
            self.undecided(setting),
            reads_text=bool(held.get("reads_text")),
            first_token=first_token.of_setting(self.document, setting),
        )


def new_document(
    run: dict[str, Any], platform: dict[str, Any], model: str, described: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """A document without answers."""
    return {
        "format": FORMAT,
        "model": model,
        "run": run,
        "platform": platform,
        "settings": list(described),
        "tables": [],
        "words": [],
        "cells": [],
        "summary": None,
    }


def described(
    setting: Setting,
    seeds: Sequence[int],
    cost: dict[str, Any] | None,
    remark: str | None,
    impossible: str | None,
    *,
    reads_text: bool = False,
) -> dict[str, Any]:
    """A setting with what was found out before it ran.

    ``reads_text``: what it leaves of a picture before the language model depends on the question.
    """
    found = setting.describe() | {"budget": setting.budget, "seeds": list(seeds)}
    found |= {"cost": cost, "remark": remark, "impossible": impossible}
    if setting.group is not None:
        found["group"] = setting.group
    return found | ({"reads_text": True} if reads_text else {})


def _text(document: dict[str, Any]) -> str:
    """JSON with one line for each part, setting, table and cell: long lists of numbers stay on theirs."""
    parts = []
    for name, value in document.items():
        lists = name in ("settings", "tables", "cells") and value
        text = "[\n" + ",\n".join(json.dumps(one, allow_nan=False) for one in value) + "\n]" if lists else None
        parts.append(f"{json.dumps(name)}: {text or json.dumps(value, allow_nan=False)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
