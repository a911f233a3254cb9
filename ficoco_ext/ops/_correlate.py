"""``ficoco::correlate``: which survivors a source goes to, and with what weights (FiCoCo section 3.3, eq. 2).

The overload ``correlate.tokens``, for tokens of a decoder, is in ``_correlate_tokens.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks
from .attention import Attention, QueryKey, attention_rows, head_mean, key_metric, rows
from .library import define, fake, operator, result_dtype


def best_targets(scores: Tensor, k: int, alpha: str, first: int) -> tuple[Tensor, Tensor]:
    """Targets (B, r, k) and weights (B, r, k) from correlations ``scores`` (B, r, kept patches).

    The k highest, ties to the lowest index. Weights sum to 1: softmax of the chosen, their ratio, or 1 / k each, which
    is also the ratio of chosen ones that are all 0.
    """
    values, targets = scores.sort(dim=-1, descending=True, stable=True)
    values, targets = values[..., :k], targets[..., :k]
    if k and values.device.type == "cpu" and not values[..., 0].isfinite().all():  # free here, a sync elsewhere
        checks.fail("correlate", "correlations", "finite", "NaN or infinity among them", "check the attention")
    if alpha == "softmax":
        weights = values.softmax(-1)
    else:
        weights = torch.full_like(values, 1 / max(k, 1))
        if alpha == "ratio":
            if values.device.type == "cpu" and (values < 0).any():
                checks.fail(
                    "correlate", "attn", "non-negative for alpha='ratio'", "a negative correlation", "use softmax"
                )
            total = values.sum(-1, keepdim=True)
            weights = torch.where(total > 0, values / total, weights)
    return targets + first, weights


def specification(
    query: Tensor,
    key: Tensor,
    sources: Tensor,
    kept: Tensor,
    k: int,
    scale: float,
    alpha: str,
    class_token: bool,
    probs: bool,
) -> tuple[Tensor, Tensor]:
    """Targets (B, r, k), as indices into ``kept``, and weights (B, r, k) by attention from source to kept patch.

    Correlation is row ``source`` of A over the kept patches; the class token is never a target (FiCoCo section 3.3).
    """
    checks.query_key("correlate", query, key)
    first = int(class_token)
    checks.selection("correlate", query.shape[0], query.shape[2], sources, kept)
    checks.same_device("correlate", "query", query, sources=sources, kept=kept)
    checks.target_count("correlate", k, kept.shape[1] - first, alpha)
    if alpha == "ratio" and not probs:
        checks.fail("correlate", "alpha", "softmax or average with logits", "ratio", "use probs, never negative")
    correlations = attention_rows(query, key, scale, probs, sources)
    columns = kept[:, None, first:].expand(-1, sources.shape[1], -1)
    return best_targets(correlations.gather(2, columns), k, alpha, first)


def specification_map(
    attn: Tensor, sources: Tensor, kept: Tensor, k: int, alpha: str, class_token: bool
) -> tuple[Tensor, Tensor]:
    """:func:`specification` from a given map, whose values are used as they are."""
    checks.attention_map("correlate", attn)
    first = int(class_token)
    checks.selection("correlate", attn.shape[0], attn.shape[-1], sources, kept)
    checks.same_device("correlate", "attn", attn, sources=sources, kept=kept)
    checks.target_count("correlate", k, kept.shape[1] - first, alpha)
    columns = kept[:, None, first:].expand(-1, sources.shape[1], -1)
    return best_targets(rows(head_mean(attn), sources).gather(2, columns), k, alpha, first)


def specification_key(
    key: Tensor, sources: Tensor, kept: Tensor, k: int, alpha: str, class_token: bool
) -> tuple[Tensor, Tensor]:
    """:func:`specification` by cosine of the head-mean keys (B, Hk, N, d), as ToMe measures similarity."""
    checks.key("correlate", key)
    first = int(class_token)
    checks.selection("correlate", key.shape[0], key.shape[2], sources, kept)
    checks.same_device("correlate", "key", key, sources=sources, kept=kept)
    checks.target_count("correlate", k, kept.shape[1] - first, alpha)
    if alpha == "ratio":
        checks.fail("correlate", "alpha", "softmax or average with keys", "ratio", "a cosine can be negative")
    metric = key_metric(key)
    return best_targets(rows(metric, sources) @ rows(metric, kept[:, first:]).mT, k, alpha, first)


define(
    "correlate",
    "(Tensor query, Tensor key, Tensor sources, Tensor kept, SymInt k, float scale, str alpha,"
    " bool class_token, bool probs) -> (Tensor, Tensor)",
    specification,
)
define(
    "correlate.map",
    "(Tensor attn, Tensor sources, Tensor kept, SymInt k, str alpha, bool class_token) -> (Tensor, Tensor)",
    specification_map,
)
define(
    "correlate.key",
    "(Tensor key, Tensor sources, Tensor kept, SymInt k, str alpha, bool class_token) -> (Tensor, Tensor)",
    specification_key,
)


def _fake_links(like: Tensor, sources: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (*sources.shape, k)
    return sources.new_empty(shape), like.new_empty(shape, dtype=result_dtype(like))


@fake("correlate")
def _(query, key, sources, kept, k, scale, alpha, class_token, probs):
    return _fake_links(query, sources, k)


@fake("correlate.map")
def _(attn, sources, kept, k, alpha, class_token):
    return _fake_links(attn, sources, k)


@fake("correlate.key")
def _(key, sources, kept, k, alpha, class_token):
    return _fake_links(key, sources, k)


def correlate(
    attn: Attention, sources: Tensor, kept: Tensor, k: int, *, alpha: str, class_token: bool, probs: bool = False
) -> tuple[Tensor, Tensor]:
    """For each source the k kept patches it attends to most, and weights that sum to 1 (section 3.3, eq. 2).

    Args:
        attn: (B, H, N, N) or (B, N, N), used as it is, or a :class:`QueryKey`.
        sources: (B, r) int64; kept: (B, M) int64, both from :func:`filter`.
        k: targets per source, 0 <= k <= number of kept patches.
        alpha: ``"softmax"`` of the chosen correlations, their ``"ratio"`` (non-negative ones only; 1 / k each where
            all chosen are 0) or ``"average"``.
        class_token: ``kept[:, 0]`` is the class token, never a target.
        probs: with a ``QueryKey``, softmax the logits.

    Returns:
        targets (B, r, k) int64, indices into ``kept``; weights (B, r, k) float32 (float64 for float64).

    Ties: the lowest index. Deterministic. Cost 2 B r M H d FLOPs (probs: 2 B r N H d), memory O(r N).

    Example:
        >>> import torch
        >>> from ficoco_ext import ops
        >>> attn = torch.tensor([[[0., 1., 2.], [0., 0., 0.], [0., 0., 0.]]])
        >>> ops.correlate(attn, torch.tensor([[0]]), torch.tensor([[1, 2]]), 1, alpha="softmax", class_token=False)
        (tensor([[[1]]]), tensor([[[1.]]]))
    """
    if isinstance(attn, QueryKey):
        return operator("correlate", attn.query)(
            attn.query, attn.key, sources, kept, k, attn.logit_scale, alpha, class_token, probs
        )
    return operator("correlate.map", attn)(attn, sources, kept, k, alpha, class_token)


def correlate_key(
    key: Tensor, sources: Tensor, kept: Tensor, k: int, *, alpha: str, class_token: bool
) -> tuple[Tensor, Tensor]:
    """:func:`correlate` by cosine of the head-mean keys, ``key`` (B, Hk, N, d). Cost 2 B r M d FLOPs.

    Example:
        >>> import torch
        >>> from ficoco_ext import ops
        >>> key = torch.tensor([[1., 0.], [0., 1.], [1., .1]]).view(1, 1, 3, 2)
        >>> sources, kept = torch.tensor([[0]]), torch.tensor([[1, 2]])
        >>> ops.correlate_key(key, sources, kept, 1, alpha="softmax", class_token=False)[0]
        tensor([[[1]]])
    """
    return operator("correlate.key", key)(key, sources, kept, k, alpha, class_token)
