"""The vision tower: reduction in chosen layers of a CLIP or a SigLIP, between attention and MLP, or after the MLP."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from ..methods import LayerMethod
from ..ops import QueryKey, checks
from ..reduction import Reduction, over_tensors
from ..resolve import TowerFacts
from ..schedule import Schedule, Step
from ..stages import Crops
from . import qk_capture
from . import transformers_api as api
from .crop_pictures import CropPictures
from .model_changes import ModelChanges
from .padding_first import Padding, PaddingFirst, reduce_padded
from .per_thread import PerThread
from .qk_capture import QueryKeyCapture


class Pass(NamedTuple):
    """One pass through the tower.

    Attributes:
        records: its reductions.
        pictures: whose crops are the rows of the batch; empty where a row is a picture.
        padding: of the crops; None where it does not leave first.
    """

    records: tuple[Reduction, ...] = ()
    pictures: tuple[Crops, ...] = ()
    padding: Padding | None = None


class _Now:
    """The pass that a thread is in."""

    def __init__(self) -> None:
        self.state = Pass()


class TowerReductions:
    """The reductions of one pass through the tower. The first reducing layer starts a new pass.

    Args:
        length: reductions in a pass.
        pictures: of the call that runs, where each picture is several rows of the batch; else None.
        padding: how padding leaves first; None: it is treated as any other patch, or there is none.
    """

    def __init__(self, length: int, pictures: CropPictures | None = None, padding: PaddingFirst | None = None) -> None:
        self.pictures, self.padding = pictures, padding
        self._length = length
        self._now = PerThread(_Now)
        self._finished = Pass()

    def before(self, number: int, tokens: Tensor) -> Pass:
        """The pass up to the ``number``-th reduction, of ``tokens``; the first one forgets the pass before."""
        if number:
            known = self._known()
            return known._replace(records=known.records[:number])
        self._now.here.state = self._finished = Pass()
        if self.pictures is None:
            return Pass()
        pictures = self.pictures.of_batch(tokens.shape[0])
        rule = self.padding
        return Pass((), pictures, None if rule is None else Padding.of(rule, pictures, tokens.device))

    def resume(self, state: Pass) -> None:
        """Go on after ``state``: a backward pass computes a layer again, later and maybe in another thread."""
        self._now.here.state = state

    def previous(self, number: int) -> Reduction | None:
        """The reduction before the ``number``-th; None for the first."""
        return self._known().records[number - 1] if number else None

    def _known(self) -> Pass:
        """Of this thread; in a thread without reductions, which computes a layer again, the one that ended last."""
        state = self._now.here.state
        return state if state.records else self._finished

    def reduce(self, number: int, method: LayerMethod, tokens: Tensor, attn: QueryKey, r: int, **named: Any) -> Tensor:
        """The tokens (B, N - r, C) that the ``number``-th reduction leaves, which is recorded.

        Args:
            method, tokens, attn, r, named: as of :meth:`LayerMethod.__call__`, without ``previous``.
        """
        state, previous = self._now.here.state, self.previous(number)
        if previous is not None and previous.kept.device != tokens.device:  # a tower spread over several devices
            previous = over_tensors(previous, lambda tensor: tensor.to(tokens.device))
        if state.padding is None:
            result = method(tokens, attn, r, previous=previous, **named)
        else:
            padding, leaving = state.padding.patches.to(tokens.device), state.padding.leaving[number]
            result = reduce_padded(method, tokens, attn, r, leaving, padding, previous=previous, **named)
        self.put(number, result.without_tokens())
        assert result.tokens is not None
        return result.tokens

    def put(self, number: int, reduction: Reduction) -> None:
        """Record the ``number``-th reduction."""
        state = self._now.here.state
        state = state._replace(records=(*state.records[:number], reduction))
        self._now.here.state = state
        if len(state.records) == self._length:
            self._finished = state._replace(padding=None)

    def finished(self) -> tuple[Reduction, ...]:
        """All reductions of the pass that ended last; empty if there was none, or if an exception ended it."""
        return self._finished.records

    def finished_pictures(self) -> tuple[Crops, ...]:
        """Whose crops the rows of that pass are; empty where a row is a picture."""
        return self._finished.pictures

    def of_this_thread(self) -> tuple[Reduction, ...]:
        """All reductions of this thread's last pass; empty if there was none, or if an exception ended it."""
        records = self._now.here.state.records
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
        """The layer's own forward with a reduction in it: (B, N, C) -> (B, N - r, C)."""
        wanted = self.facts.class_token + self.step.before
        if hidden_states.shape[1] != wanted or attention_mask is not None:
            checks.fail(
                "forward",
                f"input of vision layer {self.step.layer}",
                f"{'a class token and ' if self.facts.class_token else ''}{self.step.before} patches without a mask",
                f"{hidden_states.shape[1]} tokens{'' if attention_mask is None else ' with a mask'}",
                "images must have the config's image_size; interpolate_pos_encoding is not supported",
            )
        before = self.reductions.before(self.number, hidden_states)
        run = partial(self._run, before, kwargs | {"attention_mask": None})
        checkpoint = api.checkpointing(self.layer)
        result: Tensor = run(hidden_states) if checkpoint is None else checkpoint(run, hidden_states)
        return result

    def _run(self, before: Pass, kwargs: dict[str, Any], hidden_states: Tensor) -> Tensor:
        """The layer after the reductions of ``before``."""
        self.reductions.resume(before)
        try:
            attended = self.layer.self_attn(hidden_states=self.layer.layer_norm1(hidden_states), **kwargs)[0]
            attn = self.capture.take()
        finally:
            self.capture.drop()
        hidden_states = hidden_states + attended
        if not self.method.after_mlp:
            hidden_states = self._reduce(hidden_states, attn)
        hidden_states = hidden_states + self.layer.mlp(self.layer.layer_norm2(hidden_states))
        return self._reduce(hidden_states, attn) if self.method.after_mlp else hidden_states

    def _reduce(self, tokens: Tensor, attn: QueryKey) -> Tensor:
        facts = self.facts
        return self.reductions.reduce(
            self.number, self.method, tokens, attn, self.step.r, class_token=facts.class_token, grid=facts.grid
        )


def install(
    tower: Any,
    schedule: Schedule,
    methods: Sequence[LayerMethod],
    facts: TowerFacts,
    changes: ModelChanges,
    pictures: CropPictures | None = None,
    padding: PaddingFirst | None = None,
) -> TowerReductions:
    """Replace the body of every layer of ``schedule`` that removes something.

    Attention of the layers between it and the next one, and of that one, is proportional if its method wants that. All
    other layers are not changed. ``pictures``, ``padding``: as of :class:`TowerReductions`.
    """
    steps = {step.layer: (step, method) for step, method in zip(schedule.steps, methods, strict=True) if step.r}
    reductions, number, bias = TowerReductions(len(steps), pictures, padding), 0, None
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
