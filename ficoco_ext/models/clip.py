"""The CLIP tower: reduction between attention and MLP of chosen ``CLIPEncoderLayer`` instances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from ..methods import LayerMethod
from ..ops import QueryKey, checks
from ..reduction import Reduction
from ..schedule import Schedule, Step
from . import tap
from . import transformers_api as api
from .patches import Patches
from .threads import PerThread


class _Pass(PerThread):
    """The reductions of the pass that this thread is in."""

    def __init__(self) -> None:
        super().__init__()
        self.records: tuple[Reduction, ...] = ()


class Chain:
    """The reductions of one pass through the tower. The first reducing layer starts a new one, so nothing leaks."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._pass = _Pass()
        self._finished: tuple[Reduction, ...] = ()

    def previous(self, place: int) -> Reduction | None:
        """The reduction before the ``place``-th, None for the first, which forgets the pass before."""
        if place == 0:
            self._pass.records = self._finished = ()
            return None
        return self._pass.records[place - 1]

    def put(self, place: int, reduction: Reduction) -> None:
        """Record the ``place``-th reduction."""
        records = (*self._pass.records[:place], reduction)
        self._pass.records = records
        if len(records) == self._length:
            self._finished = records

    def finished(self) -> tuple[Reduction, ...]:
        """All reductions of the pass that ended last, empty if there was none or it was cut off by an exception."""
        return self._finished


class LogSize:
    """The bias of proportional attention: a survivor that stands for z tokens is attended to as z equal ones are."""

    def __init__(self, chain: Chain, place: int) -> None:
        self.chain, self.place = chain, place

    def __call__(self, key: Tensor) -> Tensor | None:
        """log(size) (B, 1, 1, N) of what the reduction before ``place`` left; None if there was none."""
        previous = self.chain.previous(self.place)
        return None if previous is None else previous.size.to(key.device).log().to(key.dtype).mT.unsqueeze(1)


class ReducingLayer:
    """Takes the place of one layer's ``forward``. Module calls stay module calls, so hooks and quantisation go on."""

    def __init__(
        self,
        layer: Any,
        tapped: tap.Tap,
        method: LayerMethod,
        step: Step,
        grid: tuple[int, int],
        chain: Chain,
        place: int,
    ) -> None:
        self.layer, self.tap, self.method, self.step = layer, tapped, method, step
        self.grid, self.chain, self.place = grid, chain, place

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """``CLIPEncoderLayer.forward`` with a reduction in the middle: (B, 1 + P, C) -> (B, 1 + P - r, C)."""
        wanted = 1 + self.step.before
        if hidden_states.shape[1] != wanted or attention_mask is not None:
            checks.fail(
                "forward",
                f"input of vision layer {self.step.layer}",
                f"a class token and {self.step.before} patches without a mask",
                f"{hidden_states.shape[1]} tokens{'' if attention_mask is None else ' with a mask'}",
                "images must have the config's image_size; interpolate_pos_encoding is not supported",
            )
        try:
            attended = self.layer.self_attn(
                hidden_states=self.layer.layer_norm1(hidden_states), attention_mask=attention_mask, **kwargs
            )[0]
            attn = self.tap.take()
        finally:
            self.tap.drop()
        hidden_states = self._reduce(hidden_states + attended, attn)
        return hidden_states + self.layer.mlp(self.layer.layer_norm2(hidden_states))

    def _reduce(self, tokens: Tensor, attn: QueryKey) -> Tensor:
        previous = self.chain.previous(self.place)
        if previous is not None and previous.kept.device != tokens.device:
            previous = _to(previous, tokens)  # a tower spread over several devices
        result = self.method(tokens, attn, self.step.r, class_token=True, grid=self.grid, previous=previous)
        self.chain.put(self.place, result.without_tokens())
        assert result.tokens is not None
        return result.tokens


def _to(reduction: Reduction, like: Tensor) -> Reduction:
    held = {field.name: getattr(reduction, field.name) for field in fields(reduction)}
    moved: dict[str, Any] = {name: t.to(like.device) for name, t in held.items() if isinstance(t, Tensor)}
    return replace(reduction, **moved)


def check_tower(tower: Any) -> None:
    """Raise NotImplementedError unless every layer is the one whose body we know: a similar one would go wrong."""
    model_class, layer_class, attention_class = api.tower_classes()
    if type(tower) is not model_class:
        remedy = "FiCoCo-V scores patches by the class token of a CLIP tower; SigLIP has none"
        checks.fail("attach", "vision tower", "a CLIPVisionModel", type(tower).__name__, remedy, NotImplementedError)
    for index, layer in enumerate(tower.encoder.layers):
        known = type(layer) is layer_class and type(layer.self_attn) is attention_class
        if not known:
            got = f"{type(layer).__name__} with {type(getattr(layer, 'self_attn', None)).__name__}"
            remedy = "unwrap the layer before attaching"
            wanted = "a CLIPEncoderLayer with CLIPAttention"
            checks.fail("attach", f"vision layer {index}", wanted, got, remedy, NotImplementedError)
        body = vars(layer).get("_old_forward", vars(layer).get("forward"))  # accelerate keeps the body in _old_forward
        if body is not None and getattr(body, "__func__", None) is not layer_class.forward:
            remedy = "undo that replacement before attaching"
            checks.fail("attach", f"vision layer {index}", "one with its own forward", "a replaced forward", remedy)


def install(
    tower: Any, schedule: Schedule, methods: Sequence[LayerMethod], grid: tuple[int, int], patches: Patches
) -> Chain:
    """Replace the body of every layer of ``schedule`` that removes something.

    Attention of the layers between it and the next one, and of that one, is proportional if its method wants that. All
    other layers stay as they are.
    """
    steps = {step.layer: (step, method) for step, method in zip(schedule.steps, methods, strict=True) if step.r}
    if any(method.proportional_attention for _, method in steps.values()):
        tap.check_bias("attach", tower.config)
    chain, place, bias = Chain(len(steps)), 0, None
    for index, layer in enumerate(tower.encoder.layers):
        if index not in steps:
            if bias is not None:
                tap.install(layer.self_attn, patches, bias, reads=False)
            continue
        step, method = steps[index]
        tapped = tap.install(layer.self_attn, patches, bias)
        patches.set_forward(layer, ReducingLayer(layer, tapped, method, step, grid, chain, place).forward)
        place += 1
        bias = LogSize(chain, place) if method.proportional_attention else None
    return chain
