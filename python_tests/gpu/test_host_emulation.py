"""The host emulation (csrc/testing): right kernels are right in every order, and planted bugs are caught.

The kernels are those of python_tests/emulation. The bugs that end the process, and all that runs under ASan and UBSan,
run in processes of their own.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import CSRC, TESTS

KERNELS = TESTS / "emulation"
ORDERS = ["fwd", "rev", "rand:1", "rand:2"]
LIBRARIES = {  # the sources of each, and its bugs: those of one kernel exclude one another
    "right": (["sums", "select", "warps"], []),
    "right_sanitized": (["sums", "select", "warps"], []),
    "barrier": (
        ["sums", "select", "warps"],
        ["NO_BARRIER", "SORT_BARRIER", "SHIFT_BARRIER", "GEMM_BARRIER", "LAST_BLOCK", "MASK"],
    ),
    "divergent": (["sums"], ["DIVERGENT"]),
    "unwaited": (["warps"], ["GEMM_WAIT"]),
    "memory_sanitized": (
        ["sums", "select", "warps"],
        ["STATIC_SHARED", "DYNAMIC_SHARED", "GLOBAL", "MISALIGNED", "GEMM_COPY"],
    ),
}


def _load(path: Path):
    spec = importlib.util.spec_from_file_location(f"emulation_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


emulation = _load(CSRC / "testing/host_emulation/build.py")
cu2cpp = _load(CSRC / "testing/host_emulation/cu2cpp.py")
cases = _load(KERNELS / "cases.py")


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """build(name): the path of that library, built once."""
    if emulation.cuda_include() is None:
        reason = "the CUDA toolkit's headers are not here: set CUDA_HOME"
        if os.environ.get("FICOCO_REQUIRE_EMULATION") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # what one worker builds, the others wait for and use

    def get(name: str) -> Path:
        sources, bugs = LIBRARIES[name]
        return emulation.build(
            folder / "emulation" / name,
            sources=[KERNELS / f"{source}.cu" for source in sources],
            name=name,
            define=[f"BUG_{bug}" for bug in bugs],
            sanitize=name.endswith("_sanitized"),
        )

    return functools.cache(get)


def _process(library: Path, *names: str, order: str = "fwd", sanitize: bool = False):
    environment = {**os.environ, "CUEMU_ORDER": order, **(emulation.sanitizer_environment() if sanitize else {})}
    command = [sys.executable, str(KERNELS / "cases.py"), str(library), *names]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.emulated
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", cases.CASES)
def test_right_kernels(build, monkeypatch, case, order):
    monkeypatch.setenv("CUEMU_ORDER", order)
    cases.CASES[case](ctypes.CDLL(str(build("right"))))


@pytest.mark.emulated
def test_right_kernels_under_sanitizers(build):
    done = _process(build("right_sanitized"), *cases.CASES, order="rand:3", sanitize=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[::2] == list(cases.CASES)
    assert not done.stderr


@pytest.mark.emulated
@pytest.mark.parametrize(
    ("case", "right_in"),
    [("block_sum", ["rev"]), ("topk", []), ("gemm", []), ("shift", ["fwd"]), ("grid_sum", ["fwd"])],
)
def test_missing_barriers_change_results(build, monkeypatch, case, right_in):
    """Also a kernel that takes the last block of the grid for the last to finish."""
    library, right = ctypes.CDLL(str(build("barrier"))), []
    for order in ORDERS:
        monkeypatch.setenv("CUEMU_ORDER", order)
        try:
            cases.CASES[case](library)
            right.append(order)
        except AssertionError:
            pass
    assert right == right_in


@pytest.mark.emulated
def test_a_copy_that_is_not_waited_for(build, monkeypatch):
    """It never arrives, and what is read is NaN, if copies are done at the wait."""
    monkeypatch.setenv("CUEMU_ORDER", "fwd")
    with pytest.raises(AssertionError):
        cases.CASES["gemm"](ctypes.CDLL(str(build("unwaited"))))


@pytest.mark.emulated
def test_a_lane_that_its_mask_lacks(build):
    done = _process(build("barrier"), "lanes")
    assert done.returncode == -6, done
    assert "whose mask lacks it" in done.stderr
    lines = (KERNELS / "warps.cu").read_text().splitlines()
    line = next(number for number, text in enumerate(lines, 1) if "0x7fffffffu" in text)
    assert f"warps.cu:{line}\n" in done.stderr and "lanes_kernel, block (0, 0, 0), thread (31, 0, 0)" in done.stderr


@pytest.mark.emulated
def test_divergent_barrier(build):
    done = _process(build("divergent"), "block_sum")
    assert done.returncode == -6, done
    assert "divergent barrier" in done.stderr and "block_sum_kernel" in done.stderr


@pytest.mark.emulated
@pytest.mark.parametrize(
    ("case", "report", "place"),
    [
        ("histogram", "global-buffer-overflow", "select.cu"),
        ("topk", "use-after-poison", "select.cu"),
        ("affine", "heap-buffer-overflow", "sums.cu"),
        ("block_sum", "misaligned address", "sums.cu"),
        ("gemm", "heap-buffer-overflow", "warps.cu"),
    ],
)
def test_wrong_accesses(build, case, report, place):
    done = _process(build("memory_sanitized"), case, sanitize=True)
    assert done.returncode not in (0, cases.WRONG), done
    assert report in done.stderr, done.stderr
    assert place in done.stderr, done.stderr
    assert "block (" in done.stderr, done.stderr


@pytest.mark.emulated
def test_deadlock(build, tmp_path):
    """Lanes of one mask that wait for each other in different places."""
    source = tmp_path / "dead.cu"
    source.write_text("""#include <cuda_runtime.h>
