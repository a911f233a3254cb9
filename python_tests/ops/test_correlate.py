"""correlate, correlate.map and correlate.key: targets and weights, against the specification in float64."""

from itertools import product

import pytest
import torch
from helpers.backends import BACKENDS, needs_emulation
from helpers.ops import DTYPES, LAYOUTS, SIZES, assert_links, laid, partition, query_key

from ficoco_ext.ops import reference

FORMS = ("logits", "probs", "key", "map3", "map4")


def arguments(form, b, n, r, k, alpha, class_token, *, dtype=torch.float32, layout="contiguous", h=4, hk=2, d=8):
    """Overload and arguments of one call."""
    sources, kept = partition(b, n, r, class_token)
    if form.startswith("map"):
        attn = torch.randn(b, 2, n, n) if form == "map4" else torch.randn(b, n, n)
        attn = laid((attn.abs() if alpha == "ratio" else attn).to(dtype), layout)
        return "correlate.map", (attn, sources, kept, k, alpha, class_token)
    query, key = query_key(b, h, hk, n, d, dtype, layout)
    if form == "key":
        return "correlate.key", (key, sources, kept, k, alpha, class_token)
    return "correlate", (query, key, sources, kept, k, d**-0.5, alpha, class_token, form == "probs")


def allowed(form, alpha):
    return alpha != "ratio" or form not in ("logits", "key")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n", SIZES)
def test_sizes(backend, n, form):
    b, h, hk, d = (1, 2, 1, 8) if n > 2000 else (3, 4, 2, 8)
    fixed = []
    for dtype, class_token in (
        (torch.float32, False),
        (torch.float32, True),
        (torch.float16, True),
        (torch.bfloat16, True),
    ):
        p = n - class_token
        if n > 500 and (dtype != torch.float32 or (n > 600 and not class_token)):
            continue
        for r in {0, min(42, p - 1), p - 1} if n < 100 else {42}:
            if r < 0:
                continue
            for k in {0, min(1, p - r), min(2, p - r), p - r} if n < 2000 else {6}:
                name, args = arguments(form, b, n, r, k, "softmax", class_token, dtype=dtype, h=h, hk=hk, d=d)
                fixed.append(assert_links(name, args, backend(name, *args)))
    if n > 2:
        assert min(fixed) > 0.5  # most targets are fixed by a clear gap


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", FORMS)
def test_layouts(backend, form, layout):
    for dtype, class_token in product(DTYPES, (False, True)):
        for h, hk in ((4, 4), (4, 1)) if form in ("logits", "probs") else ((2, 2),):
            name, args = arguments(
                form, 3, 41, 11, 3, "softmax", class_token, dtype=dtype, layout=layout, h=h, hk=hk, d=6
            )
            assert_links(name, args, backend(name, *args))


@pytest.mark.parametrize("k", [1, 2, 15, 16, 17, 18, 40, 64])
@pytest.mark.parametrize("form", FORMS)
def test_counts_of_targets(backend, form, k):
    """Up to 16 targets are inserted into a list, more are sorted."""
    for alpha in ("softmax", "ratio", "average"):
        if allowed(form, alpha):
            name, args = arguments(form, 2, 90, 25, k, alpha, True)
            assert assert_links(name, args, backend(name, *args)) > 0.9


@pytest.mark.parametrize("r", [1, 7, 8, 9, 16, 17, 23, 24, 25, 47, 48, 49, 72, 73])
@pytest.mark.parametrize("form", ["logits", "probs", "key"])
def test_counts_of_sources(backend, form, r):
    """Sources are cut into panels of 8, 16 and 24."""
    name, args = arguments(form, 2, 80, r, 2, "softmax", True)
    assert assert_links(name, args, backend(name, *args)) > 0.9


@pytest.mark.parametrize("d", [1, 5, 7, 64, 513])
@pytest.mark.parametrize("form", ["logits", "probs", "key"])
def test_widths(backend, form, d):
    for h, hk in ((1, 1), (3, 3), (6, 2)):
        name, args = arguments(form, 2, 67, 20, 2, "softmax", True, h=h, hk=hk, d=d)
        assert_links(name, args, backend(name, *args))


@pytest.mark.parametrize("form", ["logits", "probs", "key"])
def test_width_of_clip(backend, form):
    name, args = arguments(form, 1, 577, 42, 2, "softmax", True, h=16, hk=16, d=64)
    assert assert_links(name, args, backend(name, *args)) > 0.9


