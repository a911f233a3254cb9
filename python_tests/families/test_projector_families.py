"""A method after the projector on every family: a call is the model's own language model on what was cut by hand.

``DivPrune`` chooses; which tokens it chose, the handle says. The hand cut of :mod:`helpers.tiny_oracle` knows nothing
else of it.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from helpers.models import one_thread  # noqa: F401
from helpers.tiny_families import BY_NAME, ONE_TOKEN, TINY, WITH_VIDEO, shared_model, untouched_model
from helpers.tiny_oracle import cut, kept_of, worst
from helpers.tiny_prompts import one_picture, one_video, pictures_and_videos, prompt, unequal_rows, words

import ficoco_ext

pytest.importorskip("transformers")

PROMPTS = [(family, make) for family in TINY for make in (one_picture, unequal_rows)]
PROMPTS += [(family, make) for family in WITH_VIDEO for make in (one_video, pictures_and_videos)]
IDS = [f"{family}-{make.__name__}" for family, make in PROMPTS]
DETAILS = {"return_dict_in_generate": True, "output_logits": True, "do_sample": False, "max_new_tokens": 3}


@pytest.mark.parametrize(("family", "make"), PROMPTS, ids=IDS)
@torch.no_grad()
def test_nothing_leaves_nothing_changes(family, make):
    model, full = shared_model(family.name), make(family)
    plain, said = model(**full.inputs).logits, model.generate(**full.inputs, **DETAILS)
    with ficoco_ext.attach(model, "divprune", keep_ratio=1.0) as handle:
        assert torch.equal(model(**full.inputs).logits, plain)
        again = model.generate(**full.inputs, **DETAILS)
        assert all(torch.equal(one.kept, torch.arange(one.before)) for one in handle.projections)
    assert torch.equal(again.sequences, said.sequences)
    assert all(map(torch.equal, again.logits, said.logits))


@pytest.mark.parametrize("positions", ["original", "contiguous"])
@pytest.mark.parametrize(("family", "make"), PROMPTS, ids=IDS)
@torch.no_grad()
def test_forward_is_the_hand_cut(family, make, positions):
    if family.mrope and positions == "contiguous":
        return  # refused: test_projector_calls.py
    model, full = shared_model(family.name), make(family)
    with ficoco_ext.attach(model, "divprune", keep_ratio=0.5, positions=positions) as handle:
        got = model(**full.inputs).logits
        kept = kept_of(full, handle.projections)
    assert sum(map(len, kept)) < sum(len(one.columns) for one in full.visuals)
    hand = cut(untouched_model(family.name), full, kept, positions)
    assert got.shape[1] == hand.columns.shape[1]
    assert worst(hand, hand.logits(untouched_model(family.name)), got) < 2e-5


@pytest.mark.parametrize("family", TINY, ids=str)
@torch.no_grad()
def test_a_call_without_a_mask_or_a_cache(family):
    """Positions that jump without a mask would be taken for several sequences in one row."""
    model, full = shared_model(family.name), one_picture(family)
    inputs = {name: value for name, value in full.inputs.items() if name != "attention_mask"}
    with ficoco_ext.attach(model, "divprune", keep_ratio=0.5) as handle:
        got = model(**inputs, use_cache=False).logits
        hand = cut(untouched_model(family.name), full, kept_of(full, handle.projections))
    assert worst(hand, hand.logits(untouched_model(family.name)), got) < 2e-5


@pytest.mark.parametrize("family", TINY, ids=str)
@torch.no_grad()
def test_tokens_of_random_pictures(family):
    """``tokens`` are those of each picture; one that has no more keeps all it has."""
    model = shared_model(family.name)
    with ficoco_ext.attach(model, "divprune", tokens=5) as handle:
        for seed, picture in enumerate(family.random_pictures(20)):
            full = one_picture(family, picture, seed)
            got = model(**full.inputs).logits
            ends = [len(one.line_ends) for one in full.visuals] if full.visuals[0].line_ends else []
            ends = ends or [0] * len(handle.projections)
            wanted = [min(5 + more, one.before) for one, more in zip(handle.projections, ends, strict=True)]
            assert [len(one.kept) for one in handle.projections] == wanted
            hand = cut(untouched_model(family.name), full, kept_of(full, handle.projections))
            assert worst(hand, hand.logits(untouched_model(family.name)), got) < 2e-5


@pytest.mark.parametrize("family", TINY, ids=str)
@torch.no_grad()
def test_more_tokens_than_there_are(family):
    model, full = shared_model(family.name), unequal_rows(family)
    plain = model(**full.inputs).logits
    with ficoco_ext.attach(model, "divprune", tokens=10_000):
        with pytest.warns(UserWarning, match=r"tokens is 10000, but a picture has \d+; it keeps all"):
            got = model(**full.inputs).logits
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(model(**full.inputs).logits, got) and torch.equal(got, plain)


@pytest.mark.parametrize(("family", "picture"), ONE_TOKEN, ids=str)
@torch.no_grad()
def test_a_picture_of_one_token_keeps_it(family, picture):
    model = shared_model(family.name)
    full = prompt(family, [[*words(2), picture, *words(3, 2)], [*words(1), family.pictures[0], picture, *words(2, 4)]])
    with ficoco_ext.attach(model, "divprune", keep_ratio=0.25) as handle:
        got = model(**full.inputs).logits
        kept = kept_of(full, handle.projections)
    assert [len(one) for one, visual in zip(kept, full.visuals, strict=True) if len(visual.columns) == 1] == [1, 1]
    hand = cut(untouched_model(family.name), full, kept)
    assert worst(hand, hand.logits(untouched_model(family.name)), got) < 2e-5


@pytest.mark.parametrize("family", TINY, ids=str)
@torch.no_grad()
def test_text_alone_is_left_alone(family):
    model, full = shared_model(family.name), prompt(family, [words(5), words(3, 9)])
    plain = model(**full.inputs).logits
    with ficoco_ext.attach(model, "divprune", keep_ratio=0.5):
        assert torch.equal(model(**full.inputs).logits, plain)


@pytest.mark.parametrize("family", TINY, ids=str)
@torch.no_grad()
def test_rows_are_what_they_are_alone(family):
    """Pictures of one batch do not meddle with each other's choice."""
    model = shared_model(family.name)
    rows = [[*words(3), family.pictures[0], *words(4, 3)], [*words(1, 8), family.pictures[-1], *words(9, 12)]]
    whole = prompt(family, rows)
    with ficoco_ext.attach(model, "divprune", keep_ratio=0.5) as handle:
        got = model(**whole.inputs).logits
        kept = kept_of(whole, handle.projections)
        first = prompt(family, rows[:1])  # its pixels are the first that are drawn
        alone = model(**first.inputs).logits
        assert torch.equal(kept_of(first, handle.projections)[0], kept[0])
    assert float((got[0, -alone.shape[1] :] - alone[0]).abs().max()) < 2e-5


