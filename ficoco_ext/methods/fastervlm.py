"""FasterVLM, class attention of the last layer that counts (arXiv 2412.01818, first version)."""

from __future__ import annotations

from ..stages import SaliencySelect
from .parts import after_projector
from .projector_method import ProjectorMethod
from .registry import register


@register("fastervlm", rank=157)
def fastervlm(*, saliency: str = "auto") -> ProjectorMethod:
    """FasterVLM: keep the tokens that the class token of the vision tower attends to most, in its last layer in use.

    That is ``"topk"`` after the projector, and ``"vispruner"`` with ``share=1``. In LLaVA-1.5 ``"topk"`` in the tower
    keeps the same tokens, reduced in the last layer in use alone: no token sees another one after it.

    Args:
        saliency: ``"class"``, attention of the class token, as published; ``"column"``, attention that a patch
            receives; ``"keys"``, 1 - cosine of its key with the mean key; ``"auto"``, ``"class"`` where the tower has a
            class token that was trained, else ``"column"``.

    Cost: the survivors copied.
    """
    return after_projector(
        "fastervlm", SaliencySelect(), merge=False, source="FasterVLM, arXiv 2412.01818v1", saliency=saliency
    )
