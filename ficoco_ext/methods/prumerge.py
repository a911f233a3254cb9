"""LLaVA-PruMerge and PruMerge+ with a fixed budget (arXiv 2403.15388)."""

from __future__ import annotations

from ..stages import Fuse, Neighbours, SingleHeadFilter
from .layers import last_layer
from .method import Method
from .registry import register


@register("prumerge", rank=80)
def prumerge(*, neighbours: int = 32, normalize: bool = False) -> Method:
    """LLaVA-PruMerge: keep what the class token attends to most; each kept patch borrows from the keys most like its.

    Attention is that of one head of full width, :func:`ficoco_ext.stages.single_head_attention`. Every kept patch gets
    x_i + sum a_j x_j over its nearest patches, kept or not, as they came. One slot of the budget is an extra token, sum
    a_j x_j over all patches that are not kept, at the position of the most attended of them. So of N tokens N - r stay.
    Sizes: a kept patch counts as one, the extra token as all that it sums up.

    The release acts once, after the tower, on the output of the layer before last with the last one's query and key,
    and lets the number of patches follow from each image (:func:`ficoco_ext.stages.outlier_count`). Here it acts
    between attention and MLP of the last layer whose output is used, unless other layers are named, and keeps what the
    budget says. Needs a class token and a :class:`ficoco_ext.QueryKey`.

    Args:
        neighbours: how many each kept patch borrows from; all where there are fewer, and 0 for none.
        normalize: divide by the sum of weights, so that every token is a mean; False as published.

    Raises:
        ValueError: a value out of range.

    Cost for M kept of P patches: 2 B H N d + 2 B M P (H d + C) FLOPs, memory O(M P) for each image.
    """
    return Method(
        name="prumerge",
        filter=SingleHeadFilter(),
        correlate=Neighbours(neighbours),
        compress=Fuse(normalize),
        source="LLaVA-PruMerge, arXiv 2403.15388, with a fixed budget",
        layers=last_layer,
    )


@register("prumerge+", rank=90)
def prumerge_plus(*, neighbours: int = 32, spatial: float = 0.75, normalize: bool = False) -> Method:
    """PruMerge+: as :func:`prumerge`, but a share of the slots goes to patches evenly spaced over the picture.

    Args:
        neighbours: how many each kept patch borrows from; all where there are fewer, and 0 for none.
        spatial: that share, in [0, 1]. The release adds about three samples for each patch kept for its attention,
            whose number follows from the image; here the samples are among the budget.
        normalize: divide by the sum of weights, so that every token is a mean; False as published.

    Raises:
        ValueError: a value out of range.
    """
    return Method(
        name="prumerge+",
        filter=SingleHeadFilter(spatial),
        correlate=Neighbours(neighbours),
        compress=Fuse(normalize),
        source="LLaVA-PruMerge+, arXiv 2403.15388, with a fixed budget",
        layers=last_layer,
    )
