"""The whole picture says how many tokens each of its crops keeps, and helps to say which (GlobalCom2, 2501.05179)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import ops
from ..ops import checks
from ..ops.attention import TINY
from ..ops.costs import Operation
from ..ops.values import free_to_read
from . import needs
from .crops import Crops
from .features import SelectStage, VisualFeatures
from .frozen import require_number, require_one_of, value
from .shape import Priced, Shape

# Of each token: resized and weighed by lengths, in float64; each crop's share is a handful of numbers.
_COST = Operation("global_select", "16*b*n", loads="2*b*n", stores="b*n")
_INSTEAD = "use budget='exact', or ficoco_ext.attach or globalcom2_keep"
_SMALL = 1e-9  # what a floor forgives: 0.29 * 100 is 28.999...


@value
class GlobalSelect(SelectStage):
    """Keeps of a picture of several crops what its thumbnail and they look at most, and more of crops that say more.

    With a the class token's logits, R the share that stays, and N the patches of a crop:

    - The thumbnail keeps the floor(R N) patches of largest a.
    - z of a crop is the sum of the thumbnail's a over its cell; s is the softmax of z / ``temperature`` over the crops,
      and r = min(1, R (1 + s - mean s)) is the share of its n valid patches that a crop keeps.
    - In a crop those patches stay whose ``alpha`` G / |G| + (1 - ``alpha``) a / |a| is largest, where G is the
      thumbnail's a resized to the valid rectangle, and lengths are those over the crop's valid patches.

    Equal scores: the lowest index. Numbers are float64 throughout.

    Args:
        temperature: above 0; the larger, the more alike crops are treated. It is meant for sums of logits.
        alpha: weight of the thumbnail in the scores of crops, in [0, 1]. With 0 it still says how many each keeps.
        normalize: divide both scores by their lengths.
        cells: how the thumbnail is cut into cells: ``"thumbnail"``, evenly, the last row and column of cells with what
            is left over; ``"crops"``, where each crop's part of the valid rectangle is in it.
        budget: ``"exact"``: floor(R x all valid patches) stay of all crops, shared by n r, rounded by largest
            remainder. ``"floor"``: floor(n r) of each, so that the picture decides how many stay.
        keep_ratio: R, in (0, 1]. None: what ``count`` is of all tokens.
    """

    temperature: float = 10.0
    alpha: float = 0.5
    normalize: bool = True
    cells: str = "thumbnail"
    budget: str = "exact"
    keep_ratio: float | None = None

    def __post_init__(self) -> None:
        require_number("GlobalSelect", "temperature", self.temperature, math.ulp(0.0), math.inf)
        require_number("GlobalSelect", "alpha", self.alpha, 0, 1)
        require_one_of("GlobalSelect", "normalize", self.normalize, (True, False))
        require_one_of("GlobalSelect", "cells", self.cells, ("thumbnail", "crops"))
        require_one_of("GlobalSelect", "budget", self.budget, ("exact", "floor"))
        if self.keep_ratio is not None:
            require_number("GlobalSelect", "keep_ratio", self.keep_ratio, math.ulp(0.0), 1)

    @property
    def needs(self) -> tuple[str, ...]:
        """Crops, and what the class token looks at."""
        return (needs.CROPS, needs.CLASS_LOGITS)

    @property
    def data_decides(self) -> bool:
        """With ``budget="floor"`` it does."""
        return self.budget == "floor"

    def describe(self) -> str:
        """What leaves."""
        return "features that the class token looks at least, fewer of crops that the thumbnail looks at more"

    def operations(self, shape: Shape) -> list[Priced]:
        """Scores. Their sorts are comparisons."""
        return [shape.price(_COST, n=shape.visual)]

    def asked(self, share: float) -> GlobalSelect:
        """This stage for that ``keep_ratio``."""
        given = {name: getattr(self, name) for name in ("temperature", "alpha", "normalize", "cells", "budget")}
        return GlobalSelect(**given, keep_ratio=share)

    def number(self, before: int, crops: Crops | None, share: float) -> int | None:
        """Of the thumbnail's and of the valid patches each the floor of that ``share``, together; at least one."""
        return None if crops is None else max(sum(budgets(crops, share)), 1)

    def counts(self, visual: VisualFeatures) -> Tensor:
        """(B,) int64: how many stay of each picture for :attr:`keep_ratio`, at least one."""
        return _at_least_one(self.of_each(visual)).sum(1)

    def __call__(self, visual: VisualFeatures, count: int) -> Tensor:
        """(B, ``count``) indices of the tokens that stay, ascending.

        Raises:
            ValueError: crops or logits are missing, or another number stays for :attr:`keep_ratio`.
        """
        crops, logits = given(visual)
        if self.keep_ratio is not None and not self.data_decides:
            _require_number(self.title, self.number(0, crops, self.keep_ratio), count, "leave keep_ratio out")
        each = _at_least_one(self.of_each(visual, count))
        if self.data_decides and free_to_read(each):
            for number in each.sum(1).tolist():
                _require_number(self.title, number, count, _INSTEAD)
        return ops.top_of_segments(self.scores(visual), origins_of(crops, logits.device)[0], each, count)

    def of_each(self, visual: VisualFeatures, count: int | None = None) -> Tensor:
        """(B, 1 + n) int64: how many tokens thumbnail and crops keep, ``count`` together or by :attr:`keep_ratio`.

        Raises:
            ValueError: crops or logits are missing; :attr:`keep_ratio` is None where it has to say how many stay, or
                is a number where tokens are hidden.
        """
        crops, logits = given(visual)
        real = torch.ones_like(logits) if visual.mask is None else visual.mask.double()
        small, sizes = real[:, : crops.patches].sum(1, keepdim=True), per_crop(real[:, crops.patches :], crops)
        share: float | Tensor
        if self.keep_ratio is not None:
            if visual.mask is not None:
                checks.fail(self.title, "mask", "None with keep_ratio", visual.mask, "leave keep_ratio out")
            share, (first, rest) = self.keep_ratio, budgets(crops, self.keep_ratio)
            thumbnail, total = torch.full_like(small, first), torch.full_like(small, rest)
        elif count is None or self.data_decides:
            wanted = "given with budget='floor', which decides how many stay"
            checks.fail(self.title, "keep_ratio", wanted, "None", _INSTEAD)
        else:
            whole = small + sizes.sum(1, keepdim=True)
            share, thumbnail = count / whole, (count * small / whole + _SMALL).floor()
            total = count - thumbnail
        ratios = kept_ratios(richness(logits[:, : crops.patches], crops, self.cells), share, self.temperature)
        if not self.data_decides:
            each = shared(total, sizes, ratios)
        else:
            each = sizes if self.keep_ratio == 1 else (sizes * ratios + _SMALL).floor()
        return torch.cat([thumbnail, each], 1).long()

    def scores(self, visual: VisualFeatures) -> Tensor:
        """(B, N) float64: of each crop, and of the thumbnail, the largest stay; -inf for hidden tokens."""
        (crops, logits), mask = given(visual), visual.mask
        small, own = logits[:, : crops.patches], logits[:, crops.patches :]
        shown = resized(small, crops)
        if mask is not None:
            shown = shown * mask[:, crops.patches :]
        if self.normalize:
            shown, own = (_of_length_one(one, crops) for one in (shown, own))
        scores = torch.cat([small, self.alpha * shown + (1 - self.alpha) * own], 1)
        return scores if mask is None else scores.masked_fill(~mask, -math.inf)


