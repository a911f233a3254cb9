"""What is asked of whom, and what every setting does to the model and costs, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..apps.checkpoint import Checkpoint
from ..gridvqa import GridVQA
from . import costs, equal
from .asking import Prompts
from .data import questions_for
from .results import described
from .settings import Setting
from .sharing import chooses_by_text


class Tables:
    """The questions of each seed, one seed's prompts at a time."""

    def __init__(self, checkpoint: Checkpoint, dataset: Any, seeds: tuple[int, ...], bad_rows: str) -> None:
        self.checkpoint, self.dataset, self.bad_rows = checkpoint, dataset, bad_rows
        self.grid = isinstance(dataset, GridVQA)
        self._held: tuple[int | None, Prompts] | None = None
        self.prompts(seeds[0])  # finds bad rows before anything runs

    def key(self, seed: int) -> int | None:
        """The seed, if it draws the questions."""
        return seed if self.grid else None

    def prompts(self, seed: int) -> Prompts:
        """Of one seed."""
        if self._held is None or self._held[0] != self.key(seed):
            asked = questions_for(self.dataset, seed, bad_rows=self.bad_rows)
            self._held = self.key(seed), Prompts(self.checkpoint, asked)
        return self._held[1]

    def seeds_of(self, setting: Setting, seeds: tuple[int, ...]) -> tuple[int, ...]:
        """Those with which a setting gives something else."""
        return seeds if self.grid or setting.seeded else seeds[:1]


class Plans:
    """The unreduced model and all settings, each with the amount that reaches its goal.

    Attributes:
        settings: the unreduced model's first; one that cannot reach its goal as it was given.
    """

    def __init__(self, tables: Tables, settings: Sequence[Setting], seeds: tuple[int, ...]) -> None:
        self._tables, self._seeds = tables, seeds
        self._refused: dict[int, str] = {}
        self.settings = [Setting(None)]
        for setting in settings:
            try:
                self.settings.append(equal.solved(setting, tables.prompts(seeds[0]), seeds[0]))
            except (ValueError, NotImplementedError) as error:
                self._refused[len(self.settings)] = str(error)
                self.settings.append(setting)

    def described(self) -> list[dict[str, Any]]:
        """Attach every setting once: its cost, or why it cannot be done.

        Raises:
            ValueError: none of them can. TypeError: an unknown hyperparameter.
        """
        full = costs.prefill(self._tables.prompts(self._seeds[0]), None, None)
        found = [self._one(number, setting, full) for number, setting in enumerate(self.settings)]
        refused = [one["impossible"] for one in found if one["impossible"]]
        if refused and len(refused) == len(found) - 1:
            raise ValueError(f"none of the settings can be done; the first: {refused[0]}")
        return found

    def _one(self, number: int, setting: Setting, full: Any) -> dict[str, Any]:
        prompts, of = self._tables.prompts(self._seeds[0]), self._tables.seeds_of(setting, self._seeds)
        if setting.method is None:
            return described(setting, of, costs.columns(full, full), None, None)
        if number in self._refused:
            return described(setting, of, None, None, self._refused[number])
        method = setting.built(self._seeds[0])
        try:
            handle = setting.attach(self._tables.checkpoint, self._seeds[0])
        except (ValueError, NotImplementedError) as error:
            return described(setting, of, None, None, str(error))
        with handle:
            plan, cost, remark = handle.attach_plan, None, None
            try:
                if isinstance(method, tuple):
                    raise ValueError("the cost model cannot count one method for each layer")
                cost = costs.columns(costs.prefill(prompts, plan, method), full)
            except (ValueError, TypeError, NotImplementedError) as error:
                remark = f"no cost: {error}"
        return described(setting, of, cost, remark, None, reads_text=chooses_by_text(plan))
