"""Which columns of a prompt a layer of the language model holds, and masks and positions told in those columns.

Layer 0 always sees and caches the whole prompt of L columns; that is what positions, ``generate`` and the masks of
transformers count from. A layer behind a reduction holds W of them. It gets the rows and columns of layer 0's mask and
position embeddings that it holds, so every token keeps the position it was given first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BuildMask = Callable[[Tensor], Any]  # (B, K) bool, True for keys that are there, to a causal mask of the model's kind


class Columns(NamedTuple):
    """The columns that some layers hold.

    Attributes:
        places: (B, W) the column of the prompt that each one is; 0 where there is none.
        real: (B, W) bool, False for padding and where there is none; None: all are real.
        holes: some are none, because rows came to differ in length. A host value.
    """

    places: Tensor
    real: Tensor | None
    holes: bool

    def to(self, device: torch.device) -> Columns:
        """These columns on ``device``: a model may be spread over several."""
        if self.places.device == device:
            return self
        return Columns(self.places.to(device), None if self.real is None else self.real.to(device), self.holes)


def embeddings(held: tuple[Tensor, ...], places: Tensor) -> tuple[Tensor, ...]:
    """Cosine and sine (..., B or 1, L, d) of the held columns: (..., B, W, d)."""
    return tuple(_rows(one, places) for one in held)


def _rows(table: Tensor, places: Tensor) -> Tensor:
    if table.shape[-3] == 1:
        return table.squeeze(-3)[..., places, :]
    index = places.unsqueeze(-1).expand(*table.shape[:-3], *places.shape, table.shape[-1])
    return table.gather(-2, index)


def position_ids(ids: Tensor | None, places: Tensor) -> Tensor | None:
    """Position ids (B or 1, L) of the held columns: (B, W)."""
    return None if ids is None else ids.expand(places.shape[0], -1).gather(1, places)


def mask(base: Tensor | None, held: Columns, length: int, *, prefill: bool, static: bool, build: BuildMask) -> Any:
    """Layer 0's mask told in the held columns and those behind the prompt.

    Args:
        base: None, (B, K) or (B, 1, Q, K) bool or additive, as transformers made it for layer 0.
        held: what the layer holds of the prompt.
        length: L, columns of the prompt.
        prefill: queries are the prompt itself; otherwise they are new tokens, columns behind it.
        static: keys have a fixed number of places, some of them empty, in every layer alike.
        build: makes a mask where there is none and one is needed.
    """
    if base is None:
        if not held.holes:
            return None
        assert held.real is not None
        return build(held.real)
    places, real, nobody = held.places, held.real, _nobody(base)
    (b, w), keys = places.shape, base.shape[-1]
    prompt, behind = base.expand(b, *base.shape[1:])[..., :length], base[..., length:]
    if base.dim() == 4:
        if prefill:
            prompt = prompt.gather(2, places[:, None, :, None].expand(b, 1, w, length))
        places = places[:, None, None].expand(b, 1, prompt.shape[2], w)
        real = None if real is None else real[:, None, None]
    told = prompt.gather(-1, places)
    if real is not None:
        told = told.masked_fill(~real, nobody)
    if not prefill:
        told = torch.cat([told, behind.expand(*told.shape[:-1], -1)], -1)
    return F.pad(told, (0, keys - told.shape[-1]), value=nobody) if static else told


def _nobody(base: Tensor) -> float:
    """What the mask says of a key that nobody may attend to."""
    return torch.finfo(base.dtype).min if base.is_floating_point() else 0
