"""Where something ran: device, precision, threads, and what computed the reduction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..ops.backend import build_info


@dataclass(frozen=True)
class Platform:
    """Where it ran. ``operators``: ``"kernels"`` or ``"reference"``, and why not kernels."""

    device: str
    dtype: str
    threads: int
    torch: str
    operators: str
    reason: str | None


def platform_of(model: Any) -> Platform:
    """The platform of a model as it is now."""
    info, device = build_info(), model.device
    operators = info["cuda"] if device.type == "cuda" else info["cpu"]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    reason = info["reasons"].get(device.type) if operators == "reference" else None
    dtype = str(model.dtype).removeprefix("torch.")
    return Platform(name, dtype, torch.get_num_threads(), torch.__version__, operators, reason)
