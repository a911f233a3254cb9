"""What a language model's sequence is to the operators: the text after its visual tokens, its last real token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._token_attention import token_attention
from .attention import QueryKey
from .library import result_dtype


class Text(NamedTuple):
    """Columns (B, R) of a sequence, and which of them (B, R) are the text after its visual tokens."""

    columns: Tensor
    chosen: Tensor


def text_after(visual: Tensor, tokens: int, real: Tensor | None, after: int | None) -> Text:
    """The text after the visual tokens at columns ``visual`` (B, n) of ``tokens``.

    A column that is not this text is replaced by that of the last visual token, so that nothing reads what padding
    holds: not even 0 times NaN is 0.

    Args:
        real: (B, tokens) bool, False for padding; None: all are real.
        after: the most columns that any row has after its visual tokens; None: as many as are not visual.
    """
    count = tokens - visual.shape[1] if after is None else after
    columns = torch.arange(tokens - count, tokens, device=visual.device)
    chosen = columns > visual[:, -1:]
    if real is not None:
        chosen = chosen & real[:, tokens - count :]
    return Text(torch.where(chosen, columns, visual[:, -1:]), chosen)


def last_token(visual: Tensor, tokens: int, real: Tensor | None) -> Tensor:
    """(B, 1) the column of each row's last real token."""
    columns = torch.arange(tokens, device=visual.device)
    if real is None:
        return columns[-1:].expand(visual.shape[0], 1)
    return (columns * real).amax(1, keepdim=True)


def shares(chosen: Tensor, reduce: str, dtype: torch.dtype) -> Tensor:
    """Weights of a ``"sum"``, or of a ``"mean"`` over however many are chosen (of none: zeros)."""
    weights = chosen.to(dtype)
    return weights / weights.sum(-1, keepdim=True).clamp(min=1) if reduce == "mean" else weights


def visual_scores(
    attn: QueryKey,
    visual: Tensor,
    text: Text,
    real: Tensor | None,
    *,
    probs: bool,
    given: bool,
    visual_reduce: str,
    text_reduce: str,
) -> tuple[Tensor, Tensor]:
    """Attention (B, n) of the visual tokens among themselves, and with the text (FiCoCo eq. 3).

    Of logits what they give, of probabilities what they receive. Where there is no text, the second is the negative of
    the first. ``given``: the values of the attention are used as they are.
    """
    (b, n), rest = visual.shape, text.chosen.shape[1]
    weights = torch.zeros(b, 2, n + rest, dtype=result_dtype(attn.query), device=visual.device)
    weights[:, 0, :n] = 1 / n if visual_reduce == "mean" else 1
    weights[:, 1, n:] = shares(text.chosen, text_reduce, weights.dtype)
    computed = probs and not given
    among, with_text = token_attention(
        attn,
        visual,
        torch.cat([visual, text.columns], 1),
        weights,
        probs=computed,
        column=probs,
        causal=computed,
        key_mask=real,
    ).unbind(1)
    return among, torch.where(text.chosen.any(1, keepdim=True), with_text, -among)


def last_token_scores(attn: QueryKey, visual: Tensor, last: Tensor, real: Tensor | None, *, given: bool) -> Tensor:
    """(B, n) the attention that the visual tokens receive from the column ``last`` (B, 1)."""
    ones = torch.ones_like(last, dtype=result_dtype(attn.query)).unsqueeze(1)
    how = {"probs": not given, "column": True, "causal": not given}
    return token_attention(attn, visual, last, ones, **how, key_mask=real)[:, 0]
