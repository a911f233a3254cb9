"""LLaVA with a reduced tower: generate and direct calls, against a language model fed by hand."""

import inspect

import pytest
import torch
from helpers.families import tiny_siglip
from helpers.models import (
    IMAGE,
    PATCHES,
    batch,
    close,
    image,
    one_image,
    one_thread,  # noqa: F401
    pixels,
    spliced,
    tiny_llava,
    words,
)

import ficoco_ext

pytest.importorskip("transformers")

KEPT = 9
ONE = [*words(1, 2), *image(), *words(3, 4, 5)]
TWO = [*words(6), *image(), *words(7), *image(), *words(8, 9)]
TEXT = words(11, 12, 13, 14)
GREEDY = {"max_new_tokens": 5, "do_sample": False}
DETAILS = {"return_dict_in_generate": True, "output_logits": True}


@pytest.fixture(scope="module", params=["sdpa", "eager", "SigLIP"])
def model(request):
    return tiny_siglip(seed=4) if request.param == "SigLIP" else tiny_llava(seed=3, attention=request.param)


@pytest.fixture
def handle(model):
    with torch.no_grad(), ficoco_ext.attach(model, tokens=KEPT) as handle:
        yield handle


def without(model, handle, function):
    """Run ``function`` on the plain model."""
    handle.detach()
    return function(model)


def embedded(model, inputs):
    """Each row of a batch as embeddings of the right length, the attached tower's features in place."""
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
    features = list(model.get_image_features(inputs["pixel_values"]).pooler_output)
    out = []
    for row in rows:
        count = row.count(IMAGE) // PATCHES
        out.append(spliced(model, row, features[:count]))
        features = features[count:]
    return out


def test_direct_call_reads_the_reduced_image(model, handle):
    inputs = batch(TWO)
    out, (row,) = model(**inputs), embedded(model, inputs)
    assert out.logits.shape[1] == len(TWO) - 2 * (PATCHES - KEPT) == row.shape[1]
    assert close(out.logits, without(model, handle, lambda plain: plain(inputs_embeds=row).logits))


def test_generate_reads_the_reduced_image_and_returns_the_prompt(model, handle):
    inputs = batch(TWO)
    out, (row,) = model.generate(**inputs, **GREEDY, **DETAILS), embedded(model, inputs)
    assert torch.equal(out.sequences[:, : len(TWO)], inputs["input_ids"])
    assert torch.equal(model.generate(**inputs, **GREEDY), out.sequences)
    assert out.past_key_values.get_seq_length() == row.shape[1] + 4
    plain = without(model, handle, lambda plain: plain.generate(inputs_embeds=row, **GREEDY, **DETAILS))
    assert torch.equal(out.sequences[:, len(TWO) :], plain.sequences)
    assert all(map(close, out.logits, plain.logits))


ROWS = [
    (ONE, TWO),
    (TWO, ONE, TEXT),
    (TEXT, ONE),
    (ONE, ONE),
    ([*words(1), *TWO], [*words(2, 3), *TWO]),
    (TWO, [*words(*range(PATCHES + 1)), *ONE]),
]


@pytest.mark.parametrize("rows", ROWS)
def test_a_row_alone_equals_the_row_in_a_batch(model, handle, rows):
    inputs = batch(*rows)
    direct = model(**inputs).logits[:, -1]
    out = model.generate(**inputs, **GREEDY, **DETAILS)
    assert torch.equal(out.sequences[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    first, shortened = 0, []
    for b, row in enumerate(rows):
        count = row.count(IMAGE) // PATCHES
        alone = batch(row, images=0)
        if count:
            alone["pixel_values"] = inputs["pixel_values"][first : first + count]
        first += count
        shortened.append(len(row) - count * (PATCHES - KEPT))
        assert close(direct[b], model(**alone).logits[0, -1])
        one = model.generate(**alone, **GREEDY, **DETAILS)
        assert torch.equal(out.sequences[b, -5:], one.sequences[0, -5:])
        assert all(close(many[b], single[0]) for many, single in zip(out.logits, one.logits, strict=True))
    assert out.past_key_values.get_seq_length() == max(shortened) + 4  # padding shrinks as far as the rows allow


def encodes_first(model):
    """Whether this release of transformers encodes images before prefill (some release after 5.17)."""
    return "mm_encoder_outputs" in inspect.signature(type(model).forward).parameters


def seen_masks(model, call):
    """The attention masks that reach the language model."""
    seen = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("attention_mask")), with_kwargs=True
    )
    call()
    hook.remove()
    return seen


