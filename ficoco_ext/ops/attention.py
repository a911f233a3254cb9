"""The attention of a layer, given as a map or as query and key, and how the specifications read it.

Shapes, here and in every operator: B batch, H heads, Hk key heads, N tokens in, P = N - class_token patches,
M = N - r tokens out, r sources, k targets per source, C channels, d head width. A class token, if there is one, is
token 0.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor


class QueryKey(NamedTuple):
    """Query and key of one attention layer, in place of the map they would make.

    Args:
        query: (B, H, N, d), after any rotary embedding; any strides.
        key: (B, Hk, N, d) with Hk dividing H; same dtype and device.
        scale: factor on the logits; None means d ** -0.5.
    """

    query: Tensor
    key: Tensor
    scale: float | None = None

    @property
    def logit_scale(self) -> float:
        """The factor on the logits."""
        return self.query.shape[-1] ** -0.5 if self.scale is None else float(self.scale)


Attention = Tensor | QueryKey

TINY = 1e-12  # below this a norm counts as zero, as in torch.nn.functional.normalize


def accumulate(tensor: Tensor) -> Tensor:
    """``tensor`` in the precision of sums: float64 stays, everything else is float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Within it autocast makes nothing coarser that is computed on the device of ``tensor``."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def rows(matrix: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` (B, r) of ``matrix`` (B, N, X): (B, r, X)."""
    return matrix.gather(1, index.unsqueeze(-1).expand(-1, -1, matrix.shape[-1]))


def attention_map(query: Tensor, key: Tensor, scale: float, probs: bool) -> Tensor:
    """Mean over heads of the logits or of their softmax: (B, N, N). The oracle; no fast path forms it."""
    q, k = accumulate(query), accumulate(key)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    logits = q @ k.mT * scale
    return (logits.softmax(-1) if probs else logits).mean(1)


def head_mean(attn: Tensor) -> Tensor:
    """(B, N, N) of an attention map with or without heads."""
    return accumulate(attn).mean(1) if attn.dim() == 4 else accumulate(attn)


def attention_rows(query: Tensor, key: Tensor, scale: float, probs: bool, index: Tensor) -> Tensor:
    """Rows ``index`` (B, r) of :func:`attention_map`: (B, r, N), one head at a time so that nothing N x N is formed."""
    b, h, n, _ = query.shape
    out = accumulate(query).new_zeros(b, index.shape[1], n)
    for head in range(h):
        q = rows(accumulate(query[:, head]), index)
        logits = q @ accumulate(key[:, head * key.shape[1] // h]).mT * scale
        out += logits.softmax(-1) if probs else logits
    return out / h


def cosine_map(one: Tensor, other: Tensor) -> Tensor:
    """(B, N, R) cosines of vectors (B, N, D) and (B, R, D), which autocast does not make coarser."""
    units = [torch.nn.functional.normalize(accumulate(x), dim=-1, eps=TINY) for x in (one, other)]
    with without_autocast(one):
        return units[0] @ units[1].mT


def key_metric(key: Tensor) -> Tensor:
    """Unit-length mean over heads of the keys: (B, N, d)."""
    return torch.nn.functional.normalize(accumulate(key).mean(1), dim=-1, eps=TINY)
