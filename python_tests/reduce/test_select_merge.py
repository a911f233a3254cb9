"""``ficoco_ext.select`` and ``ficoco_ext.merge``: the whole of both, without a model."""

from __future__ import annotations

import pytest
import torch

import ficoco_ext
from ficoco_ext import get_method, merge, select
from ficoco_ext.methods import Projected
from ficoco_ext.ops.values import free_to_read, has_values
from ficoco_ext.stages import VisualFeatures

FEATURES = torch.randn(2, 12, 6, generator=torch.Generator().manual_seed(1))
SALIENCY = torch.rand(2, 12, generator=torch.Generator().manual_seed(2))
MASK = torch.arange(12) < torch.tensor([[12], [7]])
AFTER = ("topk", "random", "divprune", "scope", "stride")
MERGING = ("divprune", "scope", "stride")


@pytest.mark.parametrize("method", AFTER)
def test_select_is_the_method_after_the_projector(method):
    """By name as with the method itself; the methods of the tower act after the projector here."""
    own = {"part": "projector"} if method in ("topk", "random") else {}
    wanted = get_method(method, **own)(VisualFeatures(FEATURES, MASK, saliency=SALIENCY), 5).kept
    assert torch.equal(select(FEATURES, 5, method=method, mask=MASK, saliency=SALIENCY), wanted)
    assert torch.equal(select(FEATURES, 5, method=get_method(method, **own), mask=MASK, saliency=SALIENCY), wanted)
    assert torch.equal(select(FEATURES, 5, saliency=SALIENCY, mask=MASK), select(FEATURES, 5, mask=MASK))


@pytest.mark.parametrize("method", MERGING)
def test_merge_is_the_method_that_merges(method):
    planes = (torch.randn(2, 12, 3), torch.randn(2, 12, 6))
    found = merge(FEATURES, 5, method=method, mask=MASK, saliency=SALIENCY, planes=planes, grid=(3, 4))
    assert isinstance(found, Projected)
    given = VisualFeatures(FEATURES, MASK, (3, 4), SALIENCY)
    wanted = get_method(method, merge=True)(given, 5, planes)
    assert torch.equal(found.kept, wanted.kept) and torch.equal(found.features, wanted.features)
    assert all(map(torch.equal, found.planes, wanted.planes)) and found.reduction.grid == (3, 4)
    assert torch.equal(found.kept, select(FEATURES, 5, method=method, mask=MASK, saliency=SALIENCY))
    assert int(found.reduction.size.sum()) == int(MASK.sum())


def test_hyperparameters_reach_the_method():
    for alpha in (0, 8.0):
        kept = select(FEATURES, 4, method="scope", alpha=alpha, saliency=SALIENCY)
        own = get_method("scope", alpha=alpha)(VisualFeatures(FEATURES, saliency=SALIENCY), 4).kept
        assert torch.equal(kept, own)
    assert not torch.equal(*(select(FEATURES, 4, method="random", seed=seed) for seed in (0, 1)))
    assert torch.equal(merge(FEATURES, 4, merge=True).features, merge(FEATURES, 4).features)


def test_text_and_its_mask_are_handed_on():
    class Words(ficoco_ext.stages.SelectStage):
        needs = (ficoco_ext.stages.needs.TEXT,)

        def __call__(self, visual, count):
            assert visual.text is text and visual.text_mask is flags and visual.grid == (2, 6)
            return torch.arange(count).expand(2, -1)

    text, flags = torch.randn(2, 3, 6), torch.tensor([[True] * 3, [True, False, False]])
    method = ficoco_ext.methods.ProjectorMethod("words", Words())
    assert method.needs == ("words of the prompt",)
    assert select(FEATURES, 2, method=method, text=text, text_mask=flags, grid=(2, 6)).tolist() == [[0, 1]] * 2
    with pytest.raises(ValueError, match="ficoco::select: text must be given, as the method needs it, got None"):
        select(FEATURES, 2, method=method)


