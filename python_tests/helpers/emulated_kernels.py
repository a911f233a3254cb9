"""The CUDA kernels of ``csrc/cuda`` on the host: builds them once, registers them as ``torch.ops.ficoco_emu``."""

from __future__ import annotations

import functools
import importlib.util
import os
from pathlib import Path
from types import ModuleType

import torch

from ficoco_ext.ops import library as operators
from helpers.paths import CSRC, ROOT


def builder() -> ModuleType:
    """``csrc/testing/host_emulation/build.py`` as a module."""
    spec = importlib.util.spec_from_file_location("build_emulation", CSRC / "testing" / "host_emulation" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def missing() -> str:
    """Why the emulation cannot be built here, or nothing. With FICOCO_REQUIRE_EMULATION=1 a test then fails instead."""
    if os.environ.get("FICOCO_REQUIRE_EMULATION") == "1":
        return ""
    if not (CSRC / "testing" / "host_emulation").exists():
        return "needs the source tree"
    return "" if builder().cuda_include() is not None else "needs the headers of the CUDA toolkit"


def build(sanitize: bool = False) -> Path:
    """The library, built where a source changed."""
    return builder().build(
        ROOT / "build" / ("sanitized" if sanitize else "emulation"),
        define=["FICOCO_EMULATED"],
        extra=[CSRC / "ops" / "library.cpp", CSRC / "ops" / "device_cuda.cpp"],
        torch=True,
        sanitize=sanitize,
    )


@functools.cache
def load() -> None:
    """Register the library's operators under the schemas of the real ones."""
    library = os.environ.get("FICOCO_EMULATION_LIBRARY") or build()
    definitions = torch.library.Library("ficoco_emu", "DEF")
    load.definitions = definitions  # type: ignore[attr-defined]  # or its operators would go away
    for name, schema in operators.SCHEMAS.items():
        definitions.define(name + schema)
    torch.ops.load_library(str(library))
