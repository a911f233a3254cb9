"""Calls the kernels beside this file and compares with numpy. ``python cases.py LIBRARY CASE ...`` runs cases in a
process of its own: for a library with sanitizers, and for bugs that end the process.
"""

import ctypes
import sys

import numpy as np

WRONG = 3  # exit status


def call(function, *arguments):
    """What the C function returns. Arrays go as pointers, numbers as int, float or bool."""
    kinds = {bool: ctypes.c_bool, int: ctypes.c_int, float: ctypes.c_float}
    converted = []
    for argument in arguments:
        if isinstance(argument, np.ndarray):
            assert argument.flags.c_contiguous
            converted.append(ctypes.c_void_p(argument.ctypes.data))
        else:
            converted.append(kinds[type(argument)](argument) if type(argument) in kinds else argument)
    return function(*converted)


def run(function, *arguments):
    error = call(function, *arguments)
    assert error == 0, f"cudaError {error}"


def random(seed=0):
    return np.random.default_rng(seed)


def aligned(shape, dtype):
    """An uninitialised array that starts at a multiple of 32 bytes, as memory from cudaMalloc does."""
    bytes_ = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.empty(bytes_ + 32, np.uint8)
    start = -memory.ctypes.data % 32
    return memory[start : start + bytes_].view(dtype).reshape(shape)


def block_sum(library):
    for threads in (64, 128, 512):
        x = aligned((5, 1000), np.float32)
        x[:] = random().standard_normal(x.shape)
        out = np.zeros(5, np.float32)
        run(library.block_sum, x, out, 5, 1000, threads)
        np.testing.assert_allclose(out, x.astype(np.float64).sum(1), rtol=0, atol=1e-4)
    assert call(library.block_sum, x, out, 5, 1000, 96) == 1  # cudaErrorInvalidValue


def grid_sum(library):
    x = random().standard_normal(10_000).astype(np.float32)
    part, done, out = np.zeros(7, np.float32), np.full(1, 99, np.uint32), np.zeros(1, np.float32)
    run(library.grid_sum, x, x.size, part, done, out, 7)
    np.testing.assert_allclose(out[0], x.astype(np.float64).sum(), rtol=0, atol=1e-3)
    assert done[0] == 0  # atomicInc wrapped around


def argmax(library):
    x = random().standard_normal(1000).astype(np.float32)
    for values in (x, -np.abs(x), np.zeros_like(x), np.where(np.arange(1000) % 300 == 77, 9, x).astype(np.float32)):
        best = np.full(1, 1, np.uint64)
        run(library.argmax, values, values.size, best)
        assert 0xFFFFFFFF - int(best[0] & np.uint64(0xFFFFFFFF)) == int(values.argmax())


def affine(library):
    x = random().standard_normal(100).astype(np.float32)
    y = np.empty_like(x)
    run(library.affine, x, y, x.size, 2.0, -1.0)
    np.testing.assert_array_equal(y, 2 * x - 1)


