"""greedy_select: every pick against the definition of its objective in float64, ties, masks, prefixes, refusals."""

from __future__ import annotations

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

OBJECTIVES = ("max-min", "coverage", "log-det", "mmr")


def similarity(features):
    """(N, N) cosines in float64; above 0.99999 they are 1."""
    x = features.double()
    x = x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    s = x @ x.mT
    return s.masked_fill(s > 0.99999, 1.0)


def determinant(kernel, chosen):
    return float(torch.linalg.det(kernel[chosen][:, chosen])) if chosen else 1.0


def gain(objective, s, a, real, trade, chosen, j):
    """What j adds to the tokens ``chosen``, written out from the definition."""
    if objective == "max-min":
        others = chosen or [i for i in real if i != j]
        return float(a[j]) * min((1 - float(s[i, j]) for i in others), default=2.0)
    if objective == "coverage":
        held = [max([0.0, *(float(s[i, c]) for c in chosen)]) for i in real]
        return float(a[j]) * sum(max(0.0, float(s[i, j]) - m) for i, m in zip(real, held, strict=True))
    if objective == "log-det":
        kernel = a[:, None] * s * a[None, :]
        return determinant(kernel, [*chosen, j]) / determinant(kernel, chosen)
    nearest = max((float(s[c, j]) for c in chosen), default=0.0)
    return trade * float(a[j]) - (1 - trade) * nearest


def check(backend, features, count, objective, saliency=None, mask=None, trade=0.5):
    """Every pick has the largest gain that float32 can tell, and its gain is reported."""
    order, gains = backend("greedy_select", features, count, objective, saliency, mask, trade)
    b, n, d = features.shape
    assert order.dtype == torch.int64 and gains.dtype == torch.float32
    assert order.shape == gains.shape == (b, count)
    slack = 8 * tolerance(max(d, n))
    for i in range(b):
        s = similarity(features[i])
        a = torch.ones(n, dtype=torch.float64) if saliency is None else saliency[i].double()
        real = [j for j in range(n) if mask is None or mask[i, j]]
        chosen: list[int] = []
        for step, picked in enumerate(order[i].tolist()):
            assert picked in real and picked not in chosen
            values = {j: gain(objective, s, a, real, trade, chosen, j) for j in real if j not in chosen}
            rank = {j: float(a[j]) for j in values} if objective == "mmr" and not chosen else values
            scale = max(1.0, *(abs(value) for value in values.values()))
            assert rank[picked] >= max(rank.values()) - slack * scale, (step, picked, rank)
            assert abs(float(gains[i, step]) - values[picked]) <= slack * scale
            chosen.append(picked)
    return order


def salient(b, n):
    return torch.rand(b, n) + 0.1


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 2, 3, 33, 70])
def test_sizes(backend, n, dtype, objective):
    """From no pick to few; more dimensions than picks, so that no determinant vanishes."""
    saliency = salient(2, n)
    for count in sorted({0, 1, min(n, 9)}):
        check(backend, torch.randn(2, n, 21).to(dtype), count, objective, saliency)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend, layout, objective):
    features = laid(torch.randn(3, 40, 24), layout)
    check(backend, features, 6, objective, laid(salient(3, 40), "strided"))


@pytest.mark.parametrize("objective", ["max-min", "coverage", "log-det"])
def test_without_saliency_all_count_alike(backend, objective):
    features = torch.randn(2, 50, 19)
    order = check(backend, features, 12, objective)
    one = backend("greedy_select", features, 12, objective, torch.full((2, 50), 1.0), None, 0.5)[0]
    assert torch.equal(order, one)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_equal_to_brute_force_in_float64(objective):
    """The order itself, on 50 random inputs of float64, where no rounding decides."""
    for _ in range(50):
        n, d = int(torch.randint(2, 15, ())), int(torch.randint(15, 30, ()))
        features, saliency = torch.randn(1, n, d, dtype=torch.float64), salient(1, n).double()
        found = ops.greedy_select(features, n, objective=objective, saliency=saliency, trade=0.3).order[0].tolist()
        s, chosen = similarity(features[0]), []
        for _ in range(n):
            rest = [j for j in range(n) if j not in chosen]
            values = {j: gain(objective, s, saliency[0], range(n), 0.3, chosen, j) for j in rest}
            ranks = {j: float(saliency[0, j]) for j in rest} if objective == "mmr" and not chosen else values
            best = max(ranks.values())
            chosen.append(min(j for j in rest if ranks[j] >= best - 1e-11))  # two that gain by each other tie on paper
        assert found == chosen


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_smaller_count_is_the_first_part(backend, objective):
    features, saliency = torch.randn(2, 60, 40), salient(2, 60)
    whole = backend("greedy_select", features, 30, objective, saliency, None, 0.5)
    for count in (1, 7, 29):
        part = backend("greedy_select", features, count, objective, saliency, None, 0.5)
        assert all(torch.equal(a, b[:, :count]) for a, b in zip(part, whole, strict=True))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_whole_is_a_permutation(backend, objective):
    order = backend("greedy_select", torch.randn(2, 45, 6), 45, objective, salient(2, 45), None, 0.5)[0]
    assert torch.equal(order.sort(1).values, torch.arange(45).expand(2, 45))