@pytest.mark.parametrize("form", ["logits", "probs", "key"])
@pytest.mark.parametrize(("heads", "d"), [(7, 64), (3, 128), (2, 192), (1, 256), (1, 40)])
def test_half_precision_in_many_steps_and_few(backend, form, heads, d):
    """Fewer steps than are on their way at once, as many, and more."""
    name, args = arguments(form, 1, 150, 70, 2, "softmax", True, h=heads, hk=heads, d=d, dtype=torch.bfloat16)
    assert_links(name, args, backend(name, *args))


@pytest.mark.parametrize("k", [1, 3, 16, 17, 30])
@pytest.mark.parametrize("form", FORMS)
def test_equal_correlations_go_by_lowest_index(backend, form, k):
    """All tokens equal: every source goes to the first kept patches, with equal weights."""
    b, n, r = 2, 40, 9
    for alpha, class_token in product(("softmax", "average"), (False, True)):
        name, args = arguments(form, b, n, r, k, alpha, class_token)
        flat = [torch.full_like(arg, 0.25) if arg.is_floating_point() else arg for arg in args if torch.is_tensor(arg)]
        args = (*flat, *args[len(flat) :])
        targets, weights = backend(name, *args)
        assert torch.equal(targets, torch.arange(class_token, k + class_token).expand(b, r, k))
        assert torch.allclose(weights, torch.full((b, r, k), 1 / k))


@pytest.mark.parametrize("k", [1, 4, 17])
def test_some_equal_correlations_go_by_lowest_index(backend, k):
    attn = torch.randint(0, 4, (2, 60, 60)).float()
    sources, kept = partition(2, 60, 20, True)
    got = backend("correlate.map", attn, sources, kept, k, "softmax", True)
    scores = attn.gather(1, sources[..., None].expand(-1, -1, 60)).gather(2, kept[:, None, 1:].expand(-1, 20, -1))
    for b, i in product(range(2), range(20)):
        row = scores[b, i].tolist()
        by_rule = sorted(range(len(row)), key=lambda j: (-row[j], j))[:k]
        assert (got[0][b, i] - 1).tolist() == by_rule


@pytest.mark.parametrize("k", [1, 2, 16, 17, 25])
def test_equal_keys_go_by_lowest_index(backend, k):
    """Few distinct keys: exactly equal correlations within the panels, all by rule."""
    key = torch.randint(-1, 2, (2, 1, 40, 3)).float()
    query = torch.randint(-1, 2, (2, 1, 40, 3)).float()
    sources, kept = partition(2, 40, 10, False)
    got = backend("correlate", query, key, sources, kept, k, 1.0, "average", False, False)
    rows = (query[:, 0] @ key[:, 0].mT).gather(1, sources[..., None].expand(-1, -1, 40))
    rows = rows.gather(2, kept[:, None].expand(-1, 10, -1))
    for b, i in product(range(2), range(10)):
        row = rows[b, i].tolist()
        assert got[0][b, i].tolist() == sorted(range(30), key=lambda j: (-row[j], j))[:k]


@pytest.mark.parametrize("form", FORMS)
def test_zero_tokens(backend, form):
    """Zero keys have no direction; everything is equal and finite."""
    name, args = arguments(form, 1, 20, 5, 2, "softmax", True)
    args = [torch.zeros_like(arg) if torch.is_tensor(arg) and arg.is_floating_point() else arg for arg in args]
    targets, weights = backend(name, *args)
    assert torch.equal(targets, torch.tensor([1, 2]).expand(1, 5, 2))
    assert torch.equal(weights, torch.full((1, 5, 2), 0.5))


def test_ratio_of_nothing_is_even(backend):
    attn = torch.zeros(1, 9, 9)
    sources, kept = partition(1, 9, 3, True)
    _, weights = backend("correlate.map", attn, sources, kept, 4, "ratio", True)
    assert torch.equal(weights, torch.full((1, 3, 4), 0.25))


def test_ratio_refuses_chosen_negatives_only(backend):
    attn = torch.tensor([[[0.0, 3.0, 1.0, -2.0], [0.0] * 4, [0.0] * 4, [0.0] * 4]])
    sources, kept = torch.tensor([[0]]), torch.tensor([[1, 2, 3]])
    _, weights = backend("correlate.map", attn, sources, kept, 2, "ratio", False)
    assert torch.allclose(weights, torch.tensor([[[0.75, 0.25]]]))
    if backend.reads_values:  # reading values elsewhere would synchronise
        with pytest.raises(ValueError, match="ficoco::correlate: attn must be non-negative for alpha='ratio'"):
            backend("correlate.map", attn, sources, kept, 3, "ratio", False)