class FirstOfAllThereIs(ficoco_ext.stages.SelectStage):
    """Keeps the first tokens, and remembers what it was given."""

    needs = (ficoco_ext.stages.needs.TEXT,)

    def __call__(self, visual, count):
        type(self).seen = visual
        return torch.arange(count).expand(len(visual.features), -1)


def test_everything_of_the_tower_is_handed_on():
    given = {"keys": FEATURES[..., :4], "tower_features": FEATURES[..., :3], "early_saliency": SALIENCY, "frames": 3}
    method = ficoco_ext.methods.ProjectorMethod("all", FirstOfAllThereIs())
    select(FEATURES, 2, method=method, text=FEATURES, **given)
    seen = FirstOfAllThereIs.seen._asdict()
    assert all(seen[name] is value for name, value in given.items())
    assert torch.equal(select(FEATURES, 2), select(FEATURES, 2, **given))


def test_a_picture_without_words_is_refused_where_words_are_needed():
    """On the CPU; a method that reads none does not mind."""
    method = ficoco_ext.methods.ProjectorMethod("words", FirstOfAllThereIs())
    flags = torch.tensor([[True, False], [False, False]])
    wanted = "words: text must be at least one word for every picture, got none for picture 1; ask .* 'divprune'"
    for text_mask, text in ((flags, FEATURES[:, :2]), (None, FEATURES[:, :0])):
        with pytest.raises(ValueError, match=wanted if text_mask is not None else "none for picture 0"):
            select(FEATURES, 2, method=method, text=text, text_mask=text_mask)
        assert select(FEATURES, 2, text=text, text_mask=text_mask).shape == (2, 2)
    words = FEATURES[:, :2].clone()
    words[1, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="words: text must be finite"):
        select(FEATURES, 2, method=method, text=words)
    hidden = torch.tensor([[True, True], [False, True]])
    assert select(FEATURES, 2, method=method, text=words, text_mask=hidden).shape == (2, 2)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_true_sizes_batched_and_padded(merged, dtype):
    """Pictures of 576, 391 and 130 tokens of width 512: bit for bit what each gives alone."""
    counts, call = (576, 391, 130), merge if merged else select
    features = torch.randn(3, 576, 512).to(dtype)
    mask = torch.arange(576) < torch.tensor(counts)[:, None]
    together = call(features, 64, mask=mask)
    for item, count in enumerate(counts):
        alone = call(features[item : item + 1, :count], 64)
        if merged:
            assert torch.equal(together.features[item], alone.features[0])
            assert torch.equal(together.reduction.size[item], alone.reduction.size[0])
            together_kept, alone = together.kept, alone.kept
        else:
            together_kept = together
        assert torch.equal(together_kept[item], alone[0])


def test_no_pictures():
    assert select(FEATURES[:0], 3).shape == (0, 3)
    assert select(FEATURES[:0], 3, mask=MASK[:0]).shape == (0, 3)
    assert merge(FEATURES[:0], 3, mask=MASK[:0]).features.shape == (0, 3, 6)


@pytest.mark.parametrize("method", AFTER)
def test_one_token(method):
    one = torch.tensor([[[2.0, 0.0]]])
    assert select(one, 1, method=method, saliency=torch.ones(1, 1)).tolist() == [[0]]


@pytest.mark.parametrize("method", AFTER)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(method, dynamic, fresh_compiler):
    made = get_method(method, **({"part": "projector"} if method in ("topk", "random") else {}))

    def run(features, saliency, mask):
        return select(features, 5, method=made, saliency=saliency, mask=mask)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for n in (12, 9):
        tensors = FEATURES[:, :n], SALIENCY[:, :n], MASK[:, :n]
        assert torch.equal(compiled(*tensors), run(*tensors))