__global__ void dead_kernel() {
  if (threadIdx.x < 16) __syncthreads();
  else __syncwarp();  // for all 32
}
extern "C" __attribute__((visibility("default"))) void dead() { dead_kernel<<<1, 32>>>(); }
""")
    build("right")  # skips without the headers
    library = emulation.build(tmp_path / "out", sources=[source])
    code = f"import ctypes; ctypes.CDLL({str(library)!r}).dead()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == -6
    assert "deadlock: 32 threads wait, 16 of them at __syncthreads (line 3)" in done.stderr
    assert f"{source}:4" in done.stderr


@pytest.mark.emulated
def test_only_what_is_stale_is_built_again(build, tmp_path):
    build("right")
    (tmp_path / "a.cu").write_text('#include "a.cuh"\n__global__ void a_kernel() { value(); }\n')
    (tmp_path / "a.cuh").write_text(
        "#pragma once\n__device__ int value();\n__device__ inline int value() { return 1; }\n"
    )
    (tmp_path / "b.cu").write_text("__global__ void b_kernel() {}\n")

    def times():
        emulation.build(tmp_path / "out", sources=[tmp_path / "a.cu", tmp_path / "b.cu"])
        return [(tmp_path / "out" / "objects" / tmp_path.name / f"{name}.o").stat().st_mtime_ns for name in "ab"]

    first, second = times(), times()
    assert first == second
    (tmp_path / "a.cuh").write_text("#pragma once\n__device__ inline int value() { return 2; }\n")
    third = times()
    assert third[0] > first[0] and third[1] == first[1]
    (tmp_path / "b.cu").write_text("__global__ void b_kernel() { return nothing; }\n")
    with pytest.raises(emulation.BuildError, match=r"b\.cu:1:\d+: error: .nothing. was not declared"):
        times()


def test_no_toolkit_is_a_clear_error(monkeypatch, tmp_path):
    monkeypatch.setattr(emulation, "_toolkits", lambda: iter([tmp_path]))
    with pytest.raises(emulation.BuildError, match=r"needs the CUDA toolkit's headers.*set CUDA_HOME"):
        emulation.build(tmp_path, sources=[KERNELS / "sums.cu"])


@pytest.mark.parametrize(
    ("cuda", "cpp"),
    [
        ("k<<<1, 2>>>();", 'cuemu::launch("k", cuemu::Config(1, 2), k);'),
        (
            "return ns::k<T, (4 > 3)><<<dim3(a, b), c>>>(x, f(y), *z);",
            'return cuemu::launch("ns::k<T, (4 > 3)>", cuemu::Config(dim3(a, b), c), ns::k<T, (4 > 3)>, x, f(y), *z);',
        ),
        (
            "A<B<int>>::k <<< g, b >>> ( x );",
            'cuemu::launch("A<B<int>>::k", cuemu::Config( g, b ), A<B<int>>::k ,   x );',
        ),
        ("k<<<n >> 1, sizeof(A<B<int>>)>>>(x)", 'cuemu::launch("k", cuemu::Config(n >> 1, sizeof(A<B<int>>)), k, x)'),
        ("k\n<<<1,\n2>>>(\n)", 'cuemu::launch("k", cuemu::Config(1,\n2), k\n\n)'),
        ("// k<<<1, 2>>>()", None),
        ("/* k<<<1, 2>>>()\n extern __shared__ int s[]; */", None),
        ('f("k<<<1, 2>>>()", R"(<<<)", \'"\', 1\'000);', None),
        ("extern __shared__ float s[];", "float* s = cuemu::dynamic_shared<float, 1>();"),
        (
            "{ extern __shared__ __align__(128) unsigned char s[]; f(); }",
            "{ unsigned char* s = cuemu::dynamic_shared<unsigned char, 128>(); f(); }",
        ),
        ("alignas(16) extern __shared__ T s [ ];", "T* s = cuemu::dynamic_shared<T, 16>();"),
        (
            "__shared__ float a[2][kN + 1], b; f();",
            "__shared__ float a[2][kN + 1], b; CUEMU_FRESH(a); CUEMU_FRESH(b); f();",
        ),
        ("__shared__ struct { int x; float y; } s;", "__shared__ struct { int x; float y; } s; CUEMU_FRESH(s);"),
        (
            "__shared__ alignas(16) Pair<A, B> p[max(1, 2)];",
            "__shared__ alignas(16) Pair<A, B> p[max(1, 2)]; CUEMU_FRESH(p);",
        ),
    ],
)
def test_conversion(cuda, cpp):
    assert cu2cpp.convert(cuda, "x.cu") == '#line 1 "x.cu"\n' + (cuda if cpp is None else cpp)


@pytest.mark.parametrize(
    ("cuda", "message"),
    [
        ("\nk<<<1, 2;", "x.cu:2: <<< without >>>"),
        ("k<<<1, 2>>>;", "x.cu:1: no arguments"),
        ("extern __shared__ int s[4];", "wanted extern __shared__ T name"),
    ],
)
def test_what_cannot_be_converted_is_named(cuda, message):
    with pytest.raises(cu2cpp.SourceError, match=message):
        cu2cpp.convert(cuda, "x.cu")