@pytest.mark.parametrize("k", [1, 3, 17])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_map(backend, dtype, k):
    """Minus infinity is a correlation like any other, the lowest: chosen last, with weight 0."""
    attn = torch.randn(2, 2, 30, 30).to(dtype)
    masked = torch.rand(2, 1, 30, 30) < 0.5
    attn = attn.masked_fill(masked, float("-inf"))
    sources, kept = partition(2, 30, 8, True)
    name, args = "correlate.map", (attn, sources, kept, k, "softmax", True)
    got = backend(name, *args)
    assert_links(name, args, got)
    if k == 17:
        assert (got[1] == 0).any()


@pytest.mark.parametrize("values", [(1, 1, 2), (1, 1, 1, 2, 2, 3), (0, 3, 3, 1, 1, 5, 3), (2, 1, 1, 1, 1, 9)])
def test_equals_move_down_in_order(backend, values):
    """A higher correlation that comes late moves equal ones down; the lowest index must stay the first of them."""
    n = len(values) + 1
    key = torch.tensor([0.0, *values]).view(1, 1, n, 1)
    sources, kept = torch.tensor([[0]]), torch.arange(1, n)[None]
    wanted = sorted(range(n - 1), key=lambda j: (-values[j], j))
    for k in range(1, n):
        targets = backend("correlate", torch.ones(1, 1, n, 1), key, sources, kept, k, 1.0, "softmax", False, False)[0]
        assert targets.tolist() == [[wanted[:k]]]


def spoiled(form, k, place, value):
    """A call in which all correlations with kept patch ``place`` have ``value`` in them."""
    name, args = arguments(form, 1, 60, 9, k, "softmax", True)
    sources_kept = args[2:4] if name == "correlate" else args[1:3]
    patch = sources_kept[1][0, 1 + place]
    if name == "correlate.map":
        args[0][..., patch] = value
    else:
        args[1 if name == "correlate" else 0][0, :, patch] = value
    return name, args


@pytest.mark.parametrize("k", [1, 2, 3, 16, 17])
@pytest.mark.parametrize("form", FORMS)
def test_correlations_must_be_numbers(backend, form, k):
    """Wherever the NaN stands, and however many targets are chosen around it."""
    if not backend.reads_values:
        pytest.skip("reading the correlations would synchronise")
    for place in (0, 1, 5, 40, 49):
        name, args = spoiled(form, k, place, float("nan"))
        with pytest.raises(ValueError, match="ficoco::correlate: correlations must be finite"):
            backend(name, *args)


@pytest.mark.parametrize("k", [1, 2, 17])
def test_correlations_must_not_be_infinite(backend, k):
    if not backend.reads_values:
        pytest.skip("reading the correlations would synchronise")
    for place in (0, 5, 49):
        name, args = spoiled("map3", k, place, float("inf"))
        with pytest.raises(ValueError, match="ficoco::correlate: correlations must be finite"):
            backend(name, *args)


@pytest.mark.parametrize("k", [1, 2, 17])
@pytest.mark.parametrize("alpha", ["softmax", "average"])
def test_a_source_that_may_attend_to_nobody(backend, k, alpha):
    """All of its correlations are masked: an error, not a merge into whoever comes first."""
    if not backend.reads_values:
        pytest.skip("reading the correlations would synchronise")
    name, args = arguments("map4", 2, 30, 8, k, alpha, True)
    args[0][1, :, args[1][1, 3]] = float("-inf")
    with pytest.raises(ValueError, match="ficoco::correlate: correlations must be finite"):
        backend(name, *args)


@pytest.mark.parametrize("k", [2, 17])
@pytest.mark.parametrize("place", [0, 5, 30, 59])
def test_one_source_of_many_without_a_correlation(backend, place, k):
    """Products that overflow, of one source alone, in the first panel or a later one."""
    if not backend.reads_values:
        pytest.skip("reading the correlations would synchronise")
    query, key = torch.ones(1, 1, 90, 1), torch.full((1, 1, 90, 1), 1e20)
    sources, kept = torch.arange(60)[None], torch.arange(60, 90)[None]
    backend("correlate", query, key, sources, kept, k, 1.0, "average", False, False)
    query[0, 0, place] = 1e20
    with pytest.raises(ValueError, match="ficoco::correlate: correlations must be finite"):
        backend("correlate", query, key, sources, kept, k, 1.0, "average", False, False)