def topk(library):
    for n, k in ((1, 1), (33, 33), (500, 40)):
        x = (random().integers(-20, 20, (3, n)) / 4).astype(np.float32)  # many equal ones
        value, index = np.empty((3, k), np.float32), np.empty((3, k), np.int32)
        run(library.topk, x, 3, n, k, value, index)
        expected = np.argsort(-x, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(index, expected)
        np.testing.assert_array_equal(value, np.take_along_axis(x, expected, 1))


def histogram(library):
    x = random().integers(0, 64, 2000).astype(np.int32)
    x[0] = 63  # for the bug: one bin further lies outside
    out = np.full(64, -5, np.int32)
    run(library.histogram, x, x.size, out)
    np.testing.assert_array_equal(out, np.bincount(x, minlength=64))


def shift(library):
    x = random().standard_normal((3, 128)).astype(np.float32)
    out = np.empty_like(x)
    run(library.shift, x, out, 3)
    np.testing.assert_array_equal(out, np.pad(x[:, :-1], ((0, 0), (1, 0))))


def unwritten(library):
    out = np.zeros((4, 3), np.float32)
    run(library.unwritten, out, 4)
    assert np.isnan(out).all(), out


def fill(library):
    for n, opt_in, error in ((12_288, False, 0), (12_289, False, 1), (50_000, True, 0), (70_000, True, 1)):
        out = np.zeros(n, np.int32)
        assert call(library.fill, out, n, 64, opt_in) == error, n
        if error == 0:
            np.testing.assert_array_equal(out, (3 if opt_in else 5) * np.arange(n)[::-1])
        else:
            assert not out.any()
    for threads in (0, 1025):
        assert call(library.fill, np.zeros(8, np.int32), 8, threads, False) == 9  # cudaErrorInvalidConfiguration


def runtime(library):
    attributes = {16: 4, 97: 227 * 1024, 8: 48 * 1024, 75: 9, 76: 0, 10: 32}
    assert {which: call(library.attribute, which) for which in attributes} == attributes
    x = random().standard_normal(50)
    y = np.zeros_like(x)
    run(library.copy, y, x, ctypes.c_size_t(x.nbytes))
    np.testing.assert_array_equal(x, y)


def _bits(flags):
    return sum(1 << int(i) for i in np.flatnonzero(flags))


def _lanes(x):
    """The rows that lanes_kernel writes."""
    lane, x = np.arange(32), x.astype(np.uint64)
    word = [format(int(v), "032b") for v in x]
    low, high = x, ~x & np.uint64(0xFFFFFFFF)
    first_set = np.array([int(v & -v).bit_length() for v in map(int, x)])
    leading = np.array([32 - int(v).bit_length() for v in x])
    halves = np.repeat([x[:16].sum(), x[16:].sum()], 16)
    return [
        x[lane ^ 5],
        x[np.where(lane < 3, lane, lane - 3)],
        x[np.where(lane % 16 + 7 > 15, lane, lane + 7)],
        x[lane // 8 * 8 + 1],
        np.full(32, _bits(x % 3 == 0)),
        np.array([_bits(x % 4 == v) for v in x % 4]),
        np.full(32, x.sum()),
        np.full(32, x.max()),
        np.full(32, 1 if not (x == 7).any() else 2),
        halves,
        x[0] + np.where(lane == 0, x[0] + np.uint64(1), np.uint64(0)),
        np.array([int(w[::-1], 2) for w in word]),
        np.where(first_set > 0, first_set + 20, 0),
        leading + 32,
        [(int(h) << 32 | int(a)) >> int(s) for a, h, s in zip(low, high, lane, strict=True)],
        np.array([w.count("1") for w in word]) + leading + first_set,
        np.full(32, (x % 3 == 0).sum()),
        np.rint(np.sqrt(2.0 ** np.maximum(x % 8, 2))),
    ]


def lanes(library):
    for seed in range(3):
        x = random(seed).integers(0, 2**32, 32, dtype=np.uint64).astype(np.uint32)
        x[5], x[9] = (0, 7) if seed == 1 else (x[5], x[9])
        expected = _lanes(x)
        out = np.zeros((len(expected), 32), np.uint32)
        run(library.lanes, x, out)
        for row, (got, wanted) in enumerate(zip(out, expected, strict=True)):
            wanted = np.array([int(v) & 0xFFFFFFFF for v in wanted], np.uint32)
            np.testing.assert_array_equal(got, wanted, err_msg=f"row {row}")


def _bfloat16(x):
    """float32 rounded to bfloat16, ties to even: as bits, and as float32."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    bits = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return bits, (bits.astype(np.uint32) << 16).view(np.float32)


def gemm(library):
    m, n, k = 64, 96, 80
    a, b = random(1).standard_normal((m, k)), random(2).standard_normal((n, k))
    for bfloat16 in (False, True):
        (bits_a, used_a), (bits_b, used_b) = (
            _bfloat16(x) if bfloat16 else (x.astype(np.float16), x.astype(np.float16)) for x in (a, b)
        )
        stored_a, stored_b = aligned((m, k), bits_a.dtype), aligned((n, k), bits_b.dtype)
        stored_a[:], stored_b[:] = bits_a, bits_b
        out = aligned((m, n), np.float32)
        run(library.gemm, stored_a, stored_b, out, m, n, k, bfloat16)
        expected = used_a.astype(np.float64) @ used_b.astype(np.float64).T
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-4)


def rounded(library):
    x = aligned((50, 2), np.float32)
    x[:] = random().standard_normal(x.shape)
    half, bfloat16 = aligned(x.shape, np.float32), aligned(x.shape, np.float32)
    run(library.rounded, x, half, bfloat16, 64 - 14)
    np.testing.assert_array_equal(half, x.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(bfloat16, _bfloat16(x)[1])


CASES = {
    case.__name__: case
    for case in (
        *(block_sum, grid_sum, argmax, affine, topk, histogram, shift),
        *(unwritten, fill, runtime, lanes, gemm, rounded),
    )
}


def main(library, *names):
    loaded = ctypes.CDLL(library)
    for name in names:
        try:
            CASES[name](loaded)
        except AssertionError as error:
            print(f"{name}: {error}", file=sys.stderr)
            raise SystemExit(WRONG) from None
        print(name, "right", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
