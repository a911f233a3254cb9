"""HiPrune, salient tokens of an early and of a late layer of the vision tower (arXiv 2508.00553)."""

from __future__ import annotations

from ..stages import AnchorSelect
from .base import AnyMethod
from .projector_method import ProjectorMethod
from .registry import register


@register("hiprune", rank=170)
def hiprune(*, alpha: float = 0.1, early_layer: int | float | None = None, saliency: str = "column") -> AnyMethod:
    """HiPrune: keep what an early layer of the vision tower looks at, with its surroundings, then what a late one does.

    Of T tokens round(T alpha / 5) are anchors, those of highest saliency in the early layer; their neighbours in the
    grid stay too; the rest of T are those of highest saliency in the late layer. See
    :class:`ficoco_ext.stages.AnchorSelect` for what comes first where these are too many. A picture whose tokens are
    not a known grid, such as one of tiles, has the tokens before and after an anchor as its neighbours.

    The release takes neighbours across the ends of rows and doubles tokens at the border; here neighbours end with the
    grid. It also counts what CLIP's class token looks at among 577 queries; here the patches' alone count.

    Args:
        alpha: about the share of the tokens that stay that anchors and their neighbours are, in [0, 5]. With 0 the late
            layer alone decides.
        early_layer: in a model: the early layer, counted from 0, or a share of the tower's layers, of which it is the
            last. None: as published, the 9th of 24, and the 16th of 32 in Qwen2.5-VL. Where that one attends in
            windows, the nearest before it that attends to whole pictures; without one, the first that does.
        saliency: in a model, the kind in both layers: ``"column"``, attention that a patch receives, as published;
            ``"class"``, attention of the class token; ``"keys"``, 1 - cosine of its key with the mean key; ``"auto"``,
            ``"class"`` where the tower has a class token that was trained, else ``"column"``.

    Raises:
        ValueError: an ``alpha`` outside [0, 5], or an early layer that can be none.

    Cost an image: nothing but the saliency of two layers, 2 N^2 FLOPs a channel of the tower each.
    """
    select = AnchorSelect(alpha)
    source = "HiPrune, arXiv 2508.00553"
    return ProjectorMethod("hiprune", select, source=source, saliency=saliency, early_layer=early_layer)
