"""greedy_cover: every pick against the definition in float64, ties, masks, prefixes, lazy and eager, refusals."""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap

import pytest
import torch
from helpers.backends import tolerance
from helpers.ops import DTYPES, LAYOUTS, laid, needs_kernels
from helpers.paths import PACKAGE

from ficoco_ext import ops
from ficoco_ext.cost import flop_counter
from ficoco_ext.ops import reference


def gain(cover, chosen, j):
    """What token j adds to ``chosen``: over all things, what it covers beyond the best of them, or beyond 0."""
    total = 0.0
    for i in range(cover.shape[1]):
        held = max([0.0, *(float(cover[c, i]) for c in chosen)])
        total += max(0.0, float(cover[j, i]) - held)
    return total


def check(backend, cover, count, mask=None):
    """Every pick has the largest gain that float32 can tell, and its gain is reported."""
    order, gains = backend("greedy_cover", cover, count, mask)
    b, n, things = cover.shape
    assert order.dtype == torch.int64 and gains.dtype == torch.float32
    assert order.shape == gains.shape == (b, count)
    slack = 8 * tolerance(things)
    for item in range(b):
        real = [j for j in range(n) if mask is None or mask[item, j]]
        chosen: list[int] = []
        for step, picked in enumerate(order[item].tolist()):
            assert picked in real and picked not in chosen
            values = {j: gain(cover[item].double(), chosen, j) for j in real if j not in chosen}
            scale = max(1.0, *values.values())
            assert values[picked] >= max(values.values()) - slack * scale, (step, picked, values)
            assert abs(float(gains[item, step]) - values[picked]) <= slack * scale
            chosen.append(picked)
    return order


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "things"), [(1, 1), (2, 7), (3, 1), (33, 16), (40, 53)])
def test_sizes(backend, n, things, dtype):
    """Things that are fewer and more than tokens, with some that are covered by less than nothing."""
    for count in sorted({0, 1, min(n, 9)}):
        check(backend, (torch.randn(2, n, things) + 0.5).to(dtype), count)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend, layout):
    check(backend, laid(torch.rand(3, 30, 24), layout), 6)


def test_equal_to_brute_force_in_float64():
    """The order itself, on random inputs of float64, where no rounding decides."""
    for _ in range(50):
        n, things = int(torch.randint(2, 13, ())), int(torch.randint(1, 20, ()))
        cover = torch.rand(1, n, things, dtype=torch.float64)
        found, chosen = ops.greedy_cover(cover, n), []
        assert found.gains.dtype == torch.float64
        for step in range(n):
            gains = {j: gain(cover[0], chosen, j) for j in range(n) if j not in chosen}
            picked = int(found.order[0, step])
            assert gains[picked] >= max(gains.values()) - 1e-12
            chosen.append(picked)


def test_near_the_best_of_all_choices():
    """At least 1 - 1/e of it."""
    for _ in range(20):
        cover = torch.rand(1, 9, 12, dtype=torch.float64) ** 3
        order = ops.greedy_cover(cover, 3).order[0]
        best = max(float(cover[0, list(some)].amax(0).sum()) for some in itertools.combinations(range(9), 3))
        assert float(cover[0, order].amax(0).sum()) >= (1 - 1 / torch.e) * best


def test_gains_add_up_to_what_is_covered(backend):
    cover = torch.rand(2, 50, 31)
    order, gains = backend("greedy_cover", cover, 12, None)
    held = cover.gather(1, order.unsqueeze(-1).expand(-1, -1, 31)).amax(1).sum(1)
    assert torch.allclose(gains.sum(1), held, rtol=1e-5)
    assert bool((gains.diff(dim=1) <= 1e-6).all())


def test_a_smaller_count_is_the_first_part(backend):
    cover = torch.rand(2, 60, 40)
    whole = backend("greedy_cover", cover, 30, None)
    for count in (1, 7, 29):
        part = backend("greedy_cover", cover, count, None)
        assert all(torch.equal(a, b[:, :count]) for a, b in zip(part, whole, strict=True))


def test_the_whole_is_a_permutation(backend):
    order = backend("greedy_cover", torch.rand(2, 45, 6), 45, None)[0]
    assert torch.equal(order.sort(1).values, torch.arange(45).expand(2, 45))


@pytest.mark.parametrize("padding", ["NaN", "numbers"])
def test_a_masked_token_is_not_there(backend, padding):
    """Picks are those of the rows without the masked tokens, whatever these would cover."""
    cover, mask = torch.rand(3, 37, 16), torch.rand(3, 37) < 0.6
    cover[~mask] = float("nan") if padding == "NaN" else 9.0
    count = min(8, int(mask.sum(1).min()))
    order, gains = backend("greedy_cover", cover, count, mask)
    for i in range(3):
        real = mask[i].nonzero().squeeze(1)
        alone = backend("greedy_cover", cover[i : i + 1, real], count, None)
        assert torch.equal(real[alone[0][0]], order[i]) and torch.equal(alone[1][0], gains[i])


