"""Split, Staged and prune-then-merge: one layer by two methods, layers by other methods, the excess that is pruned."""

from __future__ import annotations

import pytest
import torch
from helpers.reductions import inputs, record, same

from ficoco_ext import Method, QueryKey, get_method, reduce
from ficoco_ext.methods import Combined, Split, Staged, hyperparameters
from ficoco_ext.stages import Match

TOPK, TOME = get_method("topk"), get_method("tome")
FICOCO2 = get_method("ficoco-v", targets=2)


def gathered(attn, places):
    index = places[:, None, :, None].expand(-1, 4, -1, 8)
    return QueryKey(attn.query.gather(2, index), attn.key.gather(2, index))


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_split_is_one_after_the_other(before, weighted):
    """On the survivors' query and key; sizes, if given, weigh in both; the same after an earlier reduction."""
    tokens, attn = inputs()
    previous = record(tokens, inputs(seed=5)[1], 9, method="topk") if before else None
    if before:
        tokens, attn = previous.tokens, inputs(n=56, seed=2)[1]
    size = torch.randint(1, 5, (2, tokens.shape[1], 1)).float() if weighted else None
    both = Split("both", get_method("ficoco-v"), TOME, 0.5)
    result = record(tokens, attn, 21, method=both, previous=previous, size=size)
    local = record(tokens, attn, 11, method="ficoco-v", grid=None if before else (8, 8), size=size, penalty=1.0)
    first = record(tokens, attn, 11, method="ficoco-v", previous=previous, size=size)
    places = torch.searchsorted(previous.kept, first.kept) if before else first.kept
    wanted = record(
        first.tokens,
        gathered(attn, places),
        10,
        method="tome",
        previous=first,
        size=first.size if weighted else None,
    )
    assert local.kept.shape == first.kept.shape
    for name in ("tokens", "size", "kept", "source_map"):
        assert torch.equal(getattr(result, name), getattr(wanted, name)), name
    assert result.sources.shape == (2, 21) and bool((result.sources.diff() > 0).all())
    assert torch.equal(result.sources, torch.cat([first.sources, wanted.sources], 1).sort(1).values)


def test_the_record_tells_where_everyone_went():
    """Sources of the first step are told with the holder of the survivor they went into; the dropped weigh nothing."""
    tokens, attn = inputs()
    result = record(tokens, attn, 30, method=Split("half", TOPK, TOME, 0.5))
    gone = result.source_map.gather(1, result.sources) < 0
    assert bool((gone.sum(1) == 15).all())
    assert torch.equal(result.weights.squeeze(-1), (~gone).float())
    merged = record(tokens, attn, 30, method=Split("half", get_method("ficoco-v", targets=3), TOME, 0.5))
    assert merged.targets.shape == (2, 30, 3)
    assert torch.allclose(merged.weights.sum(2), torch.ones(2, 30), atol=1e-6)
    assert torch.allclose(merged.size.sum((1, 2)), torch.full((2,), 65.0))
    mass = torch.ones(2, 35).scatter_add(1, merged.targets.flatten(1), merged.weights.flatten(1))
    assert torch.allclose(mass.sum(1), torch.full((2,), 65.0))


@pytest.mark.parametrize("targets", [1, 2])
def test_what_went_into_a_token_that_was_dropped_is_lost(targets):
    """Merge first, prune second: weights are those of what is still held, and add up to the sizes."""
    tokens, attn = inputs()
    result = record(tokens, attn, 50, method=Split("lost", get_method("ficoco-v", targets=targets), TOPK, 0.5))
    dropped = result.source_map < 0
    assert bool((dropped.sum(1) > 25).any())  # the 25 that were pruned, and some that had gone into them
    held = torch.ones(2, 15).scatter_add(1, result.targets.flatten(1), result.weights.flatten(1))
    assert torch.allclose(held, result.size.squeeze(-1), atol=1e-5)
    if targets == 1:
        assert torch.equal(result.size.sum((1, 2)), 65.0 - dropped.sum(1))


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize(("first", "second"), [(TOPK, FICOCO2), (FICOCO2, TOPK), (FICOCO2, TOME), (TOME, FICOCO2)])
def test_the_class_token_is_never_a_target(first, second, class_token):
    """Nor is it named where nobody is: every place is a patch's, and those without a part weigh 0."""
    tokens, attn = inputs(n=64 + class_token)
    split = Split("any", first, second, 0.5)
    result = record(tokens, attn, 40, method=split, class_token=class_token)
    assert result.targets.shape == result.weights.shape == (2, 40, 2)
    assert int(result.targets.min()) >= int(class_token) and int(result.targets.max()) < result.kept.shape[1]


