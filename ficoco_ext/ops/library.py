"""The library ``ficoco`` of torch: how an operator is defined there, and how the wrappers call it.

A profiler shows the calls as ``ficoco::<op>``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import backend  # noqa: F401  (loads the compiled kernels before anything is called)

LIBRARY = torch.library.Library("ficoco", "DEF")
SCHEMAS: dict[str, str] = {}  # of every overload, such as "correlate.map"
_SPECIFICATIONS: dict[str, Callable[..., Any]] = {}


def define(name: str, schema: str, specification: Callable[..., Any]) -> None:
    """Define the overload ``name``. The specification is its kernel on every device; compiled ones go before it."""
    SCHEMAS[name], _SPECIFICATIONS[name] = schema, specification
    LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, specification, "CompositeExplicitAutograd")


def fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: what tracing runs in place of the overload ``name``.

    torch searches all loaded modules once for each file that registers one. Registered from here, it is one file.
    """

    def register(kernel: Callable[..., Any]) -> Callable[..., Any]:
        torch.library.register_fake(f"ficoco::{name}", kernel)
        return kernel

    return register


def operator(name: str, tensor: Tensor) -> Callable[..., Any]:
    """The overload ``name``; for float64, which the fp32-accumulating kernels would truncate, the specification."""
    if tensor.dtype == torch.float64:
        return _SPECIFICATIONS[name]
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.ficoco, packet), overload or "default")


def result_dtype(tensor: Tensor) -> torch.dtype:
    """Precision of statistics and weights computed from ``tensor``."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
