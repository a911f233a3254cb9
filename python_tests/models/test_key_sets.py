"""MustDrop in LLaVA-1.5: windows merge after the MLP, and the key set goes from the tower to the language model."""

from __future__ import annotations

import math
from inspect import signature

import pytest
import torch
from helpers.decoder import tiny
from helpers.models import (
    IMAGE,
    PAD,
    PATCHES,
    assert_refused,
    batch,
    close,
    features,
    image,
    one_thread,  # noqa: F401
    pixels,
    snapshot,
    tower_by_hand,
    with_unlike_norms,
    without,
    words,
)
from helpers.tiny_families import BY_NAME

import ficoco_ext
from ficoco_ext import get_method
from ficoco_ext.methods import Combined
from ficoco_ext.methods.mustdrop import merge_windows
from ficoco_ext.models.families import LLAVA
from ficoco_ext.models.key_sets import KeySets
from ficoco_ext.models.model_changes import ModelChanges

pytest.importorskip("transformers")

ONE = [*words(1, 2), *image(), *words(3, 4, 5)]
TWO = [*words(6), *image(), *words(7), *image(), *words(8, 9)]
TEXT = words(11, 12, 13, 14)
SHARE, KEYS = 0.08, 3  # of 36 tokens, and of 28
LAYERS, READ = (1, 3), 5  # of the language model; the block of the tower that reads the features
BOTH = {"method": "mustdrop", "vision": {"r": 8}, "decoder": {"keep_ratio": (0.5, KEYS / 28), "layers": LAYERS}}
ALONE = {"method": "mustdrop", "part": "language_model", "keep_ratio": (0.5, KEYS / PATCHES), "layers": LAYERS}
GREEDY = {"max_new_tokens": 3, "do_sample": False}


@pytest.fixture(scope="module")
def model():
    return with_unlike_norms(tiny(seed=5))


def merged(count):
    """What leaves layer 0 with ``count`` windows merged, the class token apart."""

    def after_layer(layer, hidden):
        if layer or not count:
            return hidden
        return torch.cat([hidden[:, :1], merge_windows(hidden[:, 1:], (6, 6), count).tokens], 1)

    return after_layer


def keys_by_hand(model, pictures, windows=0):
    """For each picture the tokens, of those that the tower leaves, that its class token looks at most, ascending."""
    rows = []

    def see(layer, query, key):
        if layer == READ:
            logits = query[:, :, :1].double() @ key.double().mT * query.shape[-1] ** -0.5
            rows.append(logits.softmax(-1).mean(1)[:, 0, 1:])

    with torch.no_grad():
        tower_by_hand(model, pictures, see=see, after_layer=merged(windows), beyond=True)
    [looked] = rows
    count = math.ceil(SHARE * looked.shape[1])
    return [sorted(sorted(range(len(row)), key=lambda i: (-row[i], i))[:count]) for row in looked.tolist()]


def left(reductions, row, kept=None):
    """Which of the visual tokens of a prompt row are left after each reduction, counted from its first picture on."""
    columns = [column for column, id in enumerate(row) if id == IMAGE]
    number = {column: index for index, column in enumerate(columns)}
    return [[number[column] for column in one.kept[0].tolist() if column in number] for one in reductions]


def of_pictures(keys, per_picture):
    """The key sets of the pictures of one row, one after the other."""
    return [number * per_picture + key for number, own in enumerate(keys) for key in own]


def padded(*rows, extra=0):
    """Rows as the language model gets them without a reduction before it: padded on the left."""
    longest = max(map(len, rows)) + extra
    return [[PAD] * (longest - len(row)) + row for row in rows]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("windows", [1, 2, 4])
def test_windows_merge_in_what_leaves_the_first_layer(attention, windows):
    """After its MLP: a mean before the MLP is another token."""
    model = with_unlike_norms(tiny(attention=attention, seed=windows))
    pictures = pixels(2)
    with torch.no_grad():
        wanted = tower_by_hand(model, pictures, after_layer=merged(windows))[:, 1:]
        other = tower_by_hand(model, pictures, after_attention=merged(windows))[:, 1:]
        with ficoco_ext.attach(model, "mustdrop", part="tower", r=8 * windows) as handle:
            found = features(model, pictures)
            assert "layer   0:    36 -" in str(handle.attach_plan)
            assert handle.reductions[0].size.flatten(1).gt(1).sum(1).tolist() == [windows] * 2
    assert close(found, wanted) and not close(found, other, 1e-3)


