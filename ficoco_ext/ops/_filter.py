"""``ficoco::filter``: the most redundant patches leave (FiCoCo eq. 1 and section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks
from .attention import TINY, accumulate
from .library import define, fake, operator, result_dtype


def local_penalty(redundancy: Tensor, ids: Tensor, grid: tuple[int, int], window: int, penalty: float) -> Tensor:
    """The highest score of each ``window`` x ``window`` cell of the grid moves ``penalty`` times towards removal.

    Positive scores are multiplied, negative ones divided. Only tokens that are alive count; ties go to the lowest id;
    rows and columns that do not fill a window are left alone (FiCoCo section 3.2).
    """
    height, width = grid
    rows, columns, b = height // window, width // window, redundancy.shape[0]
    if rows * columns == 0:  # no window fits
        return redundancy
    canvas = redundancy.new_full((b, height * width), float("-inf")).scatter(1, ids, redundancy)
    cells = canvas.view(b, height, width)[:, : rows * window, : columns * window]
    cells = cells.reshape(b, rows, window, columns, window).transpose(2, 3).reshape(b, rows, columns, window * window)
    best = cells.amax(-1, keepdim=True)
    highest = (cells == best) & (best > float("-inf"))
    highest &= highest.cumsum(-1) == 1  # the cell is in raster order, so the first is the lowest id
    factor = torch.where(highest, torch.where(cells > 0, penalty, torch.where(cells < 0, 1 / penalty, 1.0)), 1.0)
    factor = factor.view(b, rows, columns, window, window).transpose(2, 3)
    factors = canvas.new_ones(canvas.shape).view(b, height, width)
    factors[:, : rows * window, : columns * window] = factor.reshape(b, rows * window, columns * window)
    return redundancy * factors.view(canvas.shape).gather(1, ids)


def specification(
    patch_attention: Tensor,
    class_attention: Tensor,
    ids: Tensor | None,
    r: int,
    lam: float,
    normalize: bool,
    penalty: float,
    window: int,
    grid_height: int,
    grid_width: int,
    class_token: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Redundancy (B, P), sources (B, r) and kept (B, M), the last two as ascending token indices (eq. 1).

    redundancy = lam * patch_attention - (1 - lam) * class_attention, each scaled to unit L2 norm over the patches if
    ``normalize``; a term of weight 0 is not read. Then the local penalty, then the r highest are sources; equal scores
    go to the lowest index. ``ids`` (B, P) are the cells on the grid of the patches still alive, None for all of them.
    """
    op = "filter"
    checks.floating(op, "patch_attention", patch_attention)
    checks.shape(op, "patch_attention", patch_attention, "(B, P)", patch_attention.dim() == 2, "pass one score a patch")
    b, p = patch_attention.shape
    same = class_attention.shape == patch_attention.shape and class_attention.dtype == patch_attention.dtype
    checks.shape(op, "class_attention", class_attention, lambda: f"({b}, {p}) like patch_attention", same, "pass both")
    checks.same_device(op, "patch_attention", patch_attention, class_attention=class_attention, ids=ids)
    if not 0 <= r <= max(p - 1, 0):
        checks.fail(op, "r", f"in [0, {max(p - 1, 0)}] for {p} patches", r, "at least one patch stays")
    if not (penalty >= 1 and window >= 1):
        checks.fail(op, "penalty, window", "at least 1", f"{penalty}, {window}", "1 switches the penalty off")
    patch_attention, class_attention = accumulate(patch_attention), accumulate(class_attention)

    def term(scores: Tensor) -> Tensor:
        return torch.nn.functional.normalize(scores, dim=-1, eps=TINY) if normalize else scores

    redundancy = torch.zeros_like(patch_attention)
    if lam != 0:
        redundancy = redundancy + lam * term(patch_attention)
    if lam != 1:
        redundancy = redundancy - (1 - lam) * term(class_attention)
    if penalty != 1:
        checks.grid(grid_height, grid_width)
        if ids is None:
            if grid_height * grid_width != p:
                checks.fail(op, "grid", f"of {p} cells", f"({grid_height}, {grid_width})", "pass the grid or penalty=1")
            ids = torch.arange(p, device=redundancy.device).expand(b, p)
        checks.indices(op, "ids", ids, lambda: f"({b}, {p})", tuple(ids.shape) == (b, p))
        redundancy = local_penalty(redundancy, ids, (grid_height, grid_width), window, penalty)
    if redundancy.device.type == "cpu" and not torch.isfinite(redundancy).all():  # free here, a sync elsewhere
        checks.fail(op, "redundancy", "finite", "NaN or infinity among the scores", "check the attention it is made of")
    order = redundancy.sort(dim=1, descending=True, stable=True).indices
    first = int(class_token)
    sources = order[:, :r].sort(1).values + first
    kept = order[:, r:].sort(1).values + first
    if class_token:
        kept = torch.cat([kept.new_zeros(b, 1), kept], dim=1)
    return redundancy, sources, kept


define(
    "filter",
    "(Tensor patch_attention, Tensor class_attention, Tensor? ids, SymInt r, float lam, bool normalize,"
    " float penalty, int window, int grid_height, int grid_width, bool class_token) -> (Tensor, Tensor, Tensor)",
    specification,
)


@fake("filter")
def _(patch_attention, class_attention, ids, r, lam, normalize, penalty, window, grid_height, grid_width, class_token):
    if penalty != 1:
        checks.grid(grid_height, grid_width)
    b, p = patch_attention.shape
    redundancy = patch_attention.new_empty(b, p, dtype=result_dtype(patch_attention))
    index = {"dtype": torch.int64}
    return redundancy, redundancy.new_empty(b, r, **index), redundancy.new_empty(b, p + int(class_token) - r, **index)


def filter(
    patch_attention: Tensor,
    class_attention: Tensor,
    r: int,
    *,
    lam: float,
    normalize: bool = False,
    penalty: float = 1.0,
    window: int = 2,
    ids: Tensor | None = None,
    grid: tuple[int, int] | None = None,
    class_token: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The r most redundant patches (eq. 1): redundancy (B, P), sources (B, r) and kept (B, M), ascending.

    Args:
        patch_attention, class_attention: (B, P), any floating dtype, the same for both.
        r: tokens to remove, 0 <= r <= P - 1.
        lam: weight of patch attention; class attention has -(1 - lam). A term of weight 0 is not read.
        normalize: scale both terms to unit L2 norm over the patches first.
        penalty, window: see :func:`ficoco_ext.ops.reference.local_penalty`; penalty 1 is off.
        ids: (B, P) int64, cell on the grid of each patch; None: all P cells in order.
        grid: (height, width) of the original grid; needed unless penalty is 1.
        class_token: prepend token 0 to ``kept``; indices count it.

    Raises:
        ValueError: r out of range, a grid that does not fit, non-finite scores (checked on the CPU, where reading
            them costs nothing). TypeError: wrong dtype.

    Ties: the lowest index is removed first. Deterministic. Cost O(P log P) per image.

    Example:
        >>> import torch
        >>> from ficoco_ext import ops
        >>> ops.filter(torch.tensor([[3., 1., 2.]]), torch.zeros(1, 3), 1, lam=1.0, class_token=True)[1:]
        (tensor([[1]]), tensor([[0, 2, 3]]))
    """
    height, width = grid or (0, 0)
    return operator("filter", patch_attention)(
        patch_attention, class_attention, ids, r, lam, normalize, penalty, window, height, width, class_token
    )
