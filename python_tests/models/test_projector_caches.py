"""Caches of prompts that were cut after the projector: rows that move, masks of the caller, other reductions, crops."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.models import GREEDY, IMAGE, batch, close, image, one_thread, tiny_llava, words  # noqa: F401
from transformers import StaticCache

import ficoco_ext
from ficoco_ext.models.transformers_api import cache_name, output_cache

QUARTER = {"keep_ratio": 0.25}
METHODS = ("divprune", "divprune+fastv")
ROW = [*words(1, 2), *image(), *words(3, 4, 5)]
TWO = ([*words(1, 2, 3, 4), *image(), *words(3), *image(), *words(9)], [*words(1), *image(), *words(5)])
NEW = torch.tensor([words(7), words(8)])


@pytest.fixture(scope="module")
def model():
    return tiny_llava(seed=7)


def name_of(model):
    return cache_name(type(model).forward)


@torch.no_grad()
def prefill(model, inputs):
    return output_cache(model(**inputs, use_cache=True))


def alone(inputs, row):
    """One row of a padded batch, without its padding."""
    start = int(inputs["attention_mask"][row].argmax())
    first = sum(int((one == IMAGE).sum()) // len(image()) for one in inputs["input_ids"][:row])
    count = int((inputs["input_ids"][row] == IMAGE).sum()) // len(image())
    return {
        "input_ids": inputs["input_ids"][row : row + 1, start:],
        "attention_mask": inputs["attention_mask"][row : row + 1, start:],
        "pixel_values": inputs["pixel_values"][first : first + count],
    }


@torch.no_grad()
def next_alone(model, inputs, row, token):
    """Logits of the token after one row, which is alone in its batch."""
    cache = prefill(model, alone(inputs, row))
    return model(input_ids=token[None], **{name_of(model): cache}).logits[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("positions", ["original", "contiguous"])
@torch.no_grad()
def test_rows_that_came_to_differ_go_on_without_a_mask(model, method, positions):
    """All rows were equally long, so that the caller passes no mask; cut, they are not."""
    inputs = batch(ROW, [*words(*range(1, 25)), *words(*range(1, 18))][: len(ROW)])
    bare = {name: value for name, value in inputs.items() if name != "attention_mask"}
    with ficoco_ext.attach(model, method, positions=positions, **QUARTER):
        got = model(input_ids=NEW, **{name_of(model): prefill(model, bare)}).logits
        assert close(got[0], next_alone(model, inputs, 0, NEW[0]), 1e-5)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_a_mask_over_the_prompt_of_the_caller_is_refused(model, method):
    inputs = batch(*TWO, seed=9)
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1).long()], 1)
    with ficoco_ext.attach(model, method, **QUARTER):
        cache = prefill(model, inputs)
        with pytest.raises(ValueError, match=r"attention_mask must be \(2, \d+ cached \+ 1\).*count from its length"):
            model(input_ids=NEW, attention_mask=mask, **{name_of(model): cache})
        with pytest.raises(ValueError, match=r"attention_mask must be \(2, \d+ cached \+ 1\)"):
            model.generate(input_ids=NEW, attention_mask=mask, **{name_of(model): cache}, **GREEDY)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_rows_that_the_cache_moves_take_their_prompt_along(model, method):
    """By reordering, by selecting, by repeating, and after the cache was copied."""
    inputs = batch(*TWO, seed=9)
    with ficoco_ext.attach(model, method, **QUARTER):
        cache = prefill(model, inputs)
        cache.reorder_cache(torch.tensor([1, 0]))
        copied = copy.deepcopy(cache)
        got = model(input_ids=NEW.flip(0), **{name_of(model): cache}).logits
        copied.batch_repeat_interleave(2)
        copied.batch_select_indices(torch.tensor([0, 3]))
        after = model(input_ids=NEW.flip(0), **{name_of(model): copied}).logits
        for row in (0, 1):
            wanted = next_alone(model, inputs, row, NEW[row])
            assert close(got[1 - row], wanted, 1e-5)
            assert close(after[1 - row], wanted, 1e-5)


@torch.no_grad()
def test_a_conversation_goes_on_from_several_sequences(model):
    inputs = batch(ROW)
    torch.manual_seed(0)
    options = {"do_sample": True, "num_return_sequences": 2, "max_new_tokens": 3, "return_dict_in_generate": True}
    with ficoco_ext.attach(model, "divprune", **QUARTER):
        first = model.generate(**inputs, **options)
        asked = torch.cat([first.sequences, NEW], 1)
        said = model.generate(input_ids=asked, **{name_of(model): output_cache(first)}, **GREEDY)
        whole = {"input_ids": asked, "attention_mask": torch.ones_like(asked)}
        pictures = inputs["pixel_values"].repeat_interleave(2, 0)
        assert torch.equal(said, model.generate(**whole, pixel_values=pictures, **GREEDY))


@torch.no_grad()
def test_new_pictures_on_a_static_cache_are_refused(model):
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=120)
    with ficoco_ext.attach(model, "divprune", **QUARTER):
        model(**batch(ROW), **{name_of(model): cache}, use_cache=True)
        again = batch([*words(7), *image(), *words(8)], seed=5)
        for call in (model, model.generate):
            with pytest.raises(NotImplementedError, match="new images on a cache that is not empty"):
                call(**again, **{name_of(model): cache})


@pytest.mark.parametrize("other", ["fastv", "topk", "stride"])
@torch.no_grad()
def test_a_cache_of_another_reduction_is_refused(model, other):
    with ficoco_ext.attach(model, "divprune", **QUARTER):
        cache = prefill(model, batch(ROW))
    with (
        ficoco_ext.attach(model, other, **QUARTER),
        pytest.raises(ValueError, match="must be a cache of this reduction, got one of another"),
    ):
        model(input_ids=NEW[:1], **{name_of(model): cache})


@torch.no_grad()
def test_a_cache_cropped_into_the_prompt_is_refused(model):
    with ficoco_ext.attach(model, "divprune", **QUARTER):
        cache = prefill(model, batch(ROW))
        cache.crop(-3)
        with pytest.raises(ValueError, match="crop no more than the generated tokens"):
            model(input_ids=NEW[:1], **{name_of(model): cache})


@torch.no_grad()
def test_a_call_that_failed_before_the_inner_model_leaves_nothing(model):
    """The next prompt, of text alone, is counted from 0."""

    def fail(*_):
        raise ZeroDivisionError

    text = {name: value for name, value in batch(words(1, 2, 3)).items() if name != "pixel_values"}
    wanted = model(input_ids=NEW[:1], **{name_of(model): prefill(model, text)}).logits
    with ficoco_ext.attach(model, "divprune", **QUARTER) as handle:
        hook = model.register_forward_pre_hook(fail)
        with pytest.raises(ZeroDivisionError):
            model(**batch(ROW))
        hook.remove()
        cache = prefill(model, text)
        assert torch.equal(model(input_ids=NEW[:1], **{name_of(model): cache}).logits, wanted)
        assert not handle._features.prepared


@torch.no_grad()
def test_a_tuple_of_outputs_has_its_cache_too(model):
    with ficoco_ext.attach(model, "divprune", **QUARTER):
        wanted = model(input_ids=NEW[:1], **{name_of(model): prefill(model, batch(ROW))}).logits
        made = output_cache(model(**batch(ROW), use_cache=True, return_dict=False))
        assert torch.equal(model(input_ids=NEW[:1], **{name_of(model): made}).logits, wanted)


@torch.no_grad()
def test_positions_of_the_caller_are_counted_without_padding(model):
    """Contiguous: padding of the prompt that goes is not counted as removed."""
    inputs = batch(*TWO, seed=9)
    places = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with ficoco_ext.attach(model, "divprune", positions="contiguous", **QUARTER):
        plain, given = model(**inputs), model(**inputs, position_ids=places)
        assert close(plain.logits, given.logits, 1e-5)


def test_labels_of_the_last_tokens_and_of_another_length(model):
    inputs = batch(ROW)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
    with torch.no_grad(), ficoco_ext.attach(model, "divprune", **QUARTER):
        last = model(**inputs, labels=labels[:, -3:], logits_to_keep=3).loss
        whole = model(**inputs, labels=labels.index_fill(1, torch.arange(len(ROW) - 2), -100)).loss
        assert torch.allclose(last, whole) and last.isfinite()  # the first of the three has no logits before it
        for wrong in (torch.cat([labels, labels[:, :4]], 1), labels[:, 4:]):
            with pytest.raises(ValueError, match=f"labels must be one entry for each of the {len(ROW)} tokens"):
                model(**inputs, labels=wrong)
        with pytest.raises(ValueError, match=f"position_ids must be one entry for each of the {len(ROW)} tokens"):
            model(**inputs, position_ids=torch.arange(len(ROW) + 5)[None])


def test_another_layer_of_the_tower_is_refused_where_it_matters(model):
    inputs = batch(ROW)
    with (
        torch.no_grad(),
        ficoco_ext.attach(model, "topk", positions="original", **QUARTER),
        pytest.raises(ValueError, match=r"vision_feature_layer must be .* its value at attach"),
    ):
        model(**inputs, vision_feature_layer=-5)


@torch.no_grad()
def test_a_mask_that_hides_a_part_of_a_picture(model):
    """With a tower method a token that is left stands for several patches."""
    inputs = batch(ROW)
    inputs["attention_mask"][0, 10:20] = 0
    with (
        ficoco_ext.attach(model, "topk", positions="original", **QUARTER),
        pytest.raises(ValueError, match="a mask that hides a part of an image in row 0"),
    ):
        model(**inputs)
