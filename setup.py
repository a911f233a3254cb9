"""Builds the CPU kernels (``csrc/``) against the installed torch; metadata lives in pyproject.toml.

Knobs, all environment variables:
    FICOCO_EXT_CPU   auto (default): build, and if the compiler fails install without kernels and say so;
                     1: a failed build is an error; 0: do not compile, install the plain PyTorch specification alone.
    MAX_JOBS         compiler processes at once (torch's own knob).
    CXX              the C++20 compiler (g++ or clang++).
"""

import os
import pathlib
import sys

import torch
from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = pathlib.Path(__file__).parent.resolve()
MODE = os.environ.get("FICOCO_EXT_CPU", "auto")
if MODE not in ("auto", "0", "1"):
    raise SystemExit(f"FICOCO_EXT_CPU must be auto, 0 or 1, got {MODE!r}")

MAJOR, MINOR = (int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
if (MAJOR, MINOR) < (2, 8):
    raise SystemExit(f"ficoco_ext needs torch >= 2.8, found {torch.__version__}; upgrade it first")


class Build(BuildExtension):
    """Survives a missing compiler in mode auto."""

    def build_extensions(self):
        try:
            super().build_extensions()
        except Exception as error:  # distutils, ninja and torch each raise their own
            if MODE == "1":
                raise
            self.extensions.clear()
            print(
                f"\nficoco_ext: the kernels could not be compiled ({error}).\n"
                "Installing without them: results are the same, computed by plain PyTorch, slower. Install a C++20 "
                "compiler and run\n    pip install --force-reinstall --no-deps .\n",
                file=sys.stderr,
            )


# The name carries the torch release, so that a module is never loaded into another one: class layouts may differ
# without a symbol missing. See ficoco_ext/_backend.py.
kernels = CppExtension(
    f"ficoco_ext._C_torch{MAJOR}_{MINOR}",
    sources=[str(path.relative_to(ROOT)) for path in sorted([*ROOT.glob("csrc/*.cpp"), *ROOT.glob("csrc/cpu/*.cpp")])],
    include_dirs=[str(ROOT / "csrc")],
    depends=[str(path) for path in sorted(ROOT.glob("csrc/**/*.h"))],
    # No -march: the inner loops pick their instruction set at load. -fopenmp for at::parallel_for and omp simd; linked
    # without it, so that torch's own OpenMP runtime is the only one in the process.
    extra_compile_args=["-O3", "-std=c++20", "-fopenmp", "-fvisibility=hidden", "-Wno-psabi"],
    extra_link_args=["-Wl,--as-needed"] if sys.platform == "linux" else [],
)

setup(
    install_requires=[f"torch>={MAJOR}.{MINOR},<{MAJOR}.{MINOR + 1}"] if MODE != "0" else ["torch>=2.8"],
    ext_modules=[kernels] if MODE != "0" else [],
    cmdclass={"build_ext": Build},
)
