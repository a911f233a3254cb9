"""MustDrop by thresholds, and in LLaVA-NeXT, whose crops have a key set each."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.decoder import tiny
from helpers.models import IMAGE, assert_refused, batch, close, image, one_thread, pixels, words  # noqa: F401
from helpers.tiny_families import BY_NAME
from helpers.tiny_processors import Picture
from helpers.tiny_prompts import one_picture, prompt, unequal_rows

import ficoco_ext
from ficoco_ext import describe, get_method
from ficoco_ext.methods import Combined
from ficoco_ext.methods.mustdrop import dual_thresholds
from ficoco_ext.models import resolve
from ficoco_ext.stages import Crops
from ficoco_ext.stages.dual_attention import key_set

pytest.importorskip("transformers")

ONE = [*words(1, 2), *image(), *words(3, 4, 5)]
OTHER = [*words(7, 8), *image(), *words(9, 6, 3)]
TWO = [*words(6), *image(), *words(7), *image(), *words(8, 9)]
TEXT = words(11, 12, 13, 14)
LIMITS = {"gamma": 0.02, "alpha": 0.05}
RELEASED = {"method": "mustdrop", "part": "language_model", "thresholds": True, "layers": (1, 2), **LIMITS}


@pytest.fixture(scope="module")
def model():
    return tiny(attention="eager", seed=12)


def visual(row, reduction):
    """Which of the placeholders of a row are left, counted from its first one."""
    columns = [column for column, id in enumerate(row) if id == IMAGE]
    kept = set(reduction.kept[0].tolist())
    return [number for number, column in enumerate(columns) if column in kept]


def first_stage_by_hand(model, inputs, row):
    """The visual tokens of one row that layer 1 leaves, from maps of the model as it is."""
    with torch.no_grad():
        out = model(**inputs, output_attentions=True)
        looked = model.model.vision_tower(inputs["pixel_values"], output_attentions=True).attentions[5]
    columns = [column for column, id in enumerate(row) if id == IMAGE]
    text = range(columns[-1] + 1, len(row))
    keys = key_set(looked.mean(1)[:, 0, 1:].reshape(-1, 36), 0.08).flatten()
    attention = out.attentions[1][0].mean(0)[list(text)][:, columns]
    return dual_thresholds(attention[None], keys[None], **LIMITS)[0].nonzero().flatten().tolist()


@pytest.mark.parametrize("row", [ONE, OTHER, TWO], ids=["one", "other", "two pictures"])
def test_the_rule_of_the_release(model, row):
    inputs = batch(row)
    wanted = first_stage_by_hand(model, inputs, row)
    with torch.no_grad(), ficoco_ext.attach(model, **RELEASED) as handle:
        model(**inputs)
        found = handle.decoder_reductions[0]
    assert visual(row, found[0]) == wanted and 3 < len(wanted) < row.count(IMAGE)
    assert set(visual(row, found[-1])) < set(wanted)


def test_rows_lose_what_they_lose_alone(model):
    """T8 where the data decide: rows of unlike numbers, one of text."""
    rows = [ONE, TWO, TEXT, OTHER]
    inputs = batch(*rows)
    with torch.no_grad(), ficoco_ext.attach(model, **RELEASED) as handle:
        logits = model(**inputs).logits[:, -1]
        together = handle.decoder_reductions
        lost = [[one.sources.shape[1] for one in row] for row in together]
        pictures = iter(inputs["pixel_values"].split((1, 2, 1)))
        for number, row in enumerate(rows):
            given = batch(row, images=0) | ({"pixel_values": next(pictures)} if IMAGE in row else {})
            assert close(model(**given).logits[0, -1], logits[number])
            if IMAGE in row:
                assert [one.sources.shape[1] for one in handle.decoder_reductions[0]] == lost[number]
        assert lost[2] == [] and len({tuple(one) for one in lost}) == 4
        generated = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert generated.shape[1] == inputs["input_ids"].shape[1] + 3


def test_one_token_stays_of_all_below_the_thresholds(model):
    options = RELEASED | {"gamma": 1.1, "alpha": 1.1, "keys": 0, "layers": (1,)}
    with torch.no_grad(), ficoco_ext.attach(model, **options) as handle:
        model(**batch(ONE))
    assert len(visual(ONE, handle.decoder_reductions[0][0])) == 1


@pytest.mark.parametrize("limits", [{"gamma": 0.0, "alpha": 1.0}, {"gamma": 1.0, "alpha": 0.0}])
def test_nothing_leaves_with_one_threshold_at_zero(model, limits):
    inputs = batch(ONE, TWO)
    with torch.no_grad():
        wanted = model(**inputs).logits
        with ficoco_ext.attach(model, **RELEASED | limits) as handle:
            assert torch.equal(model(**inputs).logits, wanted)
    assert handle.decoder_reductions == ((), ())


def test_both_parts_by_thresholds(model):
    """The tower removes its windows as ever; amounts of the language model are not needed."""
    options = {"vision": {"r": 8}, "decoder": {"layers": (1, 2)}}
    with torch.no_grad(), ficoco_ext.attach(model, "mustdrop", thresholds=True, **options, **LIMITS) as handle:
        model(**batch(ONE))
        assert handle.reductions[0].patch_ids.shape == (1, 28) and len(handle.decoder_reductions[0]) == 2
        assert "as many as the data decide" in str(handle.attach_plan)
    assert resolve(model, "mustdrop", thresholds=True).schedule.r == (8,)
    assert describe("mustdrop", thresholds=True).amount.endswith("language model: none: the data decide")
    assert "share below 0.001 and peak below 0.001" in describe("mustdrop", thresholds=True).filter


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (RELEASED | {"static_counts": True}, "static_counts must be False with method mustdrop, which decides by the"),
        (RELEASED | {"keep_ratio": 0.5}, "keep_ratio must be None with method 'mustdrop', which decides by the data"),
        ({"method": "mustdrop", "layers": (0,), "part": "language_model", "r": 3}, "layers must be from 1 on with an"),
        (
            {"method": "mustdrop", "vision": {"r": 9}, "decoder": {"r": 3}},
            "r must be a multiple of 8, .* got 9",
        ),
        (
            {"method": "mustdrop", "vision": {"r": 8, "layers": (0, 1)}, "decoder": {"r": 3, "layers": (1,)}},
            "the whole grid of patches",
        ),
    ],
)
def test_what_is_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        resolve(model, **options)


NEXT = BY_NAME["llava-next"]
SHARE = 0.2


@pytest.fixture(scope="module")
def crops_model():
    return NEXT.model("eager")


def keys_of_crops(model, pixel_values, crops):
    """The key set of one picture in the order of the language model: of each crop of its valid patches alone."""
    with torch.no_grad():
        looked = model.model.vision_tower(pixel_values, output_attentions=True).attentions[-1].mean(1)[:, 0, 1:]
    valid: list[set[int]] = [set() for _ in range(1 + crops.count)]
    for crop, patch in crops.origins:
        valid[crop].add(patch)
    chosen = set()
    for crop, patches in enumerate(valid):
        count = math.ceil(SHARE * len(patches) - 1e-9)
        order = sorted(patches, key=lambda patch: (-float(looked[crop, patch]), patch))
        chosen |= {(crop, patch) for patch in order[:count]}
    free = [place for place in range(crops.before) if place not in crops.line_ends]
    return [place for place, origin in zip(free, crops.origins, strict=True) if origin in chosen]


@pytest.mark.parametrize("size", [(56, 112), (100, 60), (112, 100), (40, 44)], ids=str)
def test_every_crop_has_its_own_key_set(crops_model, size):
    made = one_picture(NEXT, Picture(*size))
    vision = crops_model.config.vision_config
    side = vision.image_size // vision.patch_size
    crops = Crops.of(size, crops_model.config.image_grid_pinpoints, side, vision.image_size)
    real = made.inputs["pixel_values"][0][: 1 + crops.count]
    wanted = keys_of_crops(crops_model, real, crops)
    options = {"part": "language_model", "keys": SHARE, "tokens": len(wanted), "layers": (1,)}
    with torch.no_grad(), ficoco_ext.attach(crops_model, "mustdrop", **options) as handle:
        crops_model(**made.inputs)
        [found] = handle.decoder_reductions[0]
    columns = made.visuals[0].columns.tolist()
    left = [number for number, column in enumerate(columns) if column in set(found.kept[0].tolist())]
    assert left == wanted and len(wanted) < crops.before / 2


def test_rows_of_unequal_pictures(crops_model):
    made = unequal_rows(NEXT)
    options = {"part": "language_model", "keys": SHARE, "keep_ratio": 0.5, "layers": (1,)}
    with torch.no_grad(), ficoco_ext.attach(crops_model, "mustdrop", **options) as handle:
        crops_model.generate(**made.inputs, max_new_tokens=2, do_sample=False, num_beams=2)
        assert [len(one) for one in handle.decoder_reductions] == [1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("name", ["video-llava", "internvl"])
def test_other_families_with_a_class_token(name):
    """Every picture, tile and video has its own key set, at its own placeholders."""
    family = BY_NAME[name]
    rows = [[*words(4), family.pictures[0], *words(9)], [*words(1), *family.videos[:1], *words(2)]]
    made = prompt(family, rows)
    options = {"part": "language_model", "keys": SHARE, "keep_ratio": 0.5, "layers": (1,)}
    with torch.no_grad(), ficoco_ext.attach(family.model(), "mustdrop", **options) as handle:
        handle._model.generate(**made.inputs, max_new_tokens=2, do_sample=False)
        protected = handle._decoder.last.protected
    for one in made.parts():
        found = protected[one.row][one.columns]
        assert int(found.sum()) == math.ceil(SHARE * len(found))
    assert int(protected.sum()) == sum(math.ceil(SHARE * len(one.columns)) for one in made.parts())


def test_windows_are_refused_where_padding_may_be_in_them(crops_model):
    amounts = {"vision": {"keep_ratio": 0.4}, "decoder": {"keep_ratio": 0.5, "layers": (1,)}}
    for more in ({}, {"padding": "after"}):
        with pytest.raises(NotImplementedError, match="mustdrop, of whose windows padding may be a part; pass part="):
            ficoco_ext.attach(crops_model, "mustdrop", window=2, **amounts, **more)
    nothing = amounts | {"vision": {"r": 0}}
    ficoco_ext.attach(crops_model, "mustdrop", **nothing).detach()


@pytest.mark.parametrize(("other", "amount"), [("topk", "vision"), ("divprune", "projector")])
def test_key_sets_need_all_patches_of_a_crop(crops_model, other, amount):
    both = Combined.of(get_method(other), get_method("mustdrop", part="language_model"))
    amounts = {amount: {"keep_ratio": 0.5}, "decoder": {"keep_ratio": 0.5, "layers": (1,)}}
    message = "one without a key set where patches of LLaVA-NeXT leave before its language model"
    assert_refused_crops(crops_model, {"method": both, **amounts}, message)
    without = Combined.of(get_method(other), get_method("mustdrop", part="language_model", keys=0))
    ficoco_ext.attach(crops_model, without, **amounts).detach()


def assert_refused_crops(model, options, message):
    with pytest.raises(NotImplementedError, match=message):
        ficoco_ext.attach(model, **options)
    assert not hasattr(model, "ficoco_handle")


def test_too_few_layers_name_what_this_method_takes(model, crops_model):
    """Windows of crops are named before; the remedies work."""
    assert len(model.model.language_model.layers) < 5
    with pytest.raises(ValueError, match="pass it for all parts together, or vision="):
        ficoco_ext.attach(model, "mustdrop")
    each = {"vision": {"keep_ratio": 0.5}, "decoder": {"keep_ratio": 0.5}}
    for remedy in ({"keep_ratio": 0.25}, each):
        ficoco_ext.attach(model, "mustdrop", window=2, **remedy).detach()
    with pytest.raises(ValueError, match="stages, got None; pass keep_ratio and layers"):
        ficoco_ext.attach(model, "mustdrop", part="language_model")
    with pytest.raises(NotImplementedError, match="mustdrop, of whose windows padding may be a part; pass part="):
        ficoco_ext.attach(crops_model, "mustdrop", window=2)
