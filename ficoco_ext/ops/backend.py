"""Loads the compiled kernels, and says what is live and why a faster one is not."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from pathlib import Path
from typing import Any, TypedDict

import torch

_REBUILD = "rebuild it in this environment: pip install --force-reinstall --no-deps ."


class BuildInfo(TypedDict):
    """What runs the operators on each kind of device, and why nothing faster does."""

    version: str
    torch: str
    built_for_torch: str | None
    compiled: bool
    compiler: str | None
    cpu_simd: str | None
    cuda_version: str | None
    cuda_archs: str | None
    cpu: str
    cuda: str
    reasons: dict[str, str]


def load_kernels() -> tuple[Any, str | None]:
    """The compiled module and None, or None and the reason why it is not there.

    A module carries in its name the torch release that it was built for and is never loaded into another one: class
    layouts may differ without any symbol missing.

    Whoever installed the package and runs python inside a clone believes to run what was installed; so a source folder
    without kernels that load is a warning too.
    """
    folder = Path(__file__).parents[1]
    kernels, reason = _load(folder)
    if kernels is None and (folder.parent / "setup.py").exists():
        reason = _in_source(folder.parent, reason)
        warnings.warn(f"{reason} (ficoco_ext runs as plain PyTorch, slower)", RuntimeWarning, stacklevel=2)
    return kernels, reason


def _load(folder: Path) -> tuple[Any, str | None]:
    name = _module_name()
    if importlib.util.find_spec(f"ficoco_ext.{name}") is None:
        others = sorted(folder.glob("_C_torch*"))
        if others:
            built = others[0].name.split(".")[0].removeprefix("_C_torch").replace("_", ".")
            return None, f"compiled for torch {built}, but torch {torch.__version__} is installed; {_REBUILD}"
        return (
            None,
            f"not compiled at install: no working C++20 compiler, or FICOCO_EXT_CPU=0; add -v to see why, {_REBUILD}",
        )
    try:
        return importlib.import_module(f"ficoco_ext.{name}"), None
    except ImportError as error:
        return None, f"the compiled kernels do not load ({error}); {_REBUILD}"


def _module_name() -> str:
    major, minor = torch.__version__.split("+")[0].split(".")[:2]
    return f"_C_torch{major}_{minor}"


def _in_source(source: Path, reason: str | None) -> str:
    """Why there are no kernels, if python imports a source folder: perhaps it hides a package that has them."""
    places = [Path(path or os.curdir).resolve() / "ficoco_ext" for path in sys.path]
    installed = [
        place for place in places if place.parent != source.resolve() and any(place.glob(f"{_module_name()}.*"))
    ]
    why = "nothing was compiled" if not any((source / "ficoco_ext").glob("_C_torch*")) else reason
    hides = f", and hides the one installed in {installed[0]}" if installed else ""
    return (
        f"python imports ficoco_ext from the source folder {source}{hides}; {why}. Run from another folder, or install "
        "with pip install -e ."
    )


def check_environment() -> None:
    """Refuse what the kernels would take for nothing.

    Raises:
        ValueError: FICOCO_CPU_SIMD, the most that the CPU kernels may use, names no instruction set.
    """
    known, asked = ("avx512vnni", "avx2", "baseline"), os.environ.get("FICOCO_CPU_SIMD", "")
    if asked and asked not in known:
        raise ValueError(
            f"environment variable FICOCO_CPU_SIMD must be one of {', '.join(known)}, got {asked!r}; unset it for "
            "the most that this processor has"
        )


check_environment()
KERNELS, REASON = load_kernels()


def build_info() -> BuildInfo:
    """What is live: ``cpu`` and ``cuda`` are ``"kernels"`` or ``"reference"``; ``reasons`` says why not kernels.

    Example:
        >>> import ficoco_ext
        >>> ficoco_ext.build_info()["cpu"] in ("kernels", "reference")
        True
    """
    from ..version import __version__

    compiled = KERNELS is not None
    reasons = {} if compiled else {"cpu": REASON or ""}
    cuda_reason = _why_not_cuda()
    if cuda_reason:
        reasons["cuda"] = cuda_reason
    toolkit = getattr(KERNELS, "cuda_version", None)
    return BuildInfo(
        version=__version__,
        torch=torch.__version__,
        built_for_torch=getattr(KERNELS, "torch_version", None),
        compiled=compiled,
        compiler=getattr(KERNELS, "compiler", None),
        cpu_simd=getattr(KERNELS, "cpu_simd", None),
        cuda_version=f"{toolkit // 1000}.{toolkit % 1000 // 10}" if toolkit else None,
        cuda_archs=getattr(KERNELS, "cuda_archs", None),
        cpu="kernels" if compiled else "reference",
        cuda="reference" if cuda_reason else "kernels",
        reasons=reasons,
    )


def _why_not_cuda() -> str | None:
    """Why CUDA tensors would not meet our kernels, or None if they do on every GPU of this machine."""
    if KERNELS is None:
        return REASON
    if not hasattr(KERNELS, "cuda_archs"):
        return (
            f"built without CUDA kernels: nvcc was not found, or FICOCO_CUDA=0; install the CUDA toolkit and {_REBUILD}"
        )
    if torch.version.cuda is None:
        return "the CUDA kernels are built, but this torch has no CUDA: install a torch built for CUDA"
    if not torch.cuda.is_available():
        return "the CUDA kernels are built, but torch finds no GPU"
    built = [int(arch.strip().rstrip("a").replace(".", "")) for arch in KERNELS.cuda_archs.split(";") if arch.strip()]
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        same_major = any(arch // 10 == major and arch % 10 <= minor for arch in built)  # binaries serve later minors
        if not same_major and 10 * major + minor < max(built):  # and the last one's PTX everything newer
            return (
                f"the CUDA kernels were built for {KERNELS.cuda_archs} and GPU {index} has capability {major}.{minor}; "
                f"set FICOCO_CUDA_ARCHS={major}{minor} and {_REBUILD}"
            )
    return None
