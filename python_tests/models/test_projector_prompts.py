"""Prompts that are cut after the projector: embeddings, positions and masks of the caller, caches, conversations."""

from __future__ import annotations

import inspect

import pytest
import torch
from helpers.decoder import watch
from helpers.models import GREEDY, IMAGE, PAD, batch, close, image, one_thread, pixels, tiny_llava, words  # noqa: F401
from helpers.tiny_families import BY_NAME, shared_model, untouched_model
from helpers.tiny_oracle import cut, kept_of, worst
from helpers.tiny_prompts import one_picture, prompt

import ficoco_ext
from ficoco_ext.models.cut_prompt import after_all
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


def test_padding_that_is_added_to_embeddings(model, handle):
    embeddings = model.get_input_embeddings()(TWO["input_ids"])
    given = {name: value for name, value in TWO.items() if name != "input_ids"} | {"inputs_embeds": embeddings}
    seen, _ = watch(model, lambda: model(**given))
    assert torch.equal(seen.embeds[1, :-11], model.get_input_embeddings().weight[PAD].expand(13, -1))


def test_padding_is_no_placeholder_whatever_its_id():
    """Here 0 is the placeholder, and what padding is filled with elsewhere."""
    model = tiny_llava(seed=7)
    model.config.image_token_id = 0
    ids = TWO["input_ids"].masked_fill(TWO["attention_mask"] == 0, 5).masked_fill(TWO["input_ids"] == IMAGE, 0)
    with ficoco_ext.attach(model, "divprune", keep_ratio=0.25):
        seen, out = watch(model, lambda: model(**TWO | {"input_ids": ids}))
    assert out.logits.shape[1] == 24
    assert torch.equal(seen.embeds[1, :-11], model.get_input_embeddings().weight[1].expand(13, -1))


def test_the_model_inside_takes_the_same_prompt(model, handle):
    hidden = model.model(**TWO).last_hidden_state
    assert torch.equal(model.lm_head(hidden), model(**TWO).logits)


def test_padding_that_is_added_is_masked(model, handle):
    """The shorter row is as it is alone, and none of its padding is a placeholder."""
    seen, out = watch(model, lambda: model(**TWO))
    alone = model(**batch([*words(1), *image(), *words(5)], images=1) | {"pixel_values": TWO["pixel_values"][2:]})
    assert close(out.logits[1, -11:], alone.logits[0])
    if original(handle):
        assert seen.positions[1, -11] == 0 and seen.positions[1, -1] == 37  # padding is at no position
    assert seen.mask[1].tolist() == [0] * (seen.mask.shape[1] - 11) + [1] * 11
    assert seen.embeds.shape[1] == out.logits.shape[1] == 24  # the first row; padding that it has not is dropped
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
        (ValueError, TypeError), match=r"attention_mask must be None or \(1, 41\), as the processor made"
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
    assert cache.get_seq_length() == 0
    seen, out = watch(model, lambda: model(**text, **given))
    assert close(out.logits, wanted) and (seen.positions is None or seen.positions.tolist() == [[0, 1, 2]])
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


def test_one_kind_loses_nothing():
    """A picture of 16 tokens and a video of 6 of which 6 stay each."""
    family = BY_NAME["qwen2-vl"]
    full = prompt(family, [[*words(3), family.pictures[2], *words(2), family.videos[1], *words(4)]])
    with ficoco_ext.attach(shared_model("qwen2-vl"), "divprune", tokens=6) as handle:
        got = shared_model("qwen2-vl")(**full.inputs).logits
        assert [(one.before, len(one.kept)) for one in handle.projections] == [(16, 6), (6, 6)]
        hand = cut(untouched_model("qwen2-vl"), full, kept_of(full, handle.projections))
    assert got.shape[1] == full.ids.shape[1] - 10
    assert worst(hand, hand.logits(untouched_model("qwen2-vl")), got) < 2e-5


def test_an_emptied_cache_is_not_that_of_a_longer_prompt():
    """A prompt that loses nothing, on the cache of one that lost 10 tokens."""
    family, model = BY_NAME["qwen2-vl"], shared_model("qwen2-vl")
    long, short = (one_picture(family, family.pictures[index]).inputs for index in (2, 3))
    name, new = cache_name(type(model).forward), torch.tensor([words(7)])
    with ficoco_ext.attach(model, "divprune", tokens=6):
        wanted = model(input_ids=new, **{name: output_cache(model(**short, use_cache=True))}).logits
        cache = output_cache(model(**long, use_cache=True))
        cache.crop(-cache.get_seq_length())
        model(**short, **{name: cache})
        assert close(model(input_ids=new, **{name: cache}).logits, wanted)


