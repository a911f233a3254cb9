"""Methods in the tower of LLaVA-NeXT: calls, generate and records are those of a tower that is cut by hand."""

from __future__ import annotations

import threading

import numpy
import pytest
import torch
from helpers.models import close, one_thread, snapshot  # noqa: F401
from helpers.next_tower import (
    CLIP,
    DETAILS,
    LAYERS,
    PATCHES,
    PICTURES,
    SIGLIP,
    StandIn,
    amount,
    crops_of,
    padding_places,
    rows,
    steps_of,
)
from helpers.tiny_oracle import cut, worst
from helpers.tiny_prompts import one_picture

import ficoco_ext
from ficoco_ext import METHODS, get_method

pytest.importorskip("transformers")

TOWER = tuple(name for name in METHODS if get_method(name).tower is not None)
ALONE = tuple(name for name in TOWER if get_method(name).language_model is None)


@pytest.fixture(scope="module")
def model():
    return CLIP.model()


@pytest.fixture(scope="module")
def plain():
    return CLIP.model()


@pytest.mark.parametrize("positions", ["contiguous", "original"])
@pytest.mark.parametrize("name", ALONE)
@torch.no_grad()
def test_calls_and_generate_are_those_of_a_tower_by_hand(name, positions, model, plain, monkeypatch):
    """Every method, padding over several layers, pictures of several sizes, two in a prompt, a row of text."""
    full, pictures = rows(PICTURES[1], PICTURES[4], PICTURES[2])
    with ficoco_ext.attach(model, name, positions=positions, **amount(name)) as handle:
        got, said = model(**full.inputs).logits, model.generate(**full.inputs, **DETAILS)
        kept = [one.kept for one in handle.projections]
        counts = [handle.tokens_of(*one) for one in pictures]
        steps = steps_of(handle.attach_plan)
    hand = StandIn(plain, full, pictures, steps)
    assert all(torch.equal(one, wanted) for one, wanted in zip(kept, hand.kept, strict=True))
    assert counts == [len(one) for one in kept]
    monkeypatch.setattr(plain.model, "get_image_features", hand)
    short = cut(plain, full, kept, positions)
    assert worst(short, short.logits(plain), got) < 2e-5
    assert torch.equal(said.sequences[:, :-3], full.ids)
    wanted = short.logits(plain, said.sequences[:, -3:-1])[:, -3:]
    assert all(close(step, wanted[:, index]) for index, step in enumerate(said.logits))


MIXED = ("topk", "tome", "ficoco-v", "evit")


@pytest.mark.parametrize(
    ("family", "method", "options"),
    [
        (CLIP, MIXED, {"r": [3, 2, 3, 2], "layers": LAYERS}),
        (CLIP, ("pool", "topk", "tome"), {"r": [4, 5, 3], "layers": (0, 1, 4)}),
        (CLIP, "tome", {"tokens": 8, "layers": (4,)}),
        (CLIP, "ficoco-v", {"tokens": 1}),
        (SIGLIP, "tome", {"r": 3, "layers": LAYERS}),
        (SIGLIP, "ficoco-v", {"tokens": 5}),
    ],
    ids=["mixed", "pool-first", "one-layer", "one-token", "siglip-tome", "siglip-ficoco-v"],
)
@pytest.mark.parametrize("padding", ["first", "after"])
@torch.no_grad()
def test_each_layer_may_have_a_method_of_its_own(family, method, options, padding, monkeypatch):
    """And a tower without a class token; padding may also leave after the tower, where the data decide the number."""
    model, plain = family.model(), family.model()
    full, pictures = rows(PICTURES[6], PICTURES[3], PICTURES[0], PICTURES[4])
    with ficoco_ext.attach(model, method, padding=padding, **options) as handle:
        got, said = model(**full.inputs).logits, model.generate(**full.inputs, **DETAILS)
        kept, steps = [one.kept for one in handle.projections], steps_of(handle.attach_plan)
    hand = StandIn(plain, full, pictures, steps, padding == "first")
    assert all(torch.equal(one, wanted) for one, wanted in zip(kept, hand.kept, strict=True))
    monkeypatch.setattr(plain.model, "get_image_features", hand)
    short = cut(plain, full, kept, "contiguous")
    assert worst(short, short.logits(plain), got) < 2e-5
    assert close(said.logits[0], short.logits(plain)[:, -1])


