"""CDPruner, diverse tokens that are relevant to the prompt (arXiv 2506.10967)."""

from __future__ import annotations

from ..stages import RelevanceSelect
from .base import AnyMethod
from .parts import after_projector
from .registry import register


@register("cdpruner", rank=152)
def cdpruner(
    *,
    relevance: str = "words",
    theta: float = 0.5,
    blend: str = "exp",
    blocks: int = 1,
    sign: int = 1,
    merge: bool = False,
) -> AnyMethod:
    """CDPruner: keep the tokens that differ most among those that are relevant to the prompt.

    One token after the other is picked, each the one that raises the determinant of K over the tokens that stay most;
    K_ij = a_i cos(x_i, x_j) a_j. A token is relevant by its mean cosine with the words of the prompt, moved into [0, 1]
    for each picture.

    What stays is chosen for one prompt: a picture that was pruned for one question may lack what the next one asks for.
    Pass the whole conversation again, or take ``relevance="none"`` where several questions follow.

    The defaults need no text encoder, so they work in every family: words are compared as the language model embeds
    them, and the tokens most similar to them are relevant, as in OpenVINO. The authors' release asks the text encoder
    of CLIP, and there the least similar ones are relevant (``sign=-1``).

    Args:
        relevance: ``"words"``, or ``"none"``: a = 1, differences alone count, and no words are needed.
        theta: how much relevance counts, in [0, 0.9], with ``blend="linear"`` in [0, 1); 0: not at all. Not with
            ``blend="product"``.
        blend: with w the relevance, ``"exp"``: a = exp(theta / (2 (1 - theta)) w). ``"linear"``: K = (1 - theta) S +
            theta w S w for the cosines S. ``"product"``: a = w, as in the authors' release.
        blocks: 2 cuts a picture's tokens into a first and a second half, each with its own relevance and half of the
            tokens that stay; the second half has one more token, and keeps one more, if numbers are odd.
        sign: 1, or -1: tokens are relevant that are least like the words.
        merge: merge each token that leaves into the most similar one that stays, in means weighted by size. False drops
            it, as published.

    Raises:
        ValueError: a hyperparameter that is none of these; when it is used, no words (``"divprune"`` and
            ``relevance="none"`` need none).

    Cost an image: N^2 D FLOPs for the cosines of N tokens (twice that for ``"linear"``, and once for each block), N T^2
    for T that stay, 2 (N + L) D for L words.
    """
    select = RelevanceSelect(relevance=relevance, theta=theta, blend=blend, blocks=blocks, sign=sign)
    return after_projector("cdpruner", select, merge=merge, source="CDPruner, arXiv 2506.10967")