@pytest.mark.parametrize("form", ["heads", "mean"])
def test_split_of_a_map(form):
    """Rows and columns of the survivors, values as they are."""
    tokens, attn = inputs()
    probs = (attn.query @ attn.key.mT * 8**-0.5).softmax(-1)
    probs = probs if form == "heads" else probs.mean(1)
    result = record(tokens, probs, 20, method=Split("twice", TOPK, get_method("ficoco-v", variant="paper"), 0.5))
    first = record(tokens, probs, 10, method="topk")
    small = [
        torch.stack([m[index][:, index] for m in (one if form == "heads" else [one])])
        for one, index in zip(probs, first.kept, strict=True)
    ]
    small = torch.stack(small) if form == "heads" else torch.cat(small)
    second = record(first.tokens, small, 10, method="ficoco-v", variant="paper", previous=first)
    assert torch.equal(result.tokens, second.tokens) and torch.equal(result.source_map, second.source_map)


@pytest.mark.parametrize(("share", "method"), [(1.0, "topk"), (0.0, "tome")])
def test_a_whole_share_is_one_method(share, method):
    tokens, attn = inputs()
    split = Split("one", TOPK, TOME, share)
    assert same(record(tokens, attn, 20, method=split), record(tokens, attn, 20, method=method))


@pytest.mark.parametrize("n", [2, 3, 4, 20, 65])
def test_the_excess_is_pruned(n):
    """No more than needed: one less for the first and matching could not remove the rest."""
    split = Split("merge", TOPK, TOME, 0.0)
    for r in range(n - 1):
        counts = {part.name: count for part, count in split.parts(n, r, class_token=True)}
        early, late = counts.get("topk", 0), counts.get("tome", 0)
        assert early + late == r and late <= TOME.largest(n - early, class_token=True)
        assert early == 0 or r - early + 1 > TOME.largest(n - early + 1, class_token=True)
        tokens, attn = inputs(n=n)
        assert reduce(tokens, attn, r, method=split, grid=(1, n - 1)).shape == (2, n - r, 12)


def test_parts_round_half_up():
    split = Split("half", TOPK, TOME, 0.5)
    assert [count for _, count in split.parts(65, 5, class_token=True)] == [3, 2]
    assert [part.name for part, _ in split.parts(65, 1, class_token=True)] == ["topk"]
    assert split.parts(65, 0, class_token=True) == ()
    assert split.of_layers(2) == (split, split) and split.largest(65, class_token=True) == 63
    assert split.proportional_attention and split.layers is None and "2202.07800" in split.source


def test_what_is_no_split():
    with pytest.raises(ValueError, match=r"Split: share must be a number in \[0, 1\], got 1.5"):
        Split("bad", TOPK, TOME, 1.5)
    with pytest.raises(TypeError, match="Split: first and second must each be a Method, got 'topk'"):
        Split("bad", "topk", TOME)


def two(layers):
    return (TOPK,) * layers


def test_staged():
    """Layers by a rule; a value like any method; the rule is held to its word."""
    staged = Staged("own", two)
    assert get_method(staged) is staged and staged == Staged("own", two) and hash(staged) == hash(Staged("own", two))
    tokens, attn = inputs()
    assert torch.equal(reduce(tokens, attn, 9, method=staged), reduce(tokens, attn, 9, method="topk"))
    with pytest.raises(ValueError, match="short: its rule must give 3 methods for 3 layers, got 2"):
        Staged("short", lambda layers: (TOPK,) * (layers - 1)).of_layers(3)
    with pytest.raises(TypeError, match="odd: its rule must give a Method or a Split for each layer, got 'topk'"):
        Staged("odd", lambda layers: ("topk",) * layers).of_layers(1)
    with pytest.raises(TypeError, match="can be given with a method's name"):
        get_method(staged, split=0.5)
    assert Combined.of(staged, get_method("fastv")).name == "own + fastv"


PLAIN = {"merge_layers": 1 / 3, "split": 0.0, "prune": "topk"}


def shape(method, layers):
    """p for prune, m for merge, b for both."""
    return "".join({"prune": "p", "merge": "m", "prune and merge": "b"}[one.name] for one in method.of_layers(layers))


