"""``ficoco::match``: ToMe's bipartite soft matching, which chooses sources and targets at once.

It returns what :func:`ficoco_ext.ops.compress` takes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import checks
from .attention import key_metric
from .library import define, fake, operator, result_dtype


def specification(
    key: Tensor, r: int, class_token: bool, distill_token: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Redundancy (B, P), sources (B, r), kept (B, M), targets and weights (B, r, 1): ToMe's bipartite matching.

    Every token at an even index has an edge to the one at an odd index whose head-mean key has the highest cosine with
    its own, the lowest of equal ones. The r edges of highest cosine are merged, equal ones by lowest source. Class
    token (index 0) and distillation token (index 1) have no edges. Redundancy is the cosine of a patch's edge, -inf
    without one (ToMe, arXiv 2210.09461, section 3).
    """
    checks.key("match", key)
    b, _, n, _ = key.shape
    checks.matching(n, r, class_token, distill_token)
    first, metric, rest = int(class_token), key_metric(key), torch.arange(n, device=key.device)
    even, odd = rest[2 * first :: 2], rest[1 + 2 * distill_token :: 2]
    scores = metric[:, even] @ metric[:, odd].mT
    if scores.device.type == "cpu" and not scores.isfinite().all():  # free here, a sync elsewhere
        checks.fail("match", "key", "finite", "NaN or infinity among the keys", "check the layer they come from")
    redundancy = scores.new_full((b, max(n - first, 0)), float("-inf"))
    if not scores.numel():
        scores = scores.new_full((b, even.shape[0], 1), float("-inf"))
    nearest = scores.argmax(-1, keepdim=True)  # of equal ones the first
    best = scores.gather(2, nearest).squeeze(-1)
    redundancy[:, even - first] = best
    edges = best.sort(dim=1, descending=True, stable=True).indices[:, :r].sort(1).values
    sources = even[edges]
    leaves = torch.zeros(b, n, dtype=torch.bool, device=key.device).scatter(1, sources, True)
    kept = leaves.sort(dim=1, stable=True).indices[:, : n - r].contiguous()
    indices = (~leaves).cumsum(1) - 1
    targets = indices.gather(1, 1 + 2 * distill_token + 2 * nearest.squeeze(-1).gather(1, edges))
    return redundancy, sources, kept, targets.unsqueeze(-1), redundancy.new_ones(b, r, 1)


define(
    "match",
    "(Tensor key, SymInt r, bool class_token, bool distill_token) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    specification,
)


@fake("match")
def _(key, r, class_token, distill_token):
    checks.key("match", key)
    b, _, n, _ = key.shape
    redundancy = key.new_empty(b, n - int(class_token), dtype=result_dtype(key))
    index = {"dtype": torch.int64}
    return (
        redundancy,
        redundancy.new_empty(b, r, **index),
        redundancy.new_empty(b, n - r, **index),
        redundancy.new_empty(b, r, 1, **index),
        redundancy.new_empty(b, r, 1),
    )


class Matched(NamedTuple):
    """What :func:`match` returns."""

    redundancy: Tensor
    sources: Tensor
    kept: Tensor
    targets: Tensor
    weights: Tensor


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
        kept (B, N - r) int64, ascending; targets (B, r, 1) int64, indices into ``kept``; weights (B, r, 1), all 1.

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
    return Matched(*operator("match", key)(key, r, class_token, distill_token))
