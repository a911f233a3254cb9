"""Finds nvcc and compiles ``csrc/cuda/*.cu`` with it.

torch's CUDAExtension is not used: it refuses when the installed torch has no CUDA of its own, and it makes nvcc read
torch's headers, which takes twenty times as long. The kernels need neither.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

DEFAULT_ARCHS = "80;86;89;90"


class Unavailable(Exception):
    """There is no toolkit that could compile the kernels; the message says what is missing."""


def _root_of(nvcc: str) -> pathlib.Path:
    """The toolkit of an nvcc, which may be a wrapper script somewhere else."""
    try:
        shown = subprocess.run([nvcc, "--dryrun", "-x", "cu", "/dev/null"], capture_output=True, text=True, check=False)
    except OSError as error:
        raise Unavailable(f"{nvcc} cannot be run ({error})") from None
    tops = [line.split("TOP=", 1)[1].strip() for line in shown.stderr.splitlines() if "TOP=" in line]
    return pathlib.Path(tops[0]).resolve() if tops else pathlib.Path(nvcc).resolve().parent.parent


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit: ``root`` holds include/ and lib*/, ``nvcc`` compiles."""

    root: pathlib.Path
    nvcc: str

    def release(self) -> tuple[int, int]:
        """Major and minor version."""
        text = subprocess.run([self.nvcc, "--version"], capture_output=True, text=True, check=True).stdout
        major, minor = text.split("release ")[1].split(",")[0].split(".")
        return int(major), int(minor)

    def check_torch(self, torch_cuda: str | None, warn: Callable[[str], None]) -> None:
        """The kernels bring their own runtime, which needs a driver of its own major version."""
        major, minor = self.release()
        if major < 12:
            raise Unavailable(f"nvcc is {major}.{minor} and the kernels need CUDA 12.0 or newer")
        if torch_cuda is not None and int(torch_cuda.split(".")[0]) < major:
            warn(f"nvcc is {major}.{minor}, torch uses CUDA {torch_cuda}: the driver must support CUDA {major}.")

    def compression(self) -> list[str]:
        """Flags that compress the kernels of all architectures; left to itself nvcc leaves most of them as they are.

        Any driver that runs CUDA 12 reads its older format; the smaller one is as old as the drivers of CUDA 13.
        """
        return ["-Xfatbin=-compress-all", *(["--compress-mode=size"] if self.release() >= (13, 0) else [])]

    def compile(self, root: pathlib.Path, out: pathlib.Path, archs: str, lineinfo: bool = False) -> list[str]:
        """Object files of every ``csrc/cuda/*.cu`` under ``root``, made again only where something changed."""
        out.mkdir(parents=True, exist_ok=True)
        names = [arch.strip().replace(".", "") for arch in archs.replace(",", ";").split(";") if arch.strip()]
        if not names or not all(name.rstrip("a").isdigit() for name in names):
            raise SystemExit(f"FICOCO_CUDA_ARCHS must be such as 80;90, got {archs!r}")
        command = [
            self.nvcc,
            "-O3",
            "-std=c++20",
            f"-I{root}/csrc",
            *self.compression(),
            *(["-lineinfo"] if lineinfo else []),
        ]
        command += ["-Xcompiler=-fPIC,-fvisibility=hidden"]
        command += [f"-gencode=arch=compute_{name},code=sm_{name}" for name in names]
        command += [f"-gencode=arch=compute_{names[-1]},code=compute_{names[-1]}"]
        headers = [
            *root.glob("csrc/*.h"),
            *root.glob("csrc/cuda/*.h"),
            *root.glob("csrc/cuda/*.cuh"),
            pathlib.Path(__file__),
        ]
        newest = max(path.stat().st_mtime for path in headers)
        (stamp := out / "command.txt").touch()
        same_command = stamp.read_text() == " ".join(command)

        def one(source: pathlib.Path) -> str:
            target = out / f"{source.stem}.o"
            fresh = target.exists() and target.stat().st_mtime > max(newest, source.stat().st_mtime)
            if not (same_command and fresh):
                target.unlink(missing_ok=True)
                run = [*command, "-c", str(source), "-o", str(target)]
                print(" ".join(run), flush=True)
                done = subprocess.run(run, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise Unavailable(f"nvcc failed on {source.name}:\n{done.stdout}{done.stderr}")
            return str(target)

        jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
        with ThreadPoolExecutor(jobs) as pool:
            objects = list(pool.map(one, sorted(root.glob("csrc/cuda/*.cu"))))
        stamp.write_text(" ".join(command))
        return objects

    def link_arguments(self) -> list[str]:
        """The runtime linked statically and hidden, so that torch's own is not interposed."""
        folders = [self.root / name for name in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib")]
        folder = next((path for path in folders if (path / "libcudart_static.a").exists()), None)
        if folder is None:
            raise Unavailable(f"{self.root} holds no libcudart_static.a")
        hidden = "-Wl,--exclude-libs,libcudart_static.a"
        return [f"-L{folder}", "-lcudart_static", "-ldl", "-lrt", "-lpthread", hidden]


def find() -> Toolkit:
    """The toolkit of CUDA_HOME, CUDA_PATH, the PATH or /usr/local/cuda, in this order."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates = [str(pathlib.Path(home) / "bin" / "nvcc") for home in homes if home]
    candidates += [found for found in (shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc") if found]
    nvcc = next((path for path in candidates if os.access(path, os.X_OK)), None)
    if nvcc is None:
        raise Unavailable("nvcc was not found (looked at CUDA_HOME, CUDA_PATH, the PATH and /usr/local/cuda)")
    root = _root_of(nvcc)
    if not (root / "include" / "cuda_runtime.h").exists():
        raise Unavailable(f"{nvcc} belongs to {root}, which holds no include/cuda_runtime.h")
    return Toolkit(root, nvcc)
