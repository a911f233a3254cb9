"""FlashVID, diverse tokens and trees through the frames of a scene (arXiv 2602.08024)."""

from __future__ import annotations

from ..stages import Compress, IntoTrees, SceneTrees
from ..stages.frozen import require_one_of
from .projector_method import ProjectorMethod
from .registry import register


@register("flashvid", rank=210)
def flashvid(
    *,
    diverse: float = 0.7,
    cut: float = 0.9,
    scenes: int = 8,
    link: float = 0.8,
    neighbours: int = 7,
    weigh: float = 1.0,
    merge: bool = True,
    saliency: str = "auto",
) -> ProjectorMethod:
    """FlashVID: keep diverse tokens of each frame, and merge what runs through the frames of a scene. For videos.

    This is its part after the projector. The published method also drops tokens in a layer of the language model, and
    keeps a quarter more before it: ``"flashvid+fastv"`` with amounts of your own does that. A picture is a video of one
    frame. What differs from the release, so that exactly as many tokens stay as are asked for and equal inputs give
    equal outputs:

    * A frame's share is its share of the tokens, and centres are dealt by numbers of roots; the release rounds both up.
    * Densities have no noise, and ``neighbours`` is not lowered to the number of centres.
    * A centre is the mean of all its tokens; the release takes the mean of trees' means.
    * A scene of one frame keeps its diverse tokens out of the clusters, as others do.

    Args:
        diverse: share of the tokens that stay, in [0, 1]: those picked by diversity times saliency.
        cut: cosine of frames below which a scene ends, in [-1, 1].
        scenes: at least so many, if there are the frames.
        link: cosine of tokens of neighbouring frames above which they are merged, in [-1, 1].
        neighbours: by which density is measured, at least 1.
        weigh: power of saliency; 0: all tokens count alike, and none is needed.
        merge: False drops what leaves.
        saliency: in a model: ``"class"``, attention of the class token; ``"column"``, attention that a patch receives,
            as published; ``"keys"``, 1 - cosine of its key with the mean key; ``"auto"``, ``"class"`` where the tower
            has a class token that was trained, else ``"column"``.

    Raises:
        ValueError: a value out of range, or a ``merge`` that is neither True nor False.

    Cost a video of F frames of n tokens with D channels: F n^2 D FLOPs for the picks, 2 F n^2 D for the links if F > 1,
    and 3 F D for each of about n (n + 64) / 2 distances (n^2 of up to 64 tokens). With ``merge``, and so few of the T
    tokens that stay that frames may be without a centre (T (1 - ``diverse``) below about 2 F), another 3 (F n - T) T D.
    4 F n^2 bytes are held. Distances are sums of differences, for which the CPU has no fast kernel: a picture of 4096
    tokens takes as long as 336 frames of 196 tokens, many seconds there; ``"divprune"`` is fast.
    """
    require_one_of("flashvid", "merge", merge, (True, False))
    select, source = SceneTrees(diverse, cut, scenes, link, neighbours, weigh), "FlashVID, arXiv 2602.08024"
    if not merge:
        return ProjectorMethod("flashvid", select, source=source, saliency=saliency)
    links, compress = IntoTrees(select), Compress(size_weighted=True)
    return ProjectorMethod("flashvid", select, links, compress, source=source, saliency=saliency)