@pytest.mark.parametrize("name", ALONE)
@torch.no_grad()
def test_records_say_what_left_each_crop(name, model, plain):
    """One reduction a layer for all rows: padding dropped, lowest first, and then what the method did, as by hand."""
    full, pictures = rows(PICTURES[1], PICTURES[4], PICTURES[6])
    with ficoco_ext.attach(model, name, **amount(name)) as handle:
        model(**full.inputs)
        records, crops, steps = handle.reductions, handle.crops, steps_of(handle.attach_plan)
    assert [one.crops for one in crops] == [crops_of(one) for one in pictures]
    hand = StandIn(plain, full, pictures, steps)
    for one, picture in zip(crops, hand.crops, strict=True):
        for row, (crop, _) in enumerate(picture, one.rows.start):
            assert row < one.rows.stop
            assert records[-1].patch_ids[row].tolist() == crop.kept
            torch.testing.assert_close(records[-1].size[row, :, 0].double(), torch.tensor(crop.size).double())
            for record, (gone, done) in zip(records, crop.did, strict=True):
                check_row(record, row, gone, done)
    assert records[-1].kept.shape[0] == crops[-1].rows.stop


def check_row(record, row, gone, done):
    """One crop of one layer: ``gone`` padding, and what the method ``done`` did, if it removed anything."""
    own = [] if done is None else done.sources[0].tolist()
    sources = record.sources[row].tolist()
    assert sources == sorted([place + 1 for place in gone] + own)
    held = record.source_map[row]
    assert torch.equal(held[record.kept[row]], torch.arange(record.kept.shape[1]))
    assert all(held[place + 1] == -1 for place in gone)
    for index, source in enumerate(sources):
        weights, targets = record.weights[row, index], record.targets[row, index]
        if source - 1 in gone:
            assert not weights.any() and (targets == 1).all()
            continue
        at = own.index(source)
        wide = done.weights.shape[2]
        torch.testing.assert_close(weights[:wide].double(), done.weights[0, at].double(), rtol=1e-4, atol=1e-5)
        assert not weights[wide:].any()
        used = done.weights[0, at] > 0
        assert torch.equal(targets[:wide][used], done.targets[0, at][used])
        assert held[source] == done.source_map[0, source]


@pytest.mark.parametrize("name", [name for name in ALONE if name != "pool"])
@torch.no_grad()
def test_no_padding_stays_where_enough_else_does(name, model):
    """Of each crop as many valid patches stay as there are, at most M, for every data; M of a thumbnail."""
    for seed, tokens in ((1, 12), (2, 9), (3, 6)):
        full, _ = rows(*PICTURES, seed=seed)
        with ficoco_ext.attach(model, name, tokens=tokens, padding="first") as handle:
            model.model.get_image_features(full.inputs["pixel_values"], full.inputs["image_sizes"])
            left, crops = handle.reductions[-1].patch_ids, handle.crops
        for one in crops:
            places, *others = left[one.rows].tolist()
            assert len(places) == tokens
            for kept, part, valid in zip(others, one.crops.parts, one.crops.valid, strict=True):
                assert len(set(kept) - set(padding_places(part))) == min(valid, tokens)


@pytest.mark.parametrize("name", ["ficoco-v", "tome"])
def test_nothing_of_padding_is_seen_where_anything_else_leaves(name):
    """Not even NaN in tokens, queries and keys of all padding changes a bit of what a layer gives."""
    from ficoco_ext.models.padding_first import Padding, PaddingFirst, reduce_padded

    generator = torch.Generator().manual_seed(0)
    pictures, method = [crops_of(one) for one in PICTURES[:5]], get_method(name)
    r = 8 if name == "tome" else 10
    padding, (leaving,) = Padding.of(PaddingFirst(4, ((r, None),)), pictures, torch.device("cpu"))
    b = len(padding)
    assert set(leaving) == {0, 8} and list(leaving) == padding.sum(1).tolist()
    tokens = torch.randn(b, 1 + PATCHES, 8, generator=generator)
    query, key = torch.randn(2, b, 2, 1 + PATCHES, 4, generator=generator)
    given = {"class_token": True, "grid": (4, 4), "previous": None}
    clean = reduce_padded(method, tokens, ficoco_ext.QueryKey(query, key), r, leaving, padding, **given)
    hidden = torch.nn.functional.pad(padding, (1, 0))
    tokens[hidden] = torch.nan
    for one in (query, key):
        one.transpose(1, 2)[hidden] = torch.nan
    dirty = reduce_padded(method, tokens, ficoco_ext.QueryKey(query, key), r, leaving, padding, **given)
    for field in ("tokens", "size", "kept", "sources", "source_map", "targets", "weights"):
        assert torch.equal(getattr(dirty, field), getattr(clean, field)), field


