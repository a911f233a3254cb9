"""Which pictures the rows of the tower's batch are of."""

from __future__ import annotations

import threading

import pytest

from ficoco_ext.models.crop_pictures import CropPictures
from ficoco_ext.stages import Crops

pytestmark = pytest.mark.quick
WIDE, TALL = Crops(4, (1, 2), (1, 3, 0, 8)), Crops(4, (2, 1), (0, 8, 0, 3))


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
