"""The geometry of pictures of several crops, against its definition by cells and against transformers' processor."""

from __future__ import annotations

import random

import numpy
import pytest
import torch

import ficoco_ext
from ficoco_ext.stages import Crops
from ficoco_ext.stages.crops import best_canvas

pytestmark = pytest.mark.quick
LARGE = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
SMALL = tuple((height // 14, width // 14) for height, width in LARGE)
CASES = [
    ((480, 640), 24, 336, LARGE, (2, 2), (6, 42, 0, 48), (432,) * 4, 2340, {1: 41, 57: 321, 144: 756, 575: 2339}),
    ((427, 640), 24, 336, LARGE, (2, 2), (8, 40, 0, 48), (384,) * 4, 2144, {24: 152, 288: 1472, 576: 2144}),
    ((1200, 900), 24, 336, LARGE, (2, 2), (0, 48, 6, 42), (432,) * 4, 2352, {144: 768, 575: 2351}),
    ((37, 41), 24, 336, LARGE, (1, 2), (0, 24, 11, 37), (312,) * 2, 1224, {57: 195, 575: 1223}),
    ((20, 61), 6, 24, SMALL, (1, 3), (0, 6, 0, 18), (36,) * 3, 150, {6: 30, 35: 146, 36: 150}),
    ((70, 24), 6, 24, SMALL, (3, 1), (0, 18, 0, 6), (36,) * 3, 162, {1: 22, 18: 90}),
    ((20, 2500), 24, 336, LARGE, (1, 3), (12, 12, 0, 72), (0,) * 3, 576, {10: 10, 576: 576}),
]


@pytest.mark.parametrize("case", CASES, ids=[str(case[0]) for case in CASES])
def test_known_pictures(case):
    size, side, pixels, pinpoints, grid, rectangle, valid, before, after = case
    crops = Crops.of(size, pinpoints, side, pixels)
    assert (crops.grid, crops.rectangle, crops.valid, crops.before) == (grid, rectangle, valid, before)
    assert {left: crops.after(left) for left in after} == after


def test_origins_are_the_cells_of_the_canvas_in_reading_order():
    drawn = random.Random(7)
    for _ in range(40):
        size = (drawn.randint(8, 900), drawn.randint(8, 900))
        crops = Crops.of(size, SMALL, 6, 24)
        g, (rows, columns) = crops.side, crops.grid
        canvas = [
            [(1 + y // g * columns + x // g, y % g * g + x % g) for x in range(columns * g)] for y in range(rows * g)
        ]
        top, bottom, left, right = crops.rectangle
        cells = [cell for line in canvas[top:bottom] for cell in line[left:right]]
        assert crops.origins == [(0, patch) for patch in range(g * g)] + cells
        assert crops.valid == tuple(sum(cell[0] == 1 + crop for cell in cells) for crop in range(rows * columns))
        order = [cell for line in canvas[top:bottom] for cell in [*line[left:right], "end"]]
        assert crops.line_ends == tuple(g * g + at for at, cell in enumerate(order) if cell == "end")
        assert crops.before == g * g + len(order)
        assert crops.after(g * g) == crops.before


def test_as_many_tokens_as_the_processor_writes():
    processing = pytest.importorskip("transformers.models.llava_next.processing_llava_next")
    processor = processing.LlavaNextProcessor.__new__(processing.LlavaNextProcessor)
    processor.patch_size, processor.vision_feature_select_strategy = 4, "default"
    processor.num_additional_image_tokens = 1
    processor.image_processor = type("Images", (), {"image_grid_pinpoints": [list(one) for one in SMALL]})()
    drawn = random.Random(3)
    sizes = [(drawn.randint(1, 2000), drawn.randint(1, 2000)) for _ in range(300)] + [(20, 2500), (2500, 20), (1, 1)]
    for size in sizes:
        written = processor._get_number_of_features(*size, 24, 24)
        assert Crops.of(size, SMALL, 6, 24).before == written - 1, (
            size
        )  # of which one is the class token, left out later


def test_integers_of_numpy_are_integers():
    size = (numpy.int64(480), numpy.uint16(640))
    pinpoints = [tuple(map(numpy.int32, one)) for one in LARGE]
    assert Crops.of(size, pinpoints, 24, 336) == Crops.of((480, 640), LARGE, 24, 336)


def test_of_equal_canvases_the_first():
    """A square picture fits a wide and a high canvas equally well."""
    assert best_canvas((24, 24), ((24, 48), (48, 24))) == (24, 48)
    assert best_canvas((24, 24), ((48, 24), (24, 48))) == (48, 24)
    assert best_canvas((48, 48), ((24, 48), (48, 48), (48, 72))) == (48, 48)  # most of it, then least padding


@pytest.mark.parametrize(
    ("size", "pinpoints", "named"),
    [
        ((0, 5), SMALL, "size"),
        ((5,), SMALL, "size"),
        ((5.0, 5), SMALL, "size"),
        ("55", SMALL, "size"),
        ((5, True), SMALL, "size"),
        ((5, numpy.float64(5)), SMALL, "size"),
        (("5", "5"), SMALL, "size"),
        ((5, 5), (), "pinpoints"),
        ((5, 5), ((24, 0),), "pinpoints"),
        ((5, 5), ((25, 24),), "pinpoints"),
    ],
)
def test_refused(size, pinpoints, named):
    with pytest.raises(ValueError, match=named):
        Crops.of(size, pinpoints, 6, 24)


@pytest.mark.parametrize("name", ["side", "pixels"])
@pytest.mark.parametrize(
    ("wrong", "error"),
    [(0, ValueError), (-1, ValueError), (2.0, TypeError), ("24", TypeError), (True, TypeError), (None, TypeError)],
)
def test_sides_are_whole_numbers(name, wrong, error):
    given = {"side": 4, "pixels": 32, name: wrong}
    message = f"ficoco::crops: {name} must be an integer of at least 1, got {wrong!r} .*; pass image_size"
    with pytest.raises(error, match=message):
        Crops.of((30, 64), [(32, 64)], **given)
    with pytest.raises(error, match=message):
        ficoco_ext.globalcom2_keep(torch.zeros(3, 16), (30, 64), [(32, 64)], **given)


@pytest.mark.parametrize("wrong", [None, 5, "32x64"])
def test_pinpoints_are_a_sequence(wrong):
    with pytest.raises(TypeError, match="ficoco::crops: pinpoints must be a sequence of"):
        Crops.of((30, 64), wrong, 4, 32)
