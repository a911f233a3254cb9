"""Builds CUDA sources into a shared library that runs them on the CPU. It needs a C++20 compiler and the headers of
the CUDA toolkit, but no nvcc and no GPU.

    python csrc/testing/host_emulation/build.py --out DIR [--sanitize] [--sources a.cu ...] [--extra b.cpp ...]

converts the .cu files (default: csrc/cuda/*.cu) and the .cuh files beside them, compiles what is stale, links
DIR/lib<name>.so and prints its path. Environment: CUDA_HOME, CXX, MAX_JOBS (half of them are used).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1]
_NEEDED = ("cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h", "crt/host_defines.h")
_SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"]
# Lanes read each other's shared memory through other types, as CUDA code does; -fno-gnu-unique, so that two libraries
# in one process do not share the __shared__ variables of a template.
_KERNEL_FLAGS = [
    "-fno-strict-aliasing",
    "-fno-gnu-unique",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-include",
    str(HERE / "cuemu.h"),
]
_FLAGS = ["-std=c++20", "-g", "-fPIC", "-fvisibility=hidden", "-fno-omit-frame-pointer", "-Wno-psabi"]


class BuildError(Exception):
    """The library could not be built; the message says what to do."""


def _converter():
    spec = importlib.util.spec_from_file_location("cu2cpp", HERE / "cu2cpp.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _toolkits() -> Iterator[Path]:
    """Places that may hold the toolkit's headers, the user's choice first."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            yield Path(os.environ[variable]) / "include"
    nvcc = shutil.which("nvcc")
    if nvcc:  # may be a script that calls the real one, so it is asked
        asked = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
        for line in asked.stderr.splitlines():
            if "TOP=" in line:
                yield Path(line.split("TOP=", 1)[1].strip()) / "include"
        yield Path(nvcc).resolve().parent.parent / "include"
    yield Path("/usr/local/cuda/include")
    for packages in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:  # NVIDIA's wheels
        yield from sorted(Path(packages).glob("nvidia/cu*/include"), reverse=True)


def cuda_include() -> Path | None:
    """The folder of the toolkit's headers, or None."""
    for folder in _toolkits():
        if all((folder / name).exists() for name in _NEEDED):
            return folder.resolve()
    return None


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "g++"))


