"""The handle of an attached reduction: shows what happened and undoes it."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, NoReturn

from ..methods import LanguageMethod, LayerMethod
from ..ops import checks
from ..reduction import Reduction
from ..schedule import Plan, Schedule
from ..stages import Crops
from .attach_plan import AttachPlan
from .decoder_reduction import DecoderReduction
from .model_changes import ModelChanges
from .projections import Projection
from .projector_reduction import ProjectorReduction
from .reduced_prefill import ReducedPrefill
from .row_reductions import row_reductions
from .vision_tower import TowerReductions


class PictureCrops(NamedTuple):
    """One picture of several crops in the batch of a vision tower.

    Attributes:
        crops: where its patches are.
        rows: which rows of the batch its thumbnail and crops are, such as of ``handle.reductions[-1].kept[rows]``.
    """

    crops: Crops
    rows: slice


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
        self._pictures: tuple[Crops, ...] = ()
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
        ``reductions[-1]`` is the whole result; the batch dimension counts images, or crops, see :attr:`crops`. Empty
        before the first image and after a pass that an exception ended.
        """
        return self._tower_reductions if self._tower is None else self._tower.finished()

    @property
    def crops(self) -> tuple[PictureCrops, ...]:
        """Which rows of :attr:`reductions` are which picture's, in the order of the pictures.

        For a method of the tower in a model whose pictures are several crops, thumbnails first; else empty.
        """
        pictures = self._pictures if self._tower is None else self._tower.finished_pictures()
        found, first = [], 0
        for one in pictures:
            found.append(PictureCrops(one, slice(first, first + 1 + one.count)))
            first += 1 + one.count
        return tuple(found)

    def tokens_of(self, height: int, width: int) -> int:
        """How many tokens of a picture the language model gets, line ends included.

        Args:
            height, width: of the picture in pixels, as it is given to the processor. They make no difference where
                pictures of all sizes become equally many tokens.

        Raises:
            NotImplementedError: the data decide, or more than the size does.

        Example:
            >>> handle = ficoco_ext.attach(model, "ficoco-v", tokens=144)  # doctest: +SKIP
            >>> handle.tokens_of(480, 640)  # of LLaVA-NeXT: 2340 without reduction  # doctest: +SKIP
            756
        """
        plan, crops = self.attach_plan, self.attach_plan.facts.crops
        if crops is None and plan.per_image is None:
            _no_number(f"one for a model whose pictures this can count, not {plan.facts.family}")
        tokens = plan.per_image if crops is None else plan.tokens_of(crops.of(height, width))
        if tokens is None:
            late = plan.projector
            why = f"padding={plan.padding!r}" if late is None else f"the amount of {late.method.name}"
            _no_number(f"one that does not depend on the data, as with {why}")
        return tokens

    @property
    def projections(self) -> tuple[Projection, ...]:
        """What the last call with images kept of each picture, then of each video, for a method after the projector.

        Also for a method of the tower with ``positions="original"``, and for one of LLaVA-NeXT with any positions.
        Empty before the first image.
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
            self._pictures = tuple(one.crops for one in self.crops)
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


def _no_number(wanted: str) -> NoReturn:
    remedy = "call the model and read handle.projections, or see the processor's placeholders"
    checks.fail("tokens_of", "number of tokens", wanted, "none that is known", remedy, NotImplementedError)


def _without_model(prefill: ReducedPrefill | None) -> ReducedPrefill | None:
    """A copy that knows no function of the model."""
    if prefill is None:
        return None
    prefill = copy.copy(prefill)
    prefill.norm = None
    return prefill
