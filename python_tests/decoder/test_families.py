"""The other families against their language model by hand: LLaVA-NeXT and Qwen2-VL, whose pictures differ in size."""

import pytest
import torch
from helpers.decoder import generated, worst_error
from helpers.families import VIDEO, next_inputs, qwen_inputs, tiny_next, tiny_qwen, tiny_siglip
from helpers.models import batch, image, one_thread, tiny_llava, words  # noqa: F401

import ficoco_ext

pytest.importorskip("transformers")

STEPS = 9
METHODS = {
    "ficoco-l": {"method": "ficoco-l", "keep_ratio": 0.3},
    "ficoco-l by logits": {"method": "ficoco-l", "variant": "released", "r": 9},
    "fastv": {"method": "fastv"},
    "pyramiddrop": {"method": "pyramiddrop"},
    "sparsevlm": {"method": "sparsevlm"},
    "fitprune": {"method": "fitprune", "r": 5},
}
MAKE = {
    "LLaVA-NeXT": (tiny_next, next_inputs, (24, 48), (40, 30)),
    "LLaVA-NeXT on Mistral": (lambda **how: tiny_next("mistral", **how), next_inputs, (24, 48), (40, 30)),
    "Qwen2-VL": (tiny_qwen, qwen_inputs, (8, 12), (6, 8)),
    "Qwen2.5-VL": (lambda **how: tiny_qwen("2.5", **how), qwen_inputs, (8, 12), (6, 8)),
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", MAKE)
def test_generation_equals_the_language_model_by_hand(family, method, attention):
    make, inputs_of, wide, tall = MAKE[family]
    model = make(attention=attention, seed=2)
    rows = [[*words(1), wide, *words(2, 3)], [*words(4), wide, *words(5), tall, *words(6, 7)], words(8, 9)]
    for chosen in (rows[:1], rows):
        inputs = inputs_of(model, chosen)
        with torch.no_grad(), ficoco_ext.attach(model, **METHODS[method]) as handle:
            seen = generated(model, inputs, STEPS)
            reductions, plan = handle.decoder_reductions, handle.plan
        lengths = [layer.keys.shape[-2] for layer in seen.cache.layers]
        assert lengths[0] == inputs["input_ids"].shape[1] + STEPS - 1 > lengths[-1]
        with torch.no_grad():
            check = {"new_ids": seen.sequences[:, -STEPS:], "steps": STEPS}
            assert worst_error(model, seen, reductions, plan, **check) <= 2e-5
            assert worst_error(model, seen, reductions, plan, dropping=False, **check) > 1e-2


@pytest.mark.parametrize("family", [family for family in MAKE if not family.startswith("LLaVA-NeXT")])
def test_a_tower_that_cannot_be_reduced_is_refused(family):
    model = MAKE[family][0]()
    for method in ("ficoco-v", "tome", "ficoco-vl"):
        with pytest.raises(NotImplementedError, match="one for another part of "):
            ficoco_ext.attach(model, method, keep_ratio=0.5)
    assert not hasattr(model, "ficoco_handle")


def test_videos_are_visual_tokens():
    model = tiny_qwen()
    inputs = qwen_inputs(model, [[*words(1), (8, 12), *words(2, 3)]])
    ids = inputs["input_ids"]
    video = {
        "input_ids": torch.where(ids == 3, VIDEO, ids),
        "attention_mask": inputs["attention_mask"],
        "pixel_values_videos": inputs["pixel_values"],
        "video_grid_thw": inputs["image_grid_thw"],
        "mm_token_type_ids": inputs["mm_token_type_ids"] * 2,
    }
    with torch.no_grad(), ficoco_ext.attach(model, "ficoco-l", r=5):
        lengths = [layer.keys.shape[-2] for layer in model(**video).past_key_values.layers]
    assert lengths[0] == ids.shape[1] and lengths[-1] == lengths[0] - 10


def test_counts_that_depend_on_the_picture_are_no_host_numbers():
    model = tiny_next()
    with pytest.raises(NotImplementedError, match="static_counts must be a number for this model, got True"):
        ficoco_ext.attach(model, "ficoco-l", r=5, static_counts=True)
    assert not hasattr(model, "ficoco_handle")
    inputs = next_inputs(model, [[*words(1), (24, 48), *words(2, 3)]] * 2)
    count = int((inputs["input_ids"][0] == 3).sum())
    with torch.no_grad():
        with ficoco_ext.attach(model, "ficoco-l", r=5):
            wanted = model(**inputs).logits
        with ficoco_ext.attach(model, "ficoco-l", r=5, static_counts=count):
            assert torch.equal(model(**inputs).logits, wanted)


@pytest.mark.parametrize(
    "make", [tiny_siglip, lambda: tiny_llava(feature_layer=[-2, -3])], ids=["SigLIP", "two layers"]
)
@pytest.mark.parametrize("method", ["ficoco-l", "fastv"])
def test_towers_that_are_left_alone(make, method):
    """Of a LLaVA-1.5 whose tower cannot be reduced, the language model can."""
    model = make()
    inputs = batch([*words(1, 2), *image(), *words(3, 4, 5)], [*words(6), *image(), *image(), *words(8, 9)])
    with torch.no_grad():
        with ficoco_ext.attach(model, **METHODS[method]) as handle:
            seen = generated(model, inputs, 4)
            reductions, plan = handle.decoder_reductions, handle.plan
        assert worst_error(model, seen, reductions, plan, 4, new_ids=seen.sequences[:, -4:]) <= 2e-5
