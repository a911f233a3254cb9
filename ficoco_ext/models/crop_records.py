"""What happened to one picture of several crops in tower, after the projector, and in the language model.

As :mod:`~ficoco_ext.models.pictures` says it of a picture that is one image: each record is in indices of the picture's
patches. These are the thumbnail's and the valid ones of the canvas, in the order of the language model, without line
ends; padding is no patch of the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops import checks
from ..reduction import Reduction
from ..stages import Crops
from .crop_packing import packed_indices
from .handle import Handle
from .pictures import in_patches, one_of, untouched, without_class_token
from .projections import Projection


def watched_crops(
    model: Any, attached: Callable[[], Handle], inputs: Mapping[str, Any], crops: Crops
) -> list[Reduction]:
    """Run a prompt with one picture; what the method does to its patches, in the order in which its parts act.

    Args:
        model: a LLaVA-NeXT. attached: attaches the method to it. inputs: of one row with one picture, as the processor
            made them. crops: of the picture.
    """
    with attached() as handle, torch.inference_mode():
        model(**inputs, logits_to_keep=1)
        tower, projections, rows = handle.reductions, handle.projections, handle.decoder_reductions
    first = int((inputs["input_ids"][0] == model.config.image_token_id).int().argmax())
    projection = projections[0] if projections else None
    return crop_reductions(tower, rows[0] if rows else (), first, crops, projection=projection)


def crop_reductions(
    tower: Sequence[Reduction],
    decoder: Sequence[Reduction],
    first: int,
    crops: Crops,
    *,
    rows: slice = slice(None),
    projection: Projection | None = None,
) -> list[Reduction]:
    """Every reduction of one picture in indices of its patches: tower, after the projector, then language model.

    Args:
        tower: ``handle.reductions``; empty if the tower was left alone.
        decoder: of the picture's row, ``handle.decoder_reductions[row]``; empty if the language model was left alone.
        first: position of the picture's first token in the prompt that the language model got.
        crops: of the picture.
        rows: of the tower's batch, which are this picture's: ``handle.crops[picture].rows``.
        projection: the picture's of ``handle.projections``; None if nothing was cut.

    Returns:
        One :class:`Reduction` for each part or layer that removed something, batch of 1, without class token and grid.
        A token that went into padding, a line end or another picture counts as dropped here (-1).

    Raises:
        ValueError: the rows are not the picture's crops.
    """
    ranks = patch_ranks(crops)
    found = [_of_crops(step, rows, crops, ranks) for step in tower]
    start = found[-1] if found else untouched(crops.before - crops.lines)
    kept = torch.arange(crops.before) if projection is None else projection.kept.cpu()
    if projection is not None and projection.reduction is not None:
        found += in_patches([one_of(projection.reduction, projection.item)], torch.arange(start.kept.shape[1]), start)
        start = found[-1]
    if decoder:
        positions = first + (ranks[kept] >= 0).nonzero()[:, 0]
        found += in_patches([one_of(step, 0) for step in decoder], positions, start)
    return found


def patch_ranks(crops: Crops) -> Tensor:
    """(``before`` + 1,) which patch each token is; -1 for line ends, and for padding, which is the last entry."""
    ranks = torch.full((crops.before + 1,), -1)
    patches = torch.ones(crops.before, dtype=torch.bool)
    patches[list(crops.line_ends)] = False
    ranks[:-1][patches] = torch.arange(crops.before - crops.lines)
    return ranks


def _of_crops(step: Reduction, rows: slice, crops: Crops, ranks: Tensor) -> Reduction:
    """One reduction of the tower, whose batch are crops, as one of the picture."""
    parts = range(step.kept.shape[0])[rows]
    if len(parts) != 1 + crops.count:
        wanted = f"{1 + crops.count}, the picture's thumbnail and crops"
        checks.fail("crop_reductions", "rows", wanted, str(len(parts)), "pass those of handle.crops")
    every = torch.arange(crops.patches).expand(1 + crops.count, -1)
    patch_of = ranks[packed_indices(every, crops)[: every.numel()]].view_as(every)  # -1 for padding
    left, size, gone, into, weights = [], [], [], [], []
    holder = torch.full((crops.before - crops.lines,), -1)
    for crop, row in enumerate(parts):
        one, own = without_class_token(one_of(step, row)), patch_of[crop]
        kept = own[one.kept[0]]
        left.append(kept[kept >= 0])
        size.append(one.size[0, kept >= 0, 0])
        leaving = own[one.sources[0]] >= 0
        gone.append(own[one.sources[0]][leaving])
        targets = one.targets[0][leaving]
        into.append(torch.where(targets < 0, -1, kept[targets]))
        weights.append(one.weights[0][leaving])
        held = torch.cat([kept, kept.new_tensor([-1])])[one.source_map[0]]  # -1, of one that was dropped, is the last
        holder[own[own >= 0]] = held[own >= 0]
    ids, order = torch.cat(left).sort()
    position = torch.full((len(holder) + 1,), -1)
    position[ids] = torch.arange(len(ids))
    return Reduction(
        tokens=None,
        size=torch.cat(size)[order][None, :, None],
        kept=ids[None],
        sources=torch.cat(gone)[None],
        source_map=position[holder][None],
        targets=position[torch.cat(into)][None],
        weights=torch.cat(weights)[None],
        class_token=False,
        grid=None,
    )
