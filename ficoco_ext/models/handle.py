"""The handle of an attached reduction: shows what happened and undoes it."""

from __future__ import annotations

from typing import Any

from ..methods import LanguageMethod, LayerMethod
from ..reduction import Reduction
from ..schedule import Plan, Schedule
from .clip import Chain
from .decoder import Decoder
from .patches import Patches
from .prefill import Prefill
from .rows import row_reductions


class Handle:
    """What :func:`attach` did to one model.

    Attributes:
        schedule: the vision tower's :class:`Schedule`, None if the tower is left alone; ``print(handle.schedule)``
            shows the staircase.
        methods: one :class:`Method` or :class:`Split` for each layer of the schedule.
        plan: the language model's :class:`Plan`, None if it is left alone; ``print(handle.plan.schedule(576))`` shows
            the staircase of a prompt with 576 visual tokens.
        decoder_methods: one :class:`DecoderMethod` for each layer of the plan.
    """

    def __init__(
        self,
        model: Any,
        schedule: Schedule | None,
        methods: tuple[LayerMethod, ...],
        plan: Plan | None,
        decoder_methods: tuple[LanguageMethod, ...],
    ) -> None:
        self.schedule, self.methods = schedule, methods
        self.plan, self.decoder_methods = plan, decoder_methods
        self._model = model
        self._patches = Patches()
        self._chain: Chain | None = None
        self._decoder: Decoder | None = None
        self._told: tuple[Reduction, ...] = ()
        self._last: Prefill | None = None

    @property
    def reductions(self) -> tuple[Reduction, ...]:
        """What the last pass through the tower did, told in original tokens, without the tokens themselves.

        One for each layer of the schedule that removes something, so ``reductions[-1]`` tells the whole story; the
        batch dimension counts images. Empty before the first image and after a pass that an exception cut off.
        """
        return self._told if self._chain is None else self._chain.finished()

    @property
    def decoder_reductions(self) -> tuple[tuple[Reduction, ...], ...]:
        """What the last prefill did in the language model: for each row its reductions, without the tokens.

        One for each layer that removed something from the row, batch of 1, told in the columns of the prompt that the
        language model got, padding and text included. Empty before the first prompt with images. Made when asked for.
        """
        last = self._last if self._decoder is None else self._decoder.last
        return () if last is None else tuple(row_reductions(last, row) for row in range(last.visual.shape[0]))

    @property
    def attached(self) -> bool:
        """False after :meth:`detach`."""
        return self._model is not None

    def detach(self) -> None:
        """Restore the model to the state before ``attach``, exactly. Calling it again does nothing.

        Raises:
            RuntimeError: something that attach had set was replaced since; the model is left as it is.
        """
        if self._model is not None:
            self._patches.undo()
            self._told = self.reductions
            self._last = None if self._decoder is None else self._decoder.last
            self._model = self._chain = self._decoder = None  # a handle that is kept shall not keep the model

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def __repr__(self) -> str:
        parts = []
        if self.schedule is not None:
            names = ", ".join(dict.fromkeys(method.name for method in self.methods))
            parts.append(f"{names}, {self.schedule.patches} -> {self.schedule.final} patches")
        if self.plan is not None:
            names = ", ".join(dict.fromkeys(method.name for method in self.decoder_methods))
            parts.append(f"{names} in {len(self.plan.layers)} layers of the language model")
        return f"<Handle {'attached' if self.attached else 'detached'}: {'; '.join(parts)}>"
