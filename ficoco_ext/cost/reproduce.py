"""The efficiency tables that papers print, recomputed cell by cell: what agrees, what does not, and what that proves.

"TFLOPs" are LLM-Viewer's operations of the language model alone, times the weights' bits / 16; in table 10 they are
multiply-adds of the visual tokens. "Total memory" is not memory that is held but the bytes that a prefill moves. "KV
cache" is the mean over layers. Where a table rounds twice, ours stays as it is counted, and the rounding is shown.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

from ..schedule import Schedule
from .bill import Cost
from .model import prefill

QUANTITIES = {
    "tflops": "TFLOPs",
    "total_memory_gb": "total memory, GB",
    "kv_mb": "KV cache, MB",
    "saved_percent": "FLOPs saved %",
}
TABLES = ("3", "5", "8", "9", "10", "repository figure", "GlobalCom2", "MustDrop")
_PRESET = {
    "LLaVA-1.5-7B": "llava-1.5-7b",
    "LLaVA-1.5-13B": "llava-1.5-13b",
    "LLaVA-NeXT-7B": "llava-next-7b",
    "LLaVA-NeXT-13B": "llava-next-13b",
    "Open-LLaVA-NeXT-7B": "llava-next-7b",
}

# LLM-Viewer, the language model alone, attention not fused.
_AS_PAPERS: dict[str, Any] = {
    "convention": "llmviewer",
    "fused_attention": False,
    "include_tower": False,
    "include_projector": False,
}

# Predicted cells that are off by more than 5 %: (table, model, method, precision, quantity).
KNOWN_DISCREPANCIES: dict[tuple[str, str, str, str, str], str] = {
    ("8", "LLaVA-1.5-7B", "FiCoCo-V", "FP16", "tflops"): (
        "contradicts the row's own KV cache: 65.0 MB are 124 tokens, and 124 tokens are 1.61 TFLOPs"
    ),
    ("8", "LLaVA-1.5-7B", "FiCoCo-L", "FP16", "tflops"): (
        "contradicts the row's own KV cache: 64.2 MB are 122.45 tokens, and these are 1.59 TFLOPs; from layer 4 on no "
        "schedule gets below 1.58, for the layers before read every visual token"
    ),
    ("8", "LLaVA-1.5-7B", "FiCoCo-VL", "INT8", "tflops"): (
        "half of the row's FP16 value 1.51 is 0.755, which rounds to 0.8; 0.7 is it cut off"
    ),
    ("8", "LLaVA-1.5-7B", "LLaVA-1.5", "INT4", "total_memory_gb"): (
        "a quarter of the FP16 bytes is 5.55; a 16-bit cache would make it 6.05, but the row's own cache has 4 bits"
    ),
    ("8", "LLaVA-1.5-7B", "FiCoCo-VL", "INT4", "tflops"): (
        "0.378 rounds to the printed 0.4, but one digit is too coarse for 5 %"
    ),
    ("9", "LLaVA-1.5-13B", "LLaVA-1.5", "INT4", "tflops"): (
        "a quarter of 28.6 is 7.15; the reduction of 46 % printed beside FiCoCo-V's 3.9 implies 7.2, so 7.6 looks like "
        "a slip"
    ),
}


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        table, model, method, precision: where it stands.
        quantity: a key of :data:`QUANTITIES`.
        printed, ours: the two values; error: ours / printed - 1.
        basis: what agreement proves: ``"predicted"``, ``"nominal"``, ``"post_hoc"`` or ``"fitted"``; see
            :func:`basis_meaning`.
        tier: what a test holds the error to: ``"<=1%"``, ``"<=5%"`` or, of a known discrepancy, ``">5%"``.
        tokens: length of the sequence that was counted.
        note: for a known discrepancy why it does not reproduce, else None.
        flash_attention: where the table has rows with and without.
        rounded: ours as the table rounds it, where it does so twice, see :func:`rounding`; else None. The error is that
            of ``ours``.
    """

    table: str
    model: str
    method: str
    precision: str
    quantity: str
    printed: float
    ours: float
    basis: str
    tier: str
    tokens: float
    note: str | None = None
    flash_attention: bool | None = None
    rounded: float | None = None

    @property
    def error(self) -> float:
        """ours / printed - 1."""
        return self.ours / self.printed - 1

    @property
    def reproduces(self) -> bool:
        """Whether the error is within 5 %."""
        return abs(self.error) <= 0.05

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """Its key in :data:`KNOWN_DISCREPANCIES`."""
        return self.table, self.model, self.method, self.precision, self.quantity