@pytest.mark.parametrize("k", [2, 3, 5, 9])
def test_targets_of_minus_infinity(backend, k):
    """Products that overflow come last, in the order of their indices, with weight 0."""
    query, key = torch.full((1, 1, 10, 1), 1e20), torch.full((1, 1, 10, 1), -1e20)
    key[0, 0, [4, 7]] = 0
    args = (query, key, torch.tensor([[0]]), torch.arange(1, 10)[None], k, 1.0, "softmax", False, False)
    targets, weights = backend("correlate", *args)
    assert targets.tolist() == [[[3, 6, 0, 1, 2, 4, 5, 7, 8][:k]]]
    assert weights.tolist() == [[[0.5, 0.5, *[0.0] * 7][:k]]]


@pytest.mark.parametrize("probs", [False, True])
@pytest.mark.parametrize("r", [1, 7, 8, 9, 20, 30])
def test_a_key_of_minus_infinity(backend, r, probs):
    """What no source attends to comes last, however many sources are left for the last vector."""
    query, key = query_key(1, 2, 1, 50, 4)
    query[..., 0], key[:, :, -1, 0] = 1.0, float("-inf")
    sources, kept = torch.arange(1, r + 1)[None], torch.cat([torch.zeros(1), torch.arange(r + 1.0, 50)]).long()[None]
    for k in (2, 49 - r):
        args = (query, key, sources, kept, k, 0.5, "softmax", True, probs)
        assert_links("correlate", args, backend("correlate", *args))


def test_keys_that_are_hardly_there(backend):
    """The bound of 1e-12 is on the length of the mean over heads, not on that of the sum."""
    key = torch.nn.functional.normalize(torch.randn(2, 1, 30, 8), dim=-1).expand(-1, 4, -1, -1) * 0.4e-12
    args = (key, *partition(2, 30, 9, True), 3, "softmax", True)
    assert_links("correlate.key", args, backend("correlate.key", *args))


@pytest.mark.parametrize("magnitude", [1e-10, 1e17, 1e30, 1e38])
def test_keys_of_any_magnitude(backend, magnitude):
    """Squares of the keys, and their length, leave the range of float32, the keys themselves do not."""
    if backend.name != "cpu" and magnitude > 1e18:
        pytest.skip("in float32 the specification takes the length in float32, and so does a GPU")
    key = torch.rand(2, 1, 30, 64) * 3.4 * magnitude
    args = (key, *partition(2, 30, 9, True), 3, "softmax", True)
    assert_links("correlate.key", args, backend("correlate.key", *args))


@pytest.mark.parametrize("form", FORMS)
def test_strided_indices(backend, form):
    name, args = arguments(form, 2, 40, 11, 3, "softmax", True)
    spread = [
        torch.stack([arg, torch.full_like(arg, 10**9)], -1).flatten(-2)[..., ::2]
        if torch.is_tensor(arg) and not arg.is_floating_point()
        else arg
        for arg in args
    ]
    assert all(map(torch.equal, backend(name, *spread), backend(name, *args)))


@pytest.mark.parametrize("form", FORMS)
def test_nothing_to_do(backend, form):
    for b, r, k in ((0, 4, 2), (2, 0, 2), (2, 4, 0), (0, 0, 0)):
        name, args = arguments(form, b, 12, r, k, "softmax", True)
        targets, weights = backend(name, *args)
        assert targets.shape == weights.shape == (b, r, k)
        assert targets.dtype == torch.int64
        assert weights.dtype == torch.float32


@pytest.mark.parametrize("probs", [False, True])
def test_map_of_the_same_layer_agrees(backend, probs):
    name, args = arguments("probs" if probs else "logits", 2, 60, 20, 3, "softmax", True)
    query, key, sources, kept, k, scale, alpha, class_token, _ = args
    attn = reference.attention_map(query.double(), key.double(), scale, probs).float()
    by_key, by_map = backend(name, *args), backend("correlate.map", attn, sources, kept, k, alpha, class_token)
    assert torch.equal(by_key[0], by_map[0])
    assert torch.allclose(by_key[1], by_map[1], atol=1e-5)


@needs_emulation
@pytest.mark.parametrize("form", ["logits", "probs"])
def test_bits_are_those_of_a_device_with_less_shared_memory(form, monkeypatch):
    """Few blocks have more of a row on its way at once, where there is room for it."""
    name, args = arguments(form, 2, 150, 70, 3, "softmax", True, dtype=torch.bfloat16, h=3, hk=3, d=80)
    wanted = BACKENDS["emulated"](name, *args)
    monkeypatch.setenv("CUEMU_SHARED_KB", "100")
    for one, other in zip(BACKENDS["emulated"](name, *args), wanted, strict=True):
        assert torch.equal(one, other)
