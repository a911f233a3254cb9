"""A method after the projector with every way to call a model: embeddings, encoder outputs, positions, samples."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch
from helpers.models import one_thread  # noqa: F401
from helpers.tiny_families import BY_NAME, TINY, shared_model, untouched_model
from helpers.tiny_oracle import cut, kept_of, worst
from helpers.tiny_prompts import one_picture, one_video, prompt, unequal_rows, words

import ficoco_ext

pytest.importorskip("transformers")

EXACT = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 2}


def attached(family):
    return ficoco_ext.attach(shared_model(family.name), "divprune", keep_ratio=0.5)


@pytest.mark.parametrize("family", TINY, ids=str)
@torch.no_grad()
def test_the_last_logits_alone_and_positions_of_ones_own(family):
    model, full = shared_model(family.name), unequal_rows(family)
    positions = full.positions(untouched_model(family.name))
    with attached(family) as handle:
        last = model(**full.inputs, logits_to_keep=1).logits
        own = model(**full.inputs, position_ids=positions).logits
        hand = cut(untouched_model(family.name), full, kept_of(full, handle.projections))
    wanted = hand.logits(untouched_model(family.name))
    assert last.shape[1] == 1 and float((last[:, 0] - wanted[:, -1]).abs().max()) < 1e-5
    assert worst(hand, wanted, own) < 2e-5


@pytest.mark.parametrize("family", [one for one in TINY if not one.mrope], ids=str)
@torch.no_grad()
def test_embeddings_of_the_prompt(family):
    model, full = shared_model(family.name), unequal_rows(family)
    inputs = {name: value for name, value in full.inputs.items() if name != "input_ids"}
    with attached(family) as handle:
        got = model(inputs_embeds=model.get_input_embeddings()(full.ids), **inputs).logits
        hand = cut(untouched_model(family.name), full, kept_of(full, handle.projections))
    assert worst(hand, hand.logits(untouched_model(family.name)), got) < 2e-5


@pytest.mark.parametrize("family", TINY, ids=str)
@torch.no_grad()
def test_several_samples_of_each_row(family):
    model = shared_model(family.name)
    picture = family.pictures[1 if family.name == "internvl" else 0]  # of one tile
    full = prompt(family, [[*words(4), picture, *words(5, 4)], [*words(2), picture, *words(3, 6)]])
    with attached(family) as handle:
        model(**full.inputs)
        hand = cut(untouched_model(family.name), full, kept_of(full, handle.projections))
        out = model.generate(**full.inputs, **EXACT | {"do_sample": True}, num_return_sequences=2)
    wanted = hand.logits(untouched_model(family.name), out.sequences[::2, -2:-1])
    assert float((out.logits[0][::2] - wanted[:, -2]).abs().max()) < 1e-5
    assert float((out.logits[1][::2] - wanted[:, -1]).abs().max()) < 1e-5
    assert float((out.logits[0][::2] - out.logits[0][1::2]).abs().max()) < 1e-5


WITHOUT_NEWLINES = [one for one in TINY if one.name not in ("llava-next", "llava-onevision")]


@pytest.mark.parametrize("family", WITHOUT_NEWLINES, ids=str)
@torch.no_grad()
def test_encoder_outputs_of_the_caller_are_cut_and_left_alone(family):
    model, full = shared_model(family.name), one_picture(family)
    if "mm_encoder_outputs" not in inspect.signature(type(model).forward).parameters:
        pytest.skip("this transformers takes no encoder outputs")
    pixels = {name: value for name, value in full.inputs.items() if "pixel" in name or name == "image_sizes"}
    grids = {name: value for name, value in full.inputs.items() if name == "image_grid_thw"}
    encoded = untouched_model(family.name).model.get_image_features(**pixels, **grids, return_dict=True)
    inputs = {name: value for name, value in full.inputs.items() if name not in pixels}
    with attached(family) as handle:
        for _ in range(2):
            got = model(**inputs, mm_encoder_outputs={"image": encoded}).logits
            out = model.generate(**inputs, mm_encoder_outputs={"image": encoded}, **EXACT)
            hand = cut(untouched_model(family.name), full, kept_of(full, handle.projections))
            wanted = hand.logits(untouched_model(family.name), out.sequences[:, -2:-1])
            assert worst(hand, wanted[:, :-1], got) < 2e-5
            assert float((out.logits[1] - wanted[:, -1]).abs().max()) < 1e-5


@torch.no_grad()
def test_seconds_between_frames_are_in_the_positions():
    family = BY_NAME["qwen2.5-vl"]
    model, full = untouched_model(family.name), one_video(family)
    inputs = full.inputs | {"second_per_grid_ts": torch.tensor([5.0])}
    with attached(family) as handle:
        got = shared_model(family.name)(**inputs).logits
        hand = cut(model, full, kept_of(full, handle.projections))
    names = ("video_grid_thw", "mm_token_type_ids", "attention_mask", "second_per_grid_ts")
    positions = model.model.get_rope_index(full.ids, **{name: inputs[name] for name in names})[0]
    slow = dataclasses.replace(hand, positions=positions[:, :, hand.columns[0]])
    assert worst(hand, slow.logits(model), got) < 2e-5
    assert worst(hand, hand.logits(model), got) > 1e-2
