"""cosines: against the definition in float64, bits that do not depend on where a pair lies, refusals."""

from __future__ import annotations

import pytest
import torch
from helpers.backends import tolerance
from helpers.ops import DTYPES, LAYOUTS, laid

from ficoco_ext import ops
from ficoco_ext.cost import flop_counter
from ficoco_ext.ops import reference


def wanted(features, things):
    one, other = features.double(), things.double()
    lengths = one.norm(dim=-1).clamp_min(1e-12)[:, :, None] * other.norm(dim=-1).clamp_min(1e-12)[:, None]
    return torch.einsum("bnd,brd->bnr", one, other) / lengths


def check(backend, features, things):
    (found,) = backend("cosines", features, things)
    assert found.dtype == torch.float32 and found.shape == (*features.shape[:2], things.shape[1])
    assert torch.allclose(found.double(), wanted(features, things), rtol=0, atol=tolerance(features.shape[2]))
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "r", "d"), [(1, 1, 1), (3, 70, 21), (70, 3, 33), (65, 131, 64), (24, 25, 300)])
def test_sizes(backend, n, r, d, dtype):
    check(backend, torch.randn(2, n, d).to(dtype), torch.randn(2, r, d).to(dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend, layout):
    check(backend, laid(torch.randn(3, 40, 24), layout), laid(torch.randn(3, 9, 24), "strided"))


def test_lengths_do_not_matter_and_zeros_are_like_nothing(backend):
    features, things = torch.randn(1, 9, 16), torch.randn(1, 5, 16)
    scaled = features * torch.logspace(-6, 6, 9)[None, :, None]
    assert torch.allclose(check(backend, scaled, things), check(backend, features, things), atol=1e-6)
    features[0, 4], things[0, 2] = 0, 0
    found = check(backend, features, things)
    assert not found[0, 4].any() and not found[0, :, 2].any()


def test_equal_vectors_have_equal_cosines(backend):
    """Bit for bit, wherever they lie: rounding does not decide between duplicates."""
    if backend.name == "reference":
        pytest.skip("products of torch round by position")
    for n, d in ((5, 7), (37, 100), (70, 193)):
        features, things = torch.randn(1, n, d), torch.randn(1, 11, d)
        (found,) = backend("cosines", features.repeat(1, 3, 1), things.repeat(1, 7, 1))
        assert torch.equal(found, backend("cosines", features, things)[0].repeat(1, 3, 7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cosines_with_each_other_are_the_same_both_ways(backend, dtype):
    """Bit for bit, also between the first and the third 64 tokens, which are copies."""
    if backend.name == "reference":
        pytest.skip("products of torch round by position")
    a, b = torch.randn(2, 64, 64)
    features = torch.cat([a, b, a])[None].to(dtype)
    (found,) = backend("cosines", features, features)
    assert torch.equal(found, found.mT)
    assert torch.equal(found[:, :64], found[:, 128:])


def test_a_batch_is_its_rows(backend):
    features, things = torch.randn(7, 26, 12), torch.randn(7, 9, 12)
    (together,) = backend("cosines", features, things)
    for i in range(7):
        (alone,) = backend("cosines", features[i : i + 1], things[i : i + 1])
        assert torch.allclose(alone, together[i : i + 1], atol=1e-6)
        assert backend.name == "reference" or torch.equal(alone, together[i : i + 1])


def test_what_is_not_finite_stays_among_itself(backend):
    features, things = torch.randn(1, 5, 8), torch.randn(1, 4, 8)
    features[0, 2, 3] = float("nan")
    (found,) = backend("cosines", features, things)
    assert bool(found[0, 2].isnan().all()) and bool(found[0, [0, 1, 3, 4]].isfinite().all())


def test_nothing(backend):
    for b, n, r, d in ((0, 5, 2, 3), (2, 0, 2, 3), (2, 5, 0, 3)):
        assert backend("cosines", torch.randn(b, n, d), torch.randn(b, r, d))[0].shape == (b, n, r)
    assert not backend("cosines", torch.randn(2, 5, 0), torch.randn(2, 3, 0))[0].any()


@pytest.mark.parametrize("name", ["cosines", "greedy_select"])
def test_autocast_does_not_apply(name):
    """Neither to the kernels nor to the specification, which is what runs where there are none."""
    features = torch.randn(2, 40, 100)
    args = (features, features) if name == "cosines" else (features, 20, "max-min", None, None, 0.5)
    for run in (getattr(reference, name), getattr(torch.ops.ficoco, name)):
        alone = run(*args)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = run(*args)
        assert torch.equal(cast, alone) if name == "cosines" else all(map(torch.equal, cast, alone))


def test_cost():
    with flop_counter.counter() as counted:
        ops.cosines(torch.randn(4, 50, 30), torch.randn(4, 7, 30))
    assert counted.get_total_flops() == 2 * 4 * 50 * 7 * 30


BAD = [
    ("features", {"features": torch.randn(4, 3)}, ValueError, r"features must be \(B, N, D\)"),
    ("features dtype", {"features": torch.ones(1, 4, 3, dtype=torch.int64)}, TypeError, "features must be float32"),
    ("things", {"things": torch.randn(1, 2, 4)}, ValueError, r"things must be \(1, R, 3\)"),
    ("batch", {"things": torch.randn(2, 2, 3)}, ValueError, r"things must be \(1, R, 3\)"),
    ("dtype", {"things": torch.randn(1, 2, 3).half()}, TypeError, "things must be .* like features"),
]


@pytest.mark.parametrize(("change", "kind", "message"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
def test_refusals(backend, change, kind, message):
    given = {"features": torch.randn(1, 4, 3), "things": torch.randn(1, 2, 3)} | change
    with pytest.raises(kind, match=rf"ficoco::cosines: {message}.*; "):
        backend("cosines", *given.values())
