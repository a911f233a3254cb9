"""Which pictures the rows of the tower's batch are of."""

from __future__ import annotations

import threading

import numpy
import pytest
import torch

from ficoco_ext.models.crop_pictures import CropPictures, picture_sizes
from ficoco_ext.stages import Crops

pytestmark = pytest.mark.quick
WIDE, TALL = Crops(4, (1, 2), (1, 3, 0, 8)), Crops(4, (2, 1), (0, 8, 0, 3))


SIZES = torch.tensor([[20, 61], [5, 7]])


@pytest.mark.parametrize(
    "given",
    [
        SIZES,
        SIZES.int(),
        SIZES.numpy(),
        SIZES.numpy().astype("uint8"),
        SIZES.tolist(),
        list(SIZES),
        list(SIZES.numpy()),
        [tuple(row) for row in SIZES.tolist()],
        ((numpy.int64(20), numpy.uint16(61)), (5, numpy.int32(7))),
        [list(row) for row in SIZES],
    ],
    ids=lambda one: type(one).__name__,
)
def test_sizes_are_integers_of_any_kind(given):
    for count in (None, 2):
        found = picture_sizes(given, count)
        assert found == [(20, 61), (5, 7)] and {type(one) for size in found for one in size} == {int}


@pytest.mark.parametrize(
    ("given", "got"),
    [
        (None, "None;"),
        (SIZES.double() - 0.1, r"\[19\.9, 60\.9\] for picture 0"),
        (SIZES.double(), r"\[20\.0, 61\.0\] for picture 0"),
        (SIZES.numpy() / 2, r"\[10\.0, 30\.5\] for picture 0"),
        ([(20, 61), (5, 7.0)], r"\(5, 7\.0\) for picture 1"),
        ([(20, 61), (5, True)], r"\(5, True\) for picture 1"),
        (SIZES > 6, r"\[True, True\] for picture 0"),
        (SIZES * 0, r"\[0, 0\] for picture 0"),
        (-SIZES, r"\[-20, -61\] for picture 0"),
        (SIZES[0], r"20 for picture 0"),
        (SIZES[0, 0], r"\(\) torch\.int64 on cpu"),
        (torch.ones(2, 3, dtype=torch.int64), r"\[1, 1, 1\] for picture 0"),
        (SIZES[None].expand(2, 2, 2), r"\[\[20, 61\], \[5, 7\]\] for picture 0"),
        ([(20, 61), ("a", 7)], r"\('a', 7\) for picture 1"),
        ([(20, 61), 5], "5 for picture 1"),
        (["55", "66"], "'55' for picture 0"),
        ("55", "55"),
        ([20, 61, 5], "20 for picture 0"),
        ([(20, 61)], "1 of them"),
        ([(20, 61)] * 3, "3 of them"),
    ],
)
def test_other_sizes_are_refused(given, got):
    wanted = r"^ficoco::forward: image_sizes must be the \(height, width\) of each of the 2 pictures.*, got "
    with pytest.raises(ValueError, match=f"{wanted}{got}.* pass what the processor returned$"):
        picture_sizes(given, 2)


def test_rows_are_thumbnails_and_crops():
    pictures = CropPictures()
    with pictures.entered([WIDE, TALL]):
        assert pictures.of_batch(6) == (WIDE, TALL)
        assert pictures.valid(6) == (16, 8, 8, 16, 12, 12)
        with pictures.entered([TALL]):
            assert pictures.valid(3) == (16, 12, 12)
        assert pictures.of_batch(6) == (WIDE, TALL)
        with pytest.raises(ValueError, match="6 rows"):
            pictures.of_batch(5)


def test_outside_of_a_call_and_in_another_thread_there_are_none():
    pictures, found = CropPictures(), []

    def other():
        try:
            pictures.of_batch(3)
        except ValueError as error:
            found.append(str(error))

    with pytest.raises(RuntimeError, match="stop"), pictures.entered([TALL]):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        raise RuntimeError("stop")
    with pytest.raises(ValueError, match="get_image_features"):
        pictures.of_batch(3)
    assert len(found) == 1