@pytest.mark.parametrize("family", TINY, ids=str)
@torch.no_grad()
def test_there_is_one_projection_for_each_picture(family):
    """Each tile is one, and each frame where the encoder returns frames: nothing says which tiles are one picture."""
    model, full = shared_model(family.name), unequal_rows(family)
    with ficoco_ext.attach(model, "divprune", tokens=3) as handle:
        model(**full.inputs)
        assert [one.before for one in handle.projections] == [len(one.columns) for one in full.parts()]


@pytest.mark.parametrize("make", [one_picture, unequal_rows, one_video, pictures_and_videos])
@pytest.mark.parametrize("name", ["llava-next", "llava-onevision"])
@torch.no_grad()
def test_newlines_stay(name, make):
    family = BY_NAME[name]
    if make in (one_video, pictures_and_videos) and not family.videos:
        return
    full = make(family)
    with ficoco_ext.attach(shared_model(name), "divprune", keep_ratio=0.25) as handle:
        shared_model(name)(**full.inputs)
        kept = kept_of(full, handle.projections)
    hand = cut(untouched_model(name), full, kept)
    for one, indices in zip(full.visuals, kept, strict=True):
        assert one.line_ends
        assert set(one.columns[list(one.line_ends)].tolist()) <= set(hand.columns[one.row].tolist())
        picture = len(one.columns) - len(one.line_ends)  # they count for nothing in the ratio
        assert abs(len(indices) - len(one.line_ends) - 0.25 * picture) < 1


@torch.no_grad()
def test_the_oracle_notices_another_choice():
    family = BY_NAME["qwen3-vl"]
    model, full = shared_model("qwen3-vl"), one_picture(family)
    with ficoco_ext.attach(model, "divprune", keep_ratio=0.5) as handle:
        got = model(**full.inputs).logits
        kept = kept_of(full, handle.projections)
    others = [torch.tensor([index for index in range(8) if index not in one.tolist()]) for one in kept]
    hand = cut(untouched_model(family.name), full, others)
    assert worst(hand, hand.logits(untouched_model(family.name)), got) > 1e-2