def test_positions_of_a_family_that_counts_from_one():
    """Also in generate, which itself adds one to the positions that it is given."""
    model, inputs = shared_model("paligemma"), one_picture(BY_NAME["paligemma"]).inputs
    plain, _ = watch(model, lambda: model(**inputs))
    with ficoco_ext.attach(model, "divprune", keep_ratio=0.5):
        for call in (model, model.generate):
            options = GREEDY if call is not model else {}
            seen, _ = watch(model, lambda call=call, options=options: call(**inputs, **options))
            assert seen.positions[0, -1] == plain.positions[0, -1] == inputs["input_ids"].shape[1]
            assert seen.positions.shape[1] == plain.positions.shape[1] - 8


def test_what_a_model_remembers_of_its_last_prompt():
    """The next position, as a difference to the length that was cached."""
    model, inputs = shared_model("qwen2-vl"), one_picture(BY_NAME["qwen2-vl"]).inputs
    length = model(**inputs).logits.shape[1]
    wanted = length + model.model.rope_deltas
    with ficoco_ext.attach(model, "divprune", keep_ratio=0.5):
        left = model(**inputs).logits.shape[1]
        assert left == length - 4 and torch.equal(left + model.model.rope_deltas, wanted)


def test_the_next_position_is_after_all_axes():
    assert after_all(torch.tensor([[0, 1, 5], [2, 0, 0]])).tolist() == [[6], [3]]
    axes = torch.tensor([[[0, 0, 0]], [[0, 1, 4]], [[0, 2, 2]]])
    assert after_all(axes).tolist() == [[[5]]] * 3
    assert after_all(torch.cat([torch.tensor([[[0, 1, 7]]]), axes])).tolist() == [
        [[8]],
        *[[[5]]] * 3,
    ]


ENDS = {
    "projector": {"method": "divprune", "keep_ratio": 0.25},
    "tower, original positions": {"method": "topk", "keep_ratio": 0.25, "positions": "original"},
    "tower and projector": {"method": "topk+divprune", "keep_ratio": 0.25},
    "projector and language model": {"method": "divprune+fastv", "keep_ratio": 0.25},
    "three parts": {"method": "topk+divprune+fastv", "keep_ratio": 0.25},
}


@pytest.mark.parametrize("options", ENDS.values(), ids=ENDS)
def test_a_prompt_that_ends_with_a_picture(model, options):
    """The answer is read from its last token, or where the tower dropped that, from the last one that is left."""
    put_back = options["method"] in ("divprune", "divprune+fastv")
    takes_encoded = "mm_encoder_outputs" in inspect.signature(type(model).forward).parameters
    found, full = set(), [model.get_image_features(pixels(1, seed), return_dict=True) for seed in range(8)]
    with ficoco_ext.attach(model, **options) as handle:
        for seed in range(8):
            inputs = batch([*words(1, 2), *image()], seed=seed)
            seen, out = watch(model, lambda inputs=inputs: model(**inputs))
            (one,) = handle.projections
            assert seen.embeds.shape[1] == 2 + len(one.kept) and seen.positions[0, -1] == one.kept[-1] + 2
            found.add(int(one.kept[-1]))
            text = {name: value for name, value in inputs.items() if name != "pixel_values"}
            encoded = model.get_image_features(inputs["pixel_values"], return_dict=True)
            if takes_encoded:
                model(**text, mm_encoder_outputs={"image": encoded})
            if takes_encoded and put_back:
                assert torch.equal(model(**text, mm_encoder_outputs={"image": full[seed]}).logits, out.logits)
    assert (found == {35}) == put_back


def test_placeholders_that_are_not_as_many_as_features(model, handle):
    for row in (ROW[:-4], [*ROW, IMAGE]):
        with pytest.raises(ValueError, match=r"input_ids must be 36 placeholders \(id 3\), one for each image feature"):
            model(**batch(row) | {"pixel_values": pixels(1)})
