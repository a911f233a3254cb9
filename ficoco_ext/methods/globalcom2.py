"""GlobalCom2, crops of a picture that its thumbnail guides (arXiv 2501.05179)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from .. import ops
from ..ops import checks
from ..ops.values import free_to_read
from ..stages import Crops, GlobalSelect, VisualFeatures
from ..stages.frozen import require_number, require_one_of
from ..stages.global_select import origins_of
from .base import AnyMethod
from .projector_method import ProjectorMethod
from .registry import register

_AMOUNT = 0.25
_BUDGETS = {"exact": "exact", "released": "floor"}


@register("globalcom2", rank=155)
def globalcom2(
    *,
    temperature: float = 10.0,
    alpha: float = 0.5,
    normalize: bool = True,
    cells: str = "thumbnail",
    budget: str | None = None,
    variant: str = "exact",
) -> AnyMethod:
    """GlobalCom2: a picture's thumbnail says how many tokens each of its crops keeps, and helps to say which.

    For LLaVA-NeXT with a CLIP tower. A crop under whose part of the thumbnail the class token looks more keeps more;
    inside a crop those patches stay that thumbnail and crop look at most, in equal parts. What leaves is dropped; line
    ends stay. Equations: :class:`ficoco_ext.stages.GlobalSelect`; from logits alone
    :func:`ficoco_ext.globalcom2_keep`.

    The release counts patches of padded crops as if there were no padding, which puts most of them into wrong rows,
    has a line end for each row of padding too, and hands the thumbnail's tokens over in the order of their scores. Here
    everything stays where it was.

    Args:
        temperature: above 0, 10 as published; the larger, the more alike crops are treated. It suits logits as large as
            CLIP's.
        alpha: weight of the thumbnail in the scores of a crop's patches, in [0, 1].
        normalize: divide the scores of thumbnail and crop by their lengths, as released.
        cells: ``"thumbnail"`` cuts the thumbnail evenly, as released; ``"crops"`` where each crop's part of the picture
            is in it, which differs where padding is cut unevenly.
        budget: ``"exact"``: as many as ``keep_ratio`` says of all crops together, whatever the picture, so nothing
            waits for the device. ``"floor"``: as published, each crop rounds down its own share, and the picture
            decides how many stay: one read of the device for each prompt. None: that of the variant.
        variant: ``"exact"``, or ``"released"``: ``budget="floor"``.

    Raises:
        ValueError: a value out of range.

    Cost a picture of N tokens in crops of P: 2 P FLOPs a channel of the tower and crop for the logits, and 16 N.
    """
    require_one_of("globalcom2", "variant", variant, tuple(_BUDGETS))
    select = GlobalSelect(temperature, alpha, normalize, cells, _BUDGETS[variant] if budget is None else budget)
    amount = (("keep_ratio", _AMOUNT),)
    return ProjectorMethod("globalcom2", select, source="GlobalCom2, arXiv 2501.05179", amount=amount)


def globalcom2_keep(
    scores: Tensor,
    size: tuple[int, int],
    pinpoints: Sequence[Sequence[int]],
    side: int,
    pixels: int,
    *,
    keep_ratio: float | None = None,
    tokens: int | None = None,
    temperature: float = 10.0,
    alpha: float = 0.5,
    normalize: bool = True,
    cells: str = "thumbnail",
    budget: str = "exact",
) -> list[Tensor]:
    """Which patches of a picture's thumbnail and crops GlobalCom2 keeps, from the class token's logits alone.

    Args:
        scores: (1 + crops, ``side`` ** 2), finite: attention of the class token to each patch before the softmax, heads
            averaged, of the thumbnail and of each crop, row after row of the grid. What padding holds does not matter.
        size: (height, width) of the picture, in pixels.
        pinpoints: the (height, width) that a canvas can have, in pixels: the config's ``image_grid_pinpoints``.
        side: patches of a side of a crop. pixels: its pixels.
        keep_ratio: share of the patches that stays, in (0, 1]; 1 keeps all. 0.25 where ``tokens`` is None too.
        tokens: how many patches stay instead, at least 1; all of them where there are no more. With
            ``budget="floor"`` the share that they would be.
        temperature, alpha, normalize, cells, budget: as of :class:`ficoco_ext.stages.GlobalSelect`.

    Returns:
        1 + crops int64 tensors, of the thumbnail and of each crop: indices of the patches that stay, ascending. Padding
        never stays; a crop without valid patches has none.

    Raises:
        ValueError, TypeError: naming the argument, what was wanted, what came and what to do.

    Reads how many each crop keeps from the device, once. Deterministic; equal scores by lowest index. Source:
    GlobalCom2, arXiv 2501.05179.

    Example:
        >>> import torch, ficoco_ext
        >>> scores = torch.arange(3 * 16.).view(3, 16).sin()
        >>> kept = ficoco_ext.globalcom2_keep(scores, (30, 64), [(32, 64), (64, 32)], 4, 32, keep_ratio=0.25)
        >>> [one.tolist() for one in kept]
        [[1, 2, 8, 14], [3, 9, 10, 11], [1, 7, 13, 14]]
    """
    crops = Crops.of(size, pinpoints, side, pixels)
    logits = _packed(scores, crops)
    share, count = _amount(crops, keep_ratio, tokens)
    select = GlobalSelect(temperature, alpha, normalize, cells, budget)
    if count is None or select.data_decides:
        select = select.asked(share)
    visual = VisualFeatures(logits.unsqueeze(-1), crops=crops, class_logits=logits)
    each = select.of_each(visual, count)
    held = [int(number) for number in each[0].tolist()]
    crop, patch = origins_of(crops, logits.device)
    kept = ops.top_of_segments(select.scores(visual), crop, each, sum(held))[0]
    crop_by_crop = kept[crop[kept].sort(stable=True).indices]
    return list(patch[crop_by_crop].split(held))


def _packed(scores: Tensor, crops: Crops) -> Tensor:
    """(1, N) those of the thumbnail and of the valid patches, line by line, of ``scores`` (1 + n, N)."""
    op, wanted = "globalcom2_keep", f"({1 + crops.count}, {crops.patches}), the thumbnail and {crops.count} crops"
    if not isinstance(scores, Tensor):
        checks.fail(op, "scores", f"a tensor {wanted}", scores, "pass the class token's logits", TypeError)
    checks.floating(op, "scores", scores)
    fits = tuple(scores.shape) == (1 + crops.count, crops.patches)
    checks.shape(op, "scores", scores, wanted, fits, "pass one row a crop, without the class token itself")
    packed = scores.detach()[origins_of(crops, scores.device)].unsqueeze(0)
    if free_to_read(packed) and not packed.isfinite().all():
        checks.fail(op, "scores", "finite", "NaN or infinity among them", "pass logits, before any softmax or mask")
    return packed


def _amount(crops: Crops, keep_ratio: float | None, tokens: int | None) -> tuple[float, int | None]:
    """The share of the tokens that stays, and how many these are where ``tokens`` says it."""
    op = "globalcom2_keep"
    if tokens is None:
        share = _AMOUNT if keep_ratio is None else keep_ratio
        require_number(op, "keep_ratio", share, math.ulp(0.0), 1)
        return share, None
    if keep_ratio is not None:
        checks.fail(op, "amount", "one of keep_ratio and tokens", "both", "pass one of them")
    whole = isinstance(tokens, int) and not isinstance(tokens, bool)
    if not whole or tokens < 1:
        kind = ValueError if whole else TypeError
        remedy = "pass how many patches stay"
        checks.fail(op, "tokens", "an integer of at least 1", checks.describe(tokens), remedy, kind)
    count = min(tokens, crops.tokens)
    return count / crops.tokens, count
