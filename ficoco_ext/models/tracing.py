"""What a graph cannot record: counts of visual tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.values import has_values


def require_counts(op: str, visual: Tensor, remedy: str) -> None:
    """Raise where the visual tokens of a prompt cannot be counted, so that a graph cannot know its shapes.

    ``torch.compile`` ends a graph there and counts; only what cannot do that is refused.

    Args:
        op: name of the caller, for messages. visual: (B, L) True for visual tokens. remedy: what to do.

    Raises:
        NotImplementedError: under ``torch.export``, ``torch.jit.trace`` or ``make_fx``, for fake and for meta tensors.
    """
    if torch.compiler.is_exporting() or not (torch.compiler.is_compiling() or has_values(visual)):
        raise NotImplementedError(f"ficoco::{op}: {_REASON}; {remedy}")


def refuse_jit(op: str) -> None:
    """Raise under ``torch.jit.trace``, which would keep the numbers of this one prompt as constants."""
    if not torch.compiler.is_compiling() and torch.jit.is_tracing():
        message = "torch.jit.trace would keep the numbers of this prompt as constants; use torch.export.export"
        raise NotImplementedError(f"ficoco::{op}: {message}")


_REASON = "the visual tokens of a prompt must be counted, and no graph and no fake tensor has values to count"
