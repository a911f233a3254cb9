"""Which pictures the crops in the vision tower are of, during one call of an encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..ops import checks
from ..stages import Crops
from .per_thread import PerThread


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
