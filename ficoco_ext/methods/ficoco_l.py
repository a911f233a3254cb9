"""FiCoCo-L, in the language model (arXiv 2411.17686)."""

from __future__ import annotations

from typing import Any

from ..stages import Compress, DecoderCorrelate, DecoderFilter
from .decoder_method import DecoderMethod
from .registry import register

# As in FiCoCo-V: the paper's equations on probabilities, and the logits of the authors' released code without its bugs.
# Another default than FiCoCo-V's: in the layers that it reduces by default the paper's reading measured better, on two
# trained models.
_VARIANTS: dict[str, dict[str, str]] = {
    "paper": {"attention": "probs", "alpha": "ratio"},
    "released": {"attention": "logits", "alpha": "softmax"},
}


def _from_an_eighth(layers: int) -> tuple[int, ...]:
    """From an eighth of the layers on: 4, 5, ... 31 of 32, the paper's fourth layer when layers count from 0."""
    return tuple(range(max(layers // 8, min(1, layers - 1)), layers))


@register("ficoco-l", rank=20)
def ficoco_l(
    *,
    variant: str = "paper",
    beta: float = 0.6,
    gamma: float = 0.6,
    eps: float = 0.998,
    alpha: str | None = None,
    targets: str | int = "adaptive",
    attention: str | None = None,
    correlation_attention: str | None = None,
    direct: bool = True,
    indirect: bool = True,
    text_relevance: bool = True,
    visual_redundancy: bool = True,
    visual_reduce: str = "mean",
    text_reduce: str = "mean",
    indirect_reduce: str = "sum",
    penalty: float = 1.0,
    window: int = 2,
    before_attention: bool = False,
) -> DecoderMethod:
    """FiCoCo-L, for the layers of a language model, during prefill.

    Args:
        variant: ``"paper"`` or ``"released"``: defaults for what is None below.
        beta: weight of visual attention in the redundancy, against attention with the text (eq. 3).
        gamma: weight of direct attention in the correlation, against that by way of the text (eq. 4).
        eps: quantile of the adaptive targets.
        alpha: ``"softmax"``, ``"ratio"`` or ``"average"`` (paper ratio, released softmax, which stands in for the ratio
            where correlations are logits).
        targets: ``"adaptive"`` or a fixed number; 0 prunes.
        attention: ``"logits"`` or ``"probs"`` (paper probs, released logits). Probabilities know the causal mask, so
            their terms with the text are what the text gives to visual tokens; see :class:`DecoderFilter`.
        correlation_attention: that of the correlation alone; None: as ``attention``. ``"logits"`` after a filter by
            probabilities is neither reading, and measured better than both in several layers.
        direct, indirect: False leaves out that part of the correlation (ablations).
        text_relevance, visual_redundancy: False leaves out that term of the redundancy (ablations).
        visual_reduce, text_reduce: ``"mean"`` (eq. 3) or ``"sum"``; the released code has sum and mean.
        indirect_reduce: ``"sum"`` (the paper's algorithm) or ``"mean"`` (its appendix) over the text.
        penalty, window: local penalty as in FiCoCo-V; 1 is off, the paper's choice here.
        before_attention: reduce before a layer's attention instead of after it.

    Raises:
        ValueError: a value out of range, or values that do not fit together; the message says which and why.
    """
    flags = {
        "direct": direct,
        "indirect": indirect,
        "text_relevance": text_relevance,
        "visual_redundancy": visual_redundancy,
        "before_attention": before_attention,
    }
    _require_flags(flags)
    attention, correlation_attention, alpha = _reading(variant, attention, correlation_attention, alpha, targets)
    if not direct:
        gamma = 0.0
    if not indirect:
        gamma = 1.0
    if not text_relevance:
        beta = 1.0
    if not visual_redundancy:
        beta = 0.0
    return DecoderMethod(
        name="ficoco-l",
        filter=DecoderFilter(
            beta=beta,
            attention=attention,
            visual_reduce=visual_reduce,
            text_reduce=text_reduce,
            penalty=penalty,
            window=window,
        ),
        correlate=DecoderCorrelate(
            gamma=gamma,
            indirect_reduce=indirect_reduce,
            targets=targets,
            eps=eps,
            alpha=alpha,
            attention=correlation_attention,
        ),
        compress=Compress(),
        layers=_from_an_eighth,
        before_attention=before_attention,
        source="FiCoCo, arXiv 2411.17686, eq. 2-4",
    )


def _require_flags(flags: dict[str, Any]) -> None:
    """Raise unless all are True or False and each stage has something left to go by."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"ficoco-l: {name} must be True or False, got {value!r}")
    for first, second, what in (
        ("direct", "indirect", "correlate"),
        ("text_relevance", "visual_redundancy", "filter"),
    ):
        if not (flags[first] or flags[second]):
            raise ValueError(f"ficoco-l: {first} and {second} are both False; nothing is left to {what} by")


def _reading(
    variant: str, attention: str | None, correlation_attention: str | None, alpha: str | None, targets: str | int
) -> tuple[str, str, str]:
    """Attention of the filter, attention of the correlation, and weights: those given, or those of the variant."""
    if variant not in _VARIANTS:
        raise ValueError(f"ficoco-l: variant must be one of 'paper', 'released', got {variant!r}")
    if correlation_attention not in (None, "logits", "probs"):
        raise ValueError(
            f"ficoco-l: correlation_attention must be 'logits', 'probs' or None, got {correlation_attention!r}"
        )
    chosen = _VARIANTS[variant]
    attention = chosen["attention"] if attention is None else attention
    correlation_attention = attention if correlation_attention is None else correlation_attention
    if alpha is None:
        alpha = "softmax" if correlation_attention == "logits" else chosen["alpha"]
    if alpha == "ratio" and correlation_attention == "logits" and targets != 0:
        raise ValueError(
            "ficoco-l: alpha='ratio' divides correlations by their sum and needs non-negative ones; use "
            "correlation_attention='probs', or alpha='softmax'"
        )
    return attention, correlation_attention, alpha
