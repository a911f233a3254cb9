"""ToMe, token merging by bipartite soft matching (arXiv 2210.09461)."""

from __future__ import annotations

from ..stages import Compress, Match
from .method import Method
from .registry import register


@register("tome", rank=50)
def tome(*, proportional_attention: bool = True, distill_token: bool = False) -> Method:
    """ToMe: every other token may merge into the neighbour set, most similar keys first, into size-weighted means.

    Needs a :class:`ficoco_ext.QueryKey`; a map holds no keys. At most half of the tokens can leave at once. Survivors
    stay in original order.

    Args:
        proportional_attention: in a model, later layers add log(size) to the logits of each key, as if the merged
            tokens were still there; see :func:`ficoco_ext.attach`. A single reduction does not depend on it.
        distill_token: token 1 is a distillation token, never removed and never a target.

    Raises:
        ValueError: a value that is not True or False.
    """
    if not isinstance(proportional_attention, bool):
        raise ValueError(f"tome: proportional_attention must be True or False, got {proportional_attention!r}")
    return Method(
        name="tome",
        filter=Match(distill_token),
        correlate=None,
        compress=Compress(size_weighted=True),
        source="ToMe, arXiv 2210.09461",
        proportional_attention=proportional_attention,
    )