def sanitizer_environment() -> dict[str, str]:
    """What a Python process needs in its environment to load a library that was built with ``sanitize``."""
    names = ("libasan.so", "libubsan.so", "libstdc++.so.6")  # libstdc++: or ASan cannot see exceptions being thrown
    found = [
        subprocess.run([*compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout
        for name in names
    ]
    return {
        "LD_PRELOAD": " ".join(path.strip() for path in found),
        # Python never frees all; a fiber's variables outlive the switch away from it.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:  # or all that includes it would be stale
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _dependencies(path: Path) -> list[Path]:
    """What the make rule in ``path`` says an object was compiled from."""
    rule = path.read_text().replace("\\\n", " ").partition(": ")[2]
    return [Path(name) for name in rule.split()]


def _stale(target: Path, command: list[str], inputs: Iterable[Path]) -> bool:
    record = Path(f"{target}.command")
    if not target.exists() or not record.exists() or record.read_text() != shlex.join(command):
        return True
    made = target.stat().st_mtime_ns
    return any(not path.exists() or path.stat().st_mtime_ns > made for path in inputs)


def _run(target: Path, command: list[str]) -> None:
    record = Path(f"{target}.command")
    record.unlink(missing_ok=True)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise BuildError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")
    if done.stderr:
        print(done.stderr, file=sys.stderr, end="")
    record.write_text(shlex.join(command))


def _torch_flags() -> tuple[list[str], list[str]]:
    import torch

    root = Path(torch.__file__).parent
    include = [f"-isystem{root / 'include'}", f"-isystem{root / 'include/torch/csrc/api/include'}"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
    link = [f"-L{root / 'lib'}", f"-Wl,-rpath,{root / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    return [abi, *include], link


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Test processes that build the same library wait for the first of them."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(
    out: str | Path,
    *,
    sources: Sequence[str | Path] | None = None,
    extra: Sequence[str | Path] = (),
    name: str = "emulated",
    define: Sequence[str] = (),
    include: Sequence[str | Path] = (),
    sanitize: bool = False,
    torch: bool = False,
    flags: Sequence[str] = (),
) -> Path:
    """Builds ``out/lib<name>.so`` if it is stale, and returns its path.

    Args:
        out: folder for the library and everything on the way to it; one per combination of the other arguments.
        sources: CUDA sources; default all of ``csrc/cuda``. The ``.cuh`` files of their folders are converted too.
        extra: C++ sources, compiled as they are. They may call the runtime functions of ``runtime.h``.
        define: macros, ``"NAME"`` or ``"NAME=value"``, for all sources.
        include: folders, searched after the sources' own, their parents and ``csrc``.
        sanitize: with ASan and UBSan. See :func:`sanitizer_environment`.
        torch: compile ``extra`` and link against the installed torch.
        flags: more compiler flags; ``-O2`` (``-O1`` with ``sanitize``) stands before them.

    Raises:
        BuildError: no toolkit headers, no sources, a source that cannot be converted, or a compiler error.
    """
    toolkit = cuda_include()
    if toolkit is None:
        raise BuildError(
            f"host emulation needs the CUDA toolkit's headers ({', '.join(_NEEDED)}), found none: install the toolkit, "
            "or its headers alone, and set CUDA_HOME"
        )
    cuda = [Path(path).resolve() for path in (sorted(CSRC.glob("cuda/*.cu")) if sources is None else sources)]
    if not cuda:
        raise BuildError(f"host emulation: no CUDA sources; {CSRC / 'cuda'} holds no .cu file")
    out = Path(out).resolve()
    with _alone(out):
        return _build(
            out, toolkit, cuda, [Path(path).resolve() for path in extra], name, define, include, sanitize, torch, flags
        )


def _convert(out: Path, cuda: list[Path]) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """Writes what the compiler reads; gives (source, converted) and the folders to search, in order."""
    cu2cpp = _converter()
    converted = out / "converted"
    folders = list(dict.fromkeys(path.parent for path in cuda))
    files = [(path, converted / path.parent.name / f"{path.stem}.cpp") for path in cuda]
    headers = [
        (path, converted / folder.name / path.relative_to(folder))
        for folder in folders
        for path in folder.rglob("*.cuh")
    ]
    try:
        for path, target in [*files, *headers]:
            _write(target, cu2cpp.convert(path.read_text(), str(path)))
    except cu2cpp.SourceError as error:
        raise BuildError(str(error)) from None
    # The converted headers first. A header beside the converted one is found there; "../params.h" is not, but is
    # relative to the folder of the original.
    return files, [converted, *folders, *(folder.parent for folder in folders), CSRC]


def _build(out, toolkit, cuda, extra, name, define, include, sanitize, torch, flags) -> Path:
    files, folders = _convert(out, cuda)
    folders = list(dict.fromkeys([*folders, *(Path(path).resolve() for path in include)]))
    torch_compile, torch_link = _torch_flags() if torch else ([], [])
    common = [*_FLAGS, "-O1" if sanitize else "-O2", *(_SANITIZE if sanitize else []), *flags]
    common += [f"-D{macro}" for macro in define] + [f"-I{folder}" for folder in folders] + [f"-isystem{toolkit}"]
    jobs = []  # (command, object), the sources with torch's headers first: they take longest
    for path in extra:
        target = out / "objects" / path.parent.name / f"{path.stem}.extra.o"
        jobs.append(([*compiler(), *common, *torch_compile, "-c", str(path)], target))
    for _, path in files:
        target = out / "objects" / path.parent.name / f"{path.stem}.o"
        jobs.append(([*compiler(), *common, *_KERNEL_FLAGS, "-c", str(path)], target))

    def compile_one(job: tuple[list[str], Path]) -> None:
        command, target = job
        target.parent.mkdir(parents=True, exist_ok=True)
        rule = target.with_suffix(".d")
        command = [*command, "-o", str(target), "-MMD", "-MF", str(rule)]
        if not rule.exists() or _stale(target, command, _dependencies(rule)):
            _run(target, command)

    workers = max(1, int(os.environ.get("MAX_JOBS", os.cpu_count() or 1)) // 2)
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(compile_one, jobs))
    library, objects = out / f"lib{name}.so", [target for _, target in jobs]
    command = [*compiler(), "-shared", *(_SANITIZE if sanitize else []), *map(str, objects), "-o", str(library)]
    command += torch_link
    if _stale(library, command, objects):
        _run(library, command)
    return library


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="folder for the library")
    parser.add_argument("--name", default="emulated", help="the library is lib<name>.so")
    parser.add_argument("--sources", nargs="+", type=Path, help="CUDA sources (default: csrc/cuda/*.cu)")
    parser.add_argument("--extra", nargs="+", type=Path, default=[], help="C++ sources")
    parser.add_argument("--define", action="append", default=[], metavar="NAME[=VALUE]")
    parser.add_argument("--include", action="append", default=[], type=Path, metavar="FOLDER")
    parser.add_argument("--flag", action="append", default=[], dest="flags", help="one more compiler flag (--flag=-O3)")
    parser.add_argument("--sanitize", action="store_true", help="with ASan and UBSan")
    parser.add_argument("--torch", action="store_true", help="compile and link against the installed torch")
    arguments = vars(parser.parse_args())
    try:
        print(build(arguments.pop("out"), **arguments))
    except BuildError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