def test_no_mask_stays_no_mask_where_rows_agree(model, handle):
    inputs = batch(ONE, ONE)
    del inputs["attention_mask"]
    assert seen_masks(model, lambda: model(**inputs)) == [None]
    mask = seen_masks(model, lambda: model.generate(**inputs, **GREEDY))[0]
    assert mask is None or (mask.all() and not encodes_first(model))  # older releases never drop a mask of ones


def test_no_mask_becomes_a_mask_where_rows_differ(model, handle):
    """Equal lengths, one image against two: only reduction makes padding necessary."""
    long = [*words(*range(PATCHES)), *ONE]
    two = [*TWO[:1], *image(), *words(7), *image(), *words(8, 9, 10)]
    assert len(long) == len(two)
    inputs = batch(long, two)
    masked, out = model(**inputs).logits[:, -1], model.generate(**inputs, **GREEDY)
    del inputs["attention_mask"]
    (mask,) = seen_masks(model, lambda: model(**inputs))
    assert mask.sum(1).tolist() == [len(long) - (PATCHES - KEPT), len(two) - 2 * (PATCHES - KEPT)]
    assert close(model(**inputs).logits[:, -1], masked)
    assert torch.equal(model.generate(**inputs, **GREEDY), out)


def test_padding_without_a_mask_is_inferred_as_generate_does(model, handle):
    inputs = batch(TWO, ONE, TEXT)
    out = model.generate(**inputs, **GREEDY)
    del inputs["attention_mask"]
    assert torch.equal(model.generate(**inputs, **GREEDY), out)


def test_text_alone_is_untouched(model, handle):
    inputs = batch(TEXT, TEXT[:2])
    attached = model(**inputs).logits, model.generate(**inputs, **GREEDY)
    plain = without(model, handle, lambda plain: (plain(**inputs).logits, plain.generate(**inputs, **GREEDY)))
    assert all(map(torch.equal, attached, plain)) and handle.reductions == ()


def test_max_and_min_length_count_the_callers_prompt(model, handle):
    from transformers import GenerationConfig

    inputs = one_image()
    prompt = inputs["input_ids"].shape[1]
    out = model.generate(**inputs, max_length=prompt + 7, do_sample=False)
    assert out.shape[1] == prompt + 7
    assert torch.equal(out[:, : prompt + 5], model.generate(**inputs, **GREEDY))
    config = GenerationConfig(max_length=prompt + 7, do_sample=False, pad_token_id=0)
    assert torch.equal(model.generate(**inputs, generation_config=config), out) and config.max_length == prompt + 7
    stop = int(out[0, prompt + 1])
    assert model.generate(**inputs, max_new_tokens=9, do_sample=False, eos_token_id=stop).shape[1] <= prompt + 2
    longer = model.generate(**inputs, max_length=prompt + 9, min_length=prompt + 6, do_sample=False, eos_token_id=stop)
    assert longer.shape[1] >= prompt + 6
    model.generation_config.max_length = prompt + 4
    try:
        assert model.generate(**inputs, do_sample=False).shape[1] == prompt + 4
    finally:
        model.generation_config.max_length = None
    assert model.generate(**inputs, do_sample=False).shape[1] == prompt + 20  # the default of generate


