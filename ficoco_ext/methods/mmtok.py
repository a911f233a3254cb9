"""MMTok, tokens that cover the words of the prompt and the picture (arXiv 2508.18264)."""

from __future__ import annotations

from ..stages import CoverSelect
from .base import AnyMethod
from .parts import after_projector
from .registry import register


@register("mmtok", rank=154)
def mmtok(
    *,
    tau_text: float = 0.02,
    tau_vision: float = 0.2,
    alpha: float = 0.5,
    cover_words: bool = True,
    before_projector: bool = True,
    merge: bool = False,
) -> AnyMethod:
    """MMTok: keep the tokens that together cover the words of the prompt and the tokens of the picture best.

    A token covers a word, or another token, by its share in a softmax over all tokens of cosines divided by a
    temperature. One token after the other is picked, each the one that adds most to what is covered.

    What stays is chosen for one prompt: a picture that was pruned for one question may lack what the next one asks for.
    Pass the whole conversation again, or take ``cover_words=False`` where several questions follow.

    The temperatures are those of the authors' scripts for LLaVA-1.5 and Qwen2.5-VL. They do not carry over to other
    widths: cosines of narrow features spread more, so the same temperature makes a sharper softmax. Measure with
    ``ficoco eval`` before you use it on another model.

    Args:
        tau_text: temperature of the cosines of words with tokens, at least 1e-6.
        tau_vision: temperature of the cosines of tokens with each other, at least 1e-6.
        alpha: how much covering tokens counts beside covering words, at least 0.
        cover_words: False covers the tokens alone, and needs no words.
        before_projector: compare tokens with each other by what the vision tower gave, as published. False: by the
            projected features, and nothing but those is needed.
        merge: merge each token that leaves into the most similar one that stays, in means weighted by size. False drops
            it, as published.

    Raises:
        ValueError: a hyperparameter that is none of these; when it is used, no words (``cover_words=False``,
            ``"divprune"`` and ``"scope"`` need none).

    Cost an image: 2 N (N C + L D) FLOPs for the cosines of N tokens with each other and with L words, which are held
    (4 N (N + L) bytes, twice while they are made); then at least 2 N (N + L), nearly always little more.
    """
    select = CoverSelect(tau_text, tau_vision, alpha, cover_words=cover_words, before_projector=before_projector)
    return after_projector("mmtok", select, merge=merge, source="MMTok, arXiv 2508.18264")
