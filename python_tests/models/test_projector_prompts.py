"""Prompts that are cut after the projector: embeddings, positions and masks of the caller, caches, conversations."""

from __future__ import annotations

import pytest
import torch
from helpers.decoder import watch
from helpers.models import GREEDY, IMAGE, PAD, batch, close, image, one_thread, pixels, tiny_llava, words  # noqa: F401

import ficoco_ext
from ficoco_ext.models.generate_options import images_of
from ficoco_ext.models.transformers_api import cache_name, output_cache

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("no_gradients")

ROW = [*words(1, 2), *image(), *words(3, 4, 5)]
TWO = batch([*words(1, 2, 3, 4), *image(), *words(3), *image(), *words(9)], [*words(1), *image(), *words(5)], seed=9)
DETAILS = GREEDY | {"return_dict_in_generate": True, "output_logits": True, "suppress_tokens": [IMAGE]}


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model():
    return tiny_llava(seed=7)


@pytest.fixture(params=["original", "contiguous"])
def handle(request, model):
    with ficoco_ext.attach(model, "divprune", keep_ratio=0.25, positions=request.param) as made:
        yield made


def original(handle):
    return handle.attach_plan.positions == "original"


def columns(handle, row=ROW):
    """Those of a row with one image that stay."""
    ids, (one,) = torch.tensor(row), handle.projections
    stays = ids != IMAGE
    stays[(ids == IMAGE).nonzero().flatten()[one.kept]] = True
    return stays.nonzero().flatten()


def test_images_of_every_name():
    for name in ("pixel_values", "pixel_values_images", "pixel_values_videos"):
        assert images_of({name: torch.zeros(2, 3)}) == 2
    assert images_of({"pixel_values": None}) == images_of({}) == 0


@pytest.mark.parametrize("inputs", [batch(ROW), TWO], ids=["one row", "two"])
def test_embeddings_equal_ids(model, handle, inputs):
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    given = {name: value for name, value in inputs.items() if name != "input_ids"} | {"inputs_embeds": embeddings}
    assert torch.equal(model(**given).logits, model(**inputs).logits)
    wanted = model.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :]
    assert torch.equal(model.generate(**given, **GREEDY), wanted)


def test_the_model_inside_takes_the_same_prompt(model, handle):
    hidden = model.model(**TWO).last_hidden_state
    assert torch.equal(model.lm_head(hidden), model(**TWO).logits)


def test_padding_that_is_added_is_masked(model, handle):
    """The shorter row is as it is alone, and none of its padding is a placeholder."""
    seen, out = watch(model, lambda: model(**TWO))
    alone = model(**batch([*words(1), *image(), *words(5)], images=1) | {"pixel_values": TWO["pixel_values"][2:]})
    assert close(out.logits[1, -11:], alone.logits[0])
    assert seen.mask[1].tolist() == [0] * (seen.mask.shape[1] - 11) + [1] * 11
    filler = model.get_input_embeddings().weight[PAD]
    assert torch.equal(seen.embeds[1, :-11], filler.expand(seen.embeds.shape[1] - 11, -1))


def test_positions_that_reach_the_language_model(model, handle):
    seen, _ = watch(model, lambda: model(**batch(ROW)))
    left = columns(handle)
    if original(handle):
        assert seen.positions.tolist() == [left.tolist()]
    else:
        assert seen.positions is None or seen.positions.tolist() == [list(range(len(left)))]


def test_positions_of_the_callers_own(model, handle):
    """Original ones are taken as they are; contiguous ones close the gap that each token leaves."""
    mine = torch.arange(len(ROW)) * 2
    seen, _ = watch(model, lambda: model(**batch(ROW), position_ids=mine[None]))
    left = columns(handle)
    gone = torch.tensor([int((left < column).sum()) for column in left])
    wanted = mine[left] if original(handle) else mine[left] - (left - gone)
    assert seen.positions.tolist() == [wanted.tolist()]


def test_original_positions_come_with_a_mask(model, handle):
    """Without one, positions that jump would mean several sequences in one row."""
    inputs = batch(ROW)
    inputs.pop("attention_mask")
    seen, out = watch(model, lambda: model(**inputs))
    assert (seen.mask is not None) == original(handle)
    assert close(out.logits, model(**batch(ROW)).logits)


def test_logits_of_chosen_columns(model, handle):
    whole = model(**batch(ROW)).logits
    left = columns(handle).tolist()
    chosen = [0, left[4], len(ROW) - 1]
    got = model(**batch(ROW), logits_to_keep=torch.tensor(chosen)).logits
    assert close(got, whole[:, [left.index(one) for one in chosen]])
    assert close(model(**batch(ROW), logits_to_keep=2).logits, whole[:, -2:])


