"""Methods inside a language model at their limits: padding that is NaN, autocast, and r that leaves no token."""

from __future__ import annotations

import pytest
import torch
from helpers.scores import LENGTH, VISUAL, B, N, padded, sequence

from ficoco_ext import METHODS, QueryKey, get_method, reduce
from ficoco_ext.stages import DecoderFilter, DualFilter, LastTokenFilter, Layout, PivotFilter, StrongestHeadFilter
from ficoco_ext.stages.raters import TextRaters
from ficoco_ext.stages.recycle import Recycle

METHODS_INSIDE = {
    "fastv": get_method("fastv"),
    "ficoco-l": get_method("ficoco-l"),
    "ficoco-l of probabilities": get_method("ficoco-l", attention="probs"),
    "sparsevlm": get_method("sparsevlm"),
    "sparsevlm 2.0": get_method("sparsevlm", version="2.0"),
    "fitprune": get_method("fitprune"),
    "dart": get_method("dart", part="language_model"),
    "mustdrop": get_method("mustdrop", part="language_model", keys=0),
}
FILTERS = {
    "logits": DecoderFilter(),
    "last": LastTokenFilter(),
    "pivots": PivotFilter(),
    "raters": TextRaters(),
    "recycled": Recycle(TextRaters()),
    "strongest": StrongestHeadFilter(),
    "dual": DualFilter(keys=0),
}
every = pytest.mark.parametrize("name", METHODS_INSIDE)


def layout_of(tokens, real=None):
    columns = torch.arange(VISUAL[0], sum(VISUAL)).expand(tokens.shape[0], -1)
    return Layout.of(columns, tokens.shape[1], real)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "sides", [{"left": (0, 0), "right": (3, 16)}, {"left": (5, 9), "right": (0, 0)}, {"left": (2, 0), "right": (1, 7)}]
)
def test_padding_may_be_nan(name, dtype, sides):
    """In tokens, query and key; on either side; also in place of all text: each row gives what it gives alone."""
    tokens, attn = sequence(seed=31, dtype=dtype)
    real = padded(**sides)
    hidden = [torch.where(real[:, None, :, None], one, torch.nan) for one in (attn.query, attn.key)]
    method, r = METHODS_INSIDE[name], 8
    whole = reduce(
        torch.where(real[..., None], tokens, torch.nan),
        QueryKey(*hidden),
        r,
        method=method,
        visual=VISUAL,
        mask=real,
        return_reduction=True,
    )
    for row in range(B):
        first, last = sides["left"][row], N - sides["right"][row]
        own = QueryKey(*(one[row : row + 1, :, first:last] for one in attn[:2]))
        where = (VISUAL[0] - first, LENGTH)
        alone = reduce(tokens[row : row + 1, first:last], own, r, method=method, visual=where, return_reduction=True)
        assert torch.equal(whole.sources[row], alone.sources[0] + first)
        merged = whole.tokens[row, first : last - r]
        assert torch.allclose(merged.float(), alone.tokens[0].float(), atol=1e-6 if dtype != torch.bfloat16 else 1e-2)


@pytest.mark.parametrize("name", ["sparsevlm", "sparsevlm 2.0", "fitprune", "dart", "mustdrop"])
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(name, low):
    """Also where channels are so large that products of embeddings are no numbers of 16 bits."""
    for seed in range(4):
        tokens, attn = sequence(n=400, seed=seed)
        tokens[..., 0] = 300.0
        method, visual = METHODS_INSIDE[name], (9, 350)
        wanted = reduce(tokens, attn, 200, method=method, visual=visual, return_reduction=True)
        with torch.autocast("cpu", low):
            found = reduce(tokens, attn, 200, method=method, visual=visual, return_reduction=True)
        assert torch.equal(found.sources, wanted.sources) and torch.equal(found.tokens, wanted.tokens)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast_does_not_change_who_rates(low):
    for seed in range(8):
        tokens, _ = sequence(n=200, seed=seed)
        tokens[..., 0] *= 300.0
        wanted = TextRaters().mark(tokens, layout_of(tokens))
        with torch.autocast("cpu", low):
            assert torch.equal(TextRaters().mark(tokens, layout_of(tokens)), wanted)
        assert 0 < wanted.sum() < B * (200 - sum(VISUAL))


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("r", [-1, LENGTH, LENGTH + 4])
def test_a_filter_leaves_at_least_one_token(name, r):
    tokens, attn = sequence(seed=32)
    layout = layout_of(tokens)
    marks = TextRaters().mark(tokens, layout)
    layout = Layout(layout.visual, N, marks=marks, hidden=tokens)
    with pytest.raises(ValueError, match=rf"r must be in \[0, 24\] for 25 visual tokens, got {r}; at least one stays"):
        FILTERS[name](attn, r, layout)


@every
def test_a_method_leaves_at_least_one_token(name):
    tokens, attn = sequence(seed=33)
    with pytest.raises(ValueError, match=r"r must be in \[0, 24\] for 25 visual tokens, got 25; at least one stays"):
        METHODS_INSIDE[name](tokens, attn, LENGTH, layout_of(tokens))


def test_these_are_all_filters_of_the_language_model():
    inside = [name for name in METHODS if get_method(name).language_model is not None]
    used = {type(one.language_model.filter) for name in inside if hasattr(one := get_method(name), "language_model")}
    assert used <= {type(one) for one in FILTERS.values()}


@pytest.mark.parametrize("size", [1, 0, 10.5, 10.0, True, "10", -3])
def test_clusters_are_of_two_tokens_or_more(size):
    with pytest.raises(ValueError, match=f"Recycle: size must be an integer >= 2, got {size!r}"):
        Recycle(TextRaters(), size=size)


@pytest.mark.parametrize("share", [0, 0.1, 0.3, 0.77, 1.0])
@pytest.mark.parametrize("size", [2, 3, 10])
def test_there_are_never_more_clusters_than_tokens_in_them(share, size):
    """For any share and size r columns leave: loops that look for the number end."""
    stage = Recycle(TextRaters(), share, size)
    for tokens in (2, 3, 7, 40, 100):
        for r in range(1, tokens):
            removed, clusters = stage.split(tokens, r)
            assert removed - clusters == r and 0 < removed < tokens
            assert 0 <= clusters <= min(stage.clusters(removed), stage.clustered(removed))
    assert stage.split(100, 40) == next(
        (removed, removed - 40)
        for removed in range(40, 100)
        if removed == 99 or removed - (min(int(share * removed + 1e-9) + 1, removed) // size + 1) == 40
    )


@pytest.mark.parametrize(("share", "size"), [(0.3, 2), (1.0, 2), (1.0, 3)])
@pytest.mark.parametrize("r", [1, 2, 9, LENGTH - 1])
def test_recycling_with_small_clusters_runs(share, size, r):
    tokens, attn = sequence(seed=34)
    layout = layout_of(tokens)
    stage = Recycle(TextRaters(), share, size)
    found = stage(attn, r, Layout(layout.visual, N, marks=TextRaters().mark(tokens, layout), hidden=tokens))
    assert found.sources.shape == (B, r) and found.kept.shape == (B, LENGTH - r)
