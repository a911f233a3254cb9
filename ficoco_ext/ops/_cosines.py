"""``ficoco::cosines``: of the features of tokens with other vectors, such as words, each pair added up in one order."""

from __future__ import annotations

from torch import Tensor

from . import checks
from .attention import cosine_map
from .library import define, fake, operator, result_dtype


def _check(features: Tensor, things: Tensor) -> None:
    op = "cosines"
    checks.floating(op, "features", features)
    checks.floating(op, "things", things)
    checks.shape(op, "features", features, "(B, N, D)", features.dim() == 3, "pass one vector a token")
    b, n, d = features.shape
    ok = things.dim() == 3 and things.shape[0] == b and things.shape[2] == d
    checks.shape(op, "things", things, lambda: f"({b}, R, {d})", ok, "pass vectors as wide as the features")
    if things.dtype != features.dtype:
        checks.fail(op, "things", f"{features.dtype} like features", things, "convert one of them", TypeError)
    checks.same_device(op, "features", features, things=things)
    if n > checks.MAX_SEQUENCE or things.shape[1] > checks.MAX_SEQUENCE:
        checks.fail(op, "features and things", f"at most {checks.MAX_SEQUENCE}", "more", "split them")


def specification(features: Tensor, things: Tensor) -> Tensor:
    """(B, N, R) the cosine of every token's features (B, N, D) with every one of ``things`` (B, R, D).

    Vectors are divided by their length, or by 1e-12 if that is shorter. A token with itself is 1 up to rounding.
    """
    _check(features, things)
    return cosine_map(features, things)


define("cosines", "(Tensor features, Tensor things) -> Tensor", specification)


@fake("cosines")
def _(features, things):
    _check(features, things)
    return features.new_empty(*features.shape[:2], things.shape[1], dtype=result_dtype(features))


def cosines(features: Tensor, things: Tensor) -> Tensor:
    """The cosine of every token's features with every one of ``things``.

    Args:
        features: (B, N, D); any strides. float32, float16 or bfloat16 (float64: by the specification).
        things: (B, R, D), of the same dtype, such as the words of a prompt, or ``features`` once more.

    Returns:
        (B, N, R) float32; 0 with a vector of zeros, NaN with one that is not finite.

    Raises:
        ValueError: shapes that do not fit. TypeError: a wrong dtype, or two.

    Kernels add up each pair in the same order wherever it lies and whatever else is in the batch: equal vectors have
    equal cosines, bit for bit. Autocast does not apply. Cost an image: 2 N R D FLOPs, 4 N R bytes for the result.

    Example:
        >>> import torch
        >>> from ficoco_ext.ops import cosines
        >>> cosines(torch.tensor([[[2., 0.], [3., 4.]]]), torch.tensor([[[0., 1.]]]))
        tensor([[[0.0000],
                 [0.8000]]])
    """
    return operator("cosines", features)(features, things)
