"""FiCoCo-V, in the vision tower (arXiv 2411.17686)."""

from __future__ import annotations

from typing import Any

from ..stages import Compress, Correlate, Filter
from .method import Method
from .registry import register

# The two readings of the method: the paper's equations, and the weights and logits of the authors' released code
# (without its bugs). See eq. 1 for lam and normalize, eq. 2 for alpha.
_VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {"lam": 0.35, "attention": "probs", "normalize": False, "alpha": "ratio"},
    "released": {"lam": 0.65, "attention": "logits", "normalize": True, "alpha": "softmax"},
}


@register("ficoco-v", rank=10)
def ficoco_v(
    *,
    variant: str = "released",
    lam: float | None = None,
    eps: float = 0.998,
    penalty: float = 2.0,
    window: int = 2,
    normalize: bool | None = None,
    alpha: str | None = None,
    attention: str | None = None,
    redundancy: str = "row",
    targets: str | int = "adaptive",
    correlation: str = "attention",
    class_attention: bool = True,
    local_redundancy: bool = True,
) -> Method:
    """FiCoCo-V, for the vision encoder.

    Args:
        variant: ``"paper"`` or ``"released"``: defaults for what is None below.
        lam: weight of patch attention in the redundancy (paper 0.35, released 0.65).
        eps: quantile of the adaptive targets.
        penalty, window: local penalty; penalty 1 is off.
        normalize: L2-normalise both terms (paper False, released True).
        alpha: ``"softmax"``, ``"ratio"`` or ``"average"`` (paper ratio, released softmax).
        attention: ``"logits"`` or ``"probs"`` (paper probs, released logits).
        redundancy: ``"row"`` or ``"column"`` mean of the patches' attention.
        targets: ``"adaptive"`` or a fixed number; 0 prunes.
        correlation: where a removed token goes: by ``"attention"`` or by cosine of the head-mean ``"key"``; or
            ``"convergent"``: all of them into one token, which takes a slot of the budget (see :class:`Correlate`).
        class_attention, local_redundancy: False leaves out that term of the redundancy (ablations).

    Raises:
        ValueError: a value out of range, or values that do not fit together; the message says which and why.
    """
    if variant not in _VARIANTS:
        raise ValueError(f"ficoco-v: variant must be one of 'paper', 'released', got {variant!r}")
    given = {"lam": lam, "normalize": normalize, "alpha": alpha, "attention": attention}
    chosen = _VARIANTS[variant] | {name: value for name, value in given.items() if value is not None}
    for name, value in (("class_attention", class_attention), ("local_redundancy", local_redundancy)):
        if not isinstance(value, bool):
            raise ValueError(f"ficoco-v: {name} must be True or False, got {value!r}")
    if not (class_attention or local_redundancy):
        raise ValueError("ficoco-v: class_attention and local_redundancy are both False; nothing is left to filter by")
    if not class_attention:
        chosen["lam"] = 1.0
    if not local_redundancy:
        chosen["lam"] = 0.0
    return Method(
        name="ficoco-v",
        filter=Filter(
            lam=chosen["lam"],
            attention=chosen["attention"],
            redundancy=redundancy,
            normalize=chosen["normalize"],
            penalty=penalty,
            window=window,
        ),
        correlate=Correlate(
            by=correlation, targets=targets, eps=eps, alpha=chosen["alpha"], attention=chosen["attention"]
        ),
        compress=Compress(),
        source="FiCoCo, arXiv 2411.17686, eq. 1-2",
    )
