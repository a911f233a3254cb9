"""GlobalCom2 in LLaVA-NeXT: what it reads and keeps, against eager layers, official packing and hand cuts."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from helpers.decoder import generated, worst_error
from helpers.models import one_thread  # noqa: F401
from helpers.tiny_configs import PINPOINTS, SIDE
from helpers.tiny_families import BY_NAME, shared_model, untouched_model
from helpers.tiny_oracle import cut, kept_of, worst
from helpers.tiny_processors import Picture
from helpers.tiny_prompts import one_picture, prompt, unequal_rows, words

import ficoco_ext
from ficoco_ext import globalcom2_keep
from ficoco_ext.models import layouts, resolve
from ficoco_ext.stages import Crops

pytest.importorskip("transformers")

NEXT = BY_NAME["llava-next"]
SIZES = [Picture(56, 112), Picture(100, 60), Picture(112, 100), Picture(40, 44), Picture(20, 150), Picture(150, 21)]
LAYERS = {-2: 2, -1: 2, -3: 1, 1: 1, 2: 2, 3: 2}  # of three: which one reads what is selected
DETAILS = {"return_dict_in_generate": True, "output_logits": True, "do_sample": False, "max_new_tokens": 3}
budgets = pytest.mark.parametrize("budget", ["exact", "floor"])


def crops_of(picture):
    return Crops.of(tuple(picture), [tuple(one) for one in PINPOINTS], SIDE // 14, SIDE)


def logits_by_hand(model, pixels, layer):
    """(crops, patches) float64: the class token's row before the softmax in that layer, heads averaged."""
    seen = []
    block = model.model.vision_tower.encoder.layers[layer]
    hook = block.register_forward_pre_hook(lambda module, args, kwargs: seen.append(args[0]), with_kwargs=True)
    model.model.vision_tower(pixels, output_hidden_states=True)
    hook.remove()
    inside, attention = block.layer_norm1(seen[0]), block.self_attn
    query, key = attention.q_proj(inside).double(), attention.k_proj(inside).double()
    heads, width = attention.num_heads, attention.head_dim
    per_head = [
        query[:, :1, h * width : (h + 1) * width] @ key[:, 1:, h * width : (h + 1) * width].mT for h in range(heads)
    ]
    return torch.stack(per_head).mean(0)[:, 0] * width**-0.5


