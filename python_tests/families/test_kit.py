"""The kit itself: a hand cut that keeps everything is the model, and one that does not is another."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers.models import one_thread  # noqa: F401
from helpers.tiny_families import TINY, WITH_VIDEO, shared_model
from helpers.tiny_oracle import cut, everything, some, worst
from helpers.tiny_prompts import one_picture, one_video, pictures_and_videos, prompt, unequal_rows, words

pytest.importorskip("transformers")

PROMPTS = [(family, make) for family in TINY for make in (one_picture, unequal_rows)]
PROMPTS += [(family, make) for family in WITH_VIDEO for make in (one_video, pictures_and_videos)]
IDS = [f"{family}-{make.__name__}" for family, make in PROMPTS]


@pytest.mark.parametrize(("family", "make"), PROMPTS, ids=IDS)
@torch.no_grad()
def test_keeping_everything_is_the_model(family, make):
    model, full = shared_model(family.name), make(family)
    hand = cut(model, full, everything(full))
    assert torch.equal(hand.columns >= 0, full.mask.bool())
    plain = model(**full.inputs, position_ids=full.positions(model)).logits
    assert worst(hand, hand.logits(model), plain) <= 1e-6
    assert worst(hand, hand.logits(model), model(**full.inputs).logits) <= 1e-5  # positions may be shifted there


@pytest.mark.parametrize(("family", "make"), PROMPTS, ids=IDS)
@torch.no_grad()
def test_what_is_taken_away_is_missed(family, make):
    model, full = shared_model(family.name), make(family)
    plain = model(**full.inputs, position_ids=full.positions(model)).logits[:, -1]
    hand = cut(model, full, some(full))
    moved = (hand.logits(model)[:, -1] - plain).abs().amax(1)
    rows = {one.row for one in full.visuals}
    for row in range(len(moved)):
        assert moved[row] > 1e-2 if row in rows else moved[row] < 1e-5
    contiguous = cut(model, full, some(full), "contiguous").logits(model)
    assert worst(hand, hand.logits(model), contiguous) > 1e-2


@pytest.mark.parametrize("family", TINY, ids=str)
@torch.no_grad()
def test_new_tokens_without_a_cache_are_a_longer_prompt(family):
    model, full = shared_model(family.name), unequal_rows(family)
    new = torch.tensor([words(3, 20), words(3, 11), words(3, 2)])
    hand = cut(model, full, everything(full)).logits(model, new)
    longer = dict(full.inputs) | {"input_ids": torch.cat([full.ids, new], 1)}
    longer["attention_mask"] = torch.cat([full.mask, torch.ones_like(new)], 1)
    for name, _ in family.types:
        text = 1 if family.bidirectional == "prompt" else 0  # an answer is PaliGemma's suffix
        longer[name] = torch.cat([full.inputs[name], torch.full_like(new, text)], 1)
    plain = model(**longer).logits
    assert float((hand - plain)[:, -4:].abs().max()) < 1e-5


@pytest.mark.parametrize("family", TINY, ids=str)
@torch.no_grad()
def test_placeholders_are_as_many_as_features_for_random_pictures(family):
    model = shared_model(family.name)
    for picture in family.random_pictures(6, seed=1):
        model(**one_picture(family, picture).inputs)  # the model counts them itself


@pytest.mark.parametrize("family", [one for one in TINY if one.planes], ids=str)
@torch.no_grad()
def test_planes_are_cut_too(family):
    model, full = shared_model(family.name), one_picture(family)
    hand = cut(model, full, some(full))
    assert len(hand.planes) == family.planes and all(len(one) == int(hand.visual.sum()) for one in hand.planes)
    for level in range(family.planes):
        planes = [one * (index != level) for index, one in enumerate(hand.planes)]
        other = dataclasses.replace(hand, planes=tuple(planes))
        assert worst(hand, hand.logits(model), other.logits(model)) > 1e-2


def test_prompts_are_what_processors_make():
    by_name = {family.name: family for family in TINY}
    qwen = prompt(by_name["qwen3-vl"], [[30, by_name["qwen3-vl"].videos[0], 31]])
    assert qwen.ids.tolist() == [[1, 30, 11, 11, 5, 4, 4, 4, 4, 6, 12, 11, 5, 4, 4, 4, 4, 6, 31]]
    assert qwen.types["mm_token_type_ids"].tolist() == [[2 * (one == 4) for one in qwen.ids[0].tolist()]]
    glm = prompt(by_name["glm4v"], [[by_name["glm4v"].videos[0]]])
    assert glm.ids.tolist() == [[1, 7, 5, 3, 3, 3, 3, 6, 11, 5, 3, 3, 3, 3, 6, 12, 8]]
    assert glm.types["mm_token_type_ids"].tolist() == [[2 * (one == 3) for one in glm.ids[0].tolist()]]
    pixtral = prompt(by_name["mistral3"], [[30, by_name["mistral3"].pictures[0], 31], [31]])
    assert pixtral.ids.tolist() == [[1, 30, 3, 3, 3, 9, 3, 3, 3, 10, 31], [0] * 9 + [1, 31]]
    assert pixtral.visuals[0].columns.tolist() == [2, 3, 4, 6, 7, 8]
    tiles = prompt(by_name["internvl"], [[by_name["internvl"].pictures[0]]])
    assert tiles.ids.tolist() == [[1, 5, *[3] * 12, 6]] and tiles.visuals[0].parts == (4, 4, 4)
    assert [one.columns.tolist() for one in tiles.parts()] == [[2, 3, 4, 5], [6, 7, 8, 9], [10, 11, 12, 13]]
