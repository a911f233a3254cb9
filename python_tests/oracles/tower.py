"""References of the methods that rank by what the vision tower looks at: VisionZip, VisPruner, HiPrune."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .basic import cosines, descending


class Zipped(NamedTuple):
    """What VisionZip makes of a picture.

    Attributes:
        kept: dominant tokens and centres together, ascending.
        centres: those of them that are centres.
        inherits: by token that is neither, the centre that it goes into.
        features: (T, D) of ``kept``.
    """

    kept: list[int]
    centres: list[int]
    inherits: dict[int, int]
    features: Tensor


def contextual_count(count: int, share: float = 10 / 64) -> int:
    """How many of ``count`` tokens are contextual: the rounded share, at least 1 (10 of 64, 20 of 128, 30 of 192).

    Choices: halves go to the even number (Python's); a share of 0 has none, so that only dominant tokens are left; at
    least one token is dominant, so one token alone is not contextual.
    """
    return 0 if share == 0 else min(max(1, round(count * share)), count - 1)


def visionzip(
    features: Tensor, saliency: Tensor, keys: Tensor, count: int, contextual: int, merging: str = "centre+mean"
) -> Zipped:
    """Dominant tokens by saliency, the others merged around evenly spaced centres (VisionZip, CVPR 2025, arXiv
    2412.04467).

    The count - contextual tokens of the largest saliency stay as they are. Of the others, in order, every step-th is a
    centre, step = max(1, others // contextual), as far as ``contextual`` go; each remaining one goes to the centre
    whose key has the largest cosine with its own.

    Args:
        merging: ``"centre+mean"`` (released): the centre plus the mean of its members; ``"mean"``: the mean of all,
            centre included.

    Choices: the class token is not among the T; a centre without members is itself; the result is in the order of the
    picture (released: all dominant, then all centres).
    """
    n = len(features)
    features = features.double()
    dominant = sorted(descending(saliency, range(n))[: count - contextual])
    others = [i for i in range(n) if i not in dominant]
    step = max(1, len(others) // contextual) if contextual else 1
    centres = others[::step][:contextual]
    members = [i for i in others if i not in centres] if centres else []
    likeness = cosines(keys)
    inherits = {i: max(centres, key=lambda c: (float(likeness[i, c]), -c)) for i in members}
    rows = []
    for token in (kept := sorted(dominant + centres)):
        own = [features[i] for i in members if inherits[i] == token]
        if token not in centres or not own:
            rows.append(features[token])
        elif merging == "centre+mean":
            rows.append(features[token] + torch.stack(own).mean(0))
        else:
            rows.append(torch.stack([features[token], *own]).mean(0))
    return Zipped(kept, centres, inherits, torch.stack(rows))


def thin(similarity: Tensor, order: list[int], count: int, step: int = 8) -> list[int]:
    """``order`` with ``count`` of its tokens left (VisPruner, ICCV 2025, arXiv 2412.01818).

    Tokens at even and odd positions are two sides. Of the even side, the min(step, too many) tokens leave that are most
    similar to one of the odd side. What is left of the even side stands first in the next round, the most similar
    first, then the odd side in its order.

    Choices: no more leave in a round than the even side has; of equal similarities the one that stands earlier in the
    round leaves; ``count`` = 0 is nothing.
    """
    order = list(order)
    if count == 0:
        return []
    while len(order) > count:
        even, odd = order[::2], order[1::2]
        nearest = [max(float(similarity[a, b]) for b in odd) for a in even]
        ranked = sorted(range(len(even)), key=lambda slot: (-nearest[slot], slot))
        leave = min(step, len(order) - count, len(even))
        order = [even[slot] for slot in ranked[leave:]] + odd
    return order


def vispruner(saliency: Tensor, seen: Tensor, count: int, share: float = 0.5, step: int = 8) -> list[int]:
    """Important tokens, and diverse ones among the rest (VisPruner, ICCV 2025, arXiv 2412.01818).

    The int(count * share) of the largest saliency stay; the rest, in descending order of saliency, are thinned to what
    is missing by the cosine of ``seen`` (N, C), the features before the projector. ``share`` = 1 is FasterVLM.
    """
    ranked = descending(saliency, range(len(saliency)))
    important = int(count * share)
    return sorted(ranked[:important] + thin(cosines(seen), ranked[important:], count - important, step))


def hiprune(
    deep: Tensor,
    shallow: Tensor,
    grid: tuple[int, int],
    count: int,
    alpha: float = 0.1,
    real: Tensor | None = None,
) -> list[int]:
    """Anchors of an early layer, their neighbours, and the best of a late layer (HiPrune, arXiv 2508.00553).

    Anchors: the round(count * alpha / 5) tokens of the largest ``shallow``. Buffers: their neighbours in the row and in
    the column. Registers: the largest ``deep`` of the others, as many as are missing.

    Args:
        deep, shallow: (N,) what each token receives in the late and in the early layer.
        real: (N,) False for a token that may not stay.

    Choices: halves of the round go to the even number (Python's); neighbours do not go around the ends of rows; where
    anchors and buffers are more than ``count``, the anchors stay (the largest ``shallow`` first), then the buffers of
    the largest ``shallow``.
    """
    rows, columns = grid
    there = [i for i in range(rows * columns) if real is None or bool(real[i])]
    anchors = descending(shallow, there)[: round(count * alpha / 5)]
    beside: set[int] = set()
    for token in anchors:
        row, column = divmod(token, columns)
        for y, x in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if 0 <= y < rows and 0 <= x < columns:
                beside.add(y * columns + x)
    buffers = descending(shallow, [i for i in there if i in beside and i not in anchors])
    registers = descending(deep, [i for i in there if i not in beside and i not in anchors])
    return sorted((anchors + buffers + registers)[:count])
