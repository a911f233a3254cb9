"""Accelerators: the numbers that a roofline needs, with the source of every row."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ..io.suggest import did_you_mean


@dataclass(frozen=True)
class Hardware:
    """One device. Rates are per second, sizes in bytes, peaks of dense matrix products.

    Attributes:
        name: what to ask for it by.
        bandwidth: bytes per second between memory and chip.
        fp16, int8, int4: operations per second; None where the device has no faster unit than for the next wider type.
        memory: size of the memory.
        on_chip: register files of the whole chip, the buffer that the convention ``"llmviewer"`` tiles attention for.
        source: where the numbers are from.
    """

    name: str
    bandwidth: float
    fp16: float
    int8: float | None
    int4: float | None
    memory: float
    on_chip: float
    source: str

    def __post_init__(self) -> None:
        for field in ("bandwidth", "fp16", "int8", "int4", "memory", "on_chip"):
            value = getattr(self, field)
            if value is not None and not value > 0:
                raise ValueError(f"Hardware: {field} must be positive, got {value!r}")

    def peak(self, bits: int) -> float:
        """Operations per second if the wider operand has ``bits`` bits. 32 bits count as 16: no other peak is kept."""
        if bits <= 4 and self.int4 is not None:
            return self.int4
        if bits <= 8 and self.int8 is not None:
            return self.int8
        return self.fp16

    @property
    def balance(self) -> float:
        """Operations per byte from which on 16-bit arithmetic, not the memory, is the limit."""
        return self.fp16 / self.bandwidth


_ROWS = (
    Hardware(
        "a100-80g",
        2039e9,
        312e12,
        624e12,
        1248e12,
        80e9,
        27648e3,
        "NVIDIA A100 80GB SXM data sheet, dense; 108 SMs x 256 KB registers",
    ),
    Hardware(
        "h100",
        3350e9,
        989.4e12,
        1978.9e12,
        None,
        80e9,
        33792e3,
        "NVIDIA H100 SXM5 data sheet and Hopper white paper, half of the sparse figures; no INT4 units; 132 SMs",
    ),
    Hardware(
        "h200",
        4800e9,
        989.4e12,
        1978.9e12,
        None,
        141e9,
        33792e3,
        "NVIDIA H200 SXM data sheet, half of the sparse figures; no INT4 units; 132 SMs x 256 KB registers",
    ),
    Hardware(
        "l40s",
        864e9,
        362.05e12,
        733e12,
        733e12,
        48e9,
        36352e3,
        "NVIDIA L40S data sheet, dense; 142 SMs x 256 KB registers",
    ),
    Hardware(
        "rtx-4090",
        1008e9,
        165.2e12,
        660.6e12,
        1321.2e12,
        24e9,
        32768e3,
        "NVIDIA Ada GPU architecture white paper, dense, FP16 with FP32 accumulation; 128 SMs x 256 KB registers",
    ),
    Hardware(
        "mi300x",
        5300e9,
        1307.4e12,
        2614.9e12,
        None,
        192e9,
        155648e3,
        "AMD Instinct MI300X data sheet, dense; 304 CUs x 512 KB vector registers",
    ),
)
HARDWARE: dict[str, Hardware] = {row.name: row for row in _ROWS}


def hardware(name: str | Hardware) -> Hardware:
    """A row of the table by its name; ``"cpu"`` is measured on the spot, in about a second.

    Raises:
        ValueError: unknown name; the message lists what there is.

    Example:
        >>> from ficoco_ext.cost import hardware
        >>> round(hardware("h200").balance)
        206
    """
    if isinstance(name, Hardware):
        return name
    key = str(name).lower().replace("_", "-")
    if key == "cpu":
        return measure_cpu()
    if key not in HARDWARE:
        near = did_you_mean(name, [*HARDWARE, "cpu"])
        raise ValueError(f"hardware must be one of {', '.join(HARDWARE)}, cpu, or a Hardware, got {name!r}{near}")
    return HARDWARE[key]


def _best_seconds(run: Callable[[], object], repeats: int) -> float:
    run()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def measure_cpu(threads: int = 2, *, size: int = 1024, copy_bytes: int = 2**27, repeats: int = 5) -> Hardware:
    """This CPU, by a float32 matrix product and a copy, best of ``repeats``. The only function here that needs torch.

    Args:
        threads: of torch while measuring; put back afterwards.
        size: side of the two matrices.
        copy_bytes: size of the copied block; should be larger than the caches.

    The peak is that of float32, in which a CPU computes models of every type; narrower types have no faster
    unit that this could promise. Memory is what the machine has.
    """
    import os

    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a, b = torch.ones(size, size), torch.ones(size, size)
        product = _best_seconds(lambda: a @ b, repeats)
        source, target = torch.ones(copy_bytes // 4), torch.empty(copy_bytes // 4)
        copy = _best_seconds(lambda: target.copy_(source), repeats)
    finally:
        torch.set_num_threads(before)
    memory = 1.0
    if hasattr(os, "sysconf") and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(os.sysconf_names):
        memory = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return Hardware(
        name="cpu",
        bandwidth=2 * source.nbytes / copy,
        fp16=2 * size**3 / product,
        int8=None,
        int4=None,
        memory=memory,
        on_chip=2.0**20 * threads,
        source=f"measured: float32 product of {size} x {size} and copy of {source.nbytes} bytes, {threads} threads",
    )