@pytest.mark.parametrize("rows", [(ONE, [*words(9), *ONE]), (TWO, ONE)])
@pytest.mark.parametrize("beams", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
def test_beams_equal_those_of_the_language_model(model, handle, beams, rows):
    if rows[0] is TWO and not encodes_first(model):
        pytest.skip("this release of transformers mixes up the images of a row when it repeats them for beams")
    inputs = batch(*rows)
    options = {**GREEDY, **beams, "return_dict_in_generate": True, "output_scores": True}
    out, rows = model.generate(**inputs, **options), embedded(model, inputs)
    n = beams.get("num_return_sequences", 1)
    prompt = inputs["input_ids"].repeat_interleave(n, 0)
    assert torch.equal(out.sequences[:, : prompt.shape[1]], prompt)
    handle.detach()
    for b, row in enumerate(rows):
        plain = model.generate(inputs_embeds=row, **options)
        assert torch.equal(out.sequences[b * n : (b + 1) * n, -5:], plain.sequences)
        assert close(out.sequences_scores[b * n : (b + 1) * n], plain.sequences_scores)


def test_several_samples_for_a_prompt(model, handle):
    inputs = batch(TWO, ONE)
    torch.manual_seed(0)
    out = model.generate(**inputs, max_new_tokens=4, do_sample=True, num_return_sequences=3)
    assert torch.equal(out[:, : len(TWO)], inputs["input_ids"].repeat_interleave(3, 0)) and out.shape == (
        6,
        len(TWO) + 4,
    )


def turn(inputs, sequences, *more):
    """The next turn of a conversation: what generate returned, and more ids for each row."""
    ids = torch.cat([sequences, torch.tensor(more)], dim=1)
    new = ids.shape[1] - inputs["attention_mask"].shape[1]
    mask = torch.cat([inputs["attention_mask"], ids.new_ones(ids.shape[0], new)], dim=1)
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("rows", [(ONE,), (TWO, ONE, TEXT), (TEXT, ONE), (ONE, ONE)])
@pytest.mark.parametrize("new_image", [False, True])
def test_a_conversation_goes_on_from_a_returned_cache(model, handle, rows, new_image):
    inputs = batch(*rows)
    first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
    more = [image() + words(20 + b, 21, 22) if new_image else words(20 + b, 21, 22) for b in range(len(rows))]
    again = turn(inputs, first.sequences, *more)
    pictures = pixels(len(rows), seed=9)
    cached = {**again, "pixel_values": pictures} if new_image else again
    second = model.generate(**cached, past_key_values=first.past_key_values, **GREEDY, **DETAILS)
    assert torch.equal(second.sequences[:, :-5], again["input_ids"])

    old, parts = list(inputs["pixel_values"]), []  # afresh: pictures of a row follow each other
    for b, row in enumerate(rows):
        count = row.count(IMAGE) // PATCHES
        parts += old[:count] + ([pictures[b]] if new_image else [])
        old = old[count:]
    fresh = model.generate(**again, pixel_values=torch.stack(parts), **GREEDY, **DETAILS)
    assert torch.equal(second.sequences, fresh.sequences)
    assert all(map(close, second.logits, fresh.logits))


def test_a_conversation_goes_on_with_an_image_in_one_row_only(model, handle):
    inputs = batch(TWO, ONE)
    first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
    again = turn(inputs, first.sequences, image() + words(1, 2), words(*range(PATCHES + 2)))
    picture = pixels(1, seed=9)
    cached = {**again, "pixel_values": picture, "past_key_values": first.past_key_values}
    second = model.generate(**cached, **GREEDY, **DETAILS)
    old = inputs["pixel_values"]
    fresh = model.generate(**again, pixel_values=torch.cat([old[:2], picture, old[2:]]), **GREEDY, **DETAILS)
    assert torch.equal(second.sequences, fresh.sequences)
    assert all(map(close, second.logits, fresh.logits))


def test_a_conversation_goes_on_with_the_new_ids_alone(model, handle):
    inputs = batch(ONE)
    first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
    cache = first.past_key_values
    whole = turn(inputs, first.sequences, words(20, 21))
    fresh = model.generate(**whole, pixel_values=inputs["pixel_values"], **GREEDY)
    new = whole["input_ids"][:, -3:]  # the last generated token is not in the cache yet
    mask = torch.ones(1, cache.get_seq_length() + 3, dtype=torch.long)
    out = model.generate(input_ids=new, attention_mask=mask, past_key_values=cache, **GREEDY)
    assert torch.equal(out[:, -5:], fresh[:, -5:]) and torch.equal(out[:, :3], new)


def test_direct_calls_on_a_cache(model, handle):
    """A loop of one's own: prefill, then another image as new ids after a cache."""
    inputs = batch(ONE)
    whole = batch([*ONE, *image(), *words(5)])
    one, two = whole["pixel_values"][:1], whole["pixel_values"][1:]
    cache = model(**{**inputs, "pixel_values": one}, use_cache=True).past_key_values
    new = torch.tensor([[*image(), *words(5)]])
    for mask in (None, torch.ones(1, cache.get_seq_length() + new.shape[1], dtype=torch.long)):
        cache = model(**{**inputs, "pixel_values": one}, use_cache=True).past_key_values
        out = model(input_ids=new, attention_mask=mask, pixel_values=two, past_key_values=cache).logits
        assert close(out[:, -1], model(**whole).logits[:, -1])


def test_direct_calls_on_a_cache_whose_rows_come_to_differ(model, handle):
    start = batch(TEXT, TEXT)
    cache = model(**start, use_cache=True).past_key_values
    new = torch.tensor([[*image(), *words(5)], words(*range(PATCHES + 1))])
    picture = pixels(1)
    with pytest.raises(ValueError, match=r"forward: position_ids must be"):
        model(input_ids=new, pixel_values=picture, past_key_values=cache)
    assert cache.get_seq_length() == 4
    positions = torch.arange(4, 4 + new.shape[1])[None]
    out = model(input_ids=new, pixel_values=picture, past_key_values=cache, position_ids=positions).logits[:, -1]
    ids = torch.cat([start["input_ids"], new], dim=1)
    assert close(out[0], model(input_ids=ids[:1], pixel_values=picture).logits[0, -1])
    assert close(out[1], model(input_ids=ids[1:]).logits[0, -1])


def test_static_cache_equals_dynamic_cache(model, handle):
    inputs = batch(TWO, ONE)
    static = model.generate(**inputs, **GREEDY, cache_implementation="static", disable_compile=True)
    assert torch.equal(static, model.generate(**inputs, **GREEDY))


def test_prompt_lookup_equals_greedy(model, handle):
    inputs = batch(ONE)
    options = {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(
        model.generate(**inputs, **options, prompt_lookup_num_tokens=3), model.generate(**inputs, **options)
    )


def test_labels_shrink_with_the_prompt(model, handle):
    inputs = batch(TWO, ONE)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] <= IMAGE, -100)
    labels = labels.masked_fill(inputs["attention_mask"].cumsum(1) <= 1, -100)  # nothing comes before the first
    rows = embedded(model, inputs)
    out = model(**inputs, labels=labels)
    handle.detach()
    total, count = 0.0, 0
    for b, row in enumerate(rows):
        kept = labels[b, inputs["attention_mask"][b].bool()].tolist()
        answers, at = [], 0
        while at < len(kept):  # an image's labels are all ignored: KEPT of them stay
            is_image = inputs["input_ids"][b, inputs["attention_mask"][b].bool()][at] == IMAGE
            answers += [-100] * KEPT if is_image else [kept[at]]
            at += PATCHES if is_image else 1
        logits = model(inputs_embeds=row).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(logits, torch.tensor(answers[1:]), reduction="sum")
        count += sum(answer != -100 for answer in answers[1:])
    assert close(out.loss, total / count)


