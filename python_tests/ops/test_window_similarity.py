"""window_similarity: against the mean cosine of all pairs in float64, equal windows bit for bit, refusals."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers.backends import tolerance
from helpers.ops import DTYPES, LAYOUTS, laid

from ficoco_ext import ops
from ficoco_ext.cost import flop_counter

SHORT = 1e-8


def wanted(tokens, grid, window):
    """The mean cosine over ordered pairs of different patches, pair by pair."""
    (height, width), batch = grid, []
    for item in tokens.double():
        rows = []
        for top, left in itertools.product(range(height // window), range(width // window)):
            cells = itertools.product(range(window), range(window))
            x = item[[(top * window + i) * width + left * window + j for i, j in cells]]
            lengths = x.norm(dim=1).clamp_min(SHORT)
            cosines = (x @ x.T) / lengths[:, None] / lengths[None]
            pairs = window**2 * (window**2 - 1)
            rows.append((cosines.sum() - cosines.diagonal().sum()) / pairs)
        batch.append(torch.stack(rows) if rows else torch.zeros(0, dtype=torch.float64))
    return torch.stack(batch)


def check(backend, tokens, grid, window):
    (found,) = backend("window_similarity", tokens, *grid, window)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), wanted(tokens, grid, window), rtol=0, atol=2 * tolerance(tokens.shape[2]))
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("grid", "window", "c"),
    [((2, 2), 2, 1), ((3, 3), 3, 21), ((7, 9), 2, 64), ((8, 11), 3, 33), ((24, 24), 3, 40), ((9, 9), 8, 300)],
)
def test_sizes(backend, grid, window, c, dtype):
    """Grids that windows fill and do not fill, widths that are no multiple of a vector."""
    check(backend, (torch.randn(2, grid[0] * grid[1], c) + torch.randn(c)).to(dtype), grid, window)


@pytest.mark.parametrize("c", [512, 1024, 1152, 2049])
def test_widths_of_towers(backend, c):
    check(backend, (torch.randn(1, 36, c) + 0.5).half(), (6, 6), 3)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(backend, layout, dtype):
    check(backend, laid(torch.randn(3, 30, 24).to(dtype), layout), (5, 6), 2)


def test_float64_is_the_specification():
    tokens = torch.randn(2, 54, 13, dtype=torch.float64)
    found = ops.window_similarity(tokens, (6, 9), 3)
    assert found.dtype == torch.float64 and torch.allclose(found, wanted(tokens, (6, 9), 3), rtol=0, atol=1e-14)


@pytest.mark.parametrize("window", [2, 3, 5])
def test_one_direction_is_one_and_opposite_halves_are_less_than_nothing(backend, window):
    """The lengths of patches do not matter."""
    side = 2 * window
    direction, lengths = torch.randn(17), torch.logspace(-3, 3, side * side)[:, None]
    (found,) = backend("window_similarity", (direction * lengths)[None], side, side, window)
    assert torch.allclose(found, torch.ones(1, 4), atol=1e-5)
    if window == 2:
        signs = torch.tensor([1.0, -1.0]).repeat(side * side // 2)[:, None]
        (found,) = backend("window_similarity", (direction * lengths * signs)[None], side, side, window)
        assert torch.allclose(found, torch.full((1, 4), -1 / 3), atol=1e-5)


def test_short_vectors_count_as_longer_ones(backend):
    """A patch of 1e-9 has a tenth of its cosines, zeros have none."""
    tokens = torch.zeros(1, 8, 5)
    tokens[0, :, 0] = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1e-9, 1.0, 0.0])
    (found,) = backend("window_similarity", tokens, 2, 4, 2)
    # left: patches 0, 1, 4 and 5, which is short; right: patches 2, 3, 6 and 7, which is nothing
    assert torch.allclose(found, torch.tensor([[(6 + 0.6) / 12, 0.5]]), atol=1e-6)


def test_equal_windows_are_equal_bit_for_bit(backend):
    """Wherever they lie and whatever else is in the batch, so that ties are ties."""
    if backend.name == "reference":
        pytest.skip("sums of torch round by position")
    for window, c, dtype in ((2, 7, torch.float32), (3, 100, torch.float16), (3, 64, torch.bfloat16)):
        block = torch.randn(window, window, c)
        grid = block.repeat(4, 5, 1).flatten(0, 1)
        other = torch.randn_like(grid)
        (found,) = backend("window_similarity", torch.stack([other, grid]).to(dtype), 4 * window, 5 * window, window)
        assert bool((found[1] == found[1, 0]).all()) and found[0].unique().numel() > 1
        (alone,) = backend("window_similarity", grid[None].to(dtype), 4 * window, 5 * window, window)
        assert torch.equal(alone[0], found[1])


def test_a_batch_is_its_rows(backend):
    tokens = torch.randn(7, 36, 50)
    (together,) = backend("window_similarity", tokens, 6, 6, 3)
    for i in range(7):
        (alone,) = backend("window_similarity", tokens[i : i + 1], 6, 6, 3)
        assert torch.allclose(alone, together[i : i + 1], atol=1e-6)
        assert backend.name == "reference" or torch.equal(alone, together[i : i + 1])


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_what_is_not_finite_stays_in_its_window(backend, value):
    tokens = torch.randn(1, 42, 8)
    tokens[0, 8, 3] = tokens[0, 34, 0] = float(value)  # the window at row 1, column 1; a patch that is in no window
    (found,) = backend("window_similarity", tokens, 6, 7, 3)
    assert found.isnan().tolist() == [[True, False, False, False]]


def test_patches_outside_of_windows_have_no_part(backend):
    tokens = torch.randn(2, 35, 9)
    changed = tokens.view(2, 5, 7, 9).clone()
    changed[:, 4], changed[:, :, 6] = 99, -99
    found, again = (backend("window_similarity", x.reshape(2, 35, 9), 5, 7, 2)[0] for x in (tokens, changed))
    assert torch.equal(found, again)


def test_nothing(backend):
    for b, grid, window, c, windows in ((0, (4, 4), 2, 3, 4), (2, (2, 5), 3, 4, 0), (2, (4, 4), 2, 0, 4)):
        (found,) = backend("window_similarity", torch.randn(b, grid[0] * grid[1], c), *grid, window)
        assert found.shape == (b, windows) and not found.any()
    (found,) = backend("window_similarity", torch.randn(1, 4, 3), 2, 2, 2**40)
    assert found.shape == (1, 0)


def test_autocast_does_not_apply():
    tokens = torch.randn(2, 36, 100)
    alone = ops.window_similarity(tokens, (6, 6), 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ops.window_similarity(tokens, (6, 6), 3), alone)


def test_cost():
    with flop_counter.counter() as counted:
        ops.window_similarity(torch.randn(4, 36, 30), (6, 6), 3)
    assert counted.get_total_flops() == 6 * 4 * 36 * 30


BAD = [
    ("tokens", {"tokens": torch.randn(16, 3)}, ValueError, r"tokens must be \(B, P, C\)"),
    ("dtype", {"tokens": torch.ones(1, 16, 3, dtype=torch.int64)}, TypeError, "tokens must be float32"),
    ("cells", {"width": 5}, ValueError, r"grid must be of 16 cells, one for each patch, got \(4, 5\)"),
    ("sides", {"height": -4, "width": -4}, ValueError, r"grid must be of positive sides, got \(-4, -4\)"),
    ("huge", {"height": 2**40, "width": 2**40}, ValueError, "grid must be of at most"),
    ("window", {"window": 1}, ValueError, "window must be at least 2, got 1"),
]


@pytest.mark.parametrize(("change", "kind", "message"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
def test_refusals(backend, change, kind, message):
    given = {"tokens": torch.randn(1, 16, 3), "height": 4, "width": 4, "window": 2} | change
    with pytest.raises(kind, match=rf"ficoco::window_similarity: {message}.*; "):
        backend("window_similarity", *given.values())


def test_a_gpu_has_a_largest_window(backend):
    """The lengths of a window's patches lie in shared memory."""
    tokens = torch.randn(1, 33 * 33, 2)
    if backend.reads_values:
        assert backend("window_similarity", tokens, 33, 33, 33)[0].shape == (1, 1)
        return
    with pytest.raises(ValueError, match="ficoco::window_similarity: window must be at most 32 on a GPU, got 33; "):
        backend("window_similarity", tokens, 33, 33, 33)
    assert backend("window_similarity", tokens, 33, 33, 32)[0].shape == (1, 1)
