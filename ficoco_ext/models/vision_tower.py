"""The vision tower: reduction in chosen layers of a CLIP or a SigLIP, between attention and MLP, or after the MLP."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

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


class Running:
    """A pass that runs, or ran: its layers get it as an argument.

    A layer that a backward pass computes again gets the same one, later and maybe in another thread, and reads there
    what the layers before it left. It does not change it.
    """

    def __init__(self) -> None:
        self.state = Pass()


class _Now:
    """The last pass of a thread."""

    def __init__(self) -> None:
        self.running = Running()


class TowerReductions:
    """The reductions of one pass through the tower.

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

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A pass begins: a hook before the module that holds the layers, which get the pass."""
        return args, kwargs | {qk_capture.PASS: self._begin()}

    def _begin(self) -> Running:
        """A new pass of this thread; the one before is forgotten."""
        self._finished = Pass()
        running = self._now.here.running = Running()
        return running

    def running(self, number: int, given: Running | None) -> Running:
        """The pass of the ``number``-th reduction: the ``given`` one; of a layer called alone, that of this thread."""
        if given is not None:
            return given
        return self._now.here.running if number else self._begin()

    def before(self, number: int, tokens: Tensor, given: Running | None = None) -> Pass:
        """The pass up to the ``number``-th reduction, of ``tokens``."""
        running = self.running(number, given)
        known = running.state
        if not number and not known.records:
            running.state = known = self._first(tokens)
        return known._replace(records=known.records[:number])

    def _first(self, tokens: Tensor) -> Pass:
        """A pass without reductions, of ``tokens``."""
        if self.pictures is None:
            return Pass()
        pictures = self.pictures.of_batch(tokens.shape[0])
        rule = self.padding
        return Pass((), pictures, None if rule is None else Padding.of(rule, pictures, tokens.device))

    def reduce(
        self, before: Pass, running: Running, method: LayerMethod, tokens: Tensor, attn: QueryKey, r: int, **named: Any
    ) -> Tensor:
        """The tokens (B, N - r, C) that the reduction after those of ``before`` leaves. It is recorded once.

        Args:
            before: what :meth:`before` returned. running: where it is recorded.
            method, tokens, attn, r, named: as of :meth:`LayerMethod.__call__`, without ``previous``.
        """
        number, previous = len(before.records), before.records[-1] if before.records else None
        if previous is not None and previous.kept.device != tokens.device:  # a tower spread over several devices
            previous = over_tensors(previous, lambda tensor: tensor.to(tokens.device))
        if before.padding is None:
            result = method(tokens, attn, r, previous=previous, **named)
        else:
            padding, leaving = before.padding.patches.to(tokens.device), before.padding.leaving[number]
            result = reduce_padded(method, tokens, attn, r, leaving, padding, previous=previous, **named)
        if len(running.state.records) == number:  # else it is computed again
            self.put(number, result.without_tokens(), running)
        assert result.tokens is not None
        return result.tokens

    def put(self, number: int, reduction: Reduction, running: Running | None = None) -> None:
        """Record the ``number``-th reduction of a pass; None: of this thread's last one."""
        running = self._now.here.running if running is None else running
        state = running.state
        running.state = state = state._replace(records=(*state.records[:number], reduction))
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
        records = self._now.here.running.state.records
        return records if len(records) == self._length else ()


class LogSizeBias:
    """The bias of proportional attention: a survivor that stands for z tokens gets the attention of z equal ones."""

    def __init__(self, reductions: TowerReductions, number: int) -> None:
        self.reductions, self.number = reductions, number

    def __call__(self, key: Tensor, running: Running | None) -> Tensor:
        """log(size) (B, 1, 1, N) of what the reduction before the ``number``-th of that pass left."""
        records = self.reductions.running(self.number, running).state.records
        return records[self.number - 1].size.to(key.device).log().to(key.dtype).mT.unsqueeze(1)


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
        running = self.reductions.running(self.number, kwargs.get(qk_capture.PASS))
        before = self.reductions.before(self.number, hidden_states, running)
        run = partial(self._run, before, running, kwargs | {"attention_mask": None, qk_capture.PASS: running})
        checkpoint = api.checkpointing(self.layer)
        result: Tensor = run(hidden_states) if checkpoint is None else checkpoint(run, hidden_states)
        return result

    def _run(self, before: Pass, running: Running, kwargs: dict[str, Any], hidden_states: Tensor) -> Tensor:
        """The layer after the reductions of ``before``."""
        try:
            attended = self.layer.self_attn(hidden_states=self.layer.layer_norm1(hidden_states), **kwargs)[0]
            attn = self.capture.take()
        finally:
            self.capture.drop()
        hidden_states = hidden_states + attended
        if not self.method.after_mlp:
            hidden_states = self._reduce(before, running, hidden_states, attn)
        hidden_states = hidden_states + self.layer.mlp(self.layer.layer_norm2(hidden_states))
        return self._reduce(before, running, hidden_states, attn) if self.method.after_mlp else hidden_states

    def _reduce(self, before: Pass, running: Running, tokens: Tensor, attn: QueryKey) -> Tensor:
        step, facts = self.step, self.facts
        return self.reductions.reduce(
            before, running, self.method, tokens, attn, step.r, class_token=facts.class_token, grid=facts.grid
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
    changes.hook(tower.encoder.register_forward_pre_hook(reductions.enter, with_kwargs=True))
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
