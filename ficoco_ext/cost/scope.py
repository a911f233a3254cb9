"""What a bill covers: what papers print, or everything that runs."""

from __future__ import annotations

from typing import Any

from ..io.suggest import did_you_mean
from .bill import Cost
from .model import CONVENTIONS, prefill

SCOPES = {
    "llmviewer": "as papers count: language model alone, attention not fused, nothing of the reduction itself",
    "matmul": "everything from pixels to the first token: tower, projector, language model, head, reduction; attention "
    "fused",
}


def bill(shape: Any, convention: str, *, method: Any = None, **given: Any) -> Cost:
    """One prefill with the parts that a convention is used for, see :data:`SCOPES`.

    Args:
        shape: an architecture, as :func:`ficoco_ext.cost.prefill` takes it.
        convention: ``"llmviewer"`` or ``"matmul"``.
        method: whose own cost belongs to everything that runs.
        **given: other arguments of :func:`ficoco_ext.cost.prefill`.

    Raises:
        ValueError: an unknown convention, or schedules that do not fit.

    Example:
        >>> from ficoco_ext.cost import scope
        >>> [round(scope.bill("llava-1.5-7b", name).tflops, 2) for name in ("llmviewer", "matmul")]
        [8.45, 8.86]
    """
    if convention not in CONVENTIONS:
        near = did_you_mean(convention, CONVENTIONS)
        raise ValueError(f"convention must be one of {', '.join(CONVENTIONS)}, got {convention!r}{near}")
    if convention == "matmul":
        return prefill(shape, convention=convention, method=method, **given)
    return prefill(
        shape,
        convention=convention,
        fused_attention=False,
        include_tower=False,
        include_projector=False,
        include_reduction=False,
        **given,
    )