def budgets(crops: Crops, share: float) -> tuple[int, int]:
    """How many patches the thumbnail, and all crops together, keep of their valid ones at that ``share``."""
    return math.floor(share * crops.patches + _SMALL), math.floor(share * sum(crops.valid) + _SMALL)


def richness(thumbnail: Tensor, crops: Crops, cells: str) -> Tensor:
    """(B, n) the sum of the ``thumbnail``'s logits (B, N) over the cell of each crop."""
    g, (rows, columns) = crops.side, crops.grid
    if cells == "crops":
        return per_crop(resized(thumbnail, crops), crops) * (crops.patches / max(crops.lines * crops.columns, 1))
    line = torch.arange(g, device=thumbnail.device)
    tall = (line // max(g // rows, 1)).clamp(max=rows - 1)
    wide = (line // max(g // columns, 1)).clamp(max=columns - 1)
    cell = (tall.unsqueeze(1) * columns + wide).flatten()
    mine = cell == torch.arange(crops.count, device=cell.device).unsqueeze(1)
    return (thumbnail.unsqueeze(1) * mine).sum(2)


def kept_ratios(richness: Tensor, share: float | Tensor, temperature: float) -> Tensor:
    """(B, n) the share of its patches that each crop keeps, around ``share``, a number or (B, 1)."""
    found = ((richness - richness.amax(1, keepdim=True)) / temperature).exp()
    found = found / (found.sum(1, keepdim=True) + 1e-8)
    return (share * (1 + found - found.mean(1, keepdim=True))).clamp(max=1)


def shared(total: Tensor, sizes: Tensor, ratios: Tensor) -> Tensor:
    """(B, n) whole numbers with the sum ``total`` (B, 1), near ``sizes`` * ``ratios`` (B, n) and at most ``sizes``."""
    full, share = torch.zeros_like(sizes, dtype=torch.bool), torch.zeros_like(sizes)
    for _ in range(sizes.shape[1] + 1):  # a crop that would get more than it has gets that, and the others the rest
        full = full | (share > sizes)
        rest, weights = total - (sizes * full).sum(1, keepdim=True), (sizes * ratios).masked_fill(full, 0)
        share = rest * weights / weights.sum(1, keepdim=True).clamp(min=TINY)
    share = torch.where(full, sizes, share)
    whole = (share + _SMALL).floor()
    remainder = ((share - whole) * 1e6).round().masked_fill(whole >= sizes, -1)
    order = remainder.sort(dim=1, descending=True, stable=True).indices
    return whole + (order.argsort(1) < total - whole.sum(1, keepdim=True))


def resized(thumbnail: Tensor, crops: Crops) -> Tensor:
    """(B, S) the ``thumbnail``'s map (B, N) under each patch of the valid rectangle: bilinear, half-pixel centres."""
    (above, below, down), (before, after, right) = (
        _between(crops.side, length, thumbnail) for length in (crops.lines, crops.columns)
    )
    found = thumbnail.unflatten(1, (crops.side, crops.side))
    # from one neighbour towards the other, so that where both are equal so is what is between
    found = found[:, above] + down.unsqueeze(1) * (found[:, below] - found[:, above])
    return (found[..., before] + right * (found[..., after] - found[..., before])).flatten(1)


def _between(side: int, length: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each of ``length`` lines the two of ``side`` that it lies between, and how far it is from the first."""
    at = (torch.arange(length, dtype=like.dtype, device=like.device) + 0.5) * (side / max(length, 1)) - 0.5
    at = at.clamp(min=0)
    first = at.floor().long().clamp(max=side - 1)
    return first, (first + 1).clamp(max=side - 1), at - first


def per_crop(values: Tensor, crops: Crops) -> Tensor:
    """(B, n) sums of ``values`` (B, S) over the valid patches of each crop."""
    (top, bottom, left, right), (rows, columns), g = crops.rectangle, crops.grid, crops.side
    around = (left, columns * g - right, top, rows * g - bottom)
    lines = values.reshape(values.shape[0], bottom - top, right - left)
    canvas = torch.nn.functional.pad(lines, around)
    return canvas.unflatten(1, (rows, g)).unflatten(3, (columns, g)).sum(4).sum(2).flatten(1)


def origins_of(crops: Crops, device: torch.device) -> tuple[Tensor, Tensor]:
    """(N,) int64 each: of every token its crop, 0 for the thumbnail, and its patch there; ``Crops.origins``."""
    (top, bottom, left, right), g = crops.rectangle, crops.side
    y, x = torch.arange(top, bottom, device=device).unsqueeze(1), torch.arange(left, right, device=device)
    patch = torch.arange(crops.patches, device=device)
    crop = 1 + y // g * crops.grid[1] + x // g
    return torch.cat([patch * 0, crop.flatten()]), torch.cat([patch, (y % g * g + x % g).flatten()])


def _of_length_one(values: Tensor, crops: Crops) -> Tensor:
    """``values`` (B, S) divided by their length over the valid patches of their crop."""
    lengths = per_crop(values.square(), crops).sqrt().clamp(min=TINY)
    return values / lengths[:, origins_of(crops, values.device)[0][crops.patches :] - 1]


def given(visual: VisualFeatures) -> tuple[Crops, Tensor]:
    """Crops, and (B, N) logits in float64, 0 for what the mask hides."""
    if visual.crops is None or visual.class_logits is None:
        missing = "crops" if visual.crops is None else "class_logits"
        raise ValueError(f"GlobalSelect: {missing} is needed, and none was given; pass {missing}=")
    logits = visual.class_logits.detach().double()
    return visual.crops, logits if visual.mask is None else logits.masked_fill(~visual.mask, 0)


def _at_least_one(each: Tensor) -> Tensor:
    """``each`` (B, 1 + n) with one token of the thumbnail where a small share leaves none."""
    return torch.cat([each[:, :1] + (each.sum(1, keepdim=True) == 0), each[:, 1:]], 1)


def _require_number(stage: str, number: int | None, count: int, remedy: str) -> None:
    """Raise unless ``count`` stay, as many as the share that is asked for leaves."""
    if number != count:
        checks.fail(stage, "count", f"{number}, what keep_ratio leaves of this picture", str(count), remedy)
