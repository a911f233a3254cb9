"""Which patches of crops may be left of a tower, and what transformers packs of them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ficoco_ext.models.transformers_api import crops_of


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


class HandCut(NamedTuple):
    """One row of a prompt, cut by hand: columns that stay of the row without padding, embeddings (1, W, C) of them."""

    columns: torch.Tensor
    embeds: torch.Tensor


class TowerWatch:
    """What the projector made of the patches that the tower left, and which these are, in each call inside."""

    def __init__(self, model, handle):
        self.model, self.handle, self.calls = model, handle, []

    def __enter__(self):
        def hook(module, args, output):
            self.calls.append((output, self.handle.reductions[-1].patch_ids))

        self._hook = self.model.model.multi_modal_projector.register_forward_hook(hook)
        return self

    def __exit__(self, *_):
        self._hook.remove()


def rows_by_hand(model, inputs, projected, patch_ids):
    """Each row of ``inputs`` cut by hand: what the tower left, packed by the model's own packing, and its columns.

    Args:
        model: the whole model. inputs: of the processor. projected: (crops, M, D), ``patch_ids``: (crops, M).
    """
    inner, token = model.model, model.config.image_token_id
    sizes = [tuple(map(int, size)) for size in inputs["image_sizes"]]
    crops = [1 + crops_of(inner, size) for size in sizes]
    pieces = zip(projected.split(crops), patch_ids.split(crops), sizes, strict=True)
    packed = [packed_by_nan(inner, *piece, inner.image_newline) for piece in pieces]
    counts = [len(whole_packing(inner, size)) for size in sizes]
    found, picture = [], 0
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        ids = ids[mask != 0]
        embeds, stays, places = model.get_input_embeddings()(ids), ids != token, (ids == token).nonzero().flatten()
        while len(places):
            tokens, kept = packed[picture]
            here, places = places[: counts[picture]], places[counts[picture] :]
            stays[here[kept]], embeds[here[kept]] = True, tokens
            picture += 1
        found.append(HandCut(stays.nonzero().flatten(), embeds[stays][None]))
    return found


def whole_packing(inner, size):
    """(before, 1) of a picture that loses nothing."""
    vision = inner.config.vision_config
    crops = torch.zeros(1 + crops_of(inner, size), (vision.image_size // vision.patch_size) ** 2, 1)
    return type(inner).pack_image_features(inner, [crops], [size], "default", torch.zeros(1))[0][0]


def read_by_hand(model, cut, positions):
    """(W, V) logits of a row that was cut by hand."""
    at = cut.columns if positions == "original" else torch.arange(len(cut.columns))
    mask = torch.ones(1, len(at), dtype=torch.long)
    language_model = model.model.language_model
    hidden = language_model(inputs_embeds=cut.embeds, position_ids=at[None], attention_mask=mask).last_hidden_state
    return model.lm_head(hidden)[0]