def expected(model, full, layer=2, **options):
    """Which tokens of each picture stay, in the order of the language model, from logits by hand."""
    found = []
    for encoded in (one for row in full.encoded for one in row):
        size = tuple(encoded.tensors["image_sizes"][0].tolist())
        logits = logits_by_hand(model, encoded.tensors["pixel_values"], layer)
        kept = globalcom2_keep(logits, size, PINPOINTS, SIDE // 14, SIDE, **options)
        crops = crops_of(size)
        ends = set(crops.line_ends)
        tokens = [token for token in range(crops.before) if token not in ends]
        stays = [token for token, (crop, patch) in zip(tokens, crops.origins, strict=True) if patch in kept[crop]]
        found.append(sorted([*stays, *ends]))
    return found


@budgets
@pytest.mark.parametrize("size", SIZES, ids=str)
@torch.no_grad()
def test_keeps_what_the_scores_of_eager_layers_say(size, budget):
    model, full = shared_model("llava-next"), one_picture(NEXT, size)
    for options in ({}, {"alpha": 0.0, "cells": "crops"}, {"temperature": 1.0, "normalize": False}):
        with ficoco_ext.attach(model, "globalcom2", keep_ratio=0.4, budget=budget, **options) as handle:
            model(**full.inputs)
            kept = [one.kept.tolist() for one in handle.projections]
        assert kept == expected(untouched_model("llava-next"), full, keep_ratio=0.4, budget=budget, **options)


@pytest.mark.parametrize("selected", LAYERS)
@torch.no_grad()
def test_the_layer_that_reads_what_is_selected(selected):
    """The next after it; the last where none comes after."""
    model, full = NEXT.model(), one_picture(NEXT, Picture(112, 100))
    model.config.vision_feature_layer = selected
    with ficoco_ext.attach(model, "globalcom2", tokens=30) as handle:
        model(**full.inputs)
        kept = [one.kept.tolist() for one in handle.projections]
    assert kept == expected(model, full, LAYERS[selected], tokens=30)
    others = [expected(model, full, layer, tokens=30) for layer in range(3) if layer != LAYERS[selected]]
    assert kept not in others


@torch.no_grad()
def test_several_selected_layers_are_read_after_the_last():
    model = NEXT.model()
    model.config.vision_feature_layer = [-3, -2]
    wide = torch.nn.Linear(64, model.model.multi_modal_projector.linear_1.out_features)
    model.model.multi_modal_projector.linear_1 = wide
    full = one_picture(NEXT, Picture(112, 100))
    with ficoco_ext.attach(model, "globalcom2", tokens=30) as handle:
        model(**full.inputs)
        kept = [one.kept.tolist() for one in handle.projections]
    assert kept == expected(model, full, 2, tokens=30)


@pytest.mark.parametrize("make", [one_picture, unequal_rows])
@torch.no_grad()
def test_keeping_everything_changes_nothing(make):
    """T5: bit for bit, in a call, in generate and in beams."""
    model, full = shared_model("llava-next"), make(NEXT)
    plain, said = model(**full.inputs).logits, model.generate(**full.inputs, **DETAILS)
    beams = model.generate(**full.inputs, **DETAILS, num_beams=3)
    for options in ({"keep_ratio": 1.0}, {"keep_ratio": 1, "budget": "floor"}, {"tokens": 10**6}):
        with warnings.catch_warnings(), ficoco_ext.attach(model, "globalcom2", **options):
            warnings.simplefilter("ignore")  # that tokens are more than there are
            assert torch.equal(model(**full.inputs).logits, plain)
            again = model.generate(**full.inputs, **DETAILS)
            assert torch.equal(again.sequences, said.sequences) and all(map(torch.equal, again.logits, said.logits))
            assert torch.equal(model.generate(**full.inputs, **DETAILS, num_beams=3).sequences, beams.sequences)


@budgets
@pytest.mark.parametrize("positions", ["original", "contiguous"])
@pytest.mark.parametrize("make", [one_picture, unequal_rows])
@torch.no_grad()
def test_calls_are_the_hand_cut(make, positions, budget):
    model, full = shared_model("llava-next"), make(NEXT)
    with ficoco_ext.attach(model, "globalcom2", keep_ratio=0.3, positions=positions, budget=budget) as handle:
        got = model(**full.inputs).logits
        kept = kept_of(full, handle.projections)
        beams = model.generate(**full.inputs, **DETAILS, num_beams=2)
    assert [one.tolist() for one in kept] == expected(
        untouched_model("llava-next"), full, keep_ratio=0.3, budget=budget
    )
    hand = cut(untouched_model("llava-next"), full, kept, positions)
    assert got.shape[1] == hand.columns.shape[1]
    assert worst(hand, hand.logits(untouched_model("llava-next")), got) < 2e-5
    assert beams.sequences[:, : full.ids.shape[1]].tolist() == full.ids.tolist()


@pytest.mark.parametrize("size", [*SIZES, Picture(2, 800), Picture(700, 2)], ids=str)
@torch.no_grad()
def test_equals_the_official_packing_of_what_stays(size):
    """T9: dropped places hold NaN, the model packs, rows with NaN are taken out; line ends are those that it adds."""
    model, full = shared_model("llava-next"), one_picture(NEXT, size)
    inner, crops = model.model, crops_of(size)
    pixels, sizes = full.inputs["pixel_values"], full.inputs["image_sizes"].tolist()
    tower = inner.vision_tower(pixels[0], output_hidden_states=True).hidden_states[-2][:, 1:]
    projected = inner.multi_modal_projector(tower)
    kept = globalcom2_keep(logits_by_hand(model, pixels[0], 2), tuple(size), PINPOINTS, 4, SIDE, keep_ratio=0.3)
    holes = torch.full_like(projected, float("nan"))
    for crop, patches in enumerate(kept):
        holes[crop, patches] = projected[crop, patches]
    packed, _ = inner.pack_image_features([holes], sizes, "default", image_newline=inner.image_newline)
    wanted = packed[0][~packed[0].isnan().any(1)]
    with ficoco_ext.attach(model, "globalcom2", keep_ratio=0.3):
        found = inner.get_image_features(pixels, image_sizes=sizes, return_dict=True).pooler_output[0]
    assert len(found) == int(0.3 * 16) + int(0.3 * sum(crops.valid) + 1e-9) + crops.lines
    assert torch.equal(found, wanted)


@budgets
@torch.no_grad()
def test_pictures_of_different_grids_do_not_meddle(budget):
    """T10: rows alone and together, two pictures in a prompt in either order, equal sizes among them."""
    model = shared_model("llava-next")
    pictures = [SIZES[0], SIZES[2], SIZES[0], SIZES[1]]
    rows = [
        [*words(2), pictures[0], *words(3), pictures[1], *words(2)],
        [pictures[2], *words(4)],
        [*words(1), pictures[3], 60],
    ]
    full = prompt(NEXT, rows)
    with ficoco_ext.attach(model, "globalcom2", keep_ratio=0.4, budget=budget, temperature=1.0) as handle:
        together = model(**full.inputs).logits
        kept = [one.kept.tolist() for one in handle.projections]
        inner, order = model.model, [3, 1, 0, 2]
        pixels, sizes = (full.inputs[name] for name in ("pixel_values", "image_sizes"))
        one_call = inner.get_image_features(pixels, image_sizes=sizes, return_dict=True).pooler_output
        turned = inner.get_image_features(pixels[order], image_sizes=sizes[order], return_dict=True).pooler_output
        for number, made in zip(order, turned, strict=True):
            one = slice(number, number + 1)
            [single] = inner.get_image_features(pixels[one], image_sizes=sizes[one], return_dict=True).pooler_output
            for other in (made, single):
                assert torch.allclose(other, one_call[number], atol=1e-5)
        first = prompt(NEXT, rows[:1])
        alone = model(**first.inputs).logits
        assert [one.kept.tolist() for one in handle.projections] == kept[:2]
    assert kept == expected(untouched_model("llava-next"), full, keep_ratio=0.4, budget=budget, temperature=1.0)
    assert float((together[0, -alone.shape[1] :] - alone[0]).abs().max()) < 2e-5


@budgets
@torch.no_grad()
def test_a_method_in_the_language_model_goes_on(budget):
    full, method = unequal_rows(NEXT), "globalcom2+fastv"
    options = {"projector": {"keep_ratio": 0.5}, "decoder": {"keep_ratio": 0.5, "layers": (1,)}}
    with ficoco_ext.attach(shared_model("llava-next"), method, budget=budget, **options) as handle:
        seen = generated(shared_model("llava-next"), full.inputs, 4)
        kept, reductions, plan = kept_of(full, handle.projections), handle.decoder_reductions, handle.plan
    hand = cut(untouched_model("llava-next"), full, kept)
    real = hand.mask.bool()
    assert torch.equal(seen.embeds[real], hand.embeds[real]) and any(reductions)
    new_ids = seen.sequences[:, -4:]
    assert worst_error(untouched_model("llava-next"), seen, reductions, plan, 4, new_ids=new_ids) < 2e-5


@torch.no_grad()
def test_detached_it_is_what_it_was():
    model, full = NEXT.model(seed=3), unequal_rows(NEXT)
    plain, before = model(**full.inputs).logits, {name: dict(vars(part)) for name, part in model.named_modules()}
    with ficoco_ext.attach(model, "globalcom2"):
        copied = copy.deepcopy(model)
        reduced = model(**full.inputs).logits
        assert reduced.shape != plain.shape and torch.equal(copied(**full.inputs).logits, reduced)
    assert torch.equal(model(**full.inputs).logits, plain)
    for name, part in model.named_modules():
        assert vars(part).keys() == before[name].keys(), name


@torch.no_grad()
def test_nothing_is_read_between_pixels_and_features():
    """On the meta device there is nothing to read; sizes are on the host. A budget that the data decide says so."""
    model, full = copy.deepcopy(untouched_model("llava-next")).to("meta"), unequal_rows(NEXT)
    sizes = full.inputs["image_sizes"].tolist()
    pixels = full.inputs["pixel_values"].to("meta")
    with ficoco_ext.attach(model, "globalcom2", keep_ratio=0.3):
        found = model.model.get_image_features(pixels, image_sizes=sizes, return_dict=True).pooler_output
    crops = [crops_of(size) for size in sizes]
    assert [len(one) for one in found] == [4 + int(0.3 * sum(one.valid) + 1e-9) + one.lines for one in crops]
    refused = pytest.raises(NotImplementedError, match="use a budget that the host knows")
    with ficoco_ext.attach(model, "globalcom2", keep_ratio=0.3, variant="released"), refused:
        model.model.get_image_features(pixels, image_sizes=sizes)


@torch.no_grad()
def test_counts_that_the_caller_promises():
    model, full = (
        shared_model("llava-next"),
        prompt(NEXT, [[*words(3), SIZES[0], *words(5)], [*words(3), SIZES[0], *words(5)]]),
    )
    crops = crops_of(SIZES[0])
    left = 8 + 16 + crops.lines
    options = {"projector": {"keep_ratio": 0.5}, "decoder": {"keep_ratio": 0.5, "layers": (1,)}}
    with ficoco_ext.attach(model, "globalcom2+fastv", **options) as handle:
        wanted = model(**full.inputs).logits
    with ficoco_ext.attach(model, "globalcom2+fastv", static_counts=left, **options) as handle:
        assert torch.equal(model(**full.inputs).logits, wanted)
        assert [len(one.kept) for one in handle.projections] == [left, left]
    message = "static_counts.*globalcom2 with a budget that the data decide; pass budget='exact'"
    with pytest.raises(NotImplementedError, match=message):
        ficoco_ext.attach(model, "globalcom2+fastv", static_counts=left, budget="floor", **options)


def test_models_that_are_refused():
    """With a reason and a remedy, in ``resolve`` too, and nothing is changed."""
    for name, message in (
        ("llava-clip", r"pictures that are one grid of patches, as those of LLaVA-1.5 are.*use 'topk'"),
        ("qwen2.5-vl", r"as those of Qwen2.5-VL are, got globalcom2, which needs pictures of several crops"),
        ("llava-onevision", r"vision tower must be one with a class token for globalcom2, got SiglipVisionModel"),
    ):
        model = shared_model(name)
        before = dict(vars(model))
        for call in (ficoco_ext.attach, resolve):
            with pytest.raises(NotImplementedError, match=message):
                call(model, "globalcom2", keep_ratio=0.5)
        assert vars(model) == before
    model = NEXT.model()
    model.config.vision_feature_select_strategy = "full"
    with pytest.raises(NotImplementedError, match="must be 'default' with globalcom2, got 'full'"):
        ficoco_ext.attach(model, "globalcom2")
    for options, message in (
        ({"r": 4}, "say|pass keep_ratio"),
        ({"layers": (1,), "keep_ratio": 0.5}, "say keep_ratio"),
    ):
        with pytest.raises(ValueError, match=message):
            ficoco_ext.attach(shared_model("llava-next"), "globalcom2", **options)


@torch.no_grad()
def test_pictures_that_are_refused(monkeypatch):
    """Those whose tokens lie otherwise than the crops say, such as after a change of the model's packing."""
    model, full = shared_model("llava-next"), one_picture(NEXT)
    monkeypatch.setattr(layouts, "_known_crops", lambda inner, size: Crops(4, (1, 1), (0, 4, 0, 4)))
    message = "pixel_values must be pictures of a thumbnail and a grid of crops for globalcom2.*use 'divprune'"
    with ficoco_ext.attach(model, "globalcom2"), pytest.raises(ValueError, match=message):
        model(**full.inputs)
    with ficoco_ext.attach(model, "divprune", keep_ratio=0.5):
        model(**full.inputs)
    given = {"image": model.model.get_image_features(full.inputs["pixel_values"], full.inputs["image_sizes"])}
    others = {name: one for name, one in full.inputs.items() if name != "pixel_values"}
    with (
        ficoco_ext.attach(model, "globalcom2"),
        pytest.raises(ValueError, match="mm_encoder_outputs must be None with"),
    ):
        model(**others, mm_encoder_outputs=given)