@functools.cache
def _data() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("data/efficiency_tables.json").read_text(encoding="utf-8")
    return json.loads(text)


def basis_meaning() -> dict[str, str]:
    """What each basis of a :class:`Cell` means."""
    return dict(_data()["basis"])


def source() -> str:
    """Where the printed numbers are from."""
    return str(_data()["source"])


def model_of(cell: Cell) -> str:
    """The architecture that a cell is of, a name for :func:`ficoco_ext.cost.architecture`."""
    return _PRESET[cell.model]


def rounding(table: str) -> str:
    """How ``table`` rounds the sizes of caches, in words; "" if it just rounds them."""
    return str(_data()["rounding"].get(table, ""))


def reproduce(*tables: str) -> tuple[Cell, ...]:
    """Every cell of these tables, or of all: :data:`TABLES`.

    Raises:
        ValueError: a table that there is not.

    Example:
        >>> from ficoco_ext.cost.reproduce import reproduce
        >>> cells = reproduce()
        >>> predicted = [cell for cell in cells if cell.basis == "predicted"]
        >>> len(cells), len(predicted), sum(cell.reproduces for cell in predicted)
        (151, 105, 99)
    """
    for table in tables:
        if table not in TABLES:
            raise ValueError(f"table must be one of {', '.join(TABLES)}, got {table!r}")
    return tuple(
        _cell(row, quantity)
        for table in tables or TABLES
        for row in _data()["rows"]
        if row["table"] == table
        for quantity in row["cells"]
    )


def _cell(row: dict[str, Any], quantity: str) -> Cell:
    found = row["cells"][quantity]
    cost = _counted(row, found.get("precision", row["precision"]))
    if quantity == "tflops":
        ours = cost.tflops / 2 if row.get("unit") == "macs" else cost.bit_scaled_tflops
    elif quantity == "saved_percent":
        whole = prefill(_PRESET[row["model"]], text_tokens=row["text_tokens"], **_AS_PAPERS)
        ours = 100 * (1 - cost.total.operations / whole.total.operations)
    elif quantity == "kv_mb":
        ours = cost.kv_mb
    else:
        ours = cost.memory_access_gb if found["rule"] == "moved" else cost.resident_gb
    key = (row["table"], row["model"], row["method"], row["precision"], quantity)
    return Cell(
        *key,
        printed=found["printed"],
        ours=ours,
        basis=found["basis"],
        tier=found["tier"],
        tokens=row["tokens"],
        note=KNOWN_DISCREPANCIES.get(key) if found["basis"] == "predicted" else None,
        flash_attention=row.get("flash_attention"),
        rounded=_through_gigabytes(ours) if quantity == "kv_mb" and rounding(row["table"]) else None,
    )


def _through_gigabytes(mb: float) -> float:
    """MB that were printed with one digit of GB from 1 GB on and multiplied by 1024, or else as whole MB."""
    return round(mb / 1000, 1) * 1024 if mb >= 1000 else float(round(mb))


def _counted(row: dict[str, Any], precision: str) -> Cost:
    """As the authors counted: the language model alone, one length for all layers unless a row has a ``stage``."""
    visual = row["tokens"] - row["text_tokens"]
    given = {"visual_tokens": visual, "text_tokens": row["text_tokens"], "precision": precision, **_AS_PAPERS}
    if "stage" in row:
        layer, left = row["stage"]
        given["decoder"] = Schedule(visual, (layer,), (visual - left,), before_attention=True)
    if row.get("unit") == "macs":
        given |= {"convention": "matmul", "include_head": False}
    return prefill(_PRESET[row["model"]], **given)
