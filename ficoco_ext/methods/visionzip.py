"""VisionZip, dominant and contextual tokens (arXiv 2412.04467)."""

from __future__ import annotations

from ..stages import CentrePlusMean, ContextualSelect, SaliencySelect, ToCentres
from .base import AnyMethod
from .projector_method import ProjectorMethod
from .registry import register


@register("visionzip", rank=160)
def visionzip(*, contextual: float = 10 / 64, merging: str = "sum", saliency: str = "auto") -> AnyMethod:
    """VisionZip: keep the tokens that the vision tower looks at most, and merge the others into a few.

    Dominant tokens are those of highest saliency. Of the others every k-th is a centre, and all that leaves goes into
    the centre whose key of the vision tower is most like its own. Of T tokens round(T contextual) are centres, at least
    one and one less than T.

    The release for LLaVA-1.5 merges what the tower gives, before the projector, and counts CLIP's class token among its
    dominant tokens and keeps it: 54 dominant are 53 patches. Here projected features are merged, as in its ports to
    Qwen2.5-VL, and no class token takes part unless the model projects it: 54 dominant are 54 patches. Kept tokens are
    in the order of the picture; the release has all centres after the dominant ones.

    Args:
        contextual: share of the tokens that stay that are centres, in [0, 1], 10 of 64 as published; with 0 there are
            none, and what leaves is dropped.
        merging: ``"sum"``: a centre plus the mean of what goes into it, as released, about twice as long as a token.
            ``"mean"``: the mean of all of them.
        saliency: in a model: ``"class"``, attention of the class token, as published; ``"column"``, attention that a
            patch receives; ``"keys"``, 1 - cosine of its key with the mean key; ``"auto"``, ``"class"`` where the tower
            has a class token that was trained, else ``"column"``.

    Raises:
        ValueError: a ``contextual`` outside [0, 1], or another ``merging``.

    Cost an image of N tokens that become T, C of them centres: 2 (N - T) C K FLOPs with keys of width K, and the
    merging.
    """
    source = "VisionZip, arXiv 2412.04467, after the projector"
    select, compress = ContextualSelect(contextual), CentrePlusMean(merging)
    if not contextual:
        return ProjectorMethod("visionzip", SaliencySelect(), source=source, saliency=saliency)
    return ProjectorMethod("visionzip", select, ToCentres(contextual), compress, source=source, saliency=saliency)