def test_gradients_and_checkpointing_of_the_merged_windows(model):
    model, pictures = with_unlike_norms(tiny(seed=6)), pixels(1)
    found = []
    for checkpointing in (False, True):
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with ficoco_ext.attach(model, "mustdrop", part="tower", r=16):
            features(model, pictures).square().sum().backward()
        found.append(model.model.vision_tower.embeddings.class_embedding.grad.clone())
        model.zero_grad()
    assert torch.allclose(*found) and bool(found[0].abs().sum() > 0)


@pytest.mark.parametrize("options", [ALONE, BOTH], ids=["language model", "both parts"])
@pytest.mark.parametrize("positions", ["contiguous", "original"])
def test_the_key_set_stays_to_the_end(model, options, positions):
    """T4: it is in every stage's set, and it is all of the last one."""
    rows = [ONE, TWO, TEXT, ONE]
    inputs = batch(*rows)
    tower = options is BOTH
    keys, per_picture = keys_by_hand(model, inputs["pixel_values"], int(tower)), 28 if tower else PATCHES
    assert keys[0] != keys[3] and len(keys[0]) == KEYS
    if not tower and positions == "original":
        return
    with torch.no_grad(), ficoco_ext.attach(model, **options, **({"positions": positions} if tower else {})) as handle:
        model(**inputs)
        reductions = handle.decoder_reductions
    short = [[id for part in _cut(row, per_picture) for id in part] for row in rows]
    wanted = [keys[:1], keys[1:3], [], keys[3:]]
    for row, found, own in zip(padded(*short), reductions, wanted, strict=True):
        stages = left(found, row)
        assert bool(stages) == bool(own)
        if own:
            every = of_pictures(own, per_picture)
            assert stages[-1] == every and set(every) < set(stages[0])


def _cut(row, per_picture):
    """A row with ``per_picture`` placeholders for each picture."""
    seen = 0
    for id in row:
        if id != IMAGE:
            seen = 0
            yield [id]
        else:
            seen += 1
            yield [id] if (seen - 1) % PATCHES < per_picture else []


WAYS = {
    "forward": lambda model, inputs: model(**inputs),
    "generate": lambda model, inputs: model.generate(**inputs, **GREEDY),
    "beams": lambda model, inputs: model.generate(**inputs, **GREEDY, num_beams=3),
    "sequences": lambda model, inputs: model.generate(
        **inputs, max_new_tokens=2, do_sample=True, num_return_sequences=2
    ),
    "static cache": lambda model, inputs: model.generate(
        **inputs, **GREEDY, cache_implementation="static", disable_compile=True
    ),
    "embeddings": lambda model, inputs: model(
        **without(inputs, "input_ids"), inputs_embeds=model.get_input_embeddings()(inputs["input_ids"])
    ),
    "encoded before": lambda model, inputs: model(**encoded(model, inputs)),
    "encoded before, generate": lambda model, inputs: model.generate(**encoded(model, inputs), **GREEDY),
    "encoded before, beams": lambda model, inputs: model.generate(**encoded(model, inputs), **GREEDY, num_beams=2),
    "inner model": lambda model, inputs: model.model(**inputs),
}
TIMES = {"beams": 3, "sequences": 2, "encoded before, beams": 2}


def encoded(model, inputs):
    """Inputs whose pictures the attached model has encoded before."""
    if "mm_encoder_outputs" not in signature(type(model).forward).parameters:
        pytest.skip("this transformers takes no features")
    output = model.get_image_features(inputs["pixel_values"])
    model.get_image_features(pixels(2, seed=9))  # of others: what is on the output counts
    return without(inputs, "pixel_values") | {"mm_encoder_outputs": {"image": output}}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("options", [ALONE, BOTH, BOTH | {"positions": "original"}], ids=["alone", "both", "original"])