def test_arguments_by_position_and_position_ids(model, handle):
    inputs = batch(TWO)
    plain = model(**inputs).logits
    assert torch.equal(model(inputs["input_ids"], inputs["pixel_values"], inputs["attention_mask"]).logits, plain)
    positions = torch.arange(len(TWO))[None]
    assert torch.equal(model(**inputs, position_ids=positions).logits, plain)
    out = model.generate(**inputs, **GREEDY)
    assert torch.equal(model.generate(**inputs, position_ids=positions, **GREEDY), out)
    assert torch.equal(model.generate(inputs.pop("input_ids"), **inputs, **GREEDY), out)


def test_prompts_that_are_short_already_pass(model, handle):
    """A serving loop may have its own processor write KEPT placeholders for each image."""
    inputs = batch(TWO, ONE)
    short = batch(
        [6 + 10, *image(KEPT), *words(7), *image(KEPT), *words(8, 9)], [*words(1, 2), *image(KEPT), *words(3, 4, 5)]
    )
    short["pixel_values"] = inputs["pixel_values"]
    assert close(model(**short).logits[:, -1], model(**inputs).logits[:, -1])
    assert torch.equal(model.generate(**short, **GREEDY)[:, -5:], model.generate(**inputs, **GREEDY)[:, -5:])


