"""A method after the projector: labels, gradients, what detach restores, and what is refused by name."""

from __future__ import annotations

import pytest
import torch
from helpers.models import one_thread  # noqa: F401
from helpers.tiny_families import BY_NAME, TINY, shared_model, untouched_model
from helpers.tiny_oracle import cut, kept_of
from helpers.tiny_prompts import one_picture, unequal_rows

import ficoco_ext
from ficoco_ext.models.families import FAMILIES

pytest.importorskip("transformers")

PARAMETERS = [pytest.param(family, id=str(family)) for family in TINY]


@pytest.mark.parametrize("family", PARAMETERS)
@torch.no_grad()
def test_labels_of_the_full_prompt(family):
    model, full = shared_model(family.name), unequal_rows(family)
    labels = full.labels()
    with ficoco_ext.attach(model, "divprune", keep_ratio=0.5) as handle:
        loss = model(**full.inputs, labels=labels).loss
        hand = cut(untouched_model(family.name), full, kept_of(full, handle.projections))
    assert float((loss - hand.loss(untouched_model(family.name), labels)).abs()) < 1e-5


@pytest.mark.parametrize("name", ["llava-clip", "qwen3-vl", "gemma3", "internvl"])
def test_gradients_reach_the_tower(name):
    family = BY_NAME[name]
    model, full = family.model(), one_picture(family)
    with ficoco_ext.attach(model, "divprune", keep_ratio=0.5):
        model(**full.inputs, labels=full.labels()).loss.backward()
    tower = getattr(model.model, "visual", None) or model.model.vision_tower
    assert all(float(one.grad.abs().max()) > 0 for one in list(tower.parameters())[:1])


def state(model):
    """Everything that attach could leave: attributes and hooks of every module."""
    found = {}
    for name, module in model.named_modules():
        hooks = [len(value) for key, value in vars(module).items() if key.endswith("_hooks")]
        found[name] = (sorted(vars(module)), hooks, type(module))
    return found


@pytest.mark.parametrize("family", PARAMETERS)
@torch.no_grad()
def test_detach_restores_the_model(family):
    model, full = family.model(), unequal_rows(family)
    model.generate(**full.inputs, max_new_tokens=2, do_sample=False)
    before, plain = state(model), model(**full.inputs).logits
    handle = ficoco_ext.attach(model, "divprune", keep_ratio=0.5)
    model(**full.inputs)
    model.generate(**full.inputs, max_new_tokens=2, do_sample=False)
    handle.detach()
    assert state(model) == before
    assert torch.equal(model(**full.inputs).logits, plain)
    assert len(handle.projections) > 0


@pytest.mark.parametrize("name", [one.name for one in TINY if one.mrope])
def test_positions_of_rows_and_columns_are_not_renumbered(name):
    with pytest.raises(NotImplementedError, match="positions must be 'original'"):
        ficoco_ext.attach(shared_model(name), "divprune", keep_ratio=0.5, positions="contiguous")


def test_every_family_that_is_served_has_a_tiny_model():
    assert {type(shared_model(family.name)).__name__ for family in TINY} == {one.model for one in FAMILIES}


@pytest.mark.parametrize("family", PARAMETERS)
def test_a_part_that_is_not_there_is_refused_with_what_would_work(family):
    model = shared_model(family.name)
    known = next(one for one in FAMILIES if one.model == type(model).__name__)
    refused = ["ficoco-v"] * (not known.towers) + ["ficoco-l"] * (not known.language_models)
    for method in refused:
        with pytest.raises(NotImplementedError, match=rf"method must be .*{known.name}.*'divprune'"):
            ficoco_ext.attach(model, method, keep_ratio=0.5)


def test_models_whose_pictures_are_no_tokens_of_the_prompt_are_refused():
    from transformers import Idefics2Config, Idefics2ForConditionalGeneration

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**sizes, "image_size": 28, "patch_size": 14}
    perceiver = {"hidden_size": 16, "resampler_n_latents": 2, "resampler_depth": 1, "resampler_n_heads": 2}
    text = {**sizes, "num_key_value_heads": 2, "vocab_size": 64}
    perceiver |= {"resampler_head_dim": 8, "num_key_value_heads": 1}
    config = Idefics2Config(vision_config=vision, perceiver_config=perceiver, text_config=text)
    with pytest.raises(NotImplementedError, match=r"model must be .*got Idefics2ForConditionalGeneration"):
        ficoco_ext.attach(Idefics2ForConditionalGeneration(config), "divprune", keep_ratio=0.5)


@pytest.mark.parametrize("name", ["llava-clip", "qwen3-vl", "smolvlm"])
@torch.no_grad()
def test_new_pictures_on_a_cache_are_refused(name):
    family = BY_NAME[name]
    model, full = shared_model(name), one_picture(family)
    with ficoco_ext.attach(model, "divprune", keep_ratio=0.5):
        cache = model(**full.inputs, use_cache=True).past_key_values
        with pytest.raises(NotImplementedError, match="pass the whole conversation again"):
            model(**full.inputs, past_key_values=cache)


@torch.no_grad()
def test_placeholders_that_do_not_fit_are_refused():
    family = BY_NAME["qwen3-vl"]
    model, full = shared_model("qwen3-vl"), one_picture(family)
    short = full.inputs | {name: full.inputs[name][:, 6:] for name in ("input_ids", "attention_mask")}
    short["mm_token_type_ids"] = full.inputs["mm_token_type_ids"][:, 6:]
    with ficoco_ext.attach(model, "divprune", keep_ratio=0.5):
        with pytest.raises(ValueError, match=r"input_ids must be 8 placeholders \(id 3\).*got 7"):
            model(**short)
        assert model(**full.inputs).logits.shape[1] == full.ids.shape[1] - 4  # nothing of the failed call is left


def test_the_model_that_is_attached_twice_is_refused():
    model = BY_NAME["internvl"].model()
    with ficoco_ext.attach(model, "divprune", keep_ratio=0.5), pytest.raises(ValueError, match="attached"):
        ficoco_ext.attach(model, "divprune", keep_ratio=0.5)
