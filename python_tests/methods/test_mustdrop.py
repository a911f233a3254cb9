"""MustDrop's pure pieces: golden cases in float64, loops, what they promise, and what they refuse."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from helpers.reductions import inputs, same

from ficoco_ext import cost, describe, get_method, ops
from ficoco_ext.cost import schedules
from ficoco_ext.methods import Split
from ficoco_ext.methods.mustdrop import dual_filter, dual_thresholds, merge_windows
from ficoco_ext.stages import DualFilter, Layout, WindowFilter, windows_above
from ficoco_ext.stages.dual_attention import key_set
from ficoco_ext.stages.windows import window_members

GOLDEN = json.loads((Path(__file__).parent / "golden_mustdrop.json").read_text())


def exact(values):
    return torch.tensor(values, dtype=torch.float64)


def patches_of(case):
    """patches[i, d] = sin(1.3 d + 0.8 w) + 1.4 frac(0.37 w) sin(2.1 i + 0.7 d^2), w the window of patch i."""
    (height, width), side = case["grid"], case["side"]
    i = torch.arange(height * width)
    w = ((i // width // side) * math.ceil(width / side) + i % width // side).double()[:, None]
    d = torch.arange(case["channels"]).double()
    i = i.double()[:, None]
    return torch.sin(1.3 * d + 0.8 * w) + 1.4 * (0.37 * w).frac() * torch.sin(2.1 * i + 0.7 * d * d)


def text_attention(case, stage, present):
    """a[t, i] = e / (rest + sum of e over the present i)."""
    t, i = torch.arange(case["text"]).double()[:, None], present.double()
    e = torch.exp(2.2 * torch.sin(0.37 * i + 0.9 * t + 1.1 * stage) + 1.3 * torch.cos(0.013 * i * i + 0.4 * stage))
    return (e / (case["rest"] + e.sum(1, keepdim=True)))[None]


def class_attention(case):
    i = torch.arange(case["visual"]).double()
    e = torch.exp(1.7 * torch.sin(0.61 * i) + 0.4 * torch.cos(0.017 * i * i))
    return (e / (5 + e.sum()))[None]


@pytest.mark.parametrize("case", GOLDEN["windows"], ids=lambda case: f"{case['grid']}")
def test_golden_windows(case):
    patches, grid, side = patches_of(case)[None], tuple(case["grid"]), case["side"]
    similarity = ops.window_similarity(patches, grid, side)
    assert torch.allclose(similarity[0], exact(case["similarity"]), atol=1e-12)
    assert windows_above(similarity, 0.8).tolist() == [case["windows_above_0.8"]]
    found = merge_windows(patches, grid, case["count"], side, case["receiver"])
    assert found.kept.tolist() == [case["kept"]] and found.source_map.tolist() == [case["source_map"]]
    assert found.size.flatten().tolist() == case["size"] and found.grid == grid and not found.class_token
    assert torch.allclose(found.tokens.sum(1)[0], exact(case["tokens_sum"]), atol=1e-9)
    receiver = int((found.size.flatten() > 1).nonzero()[0])
    assert torch.allclose(found.tokens[0, receiver], exact(case["token_of_first_receiver"]), atol=1e-9)
    released = torch.cat([found.kept[0][found.size.flatten() > 1], found.kept[0][found.size.flatten() == 1]])
    assert sorted(case["released_order"]) == sorted(released.tolist())  # there merged windows come first


@pytest.mark.parametrize("case", GOLDEN["prefill"], ids=lambda case: f"{case['visual']}-{case['counts']}")
def test_golden_prefill(case):
    """By thresholds, and by the numbers that they happen to leave; every stage starts from what the one before left."""
    how = {"gamma": case["gamma"], "alpha": case["alpha"]}
    keys = key_set(class_attention(case), case["rate"])
    assert keys[0].nonzero().flatten().tolist() == case["keys"]
    counts = case["counts"] or [len(one) for one in case["left"]]
    ranked = limited = torch.arange(case["visual"])
    for stage, (count, wanted) in enumerate(zip(counts, case["left"], strict=True)):
        ranked = ranked[dual_filter(text_attention(case, stage, ranked), keys[:, ranked], count, **how)[0]]
        assert ranked.tolist() == wanted
        limited = limited[dual_thresholds(text_attention(case, stage, limited), keys[:, limited], **how)[0]]
        assert case["counts"] or limited.tolist() == wanted


def windows_by_loops(x, grid, window):
    """The members of every whole window, and its mean cosine over ordered pairs of different patches."""
    (height, width), found = grid, []
    for top, left in itertools.product(range(0, height - window + 1, window), range(0, width - window + 1, window)):
        members = [(top + i) * width + left + j for i in range(window) for j in range(window)]
        pairs = [
            float(x[a] @ x[b]) / max(float(x[a].norm()), 1e-8) / max(float(x[b].norm()), 1e-8)
            for a, b in itertools.permutations(members, 2)
        ]
        found.append((members, sum(pairs) / len(pairs)))
    return found


@pytest.mark.parametrize("receiver", ["last", "centre"])
@pytest.mark.parametrize(("grid", "window"), [((7, 8), 3), ((6, 6), 2), ((3, 10), 3), ((9, 4), 4), ((2, 2), 2)])
def test_windows_by_loops(grid, window, receiver):
    torch.manual_seed(window)
    x = torch.randn(2, grid[0] * grid[1], 5, dtype=torch.float64)
    x[0, 0] = 0
    at = window * window - 1 if receiver == "last" else window // 2 * window + window // 2
    count = max((grid[0] // window) * (grid[1] // window) // 2, 1)
    found = merge_windows(x, grid, count, window, receiver)
    for item in range(2):
        ranked = sorted(windows_by_loops(x[item], grid, window), key=lambda one: -one[1])[:count]
        holder = {member: members[at] for members, _ in ranked for member in members}
        kept = [i for i in range(x.shape[1]) if holder.get(i, i) == i]
        assert found.kept[item].tolist() == kept
        assert [kept[i] for i in found.source_map[item].tolist()] == [holder.get(i, i) for i in range(x.shape[1])]
        means = {members[at]: x[item][members].mean(0) for members, _ in ranked}
        wanted = torch.stack([means.get(i, x[item, i]) for i in kept])
        assert torch.allclose(found.tokens[item], wanted, atol=1e-12)
        assert torch.equal(found.size[item, :, 0] > 1, torch.tensor([i in means for i in kept]))


@pytest.mark.parametrize("count", [0, 1, 3, 4])
def test_nothing_is_lost(count):
    """T2: size times token sums to all tokens; a window that merged counts as nine."""
    torch.manual_seed(0)
    x = torch.randn(3, 48, 6, dtype=torch.float64)
    found = merge_windows(x, (6, 8), count)
    assert torch.allclose((found.size * found.tokens).sum(1), x.sum(1))
    assert found.size.flatten(1).sort(1).values.tolist() == [[1.0] * (48 - 9 * count) + [9.0] * count] * 3
    assert found.tokens.shape[1] == 48 - 8 * count
    if not count:
        assert torch.equal(found.tokens, x) and found.tokens.data_ptr() != x.data_ptr()


def test_all_windows_leave_one_token_each():
    x = torch.randn(1, 81, 4)
    assert merge_windows(x, (9, 9), 9).kept.tolist() == [[20, 23, 26, 47, 50, 53, 74, 77, 80]]
    assert merge_windows(x, (9, 9), 9, receiver="centre").kept.tolist() == [[10, 13, 16, 37, 40, 43, 64, 67, 70]]


def test_of_equal_windows_the_first_merge():
    """Constant windows are all as alike as can be."""
    x = torch.ones(2, 36, 3)
    assert torch.allclose(ops.window_similarity(x, (6, 6), 3), torch.ones(2, 4))
    for count in range(5):
        size = merge_windows(x, (6, 6), count).size
        assert size.flatten(1).gt(1).sum(1).tolist() == [count] * 2
    assert merge_windows(x, (6, 6), 2).kept[0].tolist() == [14, 17, *range(18, 36)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_windows_of_a_class_token_and_of_every_dtype(dtype):
    """The class token is copied; every picture of a batch has the windows that it has alone."""
    tokens, attn = inputs(b=3)
    method, tokens = get_method("mustdrop", part="tower"), tokens.to(dtype)
    together = method.of_layers(1)[0](tokens, attn, 16, class_token=True)
    assert together.tokens.dtype == dtype and torch.equal(together.tokens[:, 0], tokens[:, 0])
    plain = merge_windows(tokens[:, 1:], (8, 8), 2)
    assert torch.equal(together.tokens[:, 1:], plain.tokens) and torch.equal(together.patch_ids, plain.kept)
    for item in range(3):
        alone = method(tokens[item : item + 1], attn, 16, class_token=True)
        assert torch.equal(alone.kept[0], together.kept[item])
        assert torch.allclose(alone.tokens[0], together.tokens[item])
    again = method(tokens.clone(), attn, 16, class_token=True)
    assert same(together, again)


def test_sizes_that_are_given_weigh():
    tokens, attn = inputs()
    method, size = get_method("mustdrop", part="tower"), torch.rand(2, 65, 1) + 1
    found = method(tokens, attn, 8, class_token=True, size=size)
    merged = int((found.source_map[0].bincount() == 9).nonzero())
    members = (found.source_map[0] == merged).nonzero().flatten()
    wanted = (size[0, members] * tokens[0, members]).sum(0) / size[0, members].sum()
    assert torch.allclose(found.tokens[0, merged], wanted, atol=1e-6)


def test_gradients_and_shapes():
    x = torch.randn(2, 36, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: merge_windows(y, (6, 6), 2).tokens, x)
    assert merge_windows(torch.empty(2, 36, 3, device="meta"), (6, 6), 2).tokens.shape == (2, 20, 3)
    torch._dynamo.reset()
    compiled = torch.compile(lambda y: merge_windows(y, (6, 6), 2).tokens, fullgraph=True, backend="aot_eager")
    y = torch.randn(2, 36, 3)
    assert torch.allclose(compiled(y), merge_windows(y, (6, 6), 2).tokens)


def filtered_by_loops(attention, keys, count, gamma, alpha):
    """One picture: the key set by rank, then the others; of equal ones the first."""
    shares = [float(attention[:, i].sum() / attention.sum()) for i in range(attention.shape[1])]
    ranks = [max(share / gamma, float(attention[:, i].max()) / alpha) for i, share in enumerate(shares)]
    order = sorted(range(len(ranks)), key=lambda i: (not keys[i], -ranks[i], i))
    return sorted(order[:count])


@pytest.mark.parametrize("count", [1, 2, 3, 7, 19, 20])
@pytest.mark.parametrize(("gamma", "alpha"), [(0.001, 0.001), (0.011, 0.01), (1.0, 0.1), (0.02, 0.4)])
def test_dual_filter_by_loops(count, gamma, alpha):
    torch.manual_seed(count)
    attention = torch.rand(3, 4, 20, dtype=torch.float64) ** 6
    keys = torch.rand(3, 20) < 0.15
    found = dual_filter(attention, keys, count, gamma=gamma, alpha=alpha)
    for item in range(3):
        assert found[item].tolist() == filtered_by_loops(attention[item], keys[item], count, gamma, alpha)


def test_both_statistics_decide():
    """One word that reads a token keeps it, and so does all text that reads it a little."""
    attention = torch.tensor([[[0.30, 0.10, 0.0], [0.0, 0.10, 0.0], [0.0, 0.10, 0.0], [0.0, 0.10, 0.0]]])
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    assert dual_filter(attention, nothing, 1, gamma=1.0, alpha=0.01).tolist() == [[0]]
    assert dual_filter(attention, nothing, 1, gamma=0.01, alpha=1.0).tolist() == [[1]]
    assert dual_filter(attention, nothing, 1, gamma=0.0, alpha=1.0).tolist() == [[1]]  # the share alone
    assert dual_filter(attention, nothing, 1, gamma=1.0, alpha=0.0).tolist() == [[0]]  # the peak alone
    assert dual_filter(attention, torch.tensor([[False, False, True]]), 1, gamma=1.0, alpha=0.01).tolist() == [[2]]


def test_fewer_and_fewer_stay_as_thresholds_grow():
    """T3; with either of the two 0 all stay, and the number of a run by thresholds gives its set."""
    torch.manual_seed(1)
    attention, keys = torch.rand(2, 5, 30, dtype=torch.float64) ** 8, torch.rand(2, 30) < 0.1
    values = (0.0, 0.01, 0.03, 0.1, 0.5, 1.0)
    for gamma, (low, high) in itertools.product(values, itertools.pairwise(values)):
        for one, other in (
            ({"gamma": gamma, "alpha": low}, {"gamma": gamma, "alpha": high}),
            ({"gamma": low, "alpha": gamma}, {"gamma": high, "alpha": gamma}),
        ):
            more, fewer = (dual_thresholds(attention, keys, **how) for how in (one, other))
            assert bool((more | ~fewer).all()) and bool((fewer | ~keys).all())
            assert bool(more.all()) or 0 not in one.values()
            if other["gamma"] and other["alpha"]:
                for item in range(2):
                    part = slice(item, item + 1)
                    count = int(fewer[item].sum())
                    kept = dual_filter(attention[part], keys[part], count, **other) if count else torch.zeros(1, 0)
                    assert kept[0].tolist() == fewer[item].nonzero().flatten().tolist()


def test_without_text_or_attention_the_first_stay():
    keys = torch.tensor([[False, False, False, True]])
    for attention in (torch.zeros(1, 0, 4), torch.zeros(1, 3, 4)):
        assert dual_thresholds(attention, ~keys & keys, gamma=0.0, alpha=0.1).all()
        assert dual_filter(attention, keys, 3, gamma=0.1, alpha=0.1).tolist() == [[0, 1, 3]]


RATES = [(0.08, 36), (0.0, 0), (1.0, 440), (0.05, 22), (0.1, 44), (0.55, 242), (1e-6, 1)]


@pytest.mark.parametrize(("rate", "count"), RATES)
def test_how_many_tokens_are_keys(rate, count):
    """ceil(rate n), without the luck of 0.55 * 440 = 242.00000000000003."""
    assert int(key_set(torch.rand(2, 440), rate).sum()) == 2 * count


@pytest.mark.parametrize(("average", "mean"), [(192, 192.1875), (128, 128.1875), (64, 64.0625)])
def test_presets_leave_the_mean_that_names_them(average, mean):
    """Of 440 tokens, a block's own layer counted as already cut, as the release counts."""
    found = schedules.build(cost.architecture("llava-1.5-7b"), get_method("mustdrop", average_tokens=average))
    assert found.vision.r == (136,) and found.vision.layers == (0,) and found.decoder.layers == (2, 6, 10, 14)
    assert sum(found.decoder.tokens_in_mlp(32)) / 32 == mean
    assert found.vision.tokens_entering(3) == (576, 440, 440) and found.vision.tokens_in_mlp(2) == (576, 440)


