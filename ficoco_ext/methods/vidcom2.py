"""VidCom2, what is unusual in a video (arXiv 2505.14454)."""

from __future__ import annotations

from ..stages import Outliers
from .parts import after_projector
from .projector_method import ProjectorMethod
from .registry import register

_SOURCE = "VidCom2, arXiv 2505.14454"


@register("vidcom2", rank=200)
def vidcom2(*, channels: float = 0.5, temperature: float = 0.01, merge: bool = False) -> ProjectorMethod:
    """VidCom2: keep what is least like the whole video and its own frame, and more of unusual frames. For videos.

    It reads features alone: no attention, no text, no cosines of all pairs. A picture is a video of one frame. Rounding
    differs from the release, so that exactly as many tokens stay as are asked for; see
    :class:`ficoco_ext.stages.Outliers`.

    Args:
        channels: share of the channels that are compared, those of lowest variance over the video, in (0, 1].
        temperature: above 0. The smaller it is, the more goes to the most unusual frame.
        merge: merge each token that leaves into the most similar one that stays, in means weighted by size. False drops
            it, as published.

    Raises:
        ValueError: a value out of range, or a ``merge`` that is neither True nor False.

    Cost a video: 9.5 N D FLOPs for N tokens with D channels.
    """
    return after_projector("vidcom2", Outliers(channels, temperature), merge=merge, source=_SOURCE)
