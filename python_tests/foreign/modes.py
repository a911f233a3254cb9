"""How models are attached while transformers' tests run: with nothing removed, and with a reduction."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import ficoco_ext
from ficoco_ext.models import vision_tower
from ficoco_ext.models.count_cutter import CountCutter
from ficoco_ext.models.short_prompts import ShortPrompts
from ficoco_ext.schedule import Step

CLASSES = {  # family: the class that is attached
    "llava": "LlavaForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
}


def idle_language_model(model: Any) -> None:
    """More tokens may stay than any prompt has: the hooks are installed and every prompt keeps all."""
    ficoco_ext.attach(model, "fastv", layer=1, tokens=1000)


def idle_tower(model: Any) -> None:
    """A part that removes nothing is left alone by ``attach``, so its hooks are installed by hand, with r = 0."""
    handle = ficoco_ext.attach(model, "ficoco-v", r=0)
    tower, changes = handle.attach_plan.facts.tower, handle._changes
    assert tower is not None and not handle.attach_plan.removed
    layer, patches = model.model.vision_tower.encoder.layers[0], tower.patches
    capture = vision_tower.qk_capture.install(layer.self_attn, changes)
    step, reductions = Step(0, patches, 0, patches), vision_tower.TowerReductions(1)
    hooked = vision_tower.TowerLayer(layer, capture, handle.methods[0], step, tower, reductions, 0)
    changes.set_forward(layer, hooked.forward)
    ShortPrompts(model, CountCutter(model, tower, 0)).install(changes)


def reducing_language_model(model: Any) -> None:
    """Half of the visual tokens leave in the first layer of the language model."""
    ficoco_ext.attach(model, "ficoco-l", layers=[0], keep_ratio=0.5)


def reducing_tower(model: Any) -> None:
    """Half of the patches leave in the first layer of the tower."""
    ficoco_ext.attach(model, "ficoco-v", layers=[0], keep_ratio=0.5)


Attach = Callable[[Any], None]
MODES: dict[str, tuple[Attach, tuple[str, ...]]] = {  # name: what attaches, and the families that can be
    "idle-language-model": (idle_language_model, tuple(CLASSES)),
    "idle-tower": (idle_tower, ("llava",)),
    "language-model": (reducing_language_model, tuple(CLASSES)),
    "tower": (reducing_tower, ("llava",)),
}


class Attached:
    """Wraps the four classes, so that every model a test constructs or loads is attached before the test has it.

    A model that ``attach`` refuses fails the test that made it. Copies are attached by themselves.

    Args:
        put: attaches one model.

    Attributes:
        count: models attached.
    """

    def __init__(self, put: Attach) -> None:
        self.put, self.count = put, 0
        self._here = threading.local()

    def install(self) -> None:
        """Wrap the classes, for the rest of this process."""
        import transformers

        for name in CLASSES.values():
            self.wrap(getattr(transformers, name))

    def _attach(self, model: Any) -> None:
        if not hasattr(model, "ficoco_handle"):
            self.put(model)
            self.count += 1

    def wrap(self, cls: Any) -> None:
        """Wrap one class."""
        construct, load = cls.__init__, cls.from_pretrained.__func__

        @functools.wraps(construct)
        def __init__(model: Any, *args: Any, **kwargs: Any) -> None:
            construct(model, *args, **kwargs)
            if type(model) is cls and not getattr(self._here, "loading", 0):
                self._attach(model)

        @functools.wraps(load)
        def from_pretrained(kind: Any, *args: Any, **kwargs: Any) -> Any:
            self._here.loading = getattr(self._here, "loading", 0) + 1
            try:
                loaded = load(kind, *args, **kwargs)
            finally:
                self._here.loading -= 1
            if not self._here.loading:
                self._attach(loaded[0] if isinstance(loaded, tuple) else loaded)
            return loaded

        cls.__init__, cls.from_pretrained = __init__, classmethod(from_pretrained)
