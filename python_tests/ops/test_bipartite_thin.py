"""bipartite_thin: the lists it leaves against a loop written from the rounds, ties, masks, refusals."""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap

import pytest
import torch
from helpers.ops import DTYPES, LAYOUTS, laid, needs_kernels
from helpers.paths import PACKAGE

from ficoco_ext import ops
from ficoco_ext.cost import flop_counter
from ficoco_ext.ops import reference


def thinned(features, order, count, step):
    """One list by the rounds as they are written down, in float64, and the least difference that decided anything."""
    x = features.double()
    x = x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    left, closest = list(order), 2.0
    while len(left) > count:
        a, b = left[::2], left[1::2]
        scores = [max(float(x[i] @ x[j]) for j in b) for i in a]
        scores = [1.0 if score > 0.99999 else score for score in scores]
        falling = sorted(range(len(a)), key=lambda i: (-scores[i], i))
        closest = min([closest, *(scores[i] - scores[j] for i, j in itertools.pairwise(falling))])
        r = min(step, len(left) - count, len(a))
        left = [a[i] for i in falling[r:]] + b
    return left, closest


def signs(*shape, seed=0):
    """Vectors of +1 and -1: their cosines are exact in every precision if the length is a power of two."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).sign()


def thin(backend, *arguments):
    return backend("bipartite_thin", *arguments)[0]


def shuffled(b, n):
    return torch.rand(b, n).argsort(1)


@pytest.mark.parametrize("step", [1, 3, 8])
@pytest.mark.parametrize("n", [1, 2, 3, 9, 33])
def test_every_count(backend, n, step):
    """Of all counts, among them those for which a round takes all of its even tokens, with many equal scores."""
    features, order = signs(2, n, 16), shuffled(2, n)
    for count in range(n + 1):
        left = thin(backend, features, order, count, step, None)
        assert left.dtype == torch.int64 and left.shape == (2, count)
        if count:
            wanted = [thinned(features[i], order[i].tolist(), count, step)[0] for i in range(2)]
            assert left.tolist() == wanted


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [32, 70])
def test_real_numbers(backend, n, dtype):
    """Where no two scores are so near that float32 could exchange them."""
    compared = 0
    for seed in range(8):
        features = torch.randn(1, n, 21, generator=torch.Generator().manual_seed(seed)).to(dtype)
        order = shuffled(1, n)
        wanted, closest = thinned(features[0], order[0].tolist(), 7, 8)
        if closest > 2e-6:
            compared += 1
            assert thin(backend, features, order, 7, 8, None)[0].tolist() == wanted
    assert compared >= 4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend, layout):
    features, order = laid(signs(3, 40, 64), layout), torch.stack([shuffled(3, 40)] * 2, 2)[..., 0]
    left = thin(backend, features, order, 11, 8, None)
    assert left.tolist() == [thinned(features[i], order[i].tolist(), 11, 8)[0] for i in range(3)]


def test_a_part_of_the_tokens(backend):
    """Tokens that are not on the list have no say."""
    features, order = signs(2, 50, 16), shuffled(2, 50)[:, :30]
    left = thin(backend, features, order, 9, 8, None)
    assert left.tolist() == [thinned(features[i], order[i].tolist(), 9, 8)[0] for i in range(2)]
    features[0, [i for i in range(50) if i not in order[0].tolist()]] = float("nan")
    assert torch.equal(thin(backend, features, order, 9, 8, None), left)


@pytest.mark.parametrize("padding", ["NaN", "numbers"])
def test_a_masked_token_is_not_there(backend, padding):
    """Lists of unequal length, wherever on them the hidden tokens are."""
    features, order, mask = signs(5, 37, 16), shuffled(5, 37), torch.rand(5, 37) < 0.6
    mask[4, :12], mask[4, 12:] = True, False
    if padding == "NaN":
        features[~mask] = float("nan")
    for count in (1, 5, min(12, int(mask.sum(1).min()))):
        left = thin(backend, features, order, count, 8, mask)
        for i in range(5):
            real = [j for j in order[i].tolist() if mask[i, j]]
            assert left[i].tolist() == thinned(features[i], real, count, 8)[0]


def test_a_batch_is_its_rows(backend):
    features, order = torch.randn(7, 26, 12), shuffled(7, 26)
    together = thin(backend, features, order, 9, 4, None)
    for i in range(7):
        alone = thin(backend, features[i : i + 1], order[i : i + 1], 9, 4, None)
        assert torch.equal(alone, together[i : i + 1])


def test_equal_tokens_leave_from_the_front(backend):
    """All scores are 1, whatever rounding makes of them: the first eight at even places leave in each round."""
    lengths = torch.rand(1, 60, 1) + 0.1
    for features in (torch.randn(1, 1, 40) * lengths, torch.randn(1, 1, 300).repeat(1, 60, 1), lengths):
        left = thin(backend, features, torch.arange(60)[None], 20, 8, None)[0].tolist()
        assert left == thinned(torch.ones(60, 4), range(60), 20, 8)[0]


def test_a_copy_leaves_before_what_is_alone(backend):
    """Of four kinds with a copy each, which stand together on the list, one of each stays."""
    features = torch.eye(8)[torch.arange(8) // 2 * 2][None] * torch.tensor([1.0, 3.0] * 4)[None, :, None]
    for step in (1, 4, 8):
        left = thin(backend, features, torch.arange(8)[None], 4, step, None)[0]
        assert sorted((left // 2).tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_copies_leave_by_their_place_on_the_list(backend, dtype):
    """64 tokens, 64 others and the first ones once more: on a GPU copies then are in different tiles."""
    for seed in range(4):
        a, b = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(seed))
        features, order = torch.cat([a, b, a])[None].to(dtype), shuffled(1, 192)
        wanted = reference.bipartite_thin(features.double(), order, 60, 8, None)
        assert torch.equal(thin(backend, features, order, 60, 8, None), wanted)


@needs_kernels
def test_copies_tie_in_float64():
    """Products of torch round copies differently by their position; kernels do not."""
    for seed in range(12):
        drawn = torch.Generator().manual_seed(seed)
        features = torch.randn(1, 40, 33, generator=drawn)[:, torch.randint(0, 40, (151,), generator=drawn)]
        order = torch.randperm(151, generator=drawn)[None]
        wanted = ops.bipartite_thin(features, order, 40)
        assert torch.equal(reference.bipartite_thin(features.double(), order, 40, 8, None), wanted)


def test_zero_vectors_and_no_channels(backend):
    """They are like nothing: all scores are 0."""
    features = torch.zeros(1, 20, 4)
    for empty in (features, features[..., :0]):
        left = thin(backend, empty, torch.arange(20)[None], 6, 8, None)[0].tolist()
        assert left == thinned(torch.eye(20), range(20), 6, 8)[0]


def test_the_length_of_a_vector_does_not_matter(backend):
    features, order = signs(1, 40, 16), shuffled(1, 40)
    scaled = features * torch.linspace(-20, 20, 40).round().exp2()[None, :, None]
    one, two = (thin(backend, x, order, 10, 8, None) for x in (features, scaled))
    assert torch.equal(one, two)


def test_empty_batches(backend):
    for features in (torch.randn(0, 5, 3), torch.randn(2, 0, 3), torch.randn(2, 5, 3)):
        order = torch.zeros(features.shape[0], 0, dtype=torch.int64)
        assert thin(backend, features, order, 0, 8, None).shape == (features.shape[0], 0)


def test_cost():
    """4 images of 50 tokens with 30 channels."""
    with flop_counter.counter() as counted:
        ops.bipartite_thin(torch.randn(4, 50, 30), shuffled(4, 50), 7)
    assert counted.get_total_flops() == 4 * 50 * 50 * 30


def given(**change):
    order = torch.arange(4)[None]
    return {"features": torch.randn(1, 4, 3), "order": order, "count": 2, "step": 8, "mask": None} | change


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"features": torch.randn(4, 3)}, ValueError, r"features must be \(B, N, D\)"),
        ({"features": torch.ones(1, 4, 3, dtype=torch.int64)}, TypeError, "features must be float32"),
        ({"order": torch.arange(4)[None].int()}, TypeError, r"order must be \(1, L\) with L of at most 4 int64"),
        ({"order": torch.arange(4)}, ValueError, r"order must be \(1, L\) with L of at most 4 int64"),
        ({"order": torch.arange(5)[None]}, ValueError, r"order must be \(1, L\) with L of at most 4 int64"),
        ({"order": torch.arange(4).repeat(2, 1)}, ValueError, r"order must be \(1, L\) with L of at most 4 int64"),
        ({"count": 5}, ValueError, r"count must be in \[0, 4\], the length of the list"),
        ({"count": -1}, ValueError, r"count must be in \[0, 4\], the length of the list"),
        ({"order": torch.arange(2)[None], "count": 3}, ValueError, r"count must be in \[0, 2\]"),
        ({"step": 0}, ValueError, "step must be at least 1"),
        ({"mask": torch.ones(2, 4) > 0}, ValueError, r"mask must be \(1, 4\)"),
        ({"mask": torch.ones(1, 4)}, TypeError, r"mask must be \(1, 4\) bool"),
    ],
)
def test_refusals(backend, change, kind, message):
    with pytest.raises(kind, match=rf"ficoco::bipartite_thin: {message}.*; "):
        thin(backend, *given(**change).values())


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("features", {"features": torch.full((1, 4, 3), float("nan"))}),
        ("features", {"features": torch.full((1, 4, 3), float("inf")), "count": 4}),
        ("order", {"order": torch.tensor([[0, 1, 2, 4]])}),
        ("order", {"order": torch.tensor([[0, 1, 2, -1]])}),
        ("count", {"mask": torch.tensor([[True, False, False, False]])}),
    ],
)
def test_values_are_checked_where_reading_is_free(backend, argument, change):
    if not backend.reads_values:
        pytest.skip("reads no values")
    with pytest.raises(ValueError, match=f"ficoco::bipartite_thin: {argument} must be"):
        thin(backend, *given(**change).values())


@needs_kernels
@pytest.mark.parametrize(("n", "count"), [(576, 32), (577, 100), (1000, 499)])
def test_kernels_leave_what_the_specification_leaves(n, count):
    """At the size of a picture: up to 68 rounds, each on the order that the last one made."""
    features, order = signs(2, n, 1024, seed=n), shuffled(2, n)
    mask = torch.rand(2, n) < 0.9
    for hidden in (None, mask):
        found = ops.bipartite_thin(features, order, count, mask=hidden)
        assert torch.equal(found, reference.bipartite_thin(features, order, count, 8, hidden))


@needs_kernels
def test_the_number_of_threads_changes_no_bit():
    code = """
    import torch
    from ficoco_ext import ops
    torch.manual_seed(0)
    features, order = torch.randn(1, 300, 70), torch.randperm(300)[None]
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(ops.bipartite_thin(features, order, 60))
    assert all(torch.equal(found[0], one) for one in found)
    """
    run = [sys.executable, "-c", textwrap.dedent(code)]
    subprocess.run(run, check=True, cwd=PACKAGE.parent, timeout=120)
