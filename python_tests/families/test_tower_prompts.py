"""A method in the tower of every family that has such: a call is the model's own on a prompt that was cut by hand.

In the last layer that is used, a method that drops changes nothing of what stays, so the features of the whole picture
are those of the hand cut of :mod:`helpers.tiny_oracle`.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers.models import close, one_thread, snapshot, tower_by_hand  # noqa: F401
from helpers.tiny_families import BY_NAME, shared_model, untouched_model
from helpers.tiny_oracle import cut, worst
from helpers.tiny_prompts import one_picture, unequal_rows

import ficoco_ext

pytest.importorskip("transformers")

NAMES = ("llava-clip", "llava-siglip", "paligemma")
PROMPTS = [(name, make) for name in NAMES for make in (one_picture, unequal_rows)]
DETAILS = {"return_dict_in_generate": True, "output_logits": True, "do_sample": False, "max_new_tokens": 3}


def attached(model, positions, tokens=5):
    """``topk`` in the last layer whose output the projector reads."""
    layers = len(model.model.vision_tower.encoder.layers)
    last = layers + getattr(model.config, "vision_feature_layer", -1)
    given = {} if positions is None else {"positions": positions}
    return ficoco_ext.attach(model, "topk", tokens=tokens, layers=(last,), **given)


@pytest.mark.parametrize("positions", [None, "contiguous", "original"])
@pytest.mark.parametrize(("name", "make"), PROMPTS, ids=[f"{name}-{make.__name__}" for name, make in PROMPTS])
@torch.no_grad()
def test_calls_and_generate_are_the_hand_cut(name, make, positions):
    """Contiguous positions unless others are asked for; PaliGemma's token types, by which tokens of the prompt see
    each other, go along."""
    model, plain, full = shared_model(name), untouched_model(name), make(BY_NAME[name])
    with attached(model, positions) as handle:
        got, said = model(**full.inputs).logits, model.generate(**full.inputs, **DETAILS)
        kept = list(handle.reductions[-1].patch_ids)
    hand = cut(plain, full, kept, positions or "contiguous")
    assert got.shape[1] == hand.columns.shape[1] < full.ids.shape[1]
    assert worst(hand, hand.logits(plain), got) < 2e-5
    assert torch.equal(said.sequences[:, :-3], full.ids)
    wanted = hand.logits(plain, said.sequences[:, -3:-1])[:, -3:]
    assert all(close(step, wanted[:, index]) for index, step in enumerate(said.logits))
    other = [(one + 1) % len(full.visuals[0].columns) for one in kept]
    moved = cut(plain, full, [one.sort().values for one in other], positions or "contiguous")
    assert worst(moved, moved.logits(plain), got) > 1e-3  # the test can see which tokens are left


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_the_tower_of_paligemma_equals_masking(attention):
    """Its projector reads what the tower returns, after the final norm."""
    model, full = BY_NAME["paligemma"].model(attention), one_picture(BY_NAME["paligemma"])
    picture, patches = full.inputs["pixel_values"], len(full.visuals[0].columns)
    for layers in ((0,), (0, 1)):
        with ficoco_ext.attach(model, "topk", r=3, layers=layers) as handle:
            pruned = model.model.get_image_features(picture).pooler_output
            hidden, dropped = {}, torch.zeros(1, patches, dtype=torch.bool)
            for index in range(len(model.model.vision_tower.encoder.layers)):
                hidden[index] = dropped
                if index in layers:
                    kept = handle.reductions[layers.index(index)].kept
                    dropped = torch.ones_like(dropped).scatter(1, kept, False)
        oracle = tower_by_hand(model, picture, hidden_keys=lambda index, hidden=hidden: hidden[index])
        plain = model.model.get_image_features(picture).pooler_output
        assert close(pruned, oracle[:, kept[0]]) and (pruned - plain[:, kept[0]]).abs().max() > 1e-3


@torch.no_grad()
def test_paligemma_is_left_as_it_was():
    model, full = BY_NAME["paligemma"].model(), unequal_rows(BY_NAME["paligemma"])
    plain = model(**full.inputs).logits
    before = snapshot(model)
    with attached(model, None):
        assert model(**full.inputs).logits.shape[1] < plain.shape[1]
    assert snapshot(model) == before and torch.equal(model(**full.inputs).logits, plain)


@pytest.mark.parametrize("make", [one_picture, unequal_rows])
def test_labels_of_paligemma_are_those_that_are_left(make):
    """Its loss masks what is answered by the token types, which must fit the short prompt."""
    name = "paligemma"
    model, plain, full = shared_model(name), untouched_model(name), make(BY_NAME[name])
    labels = full.ids.masked_fill(full.mask == 0, -100)
    for one in full.visuals:
        labels[one.row, one.columns] = -100
    with torch.no_grad(), attached(model, None) as handle:
        loss = model(**full.inputs, labels=labels).loss
        kept = list(handle.reductions[-1].patch_ids)
        wanted = cut(plain, full, kept, "contiguous").loss(plain, labels)
    assert torch.allclose(loss, wanted, atol=1e-5)


@torch.no_grad()
def test_token_types_stay_with_their_tokens():
    """Every second word and every second picture see only what is before them."""
    model, plain, full = shared_model("paligemma"), untouched_model("paligemma"), unequal_rows(BY_NAME["paligemma"])
    types = torch.arange(full.ids.shape[1]).repeat(len(full.ids), 1) % 2
    for index, one in enumerate(full.visuals):
        types[one.row, one.columns] = (index + 1) % 2
    with attached(model, None) as handle:
        got = model(**full.inputs | {"token_type_ids": types}).logits
        hand = cut(plain, full, list(handle.reductions[-1].patch_ids), "contiguous")
    causal = hand.of(types, 0) == 1
    assert causal.any()
    own = dataclasses.replace(hand, blocks=hand.blocks.masked_fill(causal, -1))
    assert worst(own, own.logits(plain), got) < 2e-5 and worst(hand, hand.logits(plain), got) > 1e-3


def test_token_types_of_another_length_are_refused():
    model, full = shared_model("paligemma"), one_picture(BY_NAME["paligemma"])
    types = full.inputs["token_type_ids"][:, 1:]
    with (
        torch.no_grad(),
        attached(model, None),
        pytest.raises(ValueError, match=r"token_type_ids must be \(1, \d+\), one for each id, got .*pass those of"),
    ):
        model(**full.inputs | {"token_type_ids": types})
