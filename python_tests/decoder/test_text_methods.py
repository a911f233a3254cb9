"""SparseVLM, FitPrune and DART inside a language model against loops in float64, and what they promise."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from helpers.scores import LENGTH, START, VISUAL, B, C, N, assert_equals, loud, padded, sequence
from helpers.text_methods import by_product, by_raters, dart, dropping, raters, sparsevlm

from ficoco_ext import QueryKey, Schedule, get_method, reduce
from ficoco_ext.ops import strongest_head
from ficoco_ext.stages import Layout
from ficoco_ext.stages.raters import TextRaters
from ficoco_ext.stages.recycle import Recycle

DART = get_method("dart", part="language_model")
METHODS = {
    "sparsevlm": get_method("sparsevlm"),
    "sparsevlm 2.0": get_method("sparsevlm", version="2.0"),
    "fitprune": get_method("fitprune"),
    "dart": DART,
}
every = pytest.mark.parametrize("name", METHODS)
R = 8


def record(name, tokens, attn, r=R, visual=VISUAL, **options):
    return reduce(tokens, attn, r, method=METHODS[name], visual=visual, return_reduction=True, **options)


@pytest.mark.parametrize("hk", [1, 2, 4])
@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize(("name", "score"), [("sparsevlm 2.0", by_raters), ("fitprune", by_product)])
def test_the_lowest_scores_leave(name, score, padding, hk):
    tokens, attn = sequence(seed=3, hk=hk)
    real = padded() if padding else None
    attn = loud(attn, real) if padding else attn
    tokens = torch.where(real[..., None], tokens, 30 * tokens) if padding else tokens
    found = record(name, tokens, attn, mask=real)
    assert_equals(found, dropping(tokens, attn, R, VISUAL, real, score))


def test_without_text_the_picture_alone_decides():
    tokens, attn = sequence(seed=3)
    visual = (N - LENGTH, LENGTH)
    found = record("fitprune", tokens, attn, visual=visual)
    assert_equals(found, dropping(tokens, attn, R, visual, None, by_product))


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("keep", [3, 12, 20, 24])
def test_recycling_by_hand(keep, padding):
    """All of version 1.5: who leaves, which of these come back, and as the mean of what."""
    tokens, attn = sequence(seed=4)
    real = padded() if padding else None
    attn = loud(attn, real) if padding else attn
    wanted = sparsevlm(tokens, attn, keep, VISUAL, real)
    found = record("sparsevlm", tokens, attn, len(wanted[0][0]), mask=real)
    for item, (sources, heirs, merged) in enumerate(wanted):
        assert found.sources[item].tolist() == sources
        kept = found.kept[item].tolist()
        for source in sources:
            holder = int(found.source_map[item, source])
            assert (None if holder < 0 else kept[holder]) == heirs.get(source)
        assert torch.allclose(found.tokens[item].double(), merged, atol=1e-6)
        assert found.size[item].sum() == N - len(sources) + len(heirs)


def test_several_clusters_by_hand():
    """100 visual tokens of which 20 stay: 25 of 80 that leave come back in 3 clusters."""
    tokens, attn = sequence(n=130, seed=5)
    [(sources, heirs, merged), _] = sparsevlm(tokens, attn, 20, (10, 100))
    found = record("sparsevlm", tokens, attn, 77, visual=(10, 100))
    assert len(sources) == 77 and len(heirs) == 22 and len(set(heirs.values())) == 3
    assert found.sources[0].tolist() == sources
    assert torch.allclose(found.tokens[0].double(), merged, atol=1e-6)


def test_every_number_of_columns_can_leave():
    """Whatever r is, r columns leave, at least one token stays as itself, and clusters are no more than they should."""
    stage = Recycle(TextRaters())
    for tokens in (2, 3, 11, 40, 577):
        for r in range(1, tokens):
            removed, clusters = stage.split(tokens, r)
            assert removed - clusters == r and 0 < removed < tokens
            assert 0 <= clusters <= stage.clusters(removed)
    for removed in range(1, 2000):
        r = removed - stage.clusters(removed)
        if r:
            assert stage.split(5000, r)[0] in (removed, removed - 1)


PUBLISHED = {  # version, name: tokens that the filter keeps, and those that are left with the clusters
    ("1.5", 192): ((300, 200, 110), (309, 204, 113)),
    ("1.5", 128): ((303, 110, 36), (312, 117, 39)),
    ("1.5", 96): ((238, 48, 26), (249, 55, 27)),
    ("1.5", 64): ((66, 30, 17), (82, 32, 18)),
    ("2.0", 192): ((300, 200, 118), (300, 200, 118)),
    ("2.0", 128): ((238, 108, 60), (238, 108, 60)),
    ("2.0", 96): ((246, 54, 28), (246, 54, 28)),
    ("2.0", 64): ((66, 34, 20), (66, 34, 20)),
}
MEANS = {192: 192.03, 128: 128.6, 96: 96.9, 64: 64.8}


@pytest.mark.parametrize(("version", "average"), PUBLISHED)
def test_published_numbers_of_sparsevlm(version, average):
    kept, left = PUBLISHED[version, average]
    method = get_method("sparsevlm", version=version, average_tokens=average)
    layers = method.layers(32)
    schedule = Schedule.build(576, layers=layers, **dict(method.amount))
    assert layers == (2, 6, 15)
    assert tuple(step.after for step in schedule.steps) == left
    mean = sum(schedule.tokens_in_mlp(32)) / 32
    if version == "1.5":
        assert mean == pytest.approx(MEANS[average], abs=0.05)
        for step, count in zip(schedule.steps, kept, strict=True):
            removed, clusters = method.filter.split(step.before, step.r)
            assert (step.before - removed, step.after - count) == (count, clusters)
    else:
        assert mean == pytest.approx(average, abs=1)
    twice = Schedule.build(1152, layers=layers, **dict(method.amount))
    assert all(abs(two.after - 2 * one.after) <= 1 for one, two in zip(schedule.steps, twice.steps, strict=True))


@pytest.mark.parametrize("depth", range(1, 81))
def test_blocks_of_models_of_any_depth(depth):
    layers = METHODS["sparsevlm"].layers(depth)
    assert all(one < other for one, other in pairwise(layers)) and layers[-1] < depth
    assert len(layers) == min(depth, 3)


RECIPES = {
    0.6: {0: 14, 1: 33, 2: 89, 3: 36, 4: 36, 5: 20, 6: 55, 7: 21, 8: 18, 9: 4, 10: 7, 11: 5, 12: 2, 13: 5, 14: 7}
    | {15: 4, 16: 26, 17: 5, 18: 11, 19: 24, 20: 4, 21: 18, 22: 2, 23: 1, 26: 1, 28: 1},
    0.9: {0: 262, 1: 153, 2: 80, 3: 19, 4: 13, 5: 1, 6: 2, 15: 1, 16: 1, 17: 2, 18: 1, 19: 2, 21: 1, 27: 1},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_published_recipes_of_fitprune(recipe):
    method = get_method("fitprune", recipe=recipe)
    schedule = Schedule.build(576, layers=method.layers(32), **dict(method.amount))
    assert {layer: r for layer, r in enumerate(schedule.r) if r} == RECIPES[recipe]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "sparsevlm", "version": "1.0"}, "sparsevlm: version must be one of '1.5', '2.0', got '1.0'"),
        ({"method": "sparsevlm", "average_tokens": 100}, "sparsevlm: average_tokens must be one of 192, 128, 96, 64"),
        ({"method": "fitprune", "recipe": 0.5}, "fitprune: recipe must be 0.6, 0.9 or None, got 0.5"),
    ],
)
def test_what_was_not_published_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        get_method(**options)


def layout_of(tokens, visual=VISUAL, real=None):
    columns = torch.arange(visual[0], sum(visual)).expand(tokens.shape[0], -1)
    return Layout.of(columns, tokens.shape[1], real)


@pytest.mark.parametrize("padding", [False, True])
def test_raters_by_hand(padding):
    tokens, _ = sequence(seed=6)
    real = padded() if padding else None
    marks = TextRaters().mark(tokens, layout_of(tokens, real=real))
    text = range(sum(VISUAL), N)
    for item in range(B):
        there = [k for k in text if real is None or real[item, k]]
        wanted = raters(tokens[item], list(range(START, START + LENGTH)), there)
        assert marks[item].nonzero()[:, 0].tolist() == wanted
        assert 0 < len(wanted) < len(there)


def test_raters_do_not_depend_on_the_order_of_the_picture_nor_on_blocks(monkeypatch):
    tokens, _ = sequence(seed=7)
    whole = TextRaters().mark(tokens, layout_of(tokens))
    shuffled = tokens.clone()
    shuffled[:, START : START + LENGTH] = tokens[:, START + torch.randperm(LENGTH)]
    assert torch.equal(TextRaters().mark(shuffled, layout_of(tokens)), whole)
    monkeypatch.setattr("ficoco_ext.stages.raters._VISUAL", 7)
    assert torch.equal(TextRaters().mark(tokens, layout_of(tokens)), whole)


def test_all_the_text_rates_where_no_word_is_above_the_mean():
    tokens, _ = sequence(seed=8)
    tokens[:, sum(VISUAL) :] = tokens[:, -1:]
    marks = TextRaters().mark(tokens, layout_of(tokens))
    assert marks[:, sum(VISUAL) :].all() and not marks[:, : sum(VISUAL)].any()


def test_raters_come_from_the_prompt_where_there_is_one():
    """Marks of the layout count, not the tokens that are reduced."""
    tokens, attn = sequence(seed=9)
    prompt, _ = sequence(seed=10)
    marks = TextRaters().mark(prompt, layout_of(tokens))
    method = METHODS["sparsevlm 2.0"]
    found, _ = method(tokens, attn, R, Layout.of(layout_of(tokens).visual, N, marks=marks))
    wanted = dropping(prompt, attn, R, VISUAL, None, by_raters)
    assert found.sources.tolist() == [one.sources for one in wanted]
    assert found.sources.tolist() != record("sparsevlm 2.0", tokens, attn).sources.tolist()


def test_blocks_of_rows_change_nothing(monkeypatch):
    _, attn = sequence(seed=11)
    visual, text = torch.arange(START, START + LENGTH).expand(B, -1), torch.arange(N - 9, N).expand(B, -1)
    weights = torch.rand(B, 3, 9)
    whole = strongest_head.strongest_head(attn, visual, text, weights, given=False, key_mask=padded())
    monkeypatch.setattr(strongest_head, "_CELLS", 2 * 2 * 4 * N)
    blocks = strongest_head.strongest_head(attn, visual, text, weights, given=False, key_mask=padded())
    assert torch.allclose(whole, blocks, rtol=1e-6)


def test_the_last_queries_alone_are_enough():
    """After a cached prefix the queries are those of the last tokens."""
    _, attn = sequence(seed=12)
    visual, text = torch.arange(START, START + LENGTH).expand(B, -1), torch.arange(N - 9, N).expand(B, -1)
    given = torch.ones(B, 1, 9)
    whole = strongest_head.strongest_head(attn, visual, text, given, given=False)
    late = QueryKey(attn.query[:, :, -9:], attn.key)
    assert torch.equal(strongest_head.strongest_head(late, visual, text, given, given=False), whole)


def test_a_map_of_all_heads_is_read_by_its_strongest_head():
    tokens, attn = sequence(seed=13)
    keys = attn.key.repeat_interleave(2, 1)
    logits = (attn.query @ keys.mT * attn.logit_scale).masked_fill(~torch.ones(N, N).tril().bool(), -torch.inf)
    found = record("fitprune", tokens, logits.softmax(-1))
    assert torch.equal(found.sources, record("fitprune", tokens, attn).sources)
    mean = record("fitprune", tokens, logits.softmax(-1).mean(1))
    assert not torch.equal(found.sources, mean.sources)


@pytest.mark.parametrize("keep", [1, 3, 4, 5, 11, 12, 17, 24])
@pytest.mark.parametrize("padding", [False, True])
def test_dart_by_hand(keep, padding):
    tokens, attn = sequence(seed=14)
    real = padded() if padding else None
    attn = loud(attn, real) if padding else attn
    found = record("dart", tokens, attn, LENGTH - keep, mask=real)
    stay = [[k for k in row if START <= k < START + LENGTH] for row in found.kept.tolist()]
    assert stay == dart(tokens, attn, keep, VISUAL, real)


def test_dart_where_the_text_has_fewer_tokens_than_pivots():
    tokens, attn = sequence(seed=15)
    real = torch.ones(B, N, dtype=torch.bool)
    real[0, -14:] = False  # 2 are left
    real[1, -16:] = False  # none
    found = record("dart", tokens, attn, LENGTH - 15, mask=real)
    stay = [[k for k in row if START <= k < START + LENGTH] for row in found.kept.tolist()]
    assert stay == dart(tokens, attn, 15, VISUAL, real)


def test_dart_compares_what_the_final_norm_makes_of_tokens():
    tokens, attn = sequence(seed=16)
    norm = torch.nn.RMSNorm(C)
    norm.weight.data.copy_(torch.tensor([9.0, 0.1, 0.1, 4.0, 0.1, 1.0]))
    found, _ = DART(tokens, attn, 10, Layout.of(layout_of(tokens).visual, N, norm=norm))
    wanted = dart(tokens, attn, 15, VISUAL, norm=lambda x: norm(x).detach())
    stay = [[k for k in row if START <= k < START + LENGTH] for row in found.kept.tolist()]
    assert stay == wanted and stay != dart(tokens, attn, 15, VISUAL)


def test_dart_needs_keys():
    tokens, _ = sequence(seed=17)
    with pytest.raises(ValueError, match="pivots are chosen by their keys"):
        record("dart", tokens, torch.rand(B, N, N))


@every
def test_a_batch_is_its_rows(name):
    tokens, attn = sequence(seed=18)
    real = padded()
    whole = record(name, tokens, attn, mask=real)
    for b in range(B):
        row = slice(b, b + 1)
        one = record(name, tokens[row], QueryKey(attn.query[row], attn.key[row]), mask=real[row])
        assert torch.equal(whole.sources[row], one.sources) and torch.equal(whole.source_map[row], one.source_map)
        assert torch.allclose(whole.tokens[row], one.tokens, rtol=1e-6)


@every
def test_padding_does_not_matter(name):
    tokens, attn = sequence(seed=19)
    real = padded(left=(5, 5), right=(2, 2))
    inner = slice(5, N - 2)
    outer = torch.where(real[..., None], tokens, torch.nan)
    whole = record(name, outer, loud(attn, real), mask=real)
    alone = record(name, tokens[:, inner], QueryKey(*(x[:, :, inner] for x in attn[:2])), visual=(START - 5, LENGTH))
    assert torch.equal(whole.sources, alone.sources + 5)
    assert torch.allclose(whole.tokens[:, 5 : N - 2 - R], alone.tokens, atol=1e-6)


@every
@pytest.mark.parametrize("visual", [VISUAL, (35, 12), (0, N - 1), (N - 12, 12)])
def test_text_is_copied_bit_for_bit(name, visual):
    tokens, attn = sequence(seed=20)
    start, length = visual
    out = record(name, tokens, attn, visual=visual).tokens
    assert torch.equal(out[:, :start], tokens[:, :start])
    assert torch.equal(out[:, start + length - R :], tokens[:, start + length :])


@every
def test_inputs_are_not_written_and_two_calls_agree(name):
    tokens, attn = sequence(seed=21)
    real = padded()
    held = (tokens, attn.query, attn.key, real)
    before = [x.clone() for x in held]
    one, two = (record(name, tokens, attn, mask=real) for _ in range(2))
    assert all(map(torch.equal, held, before))
    assert torch.equal(one.tokens, two.tokens) and torch.equal(one.sources, two.sources)


@every
def test_of_equal_tokens_the_first_leave(name):
    tokens, attn = torch.ones(1, N, C), QueryKey(torch.ones(1, 4, N, 8), torch.zeros(1, 2, N, 8))
    found = record(name, tokens, attn)
    kept = [k - START for k in found.kept[0].tolist() if START <= k < START + LENGTH]
    wanted = {
        "sparsevlm": [0, *range(9, LENGTH)],  # 9 leave, of these the first comes back
        "sparsevlm 2.0": list(range(8, LENGTH)),
        "fitprune": list(range(LENGTH - 8)),  # under a causal mask the last ones receive least
        "dart": list(range(LENGTH - 8)),  # the first ones are picked
    }
    assert kept == wanted[name]


@every
def test_scattered_visual_tokens(name):
    tokens, attn = sequence(seed=22)
    flags = torch.zeros(B, N, dtype=torch.bool)
    for b in range(B):
        flags[b, torch.randperm(N - 5)[:20]] = True
    found = record(name, tokens, attn, visual=flags)
    assert flags.gather(1, found.sources).all()
    for b in range(B):
        left = [k for k in range(N) if k not in found.sources[b].tolist()]
        assert found.kept[b].tolist() == left


def operations(method, **values):
    from ficoco_ext.ops.costs import evaluate
    from ficoco_ext.stages import Shape

    shape = Shape(batch=1, tokens=100, visual=60, r=12, channels=32, heads=4, kv_heads=2, head_dim=8, text=10)
    return {operation.name: evaluate(operation.operations, found) for operation, found in method.operations(shape)}


def test_what_they_cost():
    """60 visual tokens, 10 of text, 12 leave: 14 are removed of which 2 clusters of 5 come back."""
    assert operations(METHODS["sparsevlm 2.0"]) == {
        "text_raters": 2 * 60 * 10 * 32,
        "token_attention": 2 * 4 * 8 * 10 * 100,
        "compress": 0,
    }
    found = operations(METHODS["sparsevlm"])
    assert found["density_peaks"] == 3 * 4 * 4 * 32 and found["compress"] == 2 * 12 * 32
    assert operations(METHODS["fitprune"]) == {
        "strongest_head": 2 * 70 * (4 * 8 * 100 + 2 * 60),
        "compress": 0,
    }
    assert operations(DART) == {"pivots": 2 * 60 * 8 * 32, "compress": 0}
