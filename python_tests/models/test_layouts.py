"""How the tokens of a picture lie, with right values by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from helpers.models import one_thread  # noqa: F401
from helpers.tiny_families import BY_NAME, shared_model
from helpers.tiny_processors import Picture
from helpers.tiny_prompts import one_picture

from ficoco_ext.models.layouts import (
    Layout,
    merged_blocks,
    packed_crops,
    pixel_shuffled,
    pooled_videos,
    side,
    square,
    unknown,
)
from ficoco_ext.models.modalities import IMAGES, VIDEOS


def inner_of(config=None, **vision):
    return SimpleNamespace(config=SimpleNamespace(vision_config=SimpleNamespace(**vision), **(config or {})))


def test_nothing_is_known():
    assert unknown(None, {}, IMAGES, (3, 4)) == [Layout(), Layout()]
    assert Layout() == (None, (), 0, 1, None)


@pytest.mark.parametrize(("count", "grid"), [(16, (4, 4)), (1, (1, 1)), (0, (0, 0)), (2, None), (8, None), (15, None)])
def test_squares(count, grid):
    assert side(count) == grid
    assert square(None, {}, IMAGES, (count, 9)) == [Layout(grid), Layout((3, 3))]


def test_grids_of_merged_blocks():
    """Of 2 x 2 patches; the frames of a video are one above the other."""
    inner = inner_of(spatial_merge_size=2)
    pictures = {"image_grid_thw": torch.tensor([[1, 4, 8], [1, 6, 4]]), "video_grid_thw": torch.tensor([[3, 4, 6]])}
    assert merged_blocks(inner, pictures, IMAGES, (8, 6)) == [Layout((2, 4)), Layout((3, 2))]
    assert merged_blocks(inner, pictures, VIDEOS, (18,)) == [Layout((6, 3), frames=3)]
    assert merged_blocks(inner, pictures, VIDEOS, (17,)) == [Layout()]
    assert merged_blocks(inner, pictures, IMAGES, (8, 5)) == [Layout((2, 4)), Layout()]  # 5 is not 3 x 2
    assert merged_blocks(inner, pictures, IMAGES, (8,)) == [Layout()]  # not as many grids as pictures
    assert merged_blocks(inner, {}, IMAGES, (8, 6)) == [Layout(), Layout()]


def test_frames_that_an_encoder_returns_apart():
    """Three frames and one grid for all: nothing says which frame is of which video."""
    grids = {"video_grid_thw": torch.tensor([[3, 4, 6]])}
    assert merged_blocks(inner_of(spatial_merge_size=2), grids, VIDEOS, (6, 6, 6)) == [Layout()] * 3


def test_blocks_of_a_pixel_shuffle():
    assert pixel_shuffled(inner_of({"scale_factor": 2}, image_size=32, patch_size=4)) == 16
    assert pixel_shuffled(inner_of({"scale_factor": 4}, image_size=512, patch_size=16)) == 64


def test_videos_whose_frames_are_halved():
    """Frames of 3 x 3 patches: halves are rounded up, so 2 x 2, and one end of line for all."""
    inner, videos = inner_of(image_size=12, patch_size=4), {"pixel_values_videos": torch.zeros(2, 5, 3, 12, 12)}
    outside = Layout((10, 2), appended=1, frames=5)
    inside = Layout((10, 2), line_ends=(20,), frames=5)
    assert pooled_videos(inner, videos, VIDEOS, (20, 21, 19)) == [outside, inside, Layout()]
    assert packed_crops(inner, videos, VIDEOS, (21,)) == [inside]
    assert pooled_videos(inner, {}, VIDEOS, (20,)) == [Layout()]


@pytest.mark.parametrize(("given", "got"), [({}, "None"), ({"image_sizes": [(16, 16)]}, "1 of them")])
def test_pictures_without_their_sizes(given, got):
    """Nothing else says where their lines end."""
    inner = inner_of(image_size=16, patch_size=4)
    with pytest.raises(ValueError, match=rf"image_sizes must be the \(height, width\) of each of the 2 .*, got {got}"):
        packed_crops(inner, given, IMAGES, (20, 17))


def test_a_picture_alone_ends_with_one_newline():
    """One of the base crop alone: 4 x 4 patches and its newline."""
    sizes = {"image_sizes": torch.tensor([[16, 16]])}
    found = packed_crops(inner_of(image_size=16, patch_size=4), sizes, IMAGES, (17,))
    assert found == [Layout((4, 4), line_ends=(16,))]


@pytest.mark.parametrize("name", ["llava-next", "llava-onevision"])
@pytest.mark.parametrize("picture", [Picture(56, 112), Picture(100, 60), Picture(40, 44)], ids=str)
def test_newlines_are_where_the_processor_has_them(name, picture):
    pytest.importorskip("transformers")
    family = BY_NAME[name]
    full = one_picture(family, picture)
    (visual,) = full.visuals
    count = len(visual.columns)
    (found,) = packed_crops(shared_model(name).model, full.inputs, IMAGES, (count,))
    assert found.line_ends == tuple(visual.line_ends) and len(found.line_ends) > 0
    assert packed_crops(shared_model(name).model, full.inputs, IMAGES, (count + 1,)) == [Layout()]
