"""``ficoco::match``: ToMe's bipartite soft matching, which chooses sources and targets at once.

The specification is :func:`ficoco_ext.ops.reference.match`; it returns what
:func:`ficoco_ext.ops.compress` takes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import library, reference

SCHEMA = "(Tensor key, SymInt r, bool class_token, bool distill_token) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
library.LIBRARY.define("match" + SCHEMA, tags=(torch.Tag.pt2_compliant_tag,))
library.LIBRARY.impl("match", reference.match, "CompositeExplicitAutograd")


class Matched(NamedTuple):
    """What :func:`match` returns."""

    redundancy: Tensor
    sources: Tensor
    kept: Tensor
    targets: Tensor
    weights: Tensor


@torch.library.register_fake("ficoco::match")
def _(key, r, class_token, distill_token):
    reference.checks.key("match", key)
    b, _, n, _ = key.shape
    redundancy = key.new_empty(b, n - int(class_token), dtype=library.result_dtype(key))
    index = {"dtype": torch.int64}
    return (
        redundancy,
        redundancy.new_empty(b, r, **index),
        redundancy.new_empty(b, n - r, **index),
        redundancy.new_empty(b, r, 1, **index),
        redundancy.new_empty(b, r, 1),
    )


def match(key: Tensor, r: int, *, class_token: bool, distill_token: bool = False) -> Matched:
    """Pair every even token with the odd one whose key is most like its own, and name the r best pairs.

    Args:
        key: (B, Hk, N, d), averaged over its heads and compared by cosine; for a given metric (B, N, D) pass
            ``metric.unsqueeze(1)``. float32, float16 or bfloat16 (float64: by the specification); any strides.
        r: pairs to merge, at most half of the tokens that are not protected.
        class_token: token 0 is never removed and never a target.
        distill_token: neither is token 1; only with a class token.

    Returns:
        redundancy (B, P) float32, the cosine of each patch with its partner (-inf: it has none); sources (B, r) and
        kept (B, N - r) int64, ascending; targets (B, r, 1) int64, places in ``kept``; weights (B, r, 1), all 1.

    Raises:
        ValueError: r out of range, a distillation token without a class token, keys that are not finite (checked on
            the CPU, where reading them costs nothing). TypeError: wrong dtype.

    Ties: of equally near partners the lowest index, of equal pairs that of the lowest source. Cost: the keys read
    once, 2 B (N / 2)^2 d FLOPs, no N x N map. Deterministic. Source: ToMe, arXiv 2210.09461, section 3.

    Example:
        >>> import torch
        >>> from ficoco_ext.ops import match
        >>> key = torch.tensor([[1., 0.], [0., 1.], [0., 2.], [1., .1]]).view(1, 1, 4, 2)
        >>> pairs = match(key, 1, class_token=False)
        >>> pairs.sources, pairs.kept, pairs.targets
        (tensor([[2]]), tensor([[0, 1, 3]]), tensor([[[1]]]))
    """
    return Matched(*library._operator("match", key)(key, r, class_token, distill_token))