@torch.no_grad()
def test_nothing_to_remove_is_the_model_itself(model, plain):
    """Bit for bit, in calls, generate and beams; so it is with everything kept in several layers."""
    full, _ = rows(*PICTURES[:5])
    for options in ({"keep_ratio": 1.0}, {"r": 0}, {"tokens": PATCHES, "layers": (1, 2)}):
        with ficoco_ext.attach(model, "ficoco-v", **options) as handle:
            assert torch.equal(model(**full.inputs).logits, plain(**full.inputs).logits)
            for more in ({}, {"num_beams": 2}, {"num_return_sequences": 2, "num_beams": 2}):
                given = {**full.inputs, "max_new_tokens": 3, "do_sample": False, **more}
                assert torch.equal(model.generate(**given), plain.generate(**given))
            assert handle.tokens_of(*PICTURES[1]) == crops_of(PICTURES[1]).before
            assert not handle.crops and handle.attach_plan.padding is None


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["ficoco-v", "tome"])
def test_gradients_are_those_without_checkpointing(name, reentrant):
    """Layers are computed again without the call that knew the pictures, in another thread too."""
    full, _ = rows(PICTURES[1], PICTURES[4], PICTURES[2])
    found = []
    for checkpoints in (False, True):
        one = CLIP.model().train()
        ficoco_ext.attach(one, name, r=3, layers=LAYERS)
        if checkpoints:
            one.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            if reentrant:
                one.enable_input_require_grads()
        loss = one(**full.inputs, labels=full.labels()).loss
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
        weights = one.model.vision_tower.encoder.layers.named_parameters()
        found.append({at: weight.grad for at, weight in weights if weight.grad is not None})
    wanted, got = found
    assert got.keys() == wanted.keys() and any(one.abs().max() > 0 for one in wanted.values())
    for at, weight in wanted.items():
        torch.testing.assert_close(got[at], weight, rtol=1e-4, atol=1e-6)


def test_tokens_of_a_picture():
    """Of every model whose pictures can be counted: by size where that matters."""
    model = CLIP.model()
    with ficoco_ext.attach(model, "ficoco-v", tokens=6) as handle:
        assert [handle.tokens_of(*one) for one in PICTURES[:3]] == [22, 38, 38]
        with pytest.raises(ValueError, match=r"size must be \(height, width\), integers of at least 1"):
            handle.tokens_of(0, 5)
        assert handle.tokens_of(*numpy.array(PICTURES[1])) == 38
    with ficoco_ext.attach(model, "pool", tokens=4) as handle:  # cells of 2 x 2, the first patch of each stays
        assert handle.tokens_of(*PICTURES[0]) == 4 + 8 + 4
        assert handle.tokens_of(*PICTURES[4]) == 4 + 4 + 2  # rows 1 and 2 are left: row 2 has the first patches
    with ficoco_ext.attach(model, "topk", tokens=6, padding="after") as handle:
        assert handle.tokens_of(*PICTURES[0]) == 22
        with pytest.raises(NotImplementedError, match=r"one that does not depend on the data.*handle\.projections"):
            handle.tokens_of(*PICTURES[1])
    with ficoco_ext.attach(model, "divprune", keep_ratio=0.5) as handle:
        assert handle.tokens_of(*PICTURES[0]) == 24 + 4
    with ficoco_ext.attach(model, "fastv", keep_ratio=0.5) as handle:
        assert handle.tokens_of(*PICTURES[0]) == 52


