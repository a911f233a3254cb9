"""Every method after the projector against a reference of it that another hand wrote from its paper."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.drawn_pictures import KINDS, cast, picture, shaken
from helpers.oracle_cases import CASES
from oracles import downsample

from ficoco_ext import get_method
from ficoco_ext.methods import distinct, part_after_projector

SIZES = (1, 2, 12, 36)

every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)


def fewest_real(visual):
    return visual.features.shape[1] if visual.mask is None else int(visual.mask.sum(1).min())


def differences(case, visual, counts, expect_from=None, tolerance=1e-6, rounding=False):
    """What the method gives other than its reference, in words. ``rounding``: which may decide between equal scores."""
    method, found = get_method(case.method, **case.options), []
    for count in counts:
        result = method(visual, count)
        for index in range(visual.features.shape[0]):
            either = result.kept[index].tolist() if rounding or case.even else ()
            kept, features = case.expected(visual if expect_from is None else expect_from, index, count, either)
            if result.kept[index].tolist() != kept:
                found.append(f"picture {index}, {count} tokens: {result.kept[index].tolist()}, wanted {kept}")
                continue
            own = visual.features[index][kept] if features is None else features
            if not torch.allclose(result.features[index].double(), own.double(), rtol=tolerance, atol=tolerance):
                found.append(f"picture {index}, {count} tokens: other features")
    return found


@every
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_in_float64(case, kind, n):
    """Indices exactly and features to 1e-6, of three different pictures at once, from 1 token to all."""
    if kind == "ties" and not case.exact:
        return
    for seed in range(1 if n > 12 else 3):
        visual = picture(kind, seed, n=n, frames=math.gcd(n, case.frames))
        if kind == "duplicates" and case.method in ("visionzip", "vispruner", "flashvid"):
            # What copies are compared with is equally like them to the bit in kernels alone, which have no float64.
            visual = cast(visual, torch.float32)
        most = fewest_real(visual)
        counts = range(1, most + 1) if n <= 12 else (1, 5, most // 3, most // 2, most - 1)
        tolerance = 1e-6 if visual.features.dtype == torch.float64 else 1e-5
        assert differences(case, visual, counts, tolerance=tolerance, rounding=kind == "duplicates") == []


@pytest.mark.parametrize("case", [case for case in CASES if case.orders], ids=lambda case: case.title)
def test_of_copies_the_first_stay(case):
    """Tokens that are the same in everything leave from the last on, whatever else is kept."""
    for seed in range(4):
        visual = picture("duplicates", seed, frames=case.frames)
        for count in (6, 12, 18, 21):
            kept = get_method(case.method, **case.options)(visual, count).kept
            for index in range(3):
                alike = [tuple(row.tolist()) for row in visual.features[index]]
                for token in kept[index].tolist():
                    first = [other for other in range(token) if alike[other] == alike[token]]
                    assert set(first) <= set(kept[index].tolist()), (seed, count, index, token)


@every
def test_in_float32(case):
    """The same from the same values in float32, wherever the reference itself is sure of its answer."""
    sure, asked = 0, 0
    for seed in range(4):
        visual = cast(picture("shared", seed, frames=case.frames), torch.float32)
        for count in (3, 8, 16):
            asked += 1
            wide = cast(visual, torch.float64)
            near = [] if case.even else [shaken(wide, 1e-5, again) for again in range(2)]
            own = [[case.expected(one, index, count)[0] for index in range(3)] for one in (wide, *near)]
            if all(other == own[0] for other in own):
                sure += 1
                assert differences(case, visual, [count], wide, 1e-5) == []
    assert sure >= 0.7 * asked


@pytest.mark.parametrize("grid", [(1, 1), (5, 5), (24, 24), (12, 30), (27, 9)])
def test_grids_of_smaller_pictures(grid):
    method = get_method("downsample")
    for count in range(1, grid[0] * grid[1] + 1):
        assert method.encoded_grid(grid, count) == downsample.smaller_grid(grid, count)


def test_every_method_after_the_projector_has_a_reference():
    """One that is added is missed here; hashes and every k-th token have no paper."""
    found = {name for name in distinct() if get_method(name, **part_after_projector(name)).projector is not None}
    assert found - {"random", "stride", "downsample"} == {case.method for case in CASES}
