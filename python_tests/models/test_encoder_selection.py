"""``get_image_features`` of an attached model gives the layer, and the tokens of it, that attach planned for."""

from __future__ import annotations

import pytest
import torch
from helpers.models import pixels, tiny_llava
from helpers.next_tower import CLIP
from helpers.tiny_prompts import prompt, words

import ficoco_ext

pytest.importorskip("transformers")
NEXT, LLAVA = "llava-next", "llava"
LOOKS_INSIDE = [
    (NEXT, "ficoco-v", {"tokens": 6}),
    (NEXT, "ficoco-v", {"tokens": 6, "padding": "after"}),
    (NEXT, "globalcom2", {"keep_ratio": 0.5}),
    (NEXT, "mustdrop", {"part": "language_model", "keep_ratio": 0.5, "layers": (1,)}),
    (LLAVA, "topk", {"tokens": 6, "positions": "original"}),
    (LLAVA, "downsample", {"keep_ratio": 0.25}),
    (LLAVA, "mustdrop", {"part": "language_model", "keep_ratio": 0.5, "layers": (1,)}),
]
OTHERS = [{"vision_feature_layer": 1}, {"vision_feature_layer": 2}, {"vision_feature_select_strategy": "full"}]


@pytest.fixture(scope="module", params=[NEXT, LLAVA])
def family(request):
    return request.param


def made(family):
    """A model and what its encoder takes."""
    if family == LLAVA:
        return tiny_llava(), {"pixel_values": pixels(2)}
    inputs = prompt(CLIP, [[*words(2), CLIP.pictures[1], *words(3)], [*words(1), CLIP.pictures[4], *words(4)]]).inputs
    return CLIP.model(), {name: inputs[name] for name in ("pixel_values", "image_sizes")}


@pytest.mark.parametrize(("family", "name", "options"), LOOKS_INSIDE, ids=[f"{a}-{b}" for a, b, _ in LOOKS_INSIDE])
@torch.no_grad()
def test_another_selection_is_refused(family, name, options):
    model, given = made(family)
    named = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
    with ficoco_ext.attach(model, name, **options):
        encode = model.model.get_image_features
        wanted = encode(**given).pooler_output
        same = encode(**given, **named).pooler_output
        assert all(map(torch.equal, same, wanted))
        for other in OTHERS:
            (argument,) = other
            with pytest.raises(ValueError, match=rf"features: {argument} must be .* its value at attach, got"):
                encode(**given, **other)
        positional = [*given.values(), 1]
        with pytest.raises(ValueError, match="vision_feature_layer must be -2, its value at attach, got 1"):
            encode(*positional)
        model.config.vision_feature_layer = 1
        with pytest.raises(ValueError, match="vision_feature_layer must be -2, its value at attach, got 1"):
            encode(**given)
        model.config.vision_feature_layer = -2
        assert all(map(torch.equal, encode(**given).pooler_output, wanted))


@torch.no_grad()
def test_what_never_looks_into_the_tower_takes_any_layer(family):
    model, given = made(family)
    whole = model.model.get_image_features(**given, vision_feature_layer=2).pooler_output
    with ficoco_ext.attach(model, "stride", keep_ratio=0.5):
        left = model.model.get_image_features(**given, vision_feature_layer=2).pooler_output
    for one, all_of in zip(left, whole, strict=True):
        assert len(one) < len(all_of)
        assert (one.unsqueeze(1) == all_of).all(2).any(1).all()  # each is one of the layer that was asked for
