"""attention_stats from query and key and from a map, against the specification in float64."""

from itertools import product

import pytest
import torch
from helpers.backends import BACKENDS, needs_emulation
from helpers.ops import DTYPES, LAYOUTS, SIZES, assert_close, laid, oracle, query_key

from ficoco_ext.ops import reference

FLAGS = list(product((False, True), (False, True), (True, False)))  # probs, column, patches


def check(backend, query, key, scale, class_token, flags=FLAGS):
    h, n, d = query.shape[1:]
    for probs, column, patches in flags:
        args = (query, key, scale, class_token, probs, column, patches)
        got, wanted = backend("attention_stats", *args), oracle("attention_stats", *args)
        for one, other in zip(got, wanted, strict=True):
            assert one.dtype == torch.float32
            assert one.shape == (query.shape[0], n - class_token)
            assert_close(one, other, max(h * d, n))
        if not patches:
            assert torch.equal(got[1], torch.zeros_like(got[1]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", SIZES)
def test_sizes(backend, n, dtype):
    b, h, hk, d = (1, 2, 1, 8) if n > 2000 else (3, 2, 1, 8) if n > 100 else (3, 4, 2, 16)
    query, key = query_key(b, h, hk, n, d, dtype)
    if n < 100:
        for class_token in (False, True):
            if n > class_token:
                check(backend, query, key, d**-0.5, class_token)
        return
    check(backend, query, key, d**-0.5, True, [(False, False, True), (False, True, True)])
    query, key = query[:1], key[:1]  # N^2 work in the oracle
    check(backend, query, key, d**-0.5, True, [(True, True, True)])
    if dtype == torch.float32:  # half precision differs in how rows are read, not in how they are summed
        check(backend, query, key, d**-0.5, True, [(True, False, True), (True, True, False)])
        check(backend, query, key, d**-0.5, False, [(False, False, True), (True, True, True)])


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts_and_grouped_heads(backend, dtype, layout, class_token):
    for h, hk in ((4, 4), (4, 2), (1, 1)):
        query, key = query_key(3, h, hk, 37, 12, dtype, layout)
        check(backend, query, key, 0.3, class_token)


@pytest.mark.parametrize("d", [1, 5, 7, 9, 80])
@pytest.mark.parametrize("h", [1, 3])
def test_odd_widths(backend, h, d):
    query, key = query_key(2, h, h, 26, d)
    check(backend, query, key, d**-0.5, True)
    check(backend, query, key, d**-0.5, False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("d", [64, 128, 130, 192, 256])
def test_several_steps_either_way(backend, d, dtype):
    """Tokens and channels beyond the tiles of a kernel, where one side of a product stays and where it does not."""
    query, key = query_key(1, 2, 1, 140, d, dtype)
    check(backend, query, key, d**-0.5, True, [(True, False, True), (True, True, True)])


def test_products_of_minus_infinity(backend):
    """Whole stretches of keys that a query gives nothing, as no token of a masked map would."""
    query, key = query_key(1, 1, 1, 150, 8)
    query[..., 0], key[..., 0] = 1e30, 0.0
    key[:, :, 1:100, 0] = -1e30
    args = (query, key, 1.0, True, True, False, True)
    got, wanted = backend("attention_stats", *args), reference.attention_stats(*args)
    for one, other in zip(got, wanted, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("class_token", [False, True])
def test_width_of_clip(backend, layout, class_token):
    """H d = 1024; heads that lie side by side in memory take another path."""
    query, key = query_key(1, 16, 16, 577, 64, layout=layout)
    check(backend, query, key, 64**-0.5, class_token, [(False, False, True), (True, True, True)])


def test_query_and_key_in_different_layouts(backend):
    for first, second in product(LAYOUTS[:5], LAYOUTS[:5]):
        query, key = query_key(2, 3, 3, 9, 4)
        check(backend, laid(query, first), laid(key, second), 0.5, True, [(False, False, True), (True, True, True)])


@pytest.mark.parametrize("scale", [0.0, -0.7, 3.0, 40.0])
def test_scale(backend, scale):
    """Also sharp attention, whose small probabilities underflow."""
    query, key = query_key(2, 2, 2, 30, 8)
    check(backend, query, key, scale, True)


def test_exponentials_of_any_size(backend):
    """Each probability alone, not beside the largest: down to where float32 ends, and 0 from there on."""
    values = torch.cat([torch.zeros(1), torch.linspace(-110, 0, 300)]).view(1, 1, -1, 1)
    args = (torch.ones_like(values), values, 1.0, True, True, False, False)
    got, wanted = backend("attention_stats", *args)[0].double(), oracle("attention_stats", *args)[0]
    rtol = 5e-7 if backend.name == "cpu" else 2e-5
    torch.testing.assert_close(got, wanted, rtol=rtol, atol=2e-38)


def test_products_that_are_all_very_negative(backend):
    query, key = torch.ones(2, 2, 30, 4), torch.randint(-4, 1, (2, 2, 30, 4)) - 250.0
    check(backend, query, key, 1.0, True)
    check(backend, query, key, 1.0, False)


@pytest.mark.parametrize("n", [8, 10, 17, 25, 30, 49])
def test_keys_of_minus_infinity(backend, n):
    """What no query attends to has probability 0, however many queries are left for the last vector."""
    query, key = query_key(2, 2, 2, n, 4)
    query[..., 0], key[:, :, [3, n - 1], 0] = 1.0, float("-inf")
    for class_token in (False, True):
        for column in (False, True):
            args = (query, key, 0.5, class_token, True, column, True)
            got, wanted = backend("attention_stats", *args)[1], oracle("attention_stats", *args)[1]
            assert wanted.isfinite().all()
            assert_close(got, wanted, n)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_class_tokens_query_is_no_patchs(backend, value):
    query, key = query_key(2, 2, 2, 21, 4)
    query[:, :, 0, 2] = value
    for column in (False, True):
        args = (query, key, 0.5, True, True, column, True)
        got, wanted = backend("attention_stats", *args), oracle("attention_stats", *args)
        assert wanted[1].isfinite().all()
        assert_close(got[1], wanted[1], 21)
        assert not got[0].isfinite().any()


@pytest.mark.parametrize("magnitude", [1e-13, 1e-12, 1e-10, 1e17, 1e30, 1e36])
def test_cosines_of_keys_of_any_magnitude(backend, magnitude):
    """Products of the keys leave the range of float32, the keys do not; the bound of 1e-12 is on the mean's length."""
    if backend.name != "cpu" and magnitude > 1e18:
        pytest.skip("in float32 the specification takes products in float32, and so does a GPU")
    key = (torch.randn(2, 1, 30, 8) + 1).expand(-1, 4, -1, -1) * magnitude * 0.2
    args = (torch.zeros_like(key), key, 1.0, False, False, False, True)
    assert_close(backend("attention_stats", *args)[0], oracle("attention_stats", *args)[0], 30)


def test_channels_that_are_one_number(backend):
    """Stride 0 within a row."""
    query, key = (torch.randn(2, 2, 20, 1).expand(-1, -1, -1, 8) for _ in range(2))
    check(backend, query, key, 0.3, True)
    check_map(backend, torch.randn(2, 2, 20, 1).expand(-1, -1, -1, 20), True)


@pytest.mark.parametrize("n", [1, 7, 64, 65, 129])
def test_flat_and_empty_tokens(backend, n):
    """All tokens equal: the softmax is flat; zero keys have no direction: their cosine is 0."""
    same = torch.full((2, 2, n, 4), 0.5)
    if n > 1:
        class_attention, patch_attention = backend("attention_stats", same, same, 0.5, True, True, False, True)
        assert torch.allclose(class_attention, torch.full((2, n - 1), 1 / n))
        assert torch.allclose(patch_attention, torch.full((2, n - 1), 1 / n))
    cosine, _ = backend("attention_stats", same, same, 0.5, False, False, False, True)
    assert torch.allclose(cosine, torch.full((2, n), -1.0))
    for probs, column in product((False, True), repeat=2):
        results = backend("attention_stats", same, torch.zeros_like(same), 0.5, False, probs, column, True)
        assert torch.equal(results[0], torch.zeros(2, n))
        assert torch.allclose(results[1], torch.full((2, n), 1 / n if probs else 0.0))


def test_no_items(backend):
    for class_token, probs, column, patches in product((False, True), repeat=4):
        query, key = query_key(0, 2, 2, 9, 4)
        results = backend("attention_stats", query, key, 0.5, class_token, probs, column, patches)
        assert [tuple(result.shape) for result in results] == [(0, 9 - class_token)] * 2
        results = backend("attention_stats.map", torch.zeros(0, 2, 9, 9), class_token, column, patches)
        assert [tuple(result.shape) for result in results] == [(0, 9 - class_token)] * 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("probs", [False, True])
def test_not_a_number_is_passed_on(backend, probs, value):
    """filter is the one that refuses; until there NaN and infinity must not be lost."""
    query, key = query_key(1, 2, 2, 12, 4)
    query[0, 0, 5, 1] = value
    args = (query, key, 0.5, True, probs, False, True)
    got, wanted = backend("attention_stats", *args), oracle("attention_stats", *args)
    assert torch.equal(got[1].isfinite(), wanted[1].isfinite())
    assert not got[1][0, 4].isfinite()
    assert got[1][0, :4].isfinite().all()


def check_map(backend, attn, class_token):
    n = attn.shape[-1]
    for column, patches in product((False, True), (True, False)):
        got = backend("attention_stats.map", attn, class_token, column, patches)
        wanted = oracle("attention_stats.map", attn, class_token, column, patches)
        for one, other in zip(got, wanted, strict=True):
            assert one.dtype == torch.float32
            assert_close(one, other, n * (attn.shape[1] if attn.dim() == 4 else 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", SIZES)
def test_map_sizes(backend, n, dtype):
    shape = (1, n, n) if n > 2000 else (3, 2, n, n) if n < 500 else (1, 2, n, n)
    attn = (torch.randn(shape) + 1).to(dtype)
    for class_token in (True,) if n > 2000 else (False, True):
        if n > class_token:
            check_map(backend, attn, class_token)


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_map_layouts(backend, dtype, layout, class_token):
    check_map(backend, laid(torch.randn(3, 2, 19, 19).to(dtype), layout), class_token)
    check_map(backend, laid(torch.randn(3, 67, 67).to(dtype), layout), class_token)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_map(backend, dtype):
    """Minus infinity, as a mask puts it into logits, gives minus infinity where it is read and nowhere else."""
    attn = torch.randn(2, 2, 20, 20).to(dtype)
    attn[0, :, 3, 7] = float("-inf")
    for column in (False, True):
        _, patch_attention = backend("attention_stats.map", attn, True, column, True)
        wanted = torch.zeros(2, 19, dtype=torch.bool)
        wanted[0, 6 if column else 2] = True
        assert torch.equal(patch_attention == float("-inf"), wanted)
    check_map(backend, attn, True)
    check_map(backend, attn, False)


@pytest.mark.parametrize("probs", [False, True])
def test_map_of_the_same_layer_agrees(backend, probs):
    query, key = query_key(2, 4, 2, 50, 16)
    attn = reference.attention_map(query.double(), key.double(), 0.25, probs).float()
    for column in (False, True):
        by_key = backend("attention_stats", query, key, 0.25, True, probs, column, True)
        by_map = backend("attention_stats.map", attn, True, column, True)
        for one, other in zip(by_key, by_map, strict=True):
            assert_close(one, other.double(), 64)


@needs_emulation
@pytest.mark.parametrize("scale", [0.3, -0.3, 0.0])
@pytest.mark.parametrize("d", [8, 64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_bits_are_those_of_a_batch_whose_blocks_have_more_rows(dtype, d, scale):
    """Where there are many rows a block has 128 of them, else 64."""
    query, key = query_key(5, 52, 26, 130, d, dtype)
    together = BACKENDS["emulated"]("attention_stats", query, key, scale, True, True, False, True)
    args = (query[4:], key[4:], scale, True, True, False, True)
    for one, other in zip(BACKENDS["emulated"]("attention_stats", *args), together, strict=True):
        assert torch.equal(one, other[4:])
    check(BACKENDS["emulated"], query[4:], key[4:], scale, True, [(True, False, True)])
