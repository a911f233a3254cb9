"""Which patches of crops may be left of a tower, and what transformers packs of them."""

from __future__ import annotations

import torch


def left_of(crops, left, generator, padding_first=True):
    """(1 + n, left) patches that stay: at random, but padding leaves first."""
    rows = [torch.ones(crops.patches)]
    for top, bottom, first, last in crops.parts:
        valid = torch.zeros(crops.side, crops.side)
        valid[top:bottom, first:last] = 1
        rows.append(valid.flatten())
    worth = torch.rand(len(rows), crops.patches, generator=generator)
    worth = worth + torch.stack(rows) if padding_first else worth
    return worth.topk(left, 1).indices.sort(1).values


def packed_by_nan(inner, features, patch_ids, size, newline):
    """(packed, kept) of the model's own packing: what left is NaN before it, and goes after it.

    Args:
        inner: the inner model. features: (1 + n, M, D) of the patches ``patch_ids`` (1 + n, M) that stay.
        size: (height, width) of the picture. newline: (D,).
    """
    vision = inner.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    whole = features.new_full((len(features), patches, features.shape[2]), float("nan"))
    whole.scatter_(1, patch_ids.unsqueeze(-1).expand_as(features), features)
    packing = type(inner).pack_image_features
    (packed,), _ = packing(inner, [whole], [size], vision_feature_select_strategy="default", image_newline=newline)
    kept = (~packed.isnan().any(1)).nonzero().flatten()
    return packed[kept], kept
