"""How large pictures are, and whose crops are in the vision tower during one call of an encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..ops import checks
from ..stages import Crops
from ..stages.crops import whole_pair
from .per_thread import PerThread


def picture_sizes(given: Any, count: int | None = None) -> list[tuple[int, int]]:
    """The (height, width) of each picture in pixels, out of ``image_sizes`` of a call.

    Args:
        given: (n, 2) integers, a tensor or an array, or a sequence of n pairs. What is on a device is read once.
        count: n, if it is known.

    Raises:
        ValueError: something else, or another number of pictures.
    """
    remedy = "pass what the processor returned"
    whose = "each picture" if count is None else f"each of the {count} pictures"
    rows = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        got = "None" if given is None else given
        checks.fail("forward", "image_sizes", f"the (height, width) of {whose}", got, remedy)
    sizes = []
    for number, row in enumerate(rows):
        pair = row.tolist() if hasattr(row, "tolist") else row
        size = whole_pair(pair)
        if size is None:
            wanted = f"the (height, width) of {whose} in pixels, integers of at least 1"
            checks.fail("forward", "image_sizes", wanted, f"{pair!r} for picture {number}", remedy)
        sizes.append(size)
    if count is not None and len(sizes) != count:
        checks.fail("forward", "image_sizes", f"the (height, width) of {whose}", f"{len(sizes)} of them", remedy)
    return sizes


class _Now:
    def __init__(self) -> None:
        self.pictures: tuple[Crops, ...] = ()


class CropPictures:
    """The pictures of the call that each thread is in. Rows of the tower's batch are their crops, thumbnails first."""

    def __init__(self) -> None:
        self._now = PerThread(_Now)

    @contextmanager
    def entered(self, pictures: Sequence[Crops]) -> Iterator[None]:
        """Inside, the tower encodes the crops of ``pictures``, one picture after the other."""
        now = self._now.here
        outer, now.pictures = now.pictures, tuple(pictures)
        try:
            yield
        finally:
            now.pictures = outer

    def of_batch(self, rows: int) -> tuple[Crops, ...]:
        """The pictures whose thumbnails and crops are the ``rows`` of the tower's batch.

        Raises:
            ValueError: the tower runs on its own, or on another number of rows than they have.
        """
        pictures = self._now.here.pictures
        wanted = sum(1 + one.count for one in pictures)
        if wanted != rows:
            said = f"{wanted} rows, the thumbnails and crops of the pictures" if pictures else "a call of the model"
            remedy = "call the model or its get_image_features, which know how large the pictures are"
            checks.fail("forward", "input of the vision tower", said, f"{rows} rows", remedy)
        return pictures

    def valid(self, rows: int) -> tuple[int, ...]:
        """For each row of the tower's batch how many of its patches are no padding; all of a thumbnail's."""
        return tuple(n for one in self.of_batch(rows) for n in (one.patches, *one.valid))
