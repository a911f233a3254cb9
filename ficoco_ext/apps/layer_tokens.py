"""Visual tokens in every layer of tower and language model and after the projector, and what each layer caches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..models import Handle
from ..models.facts import tower_facts
from ..schedule import Schedule
from ..stages import Crops


@dataclass(frozen=True)
class LayerTokens:
    """Patches that enter one layer of the vision tower, leave in it, and are left; the class token is not counted."""

    layer: int
    entering: int
    removed: int
    left: int


@dataclass(frozen=True)
class TextLayerTokens:
    """Visual tokens in one layer of the language model while the prompt is read, and the bytes it caches.

    Attributes:
        layer: its index.
        attention: visual tokens that enter its attention.
        removed: that leave in it, before its attention or after it.
        mlp: that enter its MLP, and so leave the layer.
        kv_bytes_all, kv_bytes: keys and values that its cache holds after the prompt, text included: without any
            reduction, and with it.
    """

    layer: int
    attention: int
    removed: int
    mlp: int
    kv_bytes_all: int
    kv_bytes: int


def step_name(side: str, layer: int) -> str:
    """As pictures and tables call a step.

    Example:
        >>> from ficoco_ext.apps.layer_tokens import step_name
        >>> step_name("text", 3), step_name("projector", 0)
        ('text layer 3', 'projector')
    """
    return side if side == "projector" else f"{side} layer {layer}"


@dataclass(frozen=True)
class Staircase:
    """What one picture's tokens go through.

    Attributes:
        patches: of the picture.
        vision: every layer of the tower.
        text_layers: how many layers the language model has.
        text: what they remove; None if nothing.
        visual: visual tokens of the picture that the language model gets.
        projected: visual tokens that the projector gives, of which ``visual`` are left; None if none leaves there. Line
            ends are not counted.
        line_ends: of a picture of several crops, how many of ``visual`` are no patches; they all stay.
    """

    patches: int
    vision: tuple[LayerTokens, ...]
    text_layers: int
    text: Schedule | None
    visual: int
    projected: int | None = None
    line_ends: int = 0

    @classmethod
    def of(cls, model: Any, handle: Handle) -> Staircase:
        """Of a prompt with one picture, for a LLaVA-1.5 with ``handle`` attached."""
        shape, vision = tower_facts(model), _tower(model, handle)
        given = vision[-1].left + shape.extra
        per_image = handle.attach_plan.per_image
        visual = given if per_image is None else per_image
        text = None if handle.plan is None else handle.plan.schedule(visual)
        return cls(
            shape.patches,
            vision,
            model.config.text_config.num_hidden_layers,
            text,
            visual,
            given if visual < given else None,
        )

    @classmethod
    def of_picture(cls, model: Any, handle: Handle, crops: Crops | None, inputs: Mapping[str, Any]) -> Staircase:
        """Of a prompt with one picture, of several crops for a LLaVA-NeXT with ``handle`` attached.

        Of crops ``patches`` are those that the language model gets without reduction, and ``vision`` counts those of
        every crop, padding included. ``inputs``, the prompt, are run only if the data decide how much of a picture
        stays.
        """
        if crops is None:
            return cls.of(model, handle)
        plan, patches = handle.attach_plan, crops.before - crops.lines
        visual = plan.tokens_of(crops)
        if visual is None:
            with torch.inference_mode():
                model(**inputs, logits_to_keep=1)
            visual = len(handle.projections[0].kept)
        return cls(
            patches,
            _tower(model, handle),
            model.config.text_config.num_hidden_layers,
            None if handle.plan is None else handle.plan.schedule(visual),
            visual,
            patches if plan.changes_features else None,
            crops.lines,
        )

    @property
    def vision_removes(self) -> tuple[int, ...]:
        """Layers of the tower that remove something."""
        return tuple(layer.layer for layer in self.vision if layer.removed)

    @property
    def kept(self) -> int:
        """Patches of the picture that the language model gets; a class token that it may get too is not counted."""
        return self.visual - self.line_ends if self.line_ends else min(self.vision[-1].left, self.visual)

    @property
    def steps(self) -> tuple[tuple[str, int], ...]:
        """Where something is removed, in order: ``"vision"`` or ``"text"`` and the layer; ``("projector", 0)`` after
        the projector.
        """
        vision = [("vision", layer) for layer in self.vision_removes]
        projector = [] if self.projected is None else [("projector", 0)]
        return (*vision, *projector, *(("text", layer) for layer in self.text_removes))

    @property
    def text_removes(self) -> tuple[int, ...]:
        """Layers of the language model that remove something."""
        return () if self.text is None else tuple(step.layer for step in self.text.steps if step.r)

    def text_tokens(self, everything: Sequence[int], reduced: Sequence[int]) -> tuple[TextLayerTokens, ...]:
        """Every layer of the language model, with the bytes that its cache held without and with reduction."""
        schedule = self.text or Schedule.build(self.visual, layers=(0,), r=0)
        count = self.text_layers
        removed = dict(zip(schedule.layers, schedule.r, strict=True))
        attention, mlp = schedule.tokens_entering(count), schedule.tokens_in_mlp(count)
        return tuple(
            TextLayerTokens(i, attention[i], removed.get(i, 0), mlp[i], everything[i], reduced[i]) for i in range(count)
        )


def _tower(model: Any, handle: Handle) -> tuple[LayerTokens, ...]:
    """Every layer of the tower, for each image or crop."""
    schedule = handle.schedule or Schedule.build(tower_facts(model).patches, layers=(0,), r=0)
    removed = dict(zip(schedule.layers, schedule.r, strict=True))
    entering = schedule.tokens_entering(model.config.vision_config.num_hidden_layers)
    return tuple(LayerTokens(i, n, removed.get(i, 0), n - removed.get(i, 0)) for i, n in enumerate(entering))