def test_labels_are_those_of_what_is_left(model, handle):
    inputs = TWO
    labels = inputs["input_ids"].masked_fill((inputs["input_ids"] == IMAGE) | (inputs["attention_mask"] == 0), -100)
    loss, logits = (getattr(model(**inputs, labels=labels), name) for name in ("loss", "logits"))
    first, second = [*words(1, 2, 3, 4), *[-100] * 9, *words(3), *[-100] * 9, *words(9)], [*words(1), *[-100] * 9]
    second = [-100] * 13 + [*second, *words(5)]
    second[13] = -100  # a first token follows none
    wanted = torch.tensor([first, second])[:, 1:]
    assert close(loss, torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), wanted.flatten()))


def test_masks_of_other_kinds_are_refused(model, handle):
    inputs = batch(ROW)
    wide = torch.ones(1, 1, len(ROW), len(ROW))
    with pytest.raises(
        (ValueError, TypeError), match=r"attention_mask must be None or \(B, L\), as the processor made"
    ):
        model(**inputs | {"attention_mask": wide})


def conversation(model, handle, **details):
    """A first answer, its cache by the name of the argument, and the ids that go on."""
    inputs = batch(ROW)
    first = model.generate(**inputs, **DETAILS)
    asked = torch.cat([first.sequences, torch.tensor([words(7, 8)])], 1)
    return first, {cache_name(type(model).forward): output_cache(first)}, asked


def test_a_conversation_by_new_ids_alone(model, handle):
    """With a mask over cached and new tokens, as with the whole conversation."""
    _, cache, asked = conversation(model, handle)
    wanted = model.generate(input_ids=asked, **cache, **DETAILS)
    _, cache, _ = conversation(model, handle)
    past = next(iter(cache.values())).get_seq_length()
    new = asked[:, -3:]  # the last answered token is not in the cache yet
    mask = torch.ones(1, past + 3, dtype=torch.long)
    got = model.generate(input_ids=new, attention_mask=mask, **cache, **DETAILS)
    assert torch.equal(got.sequences[:, 3:], wanted.sequences[:, asked.shape[1] :])
    assert all(map(close, got.logits, wanted.logits))


def test_a_conversation_is_counted_on_from_the_whole_prompt(model, handle):
    """What a call on its own cache says is what one call of all of it says."""
    _, cache, asked = conversation(model, handle)
    got = model.generate(input_ids=asked, **cache, **DETAILS)
    new = got.sequences[:, len(ROW) : -1]
    whole = batch([*ROW, *new[0].tolist()], images=1)
    wanted = model(**whole).logits[0, -3:]
    assert close(torch.cat(got.logits), wanted)


def test_a_conversation_that_begins_otherwise_is_refused(model, handle):
    _, cache, asked = conversation(model, handle)
    message = r"input_ids must be a conversation that begins with the 41 tokens of the prompt in the cache"
    with pytest.raises(ValueError, match=message):
        model.generate(input_ids=asked[:, :20], **cache, **GREEDY)


def test_a_cache_that_was_emptied_is_for_another_prompt(model, handle):
    text = batch(words(4, 5, 6))
    wanted = model(**text).logits
    cache = output_cache(model(**batch(ROW), use_cache=True))
    cache.crop(-cache.get_seq_length())
    given = {cache_name(type(model).forward): cache}
    assert cache.get_seq_length() == 0 and close(model(**text, **given).logits, wanted)
    step = model(input_ids=torch.tensor([words(7)]), **given).logits  # and stays so
    assert close(step[:, -1], model(**batch(words(4, 5, 6, 7))).logits[:, -1])


def test_an_emptied_cache_takes_new_images(model, handle):
    wanted = model(**batch(ROW, seed=4)).logits
    cache = output_cache(model(**batch(ROW), use_cache=True))
    cache.crop(-cache.get_seq_length())
    given = {cache_name(type(model).forward): cache}
    assert torch.equal(model(**batch(ROW, seed=4), **given).logits, wanted)


def test_steps_after_a_prompt_continue_its_positions(model, handle):
    """Also where the caller says them, which then count."""
    cache = output_cache(model(**batch(ROW), use_cache=True))
    name, length = cache_name(type(model).forward), len(columns(handle))
    following = len(ROW) if original(handle) else length
    new = torch.tensor([words(7, 8)])
    seen, out = watch(model, lambda: model(input_ids=new, **{name: cache}))
    if original(handle):
        assert seen.positions.tolist() == [[following, following + 1]]
    whole = batch([*ROW, *words(7, 8)], images=1)
    assert close(out.logits[:, -2:], model(**whole).logits[:, -2:])
    own = torch.tensor([[following + 5]])
    seen, _ = watch(model, lambda: model(input_ids=new[:, :1], position_ids=own, **{name: cache}))
    assert seen.positions.tolist() == own.tolist()


def test_placeholders_that_are_not_as_many_as_features(model, handle):
    for row in (ROW[:-4], [*ROW, IMAGE]):
        with pytest.raises(ValueError, match=r"input_ids must be 36 placeholders \(id 3\), one for each image feature"):
            model(**batch(row) | {"pixel_values": pixels(1)})
