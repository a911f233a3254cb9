"""A prompt without some of its columns. Pure functions of tensors, without a model.

Rows may lose different columns and different numbers of them; shorter rows are padded on the left. Padding that all
rows have stays, so that a prompt that loses nothing is not changed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor


class Cut(NamedTuple):
    """Which columns of a prompt (B, L) a shorter one has.

    Attributes:
        order: (B, W) the old column of each new one.
        valid: (B, W) bool, False for padding that was added; None: none was.
        length: L.
    """

    order: Tensor
    valid: Tensor | None
    length: int

    @property
    def indices(self) -> Tensor:
        """(B, W) the old column of each new one, -1 for padding that was added."""
        return self.order if self.valid is None else self.order.masked_fill(~self.valid, -1)

    @property
    def left_out(self) -> Tensor:
        """(B, L) int64, 1 for the columns that left."""
        stays = torch.zeros(self.order.shape[0], self.length, dtype=torch.long, device=self.order.device)
        valid = torch.ones_like(self.order) if self.valid is None else self.valid.long()
        return 1 - stays.scatter_reduce(1, self.order, valid, "amax")

    def of(self, tensor: Tensor, filler: float = 0) -> Tensor:
        """(..., B, W) of a tensor (..., B or 1, L); ``filler`` where padding was added."""
        b, w = self.order.shape
        wide = tensor.expand(*tensor.shape[:-2], b, tensor.shape[-1])
        cut = wide.gather(-1, self.order.to(tensor.device).expand(*tensor.shape[:-2], b, w))
        return cut if self.valid is None else cut.masked_fill(~self.valid.to(tensor.device), filler)

    def of_vectors(self, tensor: Tensor, filler: Tensor) -> Tensor:
        """(B, W, C) of vectors (B, L, C); the vector ``filler`` (C,) where padding was added."""
        cut = tensor.gather(1, self.order.unsqueeze(-1).expand(-1, -1, tensor.shape[-1]))
        return cut if self.valid is None else torch.where(self.valid.unsqueeze(-1), cut, filler.to(cut))


def drop_padding(keep: Tensor, visual: Tensor, mask: Tensor | None) -> Tensor:
    """``keep`` (B, L) without left padding that some row does not have. Placeholders in it stay.

    A row whose visual tokens are hidden by the mask keeps them: their features come with the call.
    """
    if mask is None:
        return keep
    leading = mask.cumsum(1) == 0
    return keep & (visual | ~(leading & ~leading.all(0)))


def cut(keep: Tensor, widths: list[int]) -> Cut:
    """The columns where ``keep`` (B, L) is True.

    Args:
        keep: what stays. widths: how many columns of each row that are. Host values.
    """
    width = max(widths)
    order = keep.to(torch.uint8).argsort(dim=1, stable=True)[:, keep.shape[1] - width :]
    valid = None if min(widths) == width else keep.gather(1, order)
    return Cut(order, valid, keep.shape[1])


def kept_columns(visual: Tensor, kept: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """(B, L) True but for the placeholders of visual tokens that left.

    Args:
        visual: (B, L) placeholders of one kind; they belong to the pictures in the order of rows and columns.
        kept: for each picture the tokens that stay, indices into its own.
        counts: tokens of each picture before. Host values.
    """
    starts = [sum(counts[:number]) for number in range(len(counts))]
    stays = torch.zeros(sum(counts), dtype=torch.bool, device=visual.device)
    chosen = [one.to(visual.device) + start for one, start in zip(kept, starts, strict=True)]
    stays = stays.index_fill(0, torch.cat(chosen), True) if chosen else stays
    rank = visual.flatten().cumsum(0) - 1
    return ~visual | stays[rank.clamp(0, max(len(stays) - 1, 0))].view_as(visual) if len(stays) else ~visual


def torn(visual: Tensor, shown: Tensor, counts: Sequence[int]) -> Tensor:
    """(B,) how many neighbours in one picture differ in whether the mask shows them.

    Args:
        visual: (B, L) placeholders of one kind, in the order of the pictures. shown: (B, L) bool, what the mask shows.
        counts: tokens of each picture. Host values.
    """
    first = torch.cat([torch.arange(count, device=visual.device) == 0 for count in counts])
    rank = (visual.flatten().cumsum(0) - 1).clamp(0, len(first) - 1).view_as(visual)
    order = visual.to(torch.uint8).argsort(dim=1, descending=True, stable=True)  # placeholders first, in order
    seen, present, starts = (one.gather(1, order) for one in (shown, visual, first[rank]))
    return ((seen[:, 1:] != seen[:, :-1]) & present[:, 1:] & ~starts[:, 1:]).sum(1)


def last_columns(ids: Tensor, mask: Tensor | None) -> Tensor:
    """(B, 1) the last column of each row of ``ids`` (B, L) that the mask shows."""
    columns = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return (columns if mask is None else columns * (mask != 0)).amax(1, keepdim=True)


def first_torn(rows: Sequence[int], counts: Sequence[int]) -> int | None:
    """The first row that ends inside a picture; None if all hold whole ones. Arguments: see :func:`at_the_end`."""
    ends = {0, *accumulate(counts)}
    return next((row for row, total in enumerate(accumulate(rows)) if total not in ends), None)


def at_the_end(rows: Sequence[int], ended: Sequence[int], counts: Sequence[int]) -> list[int]:
    """Which pictures end a row whose last token left.

    Args:
        rows: placeholders of each row. ended: for each row, whether its last column is one that left.
        counts: tokens of each picture, in the order of rows.
    """
    ends = list(accumulate(counts))
    return [bisect_left(ends, total) for total, end in zip(accumulate(rows), ended, strict=True) if end]