def test_prune_then_merge_layer_by_layer():
    method = get_method("prune-then-merge", **PLAIN)
    assert [shape(method, count) for count in (1, 2, 3, 4, 11)] == ["m", "pm", "ppm", "pppm", "pppppppmmmm"]
    assert shape(get_method("prune-then-merge", merge_layers=0.0, split=0.0), 3) == "ppm"
    assert shape(get_method("prune-then-merge", merge_layers=1.0), 3) == "mmm"
    half = get_method("prune-then-merge")
    assert [shape(half, count) for count in (1, 2, 3, 4, 11)] == ["m", "bm", "pbm", "ppbm", "pppppppbmmm"]
    assert [count for _, count in half.of_layers(3)[1].parts(65, 10, class_token=True)] == [5, 5]
    for split, wanted in ((0.2, [8, 2]), (0.8, [2, 8])):  # of r, the share that merges
        both = get_method("prune-then-merge", split=split).of_layers(4)[2]
        assert [count for _, count in both.parts(65, 10, class_token=True)] == wanted
    assert not any(one.proportional_attention for one in method.of_layers(3))
    said = get_method("prune-then-merge", proportional_attention=True).of_layers(3)
    assert [one.proportional_attention for one in said] == [False, True, True]  # the second does both
    ficoco = get_method("prune-then-merge", prune="ficoco").of_layers(3)[0].filter
    assert (ficoco.lam, ficoco.attention, ficoco.normalize, ficoco.penalty) == (0.35, "probs", True, 2.0)
    assert hyperparameters("prune-then-merge")["split"] == 0.5


def test_its_layers_are_topk_and_tome():
    tokens, attn = inputs()
    prune, _, merge = get_method("prune-then-merge", **PLAIN).of_layers(3)
    assert torch.equal(reduce(tokens, attn, 30, method=prune), reduce(tokens, attn, 30, method="topk"))
    assert same(record(tokens, attn, 30, method=merge), record(tokens, attn, 30, method="tome"))
    assert same(record(tokens, attn, 30, method="prune-then-merge"), record(tokens, attn, 30, method="tome"))


@pytest.mark.parametrize("r", [1, 7, 32])
@pytest.mark.parametrize("class_token", [True, False])
def test_weighed_matching(class_token, r):
    """Edges by cosine less weigh times the rank of class attention, in loops; weigh = 0 is ToMe."""
    n = 65 if class_token else 66
    tokens, attn = inputs(n=n)
    key = torch.nn.functional.normalize(attn.key.mean(1), dim=-1)
    a = (attn.query @ attn.key.mT * 8**-0.5).softmax(-1).mean(1)[:, 0]
    first = int(class_token)
    if not class_token:
        means = attn.key.mean(1)
        a = -torch.cosine_similarity(means.mean(1, keepdim=True), means, dim=-1)
    weighed = Method("own", Match(weigh=0.5), None, TOME.compress)
    grid = (8, 8) if class_token else (6, 11)
    result = record(tokens, attn, r, method=weighed, class_token=class_token, grid=grid)
    for item in range(2):
        rank = a[item, first:].argsort().argsort() / (n - first - 1)
        edges = []
        for i in range(2 * first, n, 2):
            cosine, j = max((float(key[item, i] @ key[item, j]), j) for j in range(1, n, 2))
            edges.append((cosine - 0.5 * float(rank[i - first]), i, j))
        gone = {i: j for _, i, j in sorted(edges, reverse=True)[:r]}
        assert result.sources[item].tolist() == sorted(gone)
        targets = result.kept[item, result.targets[item, :, 0]].tolist()
        assert targets == [gone[i] for i in sorted(gone)]
    plain = Method("own", Match(weigh=0.0), None, TOME.compress)
    if class_token:
        assert torch.equal(reduce(tokens, attn, r, method=plain), reduce(tokens, attn, r, method="tome"))


def test_weighed_matching_knows_its_limit():
    tokens, attn = inputs()
    weighed = Method("own", Match(weigh=0.5), None, TOME.compress)
    with pytest.raises(ValueError, match=r"match: r must be in \[0, 32\] for 65 tokens, got 33"):
        reduce(tokens, attn, 33, method=weighed)


def test_every_ablation_of_ficoco_is_a_hyperparameter():
    """Those that the paper tabulates: terms left out, penalty, fixed K, averages, convergent, and the sweeps."""
    of_v = {"lam", "eps", "penalty", "window", "alpha", "targets", "correlation", "class_attention", "local_redundancy"}
    of_l = {"beta", "gamma", "eps", "penalty", "window", "alpha", "targets", "direct", "indirect", "text_relevance"}
    assert of_v <= set(hyperparameters("ficoco-v"))
    assert of_l | {"visual_redundancy"} <= set(hyperparameters("ficoco-l"))
    for targets in (0, 1, 2):
        get_method("ficoco-v", targets=targets)
        get_method("ficoco-l", targets=targets)
