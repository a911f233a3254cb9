"""Which positions of a prompt a layer of the language model holds, and masks and position embeddings for these alone.

A position is an indices into the prompt's sequence, 0 ... L - 1. Layer 0 always sees and caches all L of them;
``position_ids``, ``generate`` and the masks of transformers count from that. A layer after a reduction holds W of them.
It gets the rows and columns of layer 0's mask and of its position embeddings for the positions that it holds, so every
token keeps the position id that it was given first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BuildMask = Callable[[Tensor], Any]  # (B, K) bool, True for keys that exist, to a causal mask of the model's kind


class HeldPositions(NamedTuple):
    """The positions of the prompt that some layers hold.

    Attributes:
        indices: (B, W) the position in the prompt of each entry; 0 for an empty one.
        real: (B, W) bool, False for padding and for empty entries; None: all are real.
        holes: some entries are empty, because rows came to differ in length. A host value.
    """

    indices: Tensor
    real: Tensor | None
    holes: bool

    def to(self, device: torch.device) -> HeldPositions:
        """The same on ``device``: a model may be spread over several."""
        if self.indices.device == device:
            return self
        return HeldPositions(self.indices.to(device), None if self.real is None else self.real.to(device), self.holes)


def embeddings(held: tuple[Tensor, ...], indices: Tensor) -> tuple[Tensor, ...]:
    """Cosine and sine (..., B or 1, L, d) of the held positions: (..., B, W, d)."""
    return tuple(_rows(one, indices) for one in held)


def _rows(table: Tensor, indices: Tensor) -> Tensor:
    if table.shape[-3] == 1:
        return table.squeeze(-3)[..., indices, :]
    rows = indices.unsqueeze(-1).expand(*table.shape[:-3], *indices.shape, table.shape[-1])
    return table.gather(-2, rows)


def position_ids(ids: Tensor | None, indices: Tensor) -> Tensor | None:
    """Position ids (B or 1, L) of the held positions: (B, W)."""
    return None if ids is None else ids.expand(indices.shape[0], -1).gather(1, indices)


def mask(
    base: Tensor | None, held: HeldPositions, length: int, *, prefill: bool, static: bool, build: BuildMask
) -> Any:
    """Layer 0's mask, for the held positions and the new tokens after the prompt.

    Args:
        base: None, (B, K) or (B, 1, Q, K) bool or additive, as transformers made it for layer 0.
        held: what the layer holds of the prompt.
        length: L, positions of the prompt.
        prefill: queries are the prompt itself; otherwise they are new tokens after it.
        static: keys have a fixed number of slots, some of them empty, the same in every layer.
        build: makes a mask where there is none and one is needed.
    """
    if base is None:
        if not held.holes:
            return None
        assert held.real is not None
        return build(held.real)
    indices, real, hidden = held.indices, held.real, _hidden(base)
    (b, w), keys = indices.shape, base.shape[-1]
    prompt, new = base.expand(b, *base.shape[1:])[..., :length], base[..., length:]
    if base.dim() == 4:
        if prefill:
            prompt = prompt.gather(2, indices[:, None, :, None].expand(b, 1, w, length))
        indices = indices[:, None, None].expand(b, 1, prompt.shape[2], w)
        real = None if real is None else real[:, None, None]
    result = prompt.gather(-1, indices)
    if real is not None:
        result = result.masked_fill(~real, hidden)
    if not prefill:
        result = torch.cat([result, new.expand(*result.shape[:-1], -1)], -1)
    return F.pad(result, (0, keys - result.shape[-1]), value=hidden) if static else result


def _hidden(base: Tensor) -> float:
    """What the mask holds for a key that no query attends to."""
    return torch.finfo(base.dtype).min if base.is_floating_point() else 0