REFUSED = [
    ("topk+divprune", {"keep_ratio": 0.25}, NotImplementedError, "one with a single part before the language model"),
    ("downsample", {"keep_ratio": 0.25}, NotImplementedError, "one that chooses among features for LLaVA-NeXT"),
    (
        "topk+fastv",
        {"keep_ratio": 0.25, "static_counts": True},
        NotImplementedError,
        "pass the number of visual tokens",
    ),
    ("topk", {"tokens": 6, "padding": "last"}, ValueError, "padding must be 'first', 'after' or None"),
    ("divprune", {"tokens": 6, "padding": "first"}, ValueError, "padding must be None for a method of another part"),
    ("topk", {"tokens": 17}, ValueError, "17"),
    *(
        (name, {"keep_ratio": 0.25, "static_counts": count, "padding": "after"}, ValueError, "pass padding='first', or")
        for name, count in (("topk+fastv", 22), ("ficoco-vl", 1), ("topk+ficoco-l", 22))
    ),
]


@pytest.mark.parametrize(
    ("name", "options", "kind", "message"), REFUSED, ids=[f"{one[0]}-{one[3][:12]}" for one in REFUSED]
)
def test_what_cannot_be_is_refused(name, options, kind, message, model):
    before = snapshot(model)
    with pytest.raises(kind) as error:
        ficoco_ext.attach(model, name, **options)
    assert message in str(error.value) and snapshot(model) == before


def test_a_class_token_among_crops_is_refused():
    model = CLIP.model()
    model.config.vision_feature_select_strategy = "full"
    with pytest.raises(
        NotImplementedError, match=r"must be 'default' for LLaVA-NeXT, got 'full'.*no index; use 'default'$"
    ):
        ficoco_ext.attach(model, "topk", tokens=6)
    with ficoco_ext.attach(model, "fastv") as handle:
        assert handle.attach_plan.facts.crops is handle.attach_plan.facts.tower is None


def test_padding_of_a_model_without_crops_is_refused():
    from helpers.models import tiny_llava

    with pytest.raises(ValueError, match=r"padding must be None for LLaVA-1\.5, whose pictures have none"):
        ficoco_ext.attach(tiny_llava(), "topk", tokens=6, padding="first")


@torch.no_grad()
def test_a_tower_that_is_called_alone_cannot_know_its_pictures(model):
    full = one_picture(CLIP, PICTURES[1])
    with (
        ficoco_ext.attach(model, "topk", tokens=6),
        pytest.raises(ValueError, match="input of the vision tower must be a call of the model, got 5 rows"),
    ):
        model.model.vision_tower(full.inputs["pixel_values"][0], output_hidden_states=True)


def test_the_plan_speaks_of_crops(model):
    from ficoco_ext.models import resolve

    plan = resolve(model, "topk+fastv", keep_ratio=0.25)
    said = str(plan)
    assert "4 x 4 = 16 patches of a crop" in said and "vision tower, for every crop:" in said
    assert "patches of padding leave before all others" in said and "576 visual tokens, as an example" in said
    assert plan.padding == "first" and plan.per_image is None and plan.picture is None
    assert "after the tower, so the data decide" in str(resolve(model, "topk", tokens=6, padding="after"))


@torch.no_grad()
def test_padding_where_nothing_leaves_is_said_to_change_nothing(model, plain):
    """It is taken and kept in the plan, as other arguments of a part that removes nothing, and the plan says so."""
    full = one_picture(CLIP, PICTURES[1])
    wanted = plain(**full.inputs).logits
    for name, options in (
        ("topk", {"keep_ratio": 1.0}),
        ("topk+fastv", {"vision": {"r": 0}, "decoder": {"r": 0}, "static_counts": 39}),
        ("pool", {"keep_ratio": 1.0}),
    ):
        for padding in ("first", "after"):
            with ficoco_ext.attach(model, name, padding=padding, **options) as handle:
                plan, got = handle.attach_plan, model(**full.inputs).logits
            assert plan.padding == padding and torch.equal(got, wanted)
            alone = f"the vision tower is left alone: nothing is to be removed, so padding='{padding}' changes nothing"
            assert alone in str(plan).splitlines() and "patches of padding leave" not in str(plan)