def test_every_way_to_call_finds_the_key_set(model, options, way):
    times = TIMES.get(way, 1)
    # Releases that take no features repeat the pixels picture by picture, and so mix those of one row.
    rows = [ONE, TWO] if times == 1 or "mm_encoder_outputs" in signature(type(model).forward).parameters else [ONE, ONE]
    inputs, tower = batch(*rows), "vision" in options
    keys = keys_by_hand(model, inputs["pixel_values"], int(tower))
    per_picture = 28 if tower else PATCHES
    with torch.no_grad(), ficoco_ext.attach(model, **options) as handle:
        WAYS[way](model, inputs)
        reductions = handle.decoder_reductions
    short = padded(*[[id for part in _cut(row, per_picture) for id in part] for row in rows])
    assert len(reductions) == 2 * times
    for number, found in enumerate(reductions):
        own = keys[:1] if number < times else keys[1:]
        assert left(found, short[number // times])[-1] == of_pictures(own, per_picture)


def test_fewer_than_the_key_set_are_those_that_the_text_reads(model):
    inputs = batch(ONE)
    [keys] = keys_by_hand(model, inputs["pixel_values"])
    with torch.no_grad(), ficoco_ext.attach(model, **ALONE | {"keep_ratio": (0.5, 2 / PATCHES)}) as handle:
        model(**inputs)
        [found] = left(handle.decoder_reductions[0], ONE)[-1:]
    assert len(found) == 2 and set(found) < set(keys)


@pytest.mark.parametrize("options", [ALONE, BOTH], ids=["language model", "both parts"])
def test_rows_of_a_batch_give_what_they_give_alone(model, options):
    """T8: padding on the left or right, two pictures, a row of text, the rows in another order."""
    rows = [ONE, TWO, TEXT]
    options = options | ({"keep_ratio": (0.6, 0.3)} if "part" in options else {})
    if "decoder" in options:
        options = options | {"decoder": {"keep_ratio": (0.6, 0.3), "layers": LAYERS}}
    inputs = batch(*rows)
    swapped = {name: inputs[name].flip(0) for name in ("input_ids", "attention_mask")}
    pictures = inputs["pixel_values"]
    right = batch(*rows)
    for number, row in enumerate(rows):
        gap = inputs["input_ids"].shape[1] - len(row)
        for name in ("input_ids", "attention_mask"):
            right[name][number] = inputs[name][number].roll(-gap)
    logits = []
    with torch.no_grad(), ficoco_ext.attach(model, **options):
        alone = []
        for row, own in zip(rows, (pictures[:1], pictures[1:], pictures[:0]), strict=True):
            given = batch(row, images=0) | ({"pixel_values": own} if len(own) else {})
            alone.append(model(**given).logits[0, -1])
        logits.append(model(**inputs).logits[:, -1])
        logits.append(model(**swapped, pixel_values=pictures[[1, 2, 0]]).logits[:, -1].flip(0))
        of_right = model(**right).logits
        ends = [inputs["input_ids"].shape[1] - len(row) for row in rows]
        logits.append(torch.stack([one[-1 - gap] for one, gap in zip(of_right, ends, strict=True)]))
    for found in logits:
        for one, wanted in zip(found, alone, strict=True):
            assert close(one, wanted)


def test_text_and_what_is_before_it_are_untouched(model):
    """Their columns are kept in every stage."""
    inputs = batch(ONE, TWO)
    with torch.no_grad(), ficoco_ext.attach(model, **ALONE) as handle:
        model(**inputs)
    for row, found in zip(inputs["input_ids"].tolist(), handle.decoder_reductions, strict=True):
        text = {column for column, id in enumerate(row) if id not in (IMAGE, PAD)}
        assert all(text <= set(one.kept[0].tolist()) for one in found)


def test_after_the_projector_keys_are_among_what_it_leaves(model):
    """The key set is a share of the tokens that the language model gets."""
    both = Combined.of(get_method("stride"), get_method("mustdrop", part="language_model"))
    amounts = {"projector": {"tokens": 12}, "decoder": {"tokens": 1, "layers": (2,)}}
    inputs, rows = batch(ONE), []

    def see(layer, query, key):
        if layer == READ:
            logits = query[:, :, :1].double() @ key.double().mT * query.shape[-1] ** -0.5
            rows.append(logits.softmax(-1).mean(1)[0, 0, 1:])

    with torch.no_grad():
        tower_by_hand(model, inputs["pixel_values"], see=see, beyond=True)
        with ficoco_ext.attach(model, both, **amounts) as handle:
            model(**inputs)
            kept = handle.projections[0].kept
            [found] = left(handle.decoder_reductions[0], [id for part in _cut(ONE, 12) for id in part])
    assert len(kept) == 12 and found == [int(rows[0][kept].argmax())]


def test_beside_another_method_in_the_tower(model):
    """What is read is the class token's row among the tokens that are left."""
    both = Combined.of(get_method("topk"), get_method("mustdrop", part="language_model"))
    amounts = {"vision": {"r": 11, "layers": (2,)}, "decoder": {"tokens": 2, "layers": (2,)}}
    with torch.no_grad(), ficoco_ext.attach(model, both, **amounts) as handle:
        model(**batch(ONE))
        row = [id for part in _cut(ONE, 25) for id in part]
        [found] = left(handle.decoder_reductions[0], row)
        readings = handle._decoder.keys.readings
        features(model, batch(ONE)["pixel_values"])
        with pytest.raises(RuntimeError):  # taken with the call
            readings.take([25])
    assert len(found) == 2  # ceil(0.08 * 25)


def test_nothing_is_left_of_it(model):
    before = snapshot(model)
    inputs = batch(ONE)
    with torch.no_grad():
        wanted = model(**inputs).logits
        with ficoco_ext.attach(model, **BOTH):
            model.generate(**inputs, **GREEDY)
        assert snapshot(model) == before and torch.equal(model(**inputs).logits, wanted)
        with ficoco_ext.attach(model, "mustdrop", vision={"r": 0}, decoder={"r": 0}):
            assert snapshot(model)["model"] == before["model"] and torch.equal(model(**inputs).logits, wanted)


def test_features_of_another_model_have_no_key_set(model):
    inputs = batch(ONE)
    output = model.get_image_features(inputs["pixel_values"])
    given = without(inputs, "pixel_values") | {"mm_encoder_outputs": {"image": output}}
    with torch.no_grad(), ficoco_ext.attach(model, **ALONE):
        with pytest.raises(ValueError, match=r"images encoded by get_image_features of the attached model.*keys=0"):
            model(**given)
        model(**inputs)
    with torch.no_grad(), ficoco_ext.attach(model, **ALONE, keys=0):
        model(**given)


def test_pictures_that_were_not_encoded_have_no_key_set():
    keys = KeySets(tiny(), LLAVA, SHARE)
    keys.install(ModelChanges())
    keys.begin({}, repeated=False)
    with pytest.raises(ValueError, match=r"the key set is read while the vision tower runs.*pass pixels"):
        keys.protected({"image": torch.ones(1, 4, dtype=torch.bool)})


def test_a_tuple_is_returned_to_whom_asks_for_one(model):
    with torch.no_grad(), ficoco_ext.attach(model, **ALONE):
        found = model.model.get_image_features(pixels(1), return_dict=False)
        assert isinstance(found, tuple)
        model(**batch(ONE))


@pytest.mark.parametrize("name", ["llava-siglip", "qwen2-vl"])
def test_a_tower_without_a_class_token_is_refused(name):
    model = BY_NAME[name].model()
    with pytest.raises(NotImplementedError, match="no class token that is known, got mustdrop; pass keys=0"):
        ficoco_ext.attach(model, "mustdrop", part="language_model", keep_ratio=0.5, layers=(1,))
    ficoco_ext.attach(model, "mustdrop", part="language_model", keys=0, keep_ratio=0.5, layers=(1,)).detach()


def test_one_share_for_all_layers(model):
    several = [get_method("mustdrop", part="language_model", keys=keys) for keys in (0.1, 0.2)]
    options = {"method": several, "r": 3, "layers": (1, 2)}
    assert_refused(model, options, ValueError, "keys must be the same for all methods with a key set, got 0.1 and 0.2")
    mixed = [several[0], get_method("fastv")]
    with torch.no_grad(), ficoco_ext.attach(model, mixed, r=3, layers=(1, 2), cache="staircase") as handle:
        model(**batch(ONE))
        assert len(handle.decoder_reductions[0]) == 2
