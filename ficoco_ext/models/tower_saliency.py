"""Kinds of saliency: query and key of a layer of a vision tower become one number for each patch, without a map."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from ..ops import QueryKey
from ..ops.attention import without_autocast

AUTO, CLASS, COLUMN, KEYS = "auto", "class", "column", "keys"
KINDS = (AUTO, CLASS, COLUMN, KEYS)


def saliency(kind: str, attn: QueryKey, class_token: bool, mask: Tensor | None = None) -> Tensor:
    """(B, P) float32: how much is looked at each patch, in the way that ``kind`` says.

    Args:
        kind: "class", the class token's row of the probabilities, heads averaged; "column", :func:`received`; "keys",
            :func:`unlike_the_mean`.
        attn, class_token, mask: as for :func:`received`.
    """
    if kind == CLASS:
        return ops.attention_stats(attn, class_token=True, probs=True, column=False, patches=False)[0].float()
    return (unlike_the_mean if kind == KEYS else received)(attn, class_token, mask).float()


def class_logits(attn: QueryKey) -> Tensor:
    """(B, P) float32: the class token's row before the softmax, heads averaged, without its own entry.

    The mean over heads is one product with all of them side by side. ``attn``: as for :func:`received`, of a tower
    whose first token is a class token.
    """
    heads = attn.query.shape[1]
    looks = attn.query[:, :, :1].float() * (attn.logit_scale / heads)
    with without_autocast(looks):
        return (looks @ attn.key[:, :, 1:].float().mT).sum(1).squeeze(1)


def received(attn: QueryKey, class_token: bool, mask: Tensor | None = None) -> Tensor:
    """(B, P) mean over heads and over the real patches of the probability with which they attend to each patch.

    Args:
        attn: query (B, H, N, d) and key of pictures. class_token: token 0 is one; it takes its share of each softmax.
        mask: (B, ...) bool with P entries a picture, False for patches that are padding; without a class token.
    """
    if mask is None:
        return ops.attention_stats(attn, class_token=class_token, probs=True, column=True)[1]
    real = mask.flatten(1)
    share = real.to(ops.result_dtype(attn.query))
    share = (share / share.sum(1, keepdim=True).clamp(min=1)).unsqueeze(1)
    every = torch.arange(real.shape[1], device=real.device).repeat(len(real), 1)
    return ops.token_attention(attn, every, every, share, probs=True, column=True, key_mask=real)[:, 0]


def unlike_the_mean(attn: QueryKey, class_token: bool, mask: Tensor | None = None) -> Tensor:
    """(B, P) 1 - cosine of each patch's key with the mean key of the real patches, heads averaged; 0 for padding.

    Args:
        attn, class_token, mask: as for :func:`received`. A class token's key is left out.
    """
    query, key = (one[:, :, int(class_token) :] for one in attn[:2])
    if mask is not None:  # the cosine does not see by how much zeros make the mean shorter
        real = mask.flatten(1)[:, None, :, None]
        key = key * real
    unlike, _ = ops.attention_stats(
        QueryKey(query, key, attn.scale), class_token=False, probs=False, column=False, patches=False
    )
    unlike = (1 + unlike).clamp(min=0)
    return unlike if mask is None else unlike * mask.flatten(1)
