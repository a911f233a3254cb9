"""The vision tower: reduction between attention and MLP of chosen layers of a CLIP or a SigLIP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

from torch import Tensor

from ..methods import LayerMethod
from ..ops import QueryKey, checks
from ..reduction import Reduction
from ..resolve import TowerFacts
from ..schedule import Schedule, Step
from . import qk_capture
from . import transformers_api as api
from .model_changes import ModelChanges
from .per_thread import PerThread
from .qk_capture import QueryKeyCapture


class _Pass:
    """The reductions of one pass."""

    def __init__(self) -> None:
        self.records: tuple[Reduction, ...] = ()


class TowerReductions:
    """The reductions of one pass through the tower. The first reducing layer starts a new pass.

    Args:
        length: reductions in a pass.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self._pass = PerThread(_Pass)  # that this thread is in
        self._finished: tuple[Reduction, ...] = ()

    def before(self, number: int) -> tuple[Reduction, ...]:
        """The reductions before the ``number``-th; none before the first, which forgets the pass before."""
        if number == 0:
            self._pass.here.records = self._finished = ()
        return self._known()[:number]

    def resume(self, records: tuple[Reduction, ...]) -> None:
        """Go on after ``records``: a backward pass computes a layer again, later and maybe in another thread."""
        self._pass.here.records = records

    def previous(self, number: int) -> Reduction | None:
        """The reduction before the ``number``-th; None for the first."""
        return self._known()[number - 1] if number else None

    def _known(self) -> tuple[Reduction, ...]:
        """Of this thread's pass; in a thread without one, which computes a layer again, of the one that ended last."""
        return self._pass.here.records or self._finished

    def put(self, number: int, reduction: Reduction) -> None:
        """Record the ``number``-th reduction."""
        records = (*self._pass.here.records[:number], reduction)
        self._pass.here.records = records
        if len(records) == self._length:
            self._finished = records

    def finished(self) -> tuple[Reduction, ...]:
        """All reductions of the pass that ended last; empty if there was none, or if an exception ended it."""
        return self._finished

    def of_this_thread(self) -> tuple[Reduction, ...]:
        """All reductions of this thread's last pass; empty if there was none, or if an exception ended it."""
        records = self._pass.here.records
        return records if len(records) == self._length else ()


class LogSizeBias:
    """The bias of proportional attention: a survivor that stands for z tokens gets the attention of z equal ones."""

    def __init__(self, reductions: TowerReductions, number: int) -> None:
        self.reductions, self.number = reductions, number

    def __call__(self, key: Tensor) -> Tensor | None:
        """log(size) (B, 1, 1, N) of what the reduction before the ``number``-th left; None if there was none."""
        previous = self.reductions.previous(self.number)
        return None if previous is None else previous.size.to(key.device).log().to(key.dtype).mT.unsqueeze(1)


class TowerLayer:
    """Replaces one layer's ``forward``. It still calls the layer's modules, so hooks and quantisation keep working."""

    def __init__(
        self,
        layer: Any,
        capture: QueryKeyCapture,
        method: LayerMethod,
        step: Step,
        facts: TowerFacts,
        reductions: TowerReductions,
        number: int,
    ) -> None:
        self.layer, self.capture, self.method, self.step = layer, capture, method, step
        self.facts, self.reductions, self.number = facts, reductions, number

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """The layer's own forward with a reduction in the middle: (B, N, C) -> (B, N - r, C)."""
        wanted = self.facts.class_token + self.step.before
        if hidden_states.shape[1] != wanted or attention_mask is not None:
            checks.fail(
                "forward",
                f"input of vision layer {self.step.layer}",
                f"{'a class token and ' if self.facts.class_token else ''}{self.step.before} patches without a mask",
                f"{hidden_states.shape[1]} tokens{'' if attention_mask is None else ' with a mask'}",
                "images must have the config's image_size; interpolate_pos_encoding is not supported",
            )
        run = partial(self._run, self.reductions.before(self.number), kwargs | {"attention_mask": None})
        checkpoint = api.checkpointing(self.layer)
        result: Tensor = run(hidden_states) if checkpoint is None else checkpoint(run, hidden_states)
        return result

    def _run(self, before: tuple[Reduction, ...], kwargs: dict[str, Any], hidden_states: Tensor) -> Tensor:
        """The layer after the reductions ``before``."""
        self.reductions.resume(before)
        try:
            attended = self.layer.self_attn(hidden_states=self.layer.layer_norm1(hidden_states), **kwargs)[0]
            attn = self.capture.take()
        finally:
            self.capture.drop()
        hidden_states = self._reduce(hidden_states + attended, attn)
        return hidden_states + self.layer.mlp(self.layer.layer_norm2(hidden_states))

    def _reduce(self, tokens: Tensor, attn: QueryKey) -> Tensor:
        previous = self.reductions.previous(self.number)
        if previous is not None and previous.kept.device != tokens.device:
            previous = _to(previous, tokens)  # a tower spread over several devices
        facts = self.facts
        result = self.method(
            tokens, attn, self.step.r, class_token=facts.class_token, grid=facts.grid, previous=previous
        )
        self.reductions.put(self.number, result.without_tokens())
        assert result.tokens is not None
        return result.tokens


def _to(reduction: Reduction, like: Tensor) -> Reduction:
    held = {field.name: getattr(reduction, field.name) for field in fields(reduction)}
    moved: dict[str, Any] = {name: t.to(like.device) for name, t in held.items() if isinstance(t, Tensor)}
    return replace(reduction, **moved)


def install(
    tower: Any, schedule: Schedule, methods: Sequence[LayerMethod], facts: TowerFacts, changes: ModelChanges
) -> TowerReductions:
    """Replace the body of every layer of ``schedule`` that removes something.

    Attention of the layers between it and the next one, and of that one, is proportional if its method wants that. All
    other layers are not changed.
    """
    steps = {step.layer: (step, method) for step, method in zip(schedule.steps, methods, strict=True) if step.r}
    reductions, number, bias = TowerReductions(len(steps)), 0, None
    for index, layer in enumerate(tower.encoder.layers):
        if index not in steps:
            if bias is not None:
                qk_capture.install(layer.self_attn, changes, bias, reads=False)
            continue
        step, method = steps[index]
        capture = qk_capture.install(layer.self_attn, changes, bias)
        changes.set_forward(layer, TowerLayer(layer, capture, method, step, facts, reductions, number).forward)
        number += 1
        bias = LogSizeBias(reductions, number) if method.proportional_attention else None
    return reductions
