"""The instruction sets of the CPU kernels: which is used, and that results do not depend on it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from helpers.ops import needs_kernels
from helpers.paths import PACKAGE

import ficoco_ext

KEYS_OF_ALL_SORTS = """
    import sys, torch
    import ficoco_ext
    from ficoco_ext.ops import match

    assert ficoco_ext.build_info()["cpu"] == "kernels"
    generator = torch.Generator().manual_seed(0)
    results = [ficoco_ext.build_info()["cpu_simd"]]
    for width in (4, 16, 17, 64, 100, 257):
        for tokens in (9, 41, 200, 577):
            random = torch.randn(2, 2, tokens, width, generator=generator)
            twins = random[:, :, torch.randint(0, tokens, (tokens,), generator=generator)].clone()
            twins[0, :, tokens // 2] = 0
            loud = random.clone()
            loud[..., 0] += 30  # one channel has nearly all of the length
            alike = random[:, :, :1] + random * 1e-3  # rounding to bytes tells nothing apart
            blank = torch.ones_like(random) + torch.rand(2, 1, tokens, 1, generator=generator).round()
            half = torch.cat([random[:, :, : tokens // 2], blank[:, :, tokens // 2 :]], 2)
            for key in (random, twins, loud, alike, blank, half, random.round(), random * 1e30, random * 1e-30):
                for class_token in (False, True):
                    results.append(list(match(key, (tokens - 1) // 3, class_token=class_token)))
    torch.save(results, sys.argv[1])
"""


def at_level(level, path, script=KEYS_OF_ALL_SORTS):
    """What ``script`` saves when the processor may use ``level``: first the instruction set that was used."""
    package = str(PACKAGE.parent)  # what is tested here, not what lies in the folder
    paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "FICOCO_CPU_SIMD": level, "PYTHONPATH": paths}
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(path)], env=environment, cwd=path.parent, check=True
    )
    return torch.load(path)


@needs_kernels
def test_screening_by_bytes_changes_no_bit(tmp_path):
    """A processor with AVX-512 VNNI gives what AVX2 alone gives."""
    if ficoco_ext.build_info()["cpu_simd"] != "avx512vnni":
        pytest.skip("needs a processor with AVX-512 VNNI")
    used, *results = at_level("", tmp_path / "best.pt")
    assert used == "avx512vnni"
    less, *wanted = at_level("avx2", tmp_path / "avx2.pt")
    assert less == "avx2"
    for one, other in zip(results, wanted, strict=True):
        assert all(map(torch.equal, one, other))


@needs_kernels
def test_the_baseline_finds_the_same_pairs(tmp_path):
    """Rounding may differ, so only keys without ties that close are compared: the random ones, first of each size."""
    used, *results = at_level("baseline", tmp_path / "baseline.pt")
    assert used == "baseline"
    _, *wanted = at_level("", tmp_path / "best.pt")
    for one, other in zip(results[::18], wanted[::18], strict=True):
        assert torch.allclose(one[0], other[0], atol=1e-5)
        assert all(map(torch.equal, one[1:4], other[1:4]))


NEARLY_EQUAL = """
    import sys, torch
    import ficoco_ext
    from ficoco_ext.ops import match

    generator = torch.Generator().manual_seed(0)
    results = [ficoco_ext.build_info()["cpu_simd"]]
    for width in range(16, 112):
        key = torch.randn(1, 1, 80, width, generator=generator)
        key[:, :, ::2] = 1.0
        row = torch.rand(width, generator=generator)
        for j in range(1, 60, 12):
            key[0, 0, j] = row[torch.randperm(width, generator=generator)]
        results.append(list(match(key, 40, class_token=False)))
    torch.save(results, sys.argv[1])
"""


@needs_kernels
def test_nearly_equal_products(tmp_path):
    """Five tokens whose products differ by the order of their sums alone: the nearest is that of the panels' order."""
    if ficoco_ext.build_info()["cpu_simd"] != "avx512vnni":
        pytest.skip("needs a processor with AVX-512 VNNI")
    _, *results = at_level("", tmp_path / "best.pt", NEARLY_EQUAL)
    used, *wanted = at_level("avx2", tmp_path / "avx2.pt", NEARLY_EQUAL)
    assert used == "avx2"
    assert len({tuple(one[3].flatten().tolist()) for one in wanted}) > 3  # it is not always the same one of the five
    for one, other in zip(results, wanted, strict=True):
        assert all(map(torch.equal, one, other))


@needs_kernels
@pytest.mark.parametrize("level", ["baseline", "avx2"])
def test_the_level_that_is_asked_for(tmp_path, level):
    if ficoco_ext.build_info()["cpu_simd"] not in ("avx512vnni", level):
        pytest.skip(f"needs a processor with AVX2 to ask for {level}")
    script = "import sys, torch, ficoco_ext\ntorch.save([ficoco_ext.build_info()['cpu_simd']], sys.argv[1])"
    assert at_level(level, tmp_path / "used.pt", script) == [level]