@pytest.mark.parametrize(
    ("depth", "layers"),
    [(32, (2, 6, 10, 14)), (40, (2, 7, 12, 17)), (24, (1, 4, 7, 10)), (28, (1, 5, 8, 12)), (5, (1, 2, 3, 4))],
)
def test_blocks_at_the_same_shares_of_the_depth(depth, layers):
    assert get_method("mustdrop").language_model.layers(depth) == layers


@pytest.mark.parametrize(("side", "window", "r"), [(24, 3, 136), (27, 3, 176), (12, 3, 32), (3, 3, 0), (24, 2, 135)])
def test_windows_that_merge_if_no_amount_is_given(side, window, r):
    method = get_method("mustdrop", variant="released" if window == 3 else "paper", part="tower")
    [(name, rule)] = method.amount
    assert name == "r" and rule(side * side) == r


def test_variants_and_presets_choose_constants_and_values_go_before_them():
    def constants(**given):
        method = get_method("mustdrop", **given)
        windows, dual = method.tower.filter, method.language_model.filter
        return windows.window, dual.keys, dual.gamma, dual.alpha

    assert constants() == (3, 0.08, 0.001, 0.001) and constants(variant="paper") == (2, 0.05, 0.001, 0.001)
    assert constants(average_tokens=128) == (3, 0.08, 0.0012, 0.001)
    assert constants(average_tokens=64) == (3, 0.08, 0.011, 0.01)
    given = {"window": 4, "keys": 0.2, "gamma": 0.3, "alpha": 0.4}
    assert constants(variant="paper", average_tokens=64, **given) == (4, 0.2, 0.3, 0.4)
    assert get_method("mustdrop").language_model.cache == "output-aware"


