"""Memory of table 10's rows with and without flash attention, which the paper does not print.

Table 10 of FiCoCo (Open-LLaVA-NeXT-7B) has rows with and without flash attention, one number of TFLOPs for both, and
wall-clock times, which are measurements. Flash attention computes the same products; what it saves is the map of
attention, which is never written. Counted are tower (nothing leaves it here), projector, language model and head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .model import prefill
from .reproduce import Cell, model_of, reproduce

COUNTED = (
    "The paper prints no memory: these are ours, of tower, projector, language model and head, visual and text tokens, "
    "whose numbers have the basis that table 10 says; "
    "operations do not depend on flash attention. *: the paper has no such row."
)
TEXT = 60  # tokens of the prompt, as in the other tables of models of 7B


@dataclass(frozen=True)
class Memory:
    """One row, with or without flash attention.

    Attributes:
        method: the row's. basis: how well its number of tokens is known, as of :class:`Cell`.
        printed: whether the table has the row this way. flash_attention: which way it is counted.
        visual_tokens: in every layer of the language model. text_tokens: besides.
        tflops: of all that is counted, 2 for a multiply-add. kv_mb: the cache.
        moved_gb: bytes moved between memory and chip. held_gb: weights, cache and the most that one layer writes.
    """

    method: str
    basis: str
    printed: bool
    flash_attention: bool
    visual_tokens: float
    text_tokens: int
    tflops: float
    kv_mb: float
    moved_gb: float
    held_gb: float


def memory() -> tuple[Memory, ...]:
    """Each method of table 10 with and without flash attention, in the order of the table.

    Example:
        >>> from ficoco_ext.cost import flash
        >>> for one in flash.memory()[:2]:
        ...     print(f"{one.tflops:.1f} TFLOPs, {one.moved_gb:.0f} GB moved, {one.held_gb:.1f} GB held")
        44.6 TFLOPs, 51 GB moved, 16.1 GB held
        44.6 TFLOPs, 127 GB moved, 17.2 GB held
    """
    cells: dict[str, list[Cell]] = {}
    for cell in reproduce("10"):
        cells.setdefault(cell.method, []).append(cell)
    return tuple(_counted(of_method, fused) for of_method in cells.values() for fused in (True, False))


def _counted(cells: list[Cell], fused: bool) -> Memory:
    first = cells[0]
    given: dict[str, Any] = {"visual_tokens": first.tokens, "text_tokens": TEXT, "fused_attention": fused}
    cost = prefill(model_of(first), **given)
    return Memory(
        first.method,
        first.basis,
        fused in {cell.flash_attention for cell in cells},
        fused,
        first.tokens,
        TEXT,
        cost.tflops,
        cost.kv_mb,
        cost.memory_access_gb,
        cost.resident_gb,
    )