def test_encoded_images_take_the_place_of_pixels(model, handle):
    if not encodes_first(model):
        pytest.skip("this release of transformers has no argument for encoded images")
    inputs = batch(TWO)
    out = model(**inputs).logits, model.generate(**inputs, **GREEDY)
    for index, call in enumerate((lambda **x: model(**x).logits, lambda **x: model.generate(**x, **GREEDY))):
        encoded = {"image": model.get_image_features(inputs["pixel_values"])}
        given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        assert torch.equal(call(**given, mm_encoder_outputs=encoded), out[index])


def test_full_strategy_keeps_the_class_token(model):
    full = tiny_llava(seed=3, strategy="full")
    row = [*words(1, 2), *image(PATCHES + 1), *words(3)]
    inputs = batch(row, images=1)
    with torch.no_grad(), ficoco_ext.attach(full, tokens=KEPT) as handle:
        out = full.generate(**inputs, **GREEDY)
        assert handle.reductions[-1].kept.shape == (1, KEPT + 1)
        (features,) = full.get_image_features(inputs["pixel_values"]).pooler_output
        assert full(**inputs).logits.shape[1] == 3 + KEPT + 1
    assert features.shape[0] == KEPT + 1 and torch.equal(out[:, : len(row)], inputs["input_ids"])


def test_new_ids_alone_with_an_image_in_one_row_only(model, handle):
    """Padding comes between the cached and the new tokens; where those are, generate counts by the mask."""
    inputs = batch(TWO, ONE)
    first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
    cache, past = first.past_key_values, first.past_key_values.get_seq_length()
    again = turn(inputs, first.sequences, image() + words(1, 2), words(*range(PATCHES + 2)))
    new = again["input_ids"][:, -(PATCHES + 3) :]  # the last generated token is not in the cache yet
    real = torch.tensor([[len(TWO) - 2 * (PATCHES - KEPT) + 4], [len(ONE) - (PATCHES - KEPT) + 4]])
    mask = (torch.arange(past + new.shape[1]) >= past - real).long()
    picture, old = pixels(1, seed=9), inputs["pixel_values"]
    given = {"input_ids": new, "attention_mask": mask, "pixel_values": picture, "past_key_values": cache}
    second = model.generate(**given, **GREEDY, **DETAILS)
    fresh = model.generate(**again, pixel_values=torch.cat([old[:2], picture, old[2:]]), **GREEDY, **DETAILS)
    assert torch.equal(second.sequences[:, -5:], fresh.sequences[:, -5:])
    assert all(map(close, second.logits, fresh.logits))
