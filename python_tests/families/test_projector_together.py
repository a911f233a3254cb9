"""A method after the projector with others: methods in the language model, attention kernels, mistakes, threads."""

from __future__ import annotations

import threading

import pytest
import torch
from helpers.decoder import generated, worst_error
from helpers.models import one_thread  # noqa: F401
from helpers.tiny_families import BY_NAME, TINY, shared_model, untouched_model
from helpers.tiny_oracle import cut, kept_of, worst
from helpers.tiny_prompts import one_picture, pictures_and_videos, prompt, unequal_rows, words

import ficoco_ext

pytest.importorskip("transformers")

STEPS = 4
SEVERAL = ["llava-clip", "llava-next", "qwen2.5-vl", "qwen3-vl", "internvl", "smolvlm", "gemma3", "paligemma"]


@pytest.mark.parametrize("name", ["llava-clip", "llava-siglip", "llava-next", "qwen2-vl", "qwen2.5-vl"])
@torch.no_grad()
def test_a_method_in_the_language_model_goes_on_where_the_projector_stopped(name):
    family = BY_NAME[name]
    full = unequal_rows(family)
    with ficoco_ext.attach(shared_model(name), "divprune+ficoco-l", keep_ratio=0.4) as handle:
        seen = generated(shared_model(name), full.inputs, STEPS)
        kept, reductions, plan = kept_of(full, handle.projections), handle.decoder_reductions, handle.plan
    hand = cut(untouched_model(name), full, kept)
    real = hand.mask.bool()
    assert torch.equal(seen.embeds[real], hand.embeds[real])
    assert torch.equal(seen.positions[-3:, real] if family.mrope else seen.positions[real], hand.positions[..., real])
    assert any(reductions) and sum(map(len, kept)) < sum(len(one.columns) for one in full.visuals)
    details = {"new_ids": seen.sequences[:, -STEPS:]}
    assert worst_error(untouched_model(name), seen, reductions, plan, STEPS, **details) < 2e-5


@pytest.mark.parametrize("name", SEVERAL)
@torch.no_grad()
def test_eager_attention(name):
    family = BY_NAME[name]
    model, full = family.model("eager"), unequal_rows(family)
    with ficoco_ext.attach(model, "divprune", keep_ratio=0.5) as handle:
        got = model(**full.inputs).logits
        kept = kept_of(full, handle.projections)
    hand = cut(untouched_model(name), full, kept)
    assert worst(hand, hand.logits(untouched_model(name)), got) < 2e-5


@pytest.mark.parametrize("family", TINY, ids=str)
@torch.no_grad()
def test_the_callers_tensors_are_left_alone(family):
    model = shared_model(family.name)
    full = pictures_and_videos(family) if family.videos else unequal_rows(family)
    before = {name: value.clone() for name, value in full.inputs.items()}
    with ficoco_ext.attach(model, "divprune", keep_ratio=0.5):
        model(**full.inputs)
        model.generate(**full.inputs, max_new_tokens=2, do_sample=False)
    assert list(before) == list(full.inputs)
    assert all(torch.equal(before[name], value) for name, value in full.inputs.items())


@pytest.mark.parametrize("name", SEVERAL)
@torch.no_grad()
def test_pixels_that_changed_in_place_are_encoded_again(name):
    family = BY_NAME[name]
    model, full = shared_model(name), one_picture(family)
    other = one_picture(family, seed=2).inputs["pixel_values"]
    with ficoco_ext.attach(model, "divprune", keep_ratio=0.5):
        wanted = model(**full.inputs | {"pixel_values": other}).logits
        model(**full.inputs)
        model.generate(**full.inputs, max_new_tokens=2, do_sample=False)
        full.inputs["pixel_values"].copy_(other)
        assert torch.equal(model(**full.inputs).logits, wanted)


@pytest.mark.parametrize("name", SEVERAL)
@torch.no_grad()
def test_a_call_that_fails_leaves_nothing_behind(name):
    family = BY_NAME[name]
    model, full, text = shared_model(name), one_picture(family), prompt(family, [words(6)])
    plain = model(**text.inputs).logits

    def fail(*_):
        raise KeyboardInterrupt

    with ficoco_ext.attach(model, "divprune", keep_ratio=0.5) as handle:
        wanted = model(**full.inputs).logits
        for call in (model, lambda **inputs: model.generate(**inputs, max_new_tokens=2)):
            hook = family.language_model(model).register_forward_pre_hook(fail)
            with pytest.raises(KeyboardInterrupt):
                call(**full.inputs)
            hook.remove()
            assert torch.equal(model(**text.inputs).logits, plain)
            assert torch.equal(model(**full.inputs).logits, wanted)
        assert len(handle.projections) == len(full.parts())


@pytest.mark.parametrize("name", ["llava-clip", "qwen3-vl", "internvl"])
@torch.no_grad()
def test_threads_have_their_own_prompts(name):
    family = BY_NAME[name]
    model = shared_model(name)
    prompts = [unequal_rows(family, 1), one_picture(family, seed=2), one_picture(family, family.pictures[-1], 3)]
    with ficoco_ext.attach(model, "divprune", keep_ratio=0.5):
        wanted = [model(**one.inputs).logits for one in prompts]
        wrong = []

        def work(index):
            with torch.no_grad():
                for _ in range(6):
                    got = model(**prompts[index].inputs).logits
                    if not torch.equal(got, wanted[index]):
                        wrong.append(index)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(len(prompts))]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
    assert not wrong


@pytest.mark.parametrize("name", SEVERAL)
@torch.no_grad()
def test_two_calls_of_generate_do_not_meddle(name):
    """Another picture, and text alone, between two generations of one prompt."""
    family = BY_NAME[name]
    model, full = shared_model(name), unequal_rows(family)
    other, text = one_picture(family, seed=5), prompt(family, [words(7)])
    plain = model.generate(**text.inputs, max_new_tokens=3, do_sample=False)
    with ficoco_ext.attach(model, "divprune", keep_ratio=0.5):
        first = model.generate(**full.inputs, max_new_tokens=3, do_sample=False)
        model.generate(**other.inputs, max_new_tokens=3, do_sample=False)
        assert torch.equal(model.generate(**text.inputs, max_new_tokens=3, do_sample=False), plain)
        assert torch.equal(model.generate(**full.inputs, max_new_tokens=3, do_sample=False), first)