@pytest.mark.parametrize("padding", ["NaN", "numbers"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_masked_token_is_not_there(backend, objective, padding):
    """Picks are those of the rows without the masked tokens, whatever these hold."""
    features, saliency = torch.randn(3, 37, 16), salient(3, 37)
    mask = torch.rand(3, 37) < 0.6
    if padding == "NaN":
        features[~mask], saliency[~mask] = float("nan"), -1.0
    count = min(8, int(mask.sum(1).min()))
    order, gains = backend("greedy_select", features, count, objective, saliency, mask, 0.5)
    for i in range(3):
        real = mask[i].nonzero().squeeze(1)
        alone = backend(
            "greedy_select", features[i : i + 1, real], count, objective, saliency[i : i + 1, real], None, 0.5
        )
        assert torch.equal(real[alone[0][0]], order[i])
        same = torch.allclose if backend.name == "reference" else torch.equal  # sums of torch round by length
        assert same(alone[1][0], gains[i])


def repeated(dtype):
    """64 tokens, 64 others, and the first ones once more: on a GPU copies then are in different tiles."""
    a, b = torch.randn(2, 64, 64)
    return torch.cat([a, b, a])[None].to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_copy_is_picked_before_its_first_one(backend, objective, dtype):
    saliency = torch.ones(1, 192) if objective == "mmr" else None
    for _ in range(3):
        features = repeated(torch.float64 if backend.name == "reference" else dtype)
        order = backend("greedy_select", features, 100, objective, saliency, None, 0.5)[0]
        assert int(order.max()) < 128


def test_copies_tie_in_float64():
    """Products of torch round copies differently by their position."""
    for objective in OBJECTIVES:
        for _ in range(10):
            kind = torch.randint(0, 12, (40,))
            first = [int((kind == k).nonzero()[0]) for k in kind]
            features = torch.randn(1, 12, 32, dtype=torch.float64)[:, kind]
            order = reference.greedy_select(features, 12, objective, torch.ones(1, 40), None, 0.5)[0][0].tolist()
            assert all(first[j] == j or first[j] in order[:step] for step, j in enumerate(order))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("n", [8, 39, 222])
def test_equal_tokens_are_picked_in_order(backend, n, objective):
    features = torch.randn(1, 1, 33).expand(1, n, 33)
    order = backend("greedy_select", features, 5, objective, torch.ones(1, n), None, 0.5)[0]
    assert order.tolist() == [[0, 1, 2, 3, 4]]


def test_near_tokens_are_not_equal(backend):
    """A cosine of 0.9998 is not 1."""
    features = torch.tensor([[[1.0, 0.0, 0.0], [1.0, 0.02, 0.0], [0.0, 0.0, 1.0]]])
    gains = backend("greedy_select", features, 3, "coverage", None, None, 0.5)[1]
    assert abs(float(gains[0, 2]) - 2e-4) < 1e-6


def test_nearly_equal_tokens_are_equal(backend):
    """A cosine of 0.999996 is 1: the second of two such tokens adds nothing."""
    features = torch.tensor([[[1.0, 0.0, 0.0], [1.0, 0.0028, 0.0], [0.0, 1.0, 0.0]]])
    for objective in ("max-min", "coverage", "log-det"):
        order, gains = backend("greedy_select", features, 3, objective, torch.ones(1, 3), None, 0.5)
        assert order[0, 2] != 2 and float(gains[0, 2]) <= 0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_batch_is_its_rows(backend, objective):
    features, saliency = torch.randn(7, 26, 12), salient(7, 26)
    together = backend("greedy_select", features, 9, objective, saliency, None, 0.5)
    for i in range(7):
        alone = backend("greedy_select", features[i : i + 1], 9, objective, saliency[i : i + 1], None, 0.5)
        assert all(torch.equal(a, b[i : i + 1]) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("objective", ["max-min", "coverage", "log-det"])
def test_duplicates_come_last(backend, objective):
    """A token that repeats a picked one adds nothing: one of each kind comes first."""
    kinds = torch.eye(8)[:5] * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])[:, None]  # lengths do not matter
    features = kinds.repeat(4, 1)[None]
    order = backend("greedy_select", features, 20, objective, None, None, 0.5)[0][0]
    assert sorted((order[:5] % 5).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_ties_take_the_lowest_index(backend, objective):
    """Orthogonal features all add the same."""
    order, gains = backend("greedy_select", torch.eye(12)[None] * 3, 12, objective, torch.ones(1, 12), None, 0.5)
    assert torch.equal(order[0], torch.arange(12))
    assert torch.allclose(gains, torch.full((1, 12), 0.5 if objective == "mmr" else 1.0))


def test_equal_vectors_of_any_length_tie(backend):
    """Their cosines with themselves are 1, not what rounding makes of them."""
    features = torch.diag_embed(torch.rand(1, 40) + 0.1) @ torch.linalg.qr(torch.randn(40, 40))[0]
    assert backend("greedy_select", features, 1, "log-det", None, None, 0.5)[0].tolist() == [[0]]


def test_the_first_of_mmr_is_the_most_salient_even_if_saliency_weighs_nothing(backend):
    saliency = torch.tensor([[0.1, 0.2, 0.9, 0.3]])
    order, gains = backend("greedy_select", torch.eye(4)[None], 2, "mmr", saliency, None, 0.0)
    assert order.tolist() == [[2, 0]] and gains.tolist() == [[0.0, 0.0]]


def test_cost():
    """4 images of 50 tokens with 30 channels, 7 of them picked."""
    features, saliency = torch.randn(4, 50, 30), torch.rand(4, 50)
    picks = {"max-min": 2 * 50 * 7, "coverage": 2 * 50 * 50, "log-det": 50 * 7 * 7, "mmr": 2 * 50 * 7}
    for objective, more in picks.items():
        with flop_counter.counter() as counted:
            ops.greedy_select(features, 7, objective=objective, saliency=saliency)
        assert counted.get_total_flops() == 4 * (50 * 50 * 30 + more)


def test_two_clusters_two_picks(backend):
    """Coverage takes one of each; saliency says which."""
    near = torch.randn(2, 1, 16) + 0.01 * torch.randn(2, 10, 16)
    features, saliency = near.reshape(1, 20, 16), torch.ones(1, 20)
    saliency[0, 4] = saliency[0, 17] = 1.05
    assert sorted(backend("greedy_select", features, 2, "coverage", saliency, None, 0.5)[0][0].tolist()) == [4, 17]


def test_when_nothing_is_left_to_add_saliency_decides(backend):
    """Features of rank 3: the determinant vanishes after three picks, and the rest goes by saliency."""
    features, saliency = torch.randn(1, 20, 3), salient(1, 20)
    order = backend("greedy_select", features, 20, "log-det", saliency, None, 0.5)[0][0].tolist()
    rest = [j for j in saliency[0].argsort(descending=True, stable=True).tolist() if j not in order[:3]]
    assert order[3:] == rest


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_zero_vectors_and_no_channels(backend, objective):
    features = torch.randn(1, 9, 5)
    features[0, [1, 4]] = 0
    order = check(backend, features, 4, objective, salient(1, 9)) if objective != "log-det" else None
    assert order is None or order.shape == (1, 4)
    for empty in (features * 0, features[..., :0]):
        order, gains = backend("greedy_select", empty, 9, objective, torch.ones(1, 9), None, 0.5)
        assert torch.equal(order[0], torch.arange(9)) and bool(gains.isfinite().all())


@pytest.mark.parametrize("objective", ["coverage", "log-det"])
def test_no_saliency_at_all_takes_the_first(backend, objective):
    order, gains = backend("greedy_select", torch.randn(1, 9, 5), 4, objective, torch.zeros(1, 9), None, 0.5)
    assert torch.equal(order[0], torch.arange(4)) and not gains.any()


def test_empty_batches(backend):
    for features in (torch.randn(0, 5, 3), torch.randn(2, 0, 3)):
        order, gains = backend("greedy_select", features, 0, "max-min", None, None, 0.5)
        assert order.shape == gains.shape == (features.shape[0], 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_channels(backend, dtype):
    check(backend, torch.randn(1, 20, 1000).to(dtype), 6, "coverage", salient(1, 20))
    check(backend, torch.randn(1, 20, 131).to(dtype), 6, "max-min")


def test_scale_of_a_vector_does_not_matter(backend):
    features = torch.randn(1, 30, 16)
    scaled = features * torch.logspace(-6, 6, 30)[None, :, None]
    for objective in ("max-min", "coverage"):
        one, two = (backend("greedy_select", x, 10, objective, None, None, 0.5) for x in (features, scaled))
        assert torch.equal(one[0], two[0])


BAD = [
    ("features", lambda a: a | {"features": torch.randn(4, 3)}, ValueError, r"features must be \(B, N, D\)"),
    (
        "dtype",
        lambda a: a | {"features": torch.ones(1, 4, 3, dtype=torch.int64)},
        TypeError,
        "features must be float32",
    ),
    ("objective", lambda a: a | {"objective": "max"}, ValueError, "objective must be one of max-min, coverage"),
    ("count", lambda a: a | {"count": 5}, ValueError, r"count must be in \[0, 4\]"),
    ("negative", lambda a: a | {"count": -1}, ValueError, r"count must be in \[0, 4\]"),
    ("trade", lambda a: a | {"trade": 1.5}, ValueError, r"trade must be in \[0, 1\]"),
    ("mmr", lambda a: a | {"objective": "mmr"}, ValueError, r"saliency must be \(1, 4\) for mmr, got None"),
    ("saliency", lambda a: a | {"saliency": torch.ones(1, 3)}, ValueError, r"saliency must be \(1, 4\)"),
    ("mask", lambda a: a | {"mask": torch.ones(2, 4) > 0}, ValueError, r"mask must be \(1, 4\)"),
    ("mask dtype", lambda a: a | {"mask": torch.ones(1, 4)}, TypeError, r"mask must be \(1, 4\) bool"),
]


@pytest.mark.parametrize(("change", "kind", "message"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
def test_refusals(backend, change, kind, message):
    given = {"features": torch.randn(1, 4, 3), "count": 2, "objective": "max-min", "saliency": None, "mask": None}
    with pytest.raises(kind, match=rf"ficoco::greedy_select: {message}.*; "):
        backend("greedy_select", *change(given | {"trade": 0.5}).values())


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("features", {"features": torch.full((1, 4, 3), float("nan"))}),
        ("saliency", {"saliency": torch.tensor([[1.0, -1.0, 1.0, 1.0]])}),
        ("saliency", {"saliency": torch.tensor([[1.0, float("inf"), 1.0, 1.0]])}),
        ("count", {"mask": torch.tensor([[True, False, False, False]])}),
    ],
)
def test_values_are_checked_where_reading_is_free(backend, argument, change):
    if not backend.reads_values:
        pytest.skip("reads no values")
    given = {"features": torch.randn(1, 4, 3), "count": 2, "objective": "coverage", "saliency": None, "mask": None}
    with pytest.raises(ValueError, match=f"ficoco::greedy_select: {argument} must be"):
        backend("greedy_select", *(given | change | {"trade": 0.5}).values())


@needs_kernels
@pytest.mark.parametrize("objective", ["coverage", "max-min"])
def test_kernels_pick_as_the_specification_does(objective):
    """At the size of a picture, where coverage computes a small part of the gains."""
    features, saliency = torch.randn(2, 576, 96), salient(2, 576)
    found = ops.greedy_select(features, 144, objective=objective, saliency=saliency)
    wanted = reference.greedy_select(features.double(), 144, objective, saliency.double(), None, 0.5)
    assert torch.equal(found.order, wanted[0])
    assert torch.allclose(found.gains.double(), wanted[1], atol=1e-4)


@needs_kernels
def test_the_number_of_threads_changes_no_bit():
    code = """
    import torch
    from ficoco_ext import ops
    torch.manual_seed(0)
    features, saliency = torch.randn(1, 200, 70), torch.rand(1, 200)
    found = {}
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for objective in ("max-min", "coverage", "log-det", "mmr"):
            got = ops.greedy_select(features, 60, objective=objective, saliency=saliency)
            first = found.setdefault(objective, got)
            assert all(torch.equal(a, b) for a, b in zip(first, got)), (objective, threads)
    """
    run = [sys.executable, "-c", textwrap.dedent(code)]
    subprocess.run(run, check=True, cwd=PACKAGE.parent, timeout=120)
