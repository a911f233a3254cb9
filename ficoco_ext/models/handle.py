"""The handle of an attached reduction: shows what happened and undoes it."""

from __future__ import annotations

import copy
from typing import Any

from ..methods import LanguageMethod, LayerMethod
from ..reduction import Reduction
from ..schedule import Plan, Schedule
from .attach_plan import AttachPlan
from .decoder_reduction import DecoderReduction
from .model_changes import ModelChanges
from .projections import Projection
from .projector_reduction import ProjectorReduction
from .reduced_prefill import ReducedPrefill
from .row_reductions import row_reductions
from .vision_tower import TowerReductions


class Handle:
    """What :func:`attach` did to one model.

    Attributes:
        attach_plan: the :class:`AttachPlan` that was installed; ``print(handle.attach_plan)`` shows it.
    """

    def __init__(self, model: Any, plan: AttachPlan) -> None:
        self.attach_plan = plan
        self._model = model
        self._changes = ModelChanges()
        self._tower: TowerReductions | None = None
        self._features: ProjectorReduction | None = None
        self._decoder: DecoderReduction | None = None
        self._tower_reductions: tuple[Reduction, ...] = ()  # kept at detach
        self._projections: tuple[Projection, ...] = ()
        self._last_prefill: ReducedPrefill | None = None

    @property
    def schedule(self) -> Schedule | None:
        """The vision tower's; None if the tower is left alone. ``print(handle.schedule)`` shows the staircase."""
        return self.attach_plan.schedule

    @property
    def methods(self) -> tuple[LayerMethod, ...]:
        """One :class:`Method` or :class:`Split` for each layer of the schedule."""
        return self.attach_plan.methods

    @property
    def plan(self) -> Plan | None:
        """The language model's; None if it is left alone.

        ``print(handle.plan.schedule(576))`` shows the staircase of a prompt with 576 visual tokens.
        """
        return self.attach_plan.plan

    @property
    def decoder_methods(self) -> tuple[LanguageMethod, ...]:
        """One :class:`LanguageMethod` for each layer of the plan."""
        return self.attach_plan.decoder_methods

    @property
    def reductions(self) -> tuple[Reduction, ...]:
        """What the last pass through the tower did, in indices of original tokens, without the tokens themselves.

        One for each layer of the schedule that removes something, each including those before it, so
        ``reductions[-1]`` is the whole result; the batch dimension counts images. Empty before the first image and
        after a pass that an exception ended.
        """
        return self._tower_reductions if self._tower is None else self._tower.finished()

    @property
    def projections(self) -> tuple[Projection, ...]:
        """What the last call with images kept of each picture, then of each video, for a method after the projector.

        Also for a method of the tower with ``positions="original"``. Empty before the first image.
        """
        return self._projections if self._features is None else self._features.last

    @property
    def decoder_reductions(self) -> tuple[tuple[Reduction, ...], ...]:
        """What the last prefill did in the language model: for each row its reductions, without the tokens.

        One for each layer that removed something from the row, batch of 1, in positions of the prompt that the
        language model got, padding and text included. Empty before the first prompt with images. Computed on access.
        """
        last = self._last_prefill if self._decoder is None else self._decoder.last
        return () if last is None else tuple(row_reductions(last, row) for row in range(last.visual.shape[0]))

    @property
    def attached(self) -> bool:
        """False after :meth:`detach`."""
        return self._model is not None

    def detach(self) -> None:
        """Restore the model to the state before ``attach``, exactly. Calling it again does nothing.

        Raises:
            RuntimeError: something that attach had set was replaced since; the model is not changed.
        """
        if self._model is not None:
            self._changes.undo()
            self._tower_reductions, self._projections = self.reductions, self.projections
            self._last_prefill = None if self._decoder is None else _without_model(self._decoder.last)
            self._model = self._tower = self._features = self._decoder = (
                None  # a handle that is kept must not keep the model
            )

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def __repr__(self) -> str:
        return f"<Handle {'attached' if self.attached else 'detached'}: {self.attach_plan.summary}>"


def _without_model(prefill: ReducedPrefill | None) -> ReducedPrefill | None:
    """A copy that knows no function of the model."""
    if prefill is None:
        return None
    prefill = copy.copy(prefill)
    prefill.norm = None
    return prefill
