"""``ficoco::window_similarity``: how alike the patches of each window of a grid are, without comparing pairs.

MustDrop (arXiv 2411.10803) makes one token of a window whose patches are alike.
"""

from __future__ import annotations

from torch import Tensor

from . import checks
from .attention import accumulate
from .library import define, fake, operator, result_dtype

OP = "window_similarity"
LEAST = 1e-8  # a shorter vector counts as one of this length, as in torch.nn.functional.cosine_similarity


def _check(tokens: Tensor, height: int, width: int, window: int) -> None:
    checks.floating(OP, "tokens", tokens)
    checks.shape(OP, "tokens", tokens, "(B, P, C)", tokens.dim() == 3, "pass the patches without class token")
    checks.grid(height, width, OP)
    cells, patches = height * width, tokens.shape[1]
    if cells != patches:
        grid = f"({height}, {width})"
        checks.fail(OP, "grid", f"of {patches} cells, one for each patch", grid, "pass (height, width) in patches")
    if window < 2:
        checks.fail(OP, "window", "at least 2", window, "a patch alone is compared with nothing")


def specification(tokens: Tensor, height: int, width: int, window: int) -> Tensor:
    """(B, W): the mean cosine over ordered pairs i != j of the patches (B, P, C) of each whole window.

    With u_i = x_i / max(|x_i|, 1e-8) and K = ``window`` ** 2 patches that is (|sum_i u_i|^2 - sum_i |u_i|^2) /
    (K (K - 1)): no pair is formed. Windows lie line by line; rows and columns that do not fill a window belong to none.
    """
    _check(tokens, height, width, window)
    x = accumulate(tokens)
    down, across, patches = height // window, width // window, window * window
    if down * across == 0:  # no window fits
        return x.new_zeros(x.shape[0], 0)
    unit = x / x.norm(dim=-1, keepdim=True).clamp_min(LEAST)
    cells = unit.unflatten(1, (height, width))[:, : down * window, : across * window]
    cells = cells.unflatten(2, (across, window)).unflatten(1, (down, window))  # (B, down, window, across, window, C)
    both = cells.sum((2, 4)).square().sum(-1)
    own = cells.square().sum((2, 4, 5))
    return ((both - own) / (patches * (patches - 1))).flatten(1)


define("window_similarity", "(Tensor tokens, SymInt height, SymInt width, SymInt window) -> Tensor", specification)


@fake("window_similarity")
def _(tokens, height, width, window):
    _check(tokens, height, width, window)
    return tokens.new_empty(tokens.shape[0], (height // window) * (width // window), dtype=result_dtype(tokens))


def window_similarity(tokens: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    """How alike the patches of each window are: the mean cosine of its patches with each other.

    Args:
        tokens: (B, P, C), the patches of a grid line by line, without class token; any strides. float32, float16 or
            bfloat16 (float64: by the specification).
        grid: (height, width) in patches, P together.
        window: side of a window, at least 2. Windows do not overlap; rows and columns that do not fill one belong to
            none, and where none fits W is 0.

    Returns:
        (B, W) float32 (float64 for float64), windows line by line, W = (height // window) * (width // window): 1 where
        all patches of a window point the same way, 0 with C = 0, NaN where a patch of the window is not finite.

    Raises:
        ValueError: a grid that has another number of patches, a window below 2. TypeError: a wrong dtype.

    Vectors shorter than 1e-8 count as 1e-8 long. Windows with equal patches have equal results bit for bit in the
    kernels, wherever they lie and whatever else is in the batch. Deterministic. Cost an image: 6 P C FLOPs, P C numbers
    read; pairs are not formed. Source: MustDrop, arXiv 2411.10803.

    Example:
        >>> import torch
        >>> from ficoco_ext.ops import window_similarity
        >>> window_similarity(torch.tensor([[[1., 0.], [2., 0.], [3., 0.], [0., 1.]]]), (2, 2), 2)
        tensor([[0.5000]])
    """
    return operator("window_similarity", tokens)(tokens, *grid, window)
