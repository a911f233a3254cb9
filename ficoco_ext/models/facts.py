"""What ``attach`` has to know of a model, read once from its config: values on the host, no modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..resolve import LanguageModelFacts, TowerFacts
from ..stages import Crops
from . import transformers_api as api
from .families import Family, tower_of
from .model_checks import selected


@dataclass(frozen=True)
class CropFacts:
    """How a model cuts a picture into crops.

    Attributes:
        pinpoints: the (height, width) that its crops together can have, in pixels.
        side: patches of a side of a crop. pixels: its pixels.
    """

    pinpoints: tuple[tuple[int, int], ...]
    side: int
    pixels: int

    def of(self, height: int, width: int) -> Crops:
        """The crops of a picture of this size in pixels.

        Raises:
            ValueError: numbers that are no integers of at least 1.
        """
        return Crops.of((height, width), self.pinpoints, self.side, self.pixels)


@dataclass(frozen=True)
class ModelFacts:
    """One model.

    Attributes:
        family: the name of its :class:`~ficoco_ext.models.families.Family`.
        placeholders: the ids of its visual tokens.
        tower: its vision tower, if patches can leave there: every image, or every crop, has the same number of visual
            tokens, in the order of its patches.
        tower_attention: the name of the attention kernel of its tower; empty where ``tower`` is None.
        language_model: its language model.
        rope_index: it computes positions from the whole prompt, several for each token.
        crops: how its pictures become crops, each of which is an image for the tower; None where a picture is one.
    """

    family: str
    placeholders: tuple[int, ...]
    tower: TowerFacts | None
    tower_attention: str
    language_model: LanguageModelFacts
    rope_index: bool = False
    crops: CropFacts | None = None


def read_facts(model: Any, family: Family) -> ModelFacts:
    """The facts of ``model``, whose parts :func:`~ficoco_ext.models.model_checks.check_parts` has checked."""
    known = bool(family.towers) and has_whole_grid(model, family)
    return ModelFacts(
        family.name,
        tuple(getattr(model.config, name) for name in family.placeholders),
        tower_facts(model) if known else None,
        api.attention_name(model.model.vision_tower.config) if known else "",
        LanguageModelFacts(len(getattr(model.model, family.language_model).layers), family.first_layer(model.config)),
        family.rope_index,
        crop_facts(model) if known and family.crops else None,
    )


def has_whole_grid(model: Any, family: Family) -> bool:
    """Whether every image, or crop, has its whole grid of patches as visual tokens, of one layer of a known tower."""
    tower = family.known_tower(model.model.vision_tower)
    layer, strategy = selected(model.config)
    if tower is None or not isinstance(layer, int):
        return False
    return strategy == "default" if tower.class_token and family.crops else tower.class_token or strategy == "full"


def crop_facts(model: Any) -> CropFacts:
    """How a model of a family with crops cuts pictures, read from its config."""
    vision = model.config.vision_config
    pinpoints = tuple((int(height), int(width)) for height, width in model.config.image_grid_pinpoints)
    return CropFacts(pinpoints, vision.image_size // vision.patch_size, vision.image_size)


def tower_facts(model: Any) -> TowerFacts:
    """The tower of a model that :func:`has_whole_grid`, read from its config."""
    vision, (layer, strategy) = model.config.vision_config, selected(model.config)
    side, layers = vision.image_size // vision.patch_size, vision.num_hidden_layers
    used = layer if layer >= 0 else layers + 1 + layer  # hidden_states[0] is what enters the first layer
    tower = tower_of(model.model.vision_tower)
    class_token = tower is None or tower.class_token
    extra = int(class_token and strategy == "full")
    return TowerFacts((side, side), layers, used, extra, class_token)
