"""Loads the compiled kernels, and says what is live and why a faster one is not."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TypedDict

import torch

_REBUILD = "rebuild it in this environment: pip install --force-reinstall --no-deps ."


class BuildInfo(TypedDict):
    """What runs the operators on each kind of device, and why nothing faster does."""

    version: str
    torch: str
    built_for_torch: str | None
    compiled: bool
    compiler: str | None
    cpu: str
    cuda: str
    reasons: dict[str, str]


def load_kernels() -> tuple[object | None, str | None]:
    """The compiled module and None, or None and the reason why it is not there.

    A module built for another torch is never loaded: its class layouts may differ without any symbol missing.
    """
    folder = Path(__file__).parent
    spec = importlib.util.find_spec("ficoco_ext._C")
    if spec is None:
        in_source = (folder.parent / "setup.py").exists()
        hint = (
            f"python imports the source tree in {folder.parent}, where nothing was compiled: run from another folder, "
            "or install with pip install -e ."
            if in_source
            else "it was installed without a C++ compiler or with FICOCO_EXT_CPU=0; install one, then "
            "pip install --force-reinstall --no-deps ."
        )
        return None, f"no compiled kernels: {hint}"
    stamp = folder / "_built_for_torch.txt"
    built = stamp.read_text().strip() if stamp.exists() else ""
    if built.split("+")[0].split(".")[:2] != torch.__version__.split("+")[0].split(".")[:2]:
        return None, f"compiled for torch {built or 'unknown'}, but torch {torch.__version__} is installed; {_REBUILD}"
    try:
        return importlib.import_module("ficoco_ext._C"), None
    except ImportError as error:
        return None, f"the compiled kernels do not load ({error}); {_REBUILD}"


KERNELS, REASON = load_kernels()


def build_info() -> BuildInfo:
    """What is live: ``cpu`` and ``cuda`` are ``"kernels"`` or ``"reference"``; ``reasons`` says why not kernels.

    Example:
        >>> import ficoco_ext
        >>> ficoco_ext.build_info()["cpu"] in ("kernels", "reference")
        True
    """
    from . import __version__

    compiled = KERNELS is not None
    reasons = {} if compiled else {"cpu": REASON or ""}
    reasons["cuda"] = "this version has no CUDA kernels; CUDA tensors run the plain PyTorch specification on the GPU"
    return BuildInfo(
        version=__version__,
        torch=torch.__version__,
        built_for_torch=getattr(KERNELS, "torch_version", None),
        compiled=compiled,
        compiler=getattr(KERNELS, "compiler", None),
        cpu="kernels" if compiled else "reference",
        cuda="reference",
        reasons=reasons,
    )
