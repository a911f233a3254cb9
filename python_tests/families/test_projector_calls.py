"""A method after the projector: labels, gradients, what detach restores, and what is refused by name."""

from __future__ import annotations

import pytest
import torch
from helpers.models import one_thread  # noqa: F401
from helpers.tiny_families import BY_NAME, TINY, shared_model, untouched_model
from helpers.tiny_oracle import cut, kept_of
from helpers.tiny_prompts import one_picture, unequal_rows

import ficoco_ext

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
    """Everything that attach could leave behind: attributes and hooks of every module."""
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


def test_the_model_that_is_attached_twice_is_refused():
    model = BY_NAME["internvl"].model()
    with ficoco_ext.attach(model, "divprune", keep_ratio=0.5), pytest.raises(ValueError, match="attached"):
        ficoco_ext.attach(model, "divprune", keep_ratio=0.5)
