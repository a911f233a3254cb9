"""What is left of crops, packed: against transformers' own packing of whole crops in which what left is NaN."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import random
import types

import pytest
import torch
from helpers.crop_survivors import left_of, packed_by_nan
from torch._subclasses.fake_tensor import FakeTensorMode

from ficoco_ext.models.crop_packing import CropPacking, pack, packed_indices
from ficoco_ext.models.crop_pictures import CropPictures
from ficoco_ext.models.model_changes import ModelChanges
from ficoco_ext.models.vision_tower import TowerReductions
from ficoco_ext.reduction import Reduction
from ficoco_ext.stages import Crops

modeling = pytest.importorskip("transformers.models.llava_next.modeling_llava_next")
LARGE = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
SMALL = [[height // 14, width // 14] for height, width in LARGE]
WIDTH = 5
WIDE, TALL, THIN = (20, 61), (70, 24), (20, 2500)  # without padding, without, and only padding
ODD, SQUARE = (17, 31), (48, 48)  # crops with unequally much padding, without
# size, patches on a side, pixels, pinpoints, and for survivors of every crop the tokens of the picture.
GOLDEN = [
    ((480, 640), 24, 336, LARGE, {1: 41, 24: 156, 57: 321, 144: 756, 288: 1476, 575: 2339, 576: 2340}),
    ((427, 640), 24, 336, LARGE, {1: 37, 24: 152, 57: 317, 144: 752, 288: 1472, 575: 2143, 576: 2144}),
    ((1200, 900), 24, 336, LARGE, {1: 53, 24: 168, 57: 333, 144: 768, 288: 1488, 575: 2351, 576: 2352}),
    ((37, 41), 24, 336, LARGE, {1: 27, 24: 96, 57: 195, 144: 456, 288: 888, 575: 1223, 576: 1224}),
]


def inner_of(side=6, pixels=24, pinpoints=SMALL):
    """What packing reads of the inner model, in a class whose packing is transformers'."""
    vision = types.SimpleNamespace(image_size=pixels, patch_size=pixels // side)
    config = types.SimpleNamespace(vision_config=vision, image_grid_pinpoints=pinpoints)
    made = type("Inner", (), {"pack_image_features": modeling.LlavaNextModel.pack_image_features})()
    made.config, made.image_newline = config, torch.arange(WIDTH) - 100.0
    return made


def crops_of(size, side=6, pixels=24, pinpoints=SMALL):
    return Crops.of(size, pinpoints, side, pixels)


def features_of(crops, left, seed=0, **options):
    """(features, patch_ids) of random survivors."""
    generator = torch.Generator().manual_seed(seed)
    ids = left_of(crops, left, generator, **options)
    return torch.randn(1 + crops.count, left, WIDTH, generator=generator), ids


def packing_of(inner, sizes, left, count="first", **options):
    """(packing, crops of each picture, features of each) with random survivors in the tower."""
    pictures, tower = [crops_of(size) for size in sizes], TowerReductions(1)
    drawn = [features_of(one, left, seed=seed, **options) for seed, one in enumerate(pictures)]
    ids = torch.cat([each for _, each in drawn])
    with_class = torch.nn.functional.pad(ids + 1, (1, 0))
    tower.put(0, Reduction(None, ids, with_class, ids, ids, ids, ids, True, (6, 6)))
    after = functools.partial(Crops.after, left=left)
    rule = after if count == "first" else lambda one: None if sum(one.valid) < one.count * 36 else after(one)
    return CropPacking(inner, CropPictures(), tower, rule), pictures, drawn


def called(packing, sizes, pictures, features):
    """What the model's encoder gets from its packing."""
    with packing.pictures.entered(pictures):
        return packing(
            features, sizes, vision_feature_select_strategy="default", image_newline=packing.inner.image_newline
        )


@pytest.mark.parametrize("size", [WIDE, TALL, THIN, ODD, SQUARE, (29, 31), (31, 29), (2500, 20)])
@pytest.mark.parametrize("left", [1, 2, 5, 11, 18, 30, 35, 36])
def test_as_transformers_packs_whole_crops(size, left):
    inner, crops = inner_of(), crops_of(size)
    features, ids = features_of(crops, left, seed=left)
    packed, kept = pack(features, ids, inner.image_newline, crops, crops.after(left))
    wanted, indices = packed_by_nan(inner, features, ids, size, inner.image_newline)
    assert torch.equal(packed, wanted) and torch.equal(kept, indices)


@pytest.mark.parametrize("case", GOLDEN, ids=[str(case[0]) for case in GOLDEN])
def test_known_numbers(case):
    size, *geometry, numbers = case
    inner, crops = inner_of(*geometry), crops_of(size, *geometry)
    for left, count in numbers.items():
        features, ids = features_of(crops, left, seed=left)
        packed, kept = pack(features, ids, inner.image_newline, crops, crops.after(left))
        wanted, indices = packed_by_nan(inner, features, ids, size, inner.image_newline)
        assert len(packed) == len(kept) == count
        assert torch.equal(packed, wanted) and torch.equal(kept, indices)


def test_random_pictures():
    drawn, inner = random.Random(5), inner_of()
    for number in range(60):
        size, left = (drawn.randint(1, 200), drawn.randint(1, 200)), drawn.randint(1, 36)
        crops = crops_of(size)
        features, ids = features_of(crops, left, seed=number)
        packed, kept = pack(features, ids, inner.image_newline, crops, crops.after(left))
        wanted, indices = packed_by_nan(inner, features, ids, size, inner.image_newline)
        assert torch.equal(packed, wanted) and torch.equal(kept, indices), (size, left)


@pytest.mark.parametrize("size", [WIDE, TALL, THIN, ODD, SQUARE])
def test_nothing_left(size):
    """Bitwise as transformers packs it, by the pure function and by what stands in for the method."""
    inner, crops = inner_of(), crops_of(size)
    features, ids = features_of(crops, 36)
    (wanted,), lengths = inner.pack_image_features([features], [size], "default", inner.image_newline)
    packed, kept = pack(features, ids, inner.image_newline, crops, crops.before)
    assert torch.equal(packed, wanted) and kept.tolist() == list(range(crops.before))
    packing, pictures, _ = packing_of(inner, [size], 36)
    (packed,), counted = called(packing, [size], pictures, [features])
    assert torch.equal(packed, wanted) and torch.equal(counted, lengths)


def test_line_ends_and_padding_by_hand():
    """Two crops of 2 x 2 beside each other; of their four columns the picture is the middle ones."""
    crops = Crops(2, (1, 2), (0, 2, 1, 3))
    ids = torch.tensor(
        [[1, 3], [2, 3], [0, 3]]
    )  # the first patch of the first crop and the last of the other are padding
    assert packed_indices(ids, crops).tolist() == [1, 3, 10, 7, 5, 10, 6, 9]
    features = torch.arange(6.0).view(3, 2, 1)
    packed, kept = pack(features, ids, torch.tensor([-1.0]), crops, 6)
    assert packed.flatten().tolist() == [0, 1, 4, -1, 3, -1] and kept.tolist() == [1, 3, 5, 6, 7, 9]


def test_line_end_has_the_dtype_of_features():
    crops = crops_of(ODD)
    features, ids = features_of(crops, 12)
    newline = torch.arange(WIDTH) / 7
    packed, _ = pack(features.to(torch.bfloat16), ids, newline, crops, crops.after(12))
    assert packed.dtype == torch.bfloat16 and torch.equal(packed[-1], newline.to(torch.bfloat16))


def test_gradients_go_to_what_stays():
    """Padding that is left gets none, and the line end one for each row."""
    crops = crops_of((17, 90))
    features, ids = features_of(crops, 30)
    features.requires_grad_()
    newline = torch.zeros(WIDTH, requires_grad=True)
    pack(features, ids, newline, crops, crops.after(30))[0].sum().backward()
    assert int((features.grad[..., 0] == 1).sum()) == crops.after(30) - crops.lines < ids.numel()
    assert newline.grad.tolist() == [crops.lines] * WIDTH


def test_pictures_together_are_as_each_alone():
    inner, sizes = inner_of(), [WIDE, THIN, ODD, SQUARE]
    packing, pictures, drawn = packing_of(inner, sizes, 11)
    packed, lengths = called(packing, sizes, pictures, [features for features, _ in drawn])
    pictured, kept = packing.take()
    assert pictured == tuple(pictures)
    assert lengths.tolist() == [one.after(11) for one in pictures] == [len(one) for one in packed]
    for size, tokens, indices, (features, ids) in zip(sizes, packed, kept, drawn, strict=True):
        wanted, left = packed_by_nan(inner, features, ids, size, inner.image_newline)
        assert torch.equal(tokens, wanted) and torch.equal(indices, left)
    assert packing.take() == ((), [])  # once


def test_padding_that_leaves_after_the_tower():
    """As many tokens as the data leave; whole pictures keep what the host knows."""
    inner, sizes = inner_of(), [(17, 90), SQUARE, THIN, ODD]
    packing, pictures, drawn = packing_of(inner, sizes, 20, count="after", padding_first=False)
    packed, lengths = called(packing, sizes, pictures, [features for features, _ in drawn])
    for size, tokens, (features, ids) in zip(sizes, packed, drawn, strict=True):
        assert torch.equal(tokens, packed_by_nan(inner, features, ids, size, inner.image_newline)[0])
    assert lengths.tolist() == [len(one) for one in packed]
    assert len(packed[1]) == pictures[1].after(20)
    assert len(packed[0]) < pictures[0].after(20)  # so the survivors did differ from those of padding first


def test_the_device_is_read_only_where_padding_leaves_after_the_tower():
    inner = inner_of()
    for count, size, reads in (("first", ODD, False), ("after", ODD, True), ("after", SQUARE, False)):
        packing, pictures, [(features, _)] = packing_of(inner, [size], 11, count=count)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            record = packing.tower.finished()[0]
            packing.tower.put(0, dataclasses.replace(record, kept=mode.from_tensor(record.kept)))
            run = functools.partial(called, packing, [size], pictures, [mode.from_tensor(features)])
            if reads:
                with pytest.raises(NotImplementedError, match="padding='first'"):
                    run()
            else:
                (packed,), _ = run()
                assert packed.shape == (pictures[0].after(11), WIDTH)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("size", [ODD, THIN])
def test_one_graph(size):
    inner, crops = inner_of(), crops_of(size)
    features, ids = features_of(crops, 11)
    arguments = features, ids, inner.image_newline, crops, crops.after(11)
    found = torch.compile(pack, fullgraph=True, backend="aot_eager")(*arguments)
    assert all(map(torch.equal, found, pack(*arguments)))


@pytest.mark.usefixtures("fresh_compiler")
def test_what_stands_in_for_the_method_is_one_graph():
    inner, sizes = inner_of(), [ODD, WIDE]
    packing, pictures, drawn = packing_of(inner, sizes, 11)
    arguments = sizes, pictures, [features for features, _ in drawn]
    wanted, lengths = called(packing, *arguments)

    def run(features):
        return packing(
            features, sizes, vision_feature_select_strategy="default", image_newline=packing.inner.image_newline
        )

    with packing.pictures.entered(pictures):
        found, counted = torch.compile(run, fullgraph=True, backend="aot_eager")(arguments[2])
    assert all(map(torch.equal, found, wanted)) and torch.equal(counted, lengths)


def test_a_picture_without_line_end_is_refused():
    inner = inner_of()
    packing, _, drawn = packing_of(inner, [ODD], 11)
    with pytest.raises(ValueError, match="image_newline must be the line end of the model, got None"):
        packing([drawn[0][0]], [ODD], "default")


def test_calls_without_a_picture_are_refused():
    packing, _, drawn = packing_of(inner_of(), [ODD], 11)
    with pytest.raises(ValueError, match="call the model or its get_image_features"):
        called(packing, [ODD], [], [drawn[0][0]])


def test_features_of_another_layer_are_refused():
    """As many as the tower leaves, or a whole grid that it never saw."""
    packing, pictures, drawn = packing_of(inner_of(), [ODD], 11)
    for rows in (10, 12, 35, 37):
        others = [torch.zeros(len(drawn[0][0]), rows, WIDTH)]
        with pytest.raises(ValueError, match=f"image_features must be 11 of every crop, .*, got {rows}; pass"):
            called(packing, [ODD], pictures, others)


def test_sizes_are_numbers_of_the_host_for_the_encoder():
    """Given as a tensor or as lists; the model gets them as tuples, and its tower the crops."""
    packing, *_ = packing_of(inner_of(), [ODD], 11)
    pixels, seen = torch.zeros(2, 5, 3, 24, 24), []

    def encoder(inner, given, image_sizes, more):
        seen.append((given is pixels, image_sizes, packing.pictures.of_batch(4 + 4), more))
        return "output"

    given = torch.tensor([WIDE, TALL])
    for sizes in (given, given.tolist(), given.numpy(), list(given)):
        assert packing.encoded(encoder, pixels, {"image_sizes": sizes, "more": 1}) == "output"
    assert seen == [(True, [WIDE, TALL], (crops_of(WIDE), crops_of(TALL)), 1)] * 4
    with pytest.raises(ValueError, match=r"image_sizes must be the \(height, width\) of each of the 2 pictures, got 1"):
        packing.encoded(encoder, pixels, {"image_sizes": [WIDE], "more": 1})
    for wrong in (given + 0.9, given[0], given * 0):
        with pytest.raises(ValueError, match=r"image_sizes must be .*, integers of at least 1, got .* for picture 0"):
            packing.encoded(encoder, pixels, {"image_sizes": wrong, "more": 1})
    with pytest.raises(ValueError, match=r"image_sizes must be the .* of each of the 2 pictures, got None"):
        packing.encoded(encoder, pixels, {"more": 1})


def test_it_is_there_while_attached():
    inner = inner_of()
    packing, *_ = packing_of(inner, [ODD], 11)
    changes = ModelChanges()
    packing.install(changes)
    assert inner.pack_image_features is packing
    assert inspect.signature(packing) == inspect.signature(type(inner)().pack_image_features)
    changes.undo()
    assert "pack_image_features" not in vars(inner)