def test_a_thing_that_nothing_covers_changes_nothing(backend):
    """Zeros in the place of words that are not there."""
    cover = torch.rand(2, 30, 16)
    padded = torch.cat([cover, torch.zeros(2, 30, 9)], 2)
    found, wanted = (backend("greedy_cover", one, 9, None) for one in (padded, cover))
    assert torch.equal(found[0], wanted[0]) and torch.allclose(found[1], wanted[1], rtol=1e-6)


def test_a_batch_is_its_rows(backend):
    cover = torch.rand(7, 26, 12)
    together = backend("greedy_cover", cover, 9, None)
    for i in range(7):
        alone = backend("greedy_cover", cover[i : i + 1], 9, None)
        assert all(torch.equal(a, b[i : i + 1]) for a, b in zip(alone, together, strict=True))


def test_duplicates_come_last(backend):
    cover = (torch.eye(5) + 0.1).repeat(4, 1)[None]
    order, gains = backend("greedy_cover", cover, 20, None)
    assert order[0].tolist() == list(range(20)) and not gains[0, 5:].any()


def test_ties_take_the_lowest_index(backend):
    for cover in (torch.eye(12)[None], torch.ones(1, 12, 3), torch.zeros(1, 12, 3), -torch.rand(1, 12, 3)):
        assert torch.equal(backend("greedy_cover", cover, 12, None)[0][0], torch.arange(12))


def test_a_column_weighs_as_much_as_its_factor(backend):
    """One thing that counts for all others decides the first pick."""
    cover = torch.rand(1, 20, 10)
    assert int(backend("greedy_cover", cover * torch.tensor([99.0] + [1.0] * 9), 1, None)[0]) == int(
        cover[0, :, 0].argmax()
    )


def test_nothing_to_cover_and_empty_batches(backend):
    order, gains = backend("greedy_cover", torch.rand(2, 9, 0), 4, None)
    assert torch.equal(order, torch.arange(4).expand(2, 4)) and not gains.any()
    for cover in (torch.rand(0, 5, 3), torch.rand(2, 0, 3)):
        order, gains = backend("greedy_cover", cover, 0, None)
        assert order.shape == gains.shape == (cover.shape[0], 0)


def test_cost():
    """4 images of 50 tokens and 30 things."""
    with flop_counter.counter() as counted:
        ops.greedy_cover(torch.rand(4, 50, 30), 7)
    assert counted.get_total_flops() == 2 * 4 * 50 * 30


@needs_kernels
def test_lazy_equals_eager():
    """At the size of a picture, where the kernel computes a small part of the gains again."""
    cover = (torch.randn(2, 576, 620) * 5).softmax(1)
    found = ops.greedy_cover(cover, 144)
    order, gains = reference.greedy_cover(cover.double(), 144, None)
    assert torch.equal(found.order, order) and torch.allclose(found.gains.double(), gains, atol=1e-5)


@needs_kernels
def test_the_number_of_threads_changes_no_bit():
    code = """
    import torch
    from ficoco_ext import ops
    torch.manual_seed(0)
    cover, found = torch.rand(1, 200, 70), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(ops.greedy_cover(cover, 60))
    assert all(torch.equal(a, b) for got in found for a, b in zip(found[0], got))
    """
    run = [sys.executable, "-c", textwrap.dedent(code)]
    subprocess.run(run, check=True, cwd=PACKAGE.parent, timeout=120)


BAD = [
    ("cover", {"cover": torch.rand(4, 3)}, ValueError, r"cover must be \(B, N, R\)"),
    ("dtype", {"cover": torch.ones(1, 4, 3, dtype=torch.int64)}, TypeError, "cover must be float32"),
    ("count", {"count": 5}, ValueError, r"count must be in \[0, 4\]"),
    ("negative", {"count": -1}, ValueError, r"count must be in \[0, 4\]"),
    ("mask", {"mask": torch.ones(2, 4) > 0}, ValueError, r"mask must be \(1, 4\)"),
    ("mask dtype", {"mask": torch.ones(1, 4)}, TypeError, r"mask must be \(1, 4\) bool"),
]


@pytest.mark.parametrize(("change", "kind", "message"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
def test_refusals(backend, change, kind, message):
    given = {"cover": torch.rand(1, 4, 3), "count": 2, "mask": None} | change
    with pytest.raises(kind, match=rf"ficoco::greedy_cover: {message}.*; "):
        backend("greedy_cover", *given.values())


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("cover", {"cover": torch.full((1, 4, 3), float("nan"))}),
        ("cover", {"cover": torch.full((1, 4, 3), float("inf"))}),
        ("cover", {"cover": torch.full((1, 4, 3), -float("inf"))}),
        ("count", {"mask": torch.tensor([[True, False, False, False]])}),
    ],
)
def test_values_are_checked_where_reading_is_free(backend, argument, change):
    if not backend.reads_values:
        pytest.skip("reads no values")
    given = {"cover": torch.rand(1, 4, 3), "count": 2, "mask": None} | change
    with pytest.raises(ValueError, match=f"ficoco::greedy_cover: {argument} must be"):
        backend("greedy_cover", *given.values())