def test_parts_alone_and_words():
    both = get_method("mustdrop")
    assert both.name == "mustdrop" and get_method("mustdrop", part="tower") == both.tower
    assert get_method("mustdrop", part="language_model") == both.language_model
    assert both.needs == ("whole grid", "class attention of the vision tower")
    assert get_method("mustdrop", keys=0).needs == ("whole grid",)
    said = describe("mustdrop")
    assert said.amount.startswith("tower: r=8 of each of 26.6 % of the windows; language model: keep_ratio=(")
    assert "windows of 3 x 3" in said.filter and "8 % by class attention" in said.filter


@pytest.mark.parametrize(("ratio", "r"), [(0.9, 56), (0.5, 288), (0.764, 136), (0.77, 128), (1.0, 0)])
def test_a_ratio_is_rounded_to_whole_windows(ratio, r):
    """At most 7 more tokens stay than were asked for."""
    method = get_method("mustdrop", part="tower")
    assert schedules.build(cost.architecture("llava-1.5-7b"), method, keep_ratio=ratio).vision.r == (r,)


@pytest.mark.parametrize("tokens", [144, 100, 61])
def test_an_amount_for_both_parts_is_kept_in_the_end(tokens):
    """The tower leaves whole windows, so the language model removes the rest."""
    found = schedules.build(cost.architecture("llava-1.5-7b"), get_method("mustdrop"), tokens=tokens)
    assert found.decoder.final == tokens and found.vision.r[0] % 8 == 0 and found.vision.r[0] > 0


