"""Where a number comes from: processor, commit and command, for the document of a run."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]


def platform_of(model: Any) -> dict[str, Any]:
    """Device, number type, torch, processor, commit and command of a run with ``model``."""
    device = model.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "processor": processor(),
        "commit": commit(),
        "command": command(),
    }


def processor() -> str:
    """Name and number of the CPUs, as ``AMD EPYC, 2 CPUs``."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} CPUs"


def commit() -> str | None:
    """``FICOCO_COMMIT``, else the commit of the repository that the package lies in, ``-dirty`` if files differ.

    None where there is no such repository; one further up, around an installed package, is of something else.
    """
    if given := os.environ.get("FICOCO_COMMIT"):
        return given
    top = _git("rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != ROOT:
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=7", "--exclude=*") or None


def _git(*arguments: str) -> str:
    try:
        run = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout.strip()


def command() -> str | None:
    """What was typed, as ``ficoco eval --results out.json``; None in a notebook or at a prompt."""
    if getattr(sys.modules.get("__main__"), "__file__", None) is None or not sys.argv or not sys.argv[0]:
        return None
    first = ["python", sys.argv[0]] if sys.argv[0].endswith(".py") else [Path(sys.argv[0]).name]
    return shlex.join([*first, *sys.argv[1:]])
