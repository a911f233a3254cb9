"""Builds the kernels (``csrc/``) against the installed torch; metadata lives in pyproject.toml.

Knobs, all environment variables:
    FICOCO_EXT_CPU    auto (default): build, and if the compiler fails install without kernels and say so;
                      1: a failed build is an error; 0: do not compile, install the plain PyTorch specification alone.
    FICOCO_CUDA       auto (default): build the CUDA kernels if nvcc is there; 1: its absence or failure is an error;
                      0: leave them out.
    FICOCO_CUDA_ARCHS compute capabilities to compile for, default 80;86;89;90. The last one's PTX serves newer GPUs.
    CUDA_HOME         the CUDA toolkit (12.0 or newer), if nvcc is not on the PATH.
    FICOCO_LINEINFO   1: keep source lines and symbols, of host and device, for profilers and compute-sanitizer;
                      0 (default): leave them out. The instructions are the same, the files much smaller.
    MAX_JOBS          compiler processes at once (torch's own knob).
    CXX               the C++20 compiler (g++ or clang++).
"""

import os
import pathlib
import sys

from setuptools import setup

ROOT = pathlib.Path(__file__).parent.resolve()
sys.path.insert(0, str(ROOT / "_build"))
import cuda_toolkit  # noqa: E402
import index_readme  # noqa: E402
import prerequisites  # noqa: E402

prerequisites.need_setuptools()
import torch  # noqa: E402
from torch.utils.cpp_extension import BuildExtension, CppExtension  # noqa: E402


def knob(name: str, values: tuple[str, ...] = ("auto", "0", "1")) -> str:
    value = os.environ.get(name, values[0])
    if value not in values:
        raise SystemExit(f"{name} must be {', '.join(values[:-1])} or {values[-1]}, got {value!r}")
    return value


MODE, CUDA, LINEINFO = knob("FICOCO_EXT_CPU"), knob("FICOCO_CUDA"), knob("FICOCO_LINEINFO", ("0", "1")) == "1"
MAJOR, MINOR = (int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
if (MAJOR, MINOR) < (2, 8):
    raise SystemExit(f"ficoco_ext needs torch >= 2.8, found {torch.__version__}; upgrade it first")


def warn(text: str) -> None:
    print(f"\nficoco_ext: {text}\n", file=sys.stderr)


class Build(BuildExtension):
    """Adds the CUDA objects if there is an nvcc; survives a missing compiler in mode auto."""

    def build_extensions(self):
        if CUDA != "0":
            try:
                self._add_cuda(self.extensions[0])
            except cuda_toolkit.Unavailable as error:
                if CUDA == "1":
                    raise SystemExit(f"ficoco_ext: FICOCO_CUDA=1, but {error}") from None
                warn(f"no CUDA kernels: {error}. CUDA tensors will run plain PyTorch.")
        try:
            super().build_extensions()
        except Exception as error:  # distutils, ninja and torch each raise their own
            if MODE == "1":
                raise
            self.extensions.clear()
            warn(
                f"the kernels could not be compiled ({error}).\nInstalling without them: results are the same, "
                "computed by plain PyTorch, slower. Install a C++20 compiler and run\n"
                "    pip install --force-reinstall --no-deps ."
            )

    def _add_cuda(self, extension):
        toolkit = cuda_toolkit.find()
        toolkit.check_torch(torch.version.cuda, warn)
        archs = os.environ.get("FICOCO_CUDA_ARCHS") or cuda_toolkit.DEFAULT_ARCHS
        objects = toolkit.compile(ROOT, pathlib.Path(self.build_temp).resolve() / "cuda", archs, LINEINFO)
        extension.extra_objects += objects
        extension.extra_link_args += toolkit.link_arguments()
        extension.include_dirs.append(str(toolkit.root / "include"))
        extension.sources.append("csrc/ops/device_cuda.cpp")
        extension.define_macros += [("FICOCO_WITH_CUDA", "1"), ("FICOCO_CUDA_ARCHS", f'"{archs}"')]


def sources() -> list[str]:
    found = sorted(path for folder in (".", "ops", "cpu") for path in (ROOT / "csrc" / folder).glob("*.cpp"))
    return [str(path.relative_to(ROOT)) for path in found if path.name != "device_cuda.cpp"]


# The name carries the torch release, so that a module is never loaded into another one: class layouts may differ
# without a symbol missing. See ficoco_ext/ops/backend.py.
kernels = CppExtension(
    f"ficoco_ext._C_torch{MAJOR}_{MINOR}",
    sources=sources(),
    include_dirs=[str(ROOT / "csrc")],
    depends=[str(path) for path in sorted(ROOT.glob("csrc/**/*.h"))],
    # One build for every Python from 3.10 on: csrc/module.cpp keeps to the stable ABI, the rest asks nothing of Python.
    py_limited_api=True,
    # No -march: the inner loops pick their instruction set at load. -fopenmp for at::parallel_for and omp simd; linked
    # without it, so that torch's own OpenMP runtime is the only one in the process.
    extra_compile_args=[
        "-O3",
        "-std=c++20",
        "-fopenmp",
        "-ffp-contract=fast",
        "-fvisibility=hidden",
        "-Wno-psabi",
        "-g1" if LINEINFO else "-g0",  # last: many a Python brings -g, which trebles the module
    ],
    extra_link_args=["-Wl,--as-needed", *([] if LINEINFO else ["-Wl,-s"])] if sys.platform == "linux" else [],
)

setup(
    long_description=index_readme.long_description(ROOT),
    long_description_content_type="text/markdown",
    install_requires=[f"torch>={MAJOR}.{MINOR},<{MAJOR}.{MINOR + 1}"] if MODE != "0" else ["torch>=2.8"],
    ext_modules=[kernels] if MODE != "0" else [],
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if MODE != "0" else {},
)