def dual(**given):
    return dual_filter(torch.rand(1, 2, 5), torch.zeros(1, 5, dtype=torch.bool), **{"count": 3, **GAMMA, **given})


GAMMA = {"gamma": 0.1, "alpha": 0.1}
X = torch.randn(1, 36, 4)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: merge_windows(X, (6, 6), 5), ValueError, r"count must be in \[0, 4\], the whole windows of 3 x 3"),
        (lambda: merge_windows(X, (6, 6), -1), ValueError, r"count must be in \[0, 4\].*got -1"),
        (lambda: merge_windows(X, (6, 6), 1.0), TypeError, "count must be an integer"),
        (lambda: merge_windows(X, (6, 6), True), TypeError, "count must be an integer"),
        (lambda: merge_windows(X, (5, 6), 1), ValueError, r"grid must be \(height, width\) of 36 patches"),
        (lambda: merge_windows(X, 6, 1), ValueError, "grid must be"),
        (lambda: merge_windows(X[0], (6, 6), 1), ValueError, r"tokens must be \(B, P, C\)"),
        (lambda: merge_windows([], (6, 6), 1), TypeError, "tokens must be a tensor"),
        (lambda: merge_windows(X.long(), (6, 6), 1), TypeError, "tokens must be float32"),
        (lambda: merge_windows(X, (6, 6), 1, window=1), ValueError, "window must be an integer >= 2, got 1"),
        (lambda: merge_windows(X, (6, 6), 1, receiver="first"), ValueError, "receiver must be one of 'last', 'centre'"),
        (lambda: dual(count=0), ValueError, r"count must be in \[1, 5\], got 0; at least one"),
        (lambda: dual(count=6), ValueError, r"count must be in \[1, 5\], got 6"),
        (lambda: dual(count=2.0), TypeError, "count must be an integer"),
        (lambda: dual(gamma=-1), ValueError, "gamma must be a finite number >= 0"),
        (lambda: dual(alpha=math.inf), ValueError, "alpha must be"),
        (lambda: dual(gamma=0, alpha=0), ValueError, "gamma or alpha must be above 0: with both 0 nothing ranks"),
        (lambda: dual_filter(X[0], X[0] > 0, 1, **GAMMA), ValueError, r"attention must be \(B, T, n\)"),
        (lambda: dual_filter(X, X[:, 0], 1, **GAMMA), TypeError, r"key_set must be \(1, 4\) bool"),
        (lambda: dual_thresholds(X, X[0] > 0, **GAMMA), TypeError, r"key_set must be \(1, 4\) bool"),
        (lambda: windows_above(X, 0.5), ValueError, r"similarity must be \(B, W\)"),
        (lambda: get_method("mustdrop", variant="v2"), ValueError, "variant must be one of 'released', 'paper'"),
        (lambda: get_method("mustdrop", average_tokens=96), ValueError, "average_tokens must be one of 192, 128, 64"),
        (lambda: get_method("mustdrop", part="decoder"), ValueError, "part must be one of 'both', 'tower'"),
        (lambda: get_method("mustdrop", keys=1.1), ValueError, r"DualFilter: keys must be a number in \[0, 1\]"),
        (lambda: get_method("mustdrop", window=3.0), ValueError, "WindowFilter: window must be an integer >= 2"),
        (
            lambda: Split("half", get_method("topk"), get_method("mustdrop", part="tower")),
            ValueError,
            "Split: first and second must act in the same place of a layer",
        ),
    ],
)
def test_what_cannot_be(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize(
    ("r", "message"),
    [
        (135, "r must be a multiple of 8, .* got 135; pass 128 or 136, the nearest"),
        (520, "r must be at most 512 in layer 0, 8 of every whole window of 3 x 3 of the 576 patches"),
    ],
)
def test_an_r_of_no_whole_windows(r, message):
    method = get_method("mustdrop", part="tower")
    with pytest.raises(ValueError, match=message):
        schedules.build(cost.architecture("llava-1.5-7b"), method, r=r)


def test_windows_need_the_whole_grid():
    tokens, attn = inputs()
    method = get_method("mustdrop", part="tower")
    first = get_method("topk")(tokens, attn, 8, class_token=True)
    for call, message in (
        (lambda: method(first.tokens, inputs(n=57)[1], 8, previous=first), "only 56 are left of it"),
        (lambda: method(tokens[:, :64], attn, 8), "their number is not a square; pass grid"),
        (lambda: method(tokens, attn, 40), "r must be at most 32: 8 of each of 4 whole windows"),
        (lambda: method(tokens, attn, 12), "pass 8 or 16, the nearest"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_the_stage_reads_the_text_after_the_picture():
    """The same tokens as dual_filter on the attention of the text rows; a hidden row of text changes nothing."""
    torch.manual_seed(2)
    _, attn = inputs(b=2, n=20)
    visual, real = torch.arange(3, 13).expand(2, -1), torch.ones(2, 20, dtype=torch.bool)
    real[0, :2], real[1, 17:] = False, False
    keys = torch.zeros(2, 10, dtype=torch.bool)
    keys[:, 4] = True
    layout = Layout.of(visual, 20, real, protected=keys)
    found = DualFilter(gamma=0.3, alpha=0.1)(attn, 6, layout)
    for item in range(2):
        logits = torch.einsum("hid,hjd->hij", attn.query[item].double(), attn.key[item].double()) * 8**-0.5
        seen = torch.ones(20, 20, dtype=torch.bool).tril() & real[item]
        maps = logits.masked_fill(~seen, -torch.inf).softmax(-1).mean(0)
        text = [row for row in range(13, 20) if real[item, row]]
        wanted = dual_filter(maps[None, text][:, :, 3:13], keys[item : item + 1], 4, gamma=0.3, alpha=0.1)
        assert found.kept[item].tolist() == wanted[0].tolist()
        assert sorted([*found.kept[item].tolist(), *found.sources[item].tolist()]) == list(range(10))
    assert bool((found.redundancy[:, 4] == -math.inf).all())


def test_without_text_the_last_visual_token_is_the_text():
    _, attn = inputs(b=1, n=12)
    layout = Layout.of(torch.arange(2, 12)[None], 12)
    found = DualFilter(keys=0)(attn, 5, layout)
    row = (attn.query[0, :, -1:].double() @ attn.key[0].double().mT * 8**-0.5).softmax(-1).mean(0)[None, :, 2:]
    nothing = torch.zeros(1, 10, dtype=torch.bool)
    assert found.kept.tolist() == dual_filter(row, nothing, 5, gamma=0.001, alpha=0.001).tolist()


def test_a_key_set_must_be_known():
    _, attn = inputs(b=1, n=12)
    layout = Layout.of(torch.arange(2, 10)[None], 12)
    with pytest.raises(ValueError, match="DualFilter: protected must say which visual tokens are the key set"):
        DualFilter()(attn, 3, layout)
    everything = Layout.of(layout.visual, 12, protected=torch.tensor([[False, True, False, True] * 2]))
    assert torch.equal(DualFilter(keys=0)(attn, 3, everything).kept, DualFilter(keys=0)(attn, 3, layout).kept)


def test_members_of_windows():
    assert window_members((3, 4), 3).tolist() == [[0, 1, 2, 4, 5, 6, 8, 9, 10]]
    assert window_members((2, 2), 3).shape == (0, 9)
    assert WindowFilter().largest(577, class_token=True) == 512 and WindowFilter().largest(20, class_token=False) == 16
