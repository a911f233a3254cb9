"""VisPruner, salient tokens and what is left when the others are thinned (arXiv 2412.01818)."""

from __future__ import annotations

from ..stages import BipartiteThin
from .parts import after_projector
from .projector_method import ProjectorMethod
from .registry import register


@register("vispruner", rank=158)
def vispruner(
    *, share: float = 0.5, step: int = 8, before_projector: bool = True, saliency: str = "auto"
) -> ProjectorMethod:
    """VisPruner: keep what the vision tower looks at most, and of the rest what is left when repetitions are taken out.

    Of T tokens that stay int(T * share) are the most salient. All others are a list, most salient first. In rounds, of
    every other token of the list the ``step`` that are most like a token between them leave, until the list has as many
    as are missing.

    Args:
        share: of the tokens that stay, those by saliency alone, in [0, 1]. 0.5 as published, 0.75 in its scripts for
            small numbers; 1 is ``"fastervlm"``.
        step: tokens that leave in a round, at least 1; 8 as published.
        before_projector: compare features of the vision tower, as published. False: projected features, which are
            always there.
        saliency: ``"class"``, attention of the class token, as published; ``"column"``, attention that a patch
            receives; ``"keys"``, 1 - cosine of its key with the mean key; ``"auto"``, ``"class"`` where the tower has a
            class token that was trained, else ``"column"``.

    Raises:
        ValueError: a share outside [0, 1], a step below 1, a ``before_projector`` that is neither True nor False.

    Cost an image: N^2 C FLOPs for the cosines of N tokens with C channels, then at least (N - T) / step rounds.
    """
    select = BipartiteThin(step=step, share=share, before_projector=before_projector)
    return after_projector("vispruner", select, merge=False, source="VisPruner, arXiv 2412.01818", saliency=saliency)