def test_a_name_compiles_too(fresh_compiler):
    compiled = torch.compile(lambda x: (select(x, 5), merge(x, 5).features), fullgraph=True, backend="aot_eager")(
        FEATURES
    )
    assert torch.equal(compiled[0], select(FEATURES, 5)) and torch.equal(compiled[1], merge(FEATURES, 5).features)


def test_selection_is_no_part_of_the_gradient():
    features = FEATURES.clone().requires_grad_()
    assert not select(features, 4).requires_grad
    merge(features, 4).features.sum().backward()
    assert torch.allclose(features.grad.sum((1, 2)), torch.tensor([24.0, 24.0]))


def test_values_are_not_read_where_that_is_a_wait():
    """On the meta device NaN cannot be seen, and is not looked for."""
    assert select(FEATURES.to("meta"), 5, mask=MASK.to("meta")).shape == (2, 5)


def test_only_the_cpu_is_read():
    """A tensor of a device is asked for its device alone."""

    class Elsewhere(torch.Tensor):
        device = torch.device("cuda")

    assert free_to_read(FEATURES) and not free_to_read(FEATURES.as_subclass(Elsewhere))
    assert has_values(FEATURES.as_subclass(Elsewhere)) and not has_values(FEATURES.to("meta"))


NAN = FEATURES.clone()
NAN[0, 0, 0] = float("nan")
REFUSED = {
    "too many": (
        {"tokens": 13},
        r"select: tokens must be in \[1, 12\], the tokens there are, got 13 \(int\); lower it",
    ),
    "none": ({"tokens": 0}, r"select: tokens must be in \[1, 12\], the tokens there are, got 0 \(int\); raise it"),
    "no token": ({"features": FEATURES[:, :0]}, "features must be of at least 1 token, got .2, 0, 6. .*; leave out a"),
    "one picture": (
        {"features": FEATURES[0]},
        r"features must be \(B, N, D\), got \(12, 6\) .*; pass features\[None\]",
    ),
    "four dimensions": ({"features": FEATURES[None]}, r"features must be \(B, N, D\), .*; pass one vector a token"),
    "NaN": ({"features": NAN}, "divprune: features must be finite, got NaN or infinity among them; check the layer"),
    "infinity": ({"features": NAN.nan_to_num(float("inf"))}, "divprune: features must be finite"),
    "few are real": (
        {"tokens": 9, "mask": MASK},
        "mask must be True for at least 9 tokens of every picture, as many as are to stay, got one with 7; keep fewer",
    ),
    "mask of another shape": (
        {"mask": MASK[:, :5]},
        r"select: mask must be \(2, 12\), got \(2, 5\) .*; pass one a tok",
    ),
    "saliency of another shape": ({"saliency": SALIENCY[:1]}, r"saliency must be \(2, 12\), got \(1, 12\)"),
    "negative saliency": (
        {"saliency": SALIENCY - 1, "method": "scope"},
        "scope: saliency must be finite and at least 0",
    ),
    "NaN saliency": (
        {"saliency": SALIENCY / 0 * 0, "method": "scope"},
        "scope: saliency must be finite and at least 0",
    ),
    "no saliency": (
        {"method": "scope"},
        "select: saliency must be given, as the method needs it, got None; pass it, or use 'divprune'",
    ),
    "grid": ({"grid": (3, 5)}, r"select: grid must be \(rows, columns\) of 12 cells, got \(3, 5\)"),
    "sides": ({"grid": (12,)}, r"select: grid must be \(rows, columns\) of 12 cells, got \(12,\)"),
    "text": ({"text": FEATURES[0]}, r"select: text must be \(2, L, D\), got \(12, 6\)"),
    "words": (
        {"text": FEATURES, "text_mask": MASK[:, :5]},
        r"select: text_mask must be \(B, L\) like text, got \(2, 5\)",
    ),
    "flags without words": ({"text_mask": MASK}, r"select: text_mask must be \(B, L\) like text, got"),
    "keys of another shape": ({"keys": FEATURES[:1]}, r"select: keys must be \(2, 12, C\), got \(1, 12, 6\)"),
    "NaN before the projector": ({"tower_features": NAN}, "divprune: tower_features must be finite"),
    "early saliency below 0": ({"early_saliency": SALIENCY - 1}, "early_saliency must be finite and at least 0"),
    "frames of unequal size": ({"frames": 5}, "select: frames must be a divisor of the 12 tokens, got 5; pass videos"),
    "no frames": ({"frames": 0}, "select: frames must be a divisor of the 12 tokens, got 0"),
    "tower": (
        {"method": "ficoco-v"},
        "select: method must be one that acts after the projector alone, got ficoco-v, which works inside the tower; "
        "use attach for it, or one of 'topk', 'random', ",
    ),
    "part": ({"part": "tower"}, "got divprune, which works inside the tower; use attach for it"),
    "language model": ({"method": "fastv"}, "got fastv, which works inside the language model; use attach for it"),
    "both": ({"method": "ficoco-vl"}, "which works inside the tower and inside the language model; use attach"),
    "none of its parts": ({"method": "mustdrop"}, "got mustdrop, which works inside the tower and inside the lan"),
    "more": ({"method": "divprune+fastv"}, r"got divprune \+ fastv, which works inside the language model too; use"),
    "unknown": ({"method": "divprun"}, "method must be a Method or one of .*; did you mean 'divprune'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        select(**{"features": FEATURES, "tokens": 4} | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 2.0}, "select: tokens must be an integer, got 2.0"),
        ({"tokens": True}, "select: tokens must be an integer, got True"),
        ({"features": [1.0]}, r"select: features must be a tensor \(B, N, D\), got \[1.0\]"),
        ({"features": FEATURES.long()}, "select: features must be float32, float16, bfloat16 or float64"),
        ({"mask": MASK.float()}, "select: mask must be bool, got .*float32"),
        ({"mask": [True]}, "select: mask must be a tensor or None, got"),
        ({"saliency": SALIENCY.long()}, "select: saliency must be float32"),
        ({"text": FEATURES, "text_mask": MASK.int()}, "select: text_mask must be bool"),
        ({"early_saliency": SALIENCY.long()}, "select: early_saliency must be float32"),
        ({"keys": FEATURES.long()}, "select: keys must be float32"),
        ({"tower_features": [1.0]}, "select: tower_features must be a tensor or None, got"),
        ({"frames": 2.0}, "select: frames must be an integer, got 2.0"),
        ({"frames": True}, "select: frames must be an integer, got True"),
        ({"seed": 3}, "method 'divprune' has no hyperparameter 'seed'; it has part, merge"),
        (
            {"method": get_method("divprune"), "merge": True},
            "merge can be given with a method's name, not with a Method",
        ),
    ],
)
def test_wrong_kinds(options, message):
    with pytest.raises(TypeError, match=message):
        select(**{"features": FEATURES, "tokens": 4} | options)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"tokens": 13}, ValueError, r"merge: tokens must be in \[1, 12\]"),
        (
            {"method": "random"},
            ValueError,
            "merge: method must be one that merges what leaves, got 'random', which drops it; take one of 'divprune', "
            "'scope', .*, or call select",
        ),
        ({"merge": False}, ValueError, "merge: method must be one that merges what leaves, got 'divprune', which"),
        ({"planes": (FEATURES[:, :4],)}, ValueError, r"merge: each of planes must be \(2, 12, E\), got \(2, 4, 6\)"),
        ({"planes": ([1.0],)}, TypeError, r"merge: each of planes must be a tensor \(2, 12, E\), got \[1.0\]"),
        ({"method": "tome"}, ValueError, "merge: method must be one that acts after the projector alone, got tome"),
    ],
)
def test_merge_refuses(options, kind, message):
    with pytest.raises(kind, match=message):
        merge(**{"features": FEATURES, "tokens": 4} | options)
