"""GlobalCom2: golden cases, a reference in loops for all options, and what has to be true of any scores."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest
import torch
from oracles import crops as reference

import ficoco_ext
from ficoco_ext import get_method, globalcom2_keep
from ficoco_ext.methods.projector_method import ProjectorMethod
from ficoco_ext.ops.costs import evaluate
from ficoco_ext.resolve import Amount, ProjectorPlan, projector_plan
from ficoco_ext.stages import Crops, GlobalSelect, SelectStage, Shape, VisualFeatures, needs
from ficoco_ext.stages import global_select as parts

GOLDEN = json.loads((Path(__file__).parent / "golden_globalcom2.json").read_text())["cases"]
SMALL = [(24, 48), (48, 24), (48, 48), (24, 72), (72, 24)]  # canvases of crops of 24 pixels
SIZES = [(24, 48), (40, 30), (20, 61), (61, 20), (33, 47), (48, 48), (1, 500), (500, 1), (3, 100)]
OPTIONS = [
    {},
    {"alpha": 0.0},
    {"alpha": 1},
    {"normalize": False},
    {"cells": "crops"},
    {"budget": "floor"},
    {"temperature": 0.5},
    {"temperature": 0.5, "normalize": False, "alpha": 0.25, "cells": "crops", "budget": "floor"},
]
golden = pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['size']} {case['side']} {case['options']}")


def said(case):
    """The scores of a golden case, by the formula in its file."""
    g, patches = case["side"], case["side"] ** 2
    i = torch.arange(patches, dtype=torch.float64)
    c = torch.arange(1 + len(case["crops"]), dtype=torch.float64).unsqueeze(1)
    scores = torch.sin(0.7 + 0.37 * i + 1.9 * c) + 0.6 * torch.cos(0.0131 * i**2 + 0.53 * c)
    y, x = i // g, i % g
    scores[0] += 1.5 * torch.exp(-((y - 0.3 * g) ** 2 + (x - 0.7 * g) ** 2) / (0.08 * g * g))
    return scores


def laid(size, side=6, pixels=24, pinpoints=SMALL):
    return Crops.of(tuple(size), pinpoints, side, pixels)


def drawn(crops, seed=0, scale=1.0):
    draw = torch.Generator().manual_seed(seed)
    return scale * torch.randn(1 + crops.count, crops.patches, generator=draw, dtype=torch.float64)


def keep(scores, size, side=6, **options):
    return [one.tolist() for one in globalcom2_keep(scores, size, SMALL, side, 24, **options)]


def counts(kept):
    return [len(one) for one in kept[1:]]


def packed(crops, scores):
    """(1, N) of the tokens of a picture, without line ends."""
    return torch.stack([scores[origin] for origin in crops.origins]).unsqueeze(0)


def visual_of(crops, scores, dim=3):
    logits = packed(crops, scores)
    return VisualFeatures(torch.randn(1, logits.shape[1], dim), crops=crops, class_logits=logits)


@golden
def test_golden(case):
    """T1: patches, numbers, ratios and the order in which the language model gets what stays."""
    crops = laid(case["size"], case["side"], case["pixels"], case["pinpoints"])
    assert (list(crops.grid), list(crops.rectangle)) == (case["grid"], case["rectangle"])
    assert (list(crops.valid), crops.before) == (case["valid"], case["unreduced_length"])
    scores, given = said(case), dict(case["options"])
    share = given.pop("ratio")
    rich = parts.richness(scores[:1], crops, "thumbnail")
    ratios = parts.kept_ratios(rich, share, 10.0)
    for found, wanted in ((rich, case["richness"]), (ratios, case["ratios"])):
        assert (found[0] - torch.tensor(wanted, dtype=torch.float64)).abs().max() < 1e-9
    assert case["margin"] > 1e-5 and (case["budget_margin"] is None or case["budget_margin"] > 1e-4)
    size, more = tuple(case["size"]), (case["pinpoints"], case["side"], case["pixels"])
    kept = [one.tolist() for one in globalcom2_keep(scores, size, *more, keep_ratio=share, **given)]
    assert kept == [case["thumbnail"], *case["crops"]] and counts(kept) == case["counts"]
    order = in_order(crops, kept)
    assert len(order) == case["length"]
    assert hashlib.sha256(json.dumps(order).encode()).hexdigest() == case["order_sha256"]


def in_order(crops, kept):
    """The thumbnail's patches, then each line of the valid rectangle with its end."""
    order = [("thumbnail", patch) for patch in kept[0]]
    origins = crops.origins[crops.patches :]
    for line in range(crops.lines):
        for crop, patch in origins[line * crops.columns : (line + 1) * crops.columns]:
            if patch in kept[crop]:
                order.append(("crop", crop - 1, patch))
        order.append(("newline", line))
    return order


@golden
def test_features_say_the_same_as_scores_alone(case):
    """The select of packed features, which a model uses, keeps what the function of scores keeps."""
    crops = laid(case["size"], case["side"], case["pixels"], case["pinpoints"])
    given = dict(case["options"])
    share = given.pop("ratio")
    method = get_method("globalcom2", **given).asked(share)
    visual = visual_of(crops, said(case))
    found = method(visual, method.number(crops.tokens, crops, share))
    kept = [[] for _ in range(1 + crops.count)]
    for token in found.kept[0].tolist():
        crop, patch = crops.origins[token]
        kept[crop].append(patch)
    assert kept == [case["thumbnail"], *case["crops"]]
    assert torch.equal(found.features, visual.features[:, found.kept[0]])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_is_the_reference(options):
    """Random pictures, crops that are cut unevenly, sides that no grid divides, empty rectangles, any amount."""
    chance = random.Random(str(options))
    for seed in range(40):
        side = chance.choice((1, 2, 3, 5, 7, 12))
        canvases = [(4 * side * a, 4 * side * b) for a, b in ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1), (1, 4))]
        size = chance.choice([(chance.randint(1, 200), chance.randint(1, 200)), (2, 900), (900, 2)])
        crops = Crops.of(size, canvases, side, 4 * side)
        scores = drawn(crops, seed, chance.choice((0.1, 1.0, 5.0)))
        amount = chance.choice(
            [
                {"keep_ratio": chance.choice((0.01, 0.1, 0.29, 0.57, 0.75, 0.99, 1, 1.0))},
                {"tokens": chance.randint(1, 200)},
            ]
        )
        found = globalcom2_keep(scores, size, canvases, side, 4 * side, **amount, **options)
        picture = reference.Picture(crops.side, crops.grid, crops.rectangle)
        settings = reference.Settings(share=amount.get("keep_ratio"), tokens=amount.get("tokens"), **options)
        assert [one.tolist() for one in found] == reference.globalcom2(picture, scores, settings), (seed, size, amount)


def test_ratios_are_around_the_share():
    """T2: their mean is it where none is cut, equal crops have it, a single crop too."""
    draw = torch.Generator().manual_seed(0)
    for crops in (1, 2, 4, 6):
        rich = torch.randn(50, crops, generator=draw, dtype=torch.float64) * 30
        ratios = parts.kept_ratios(rich, 0.3, 10.0)
        assert (ratios.mean(1) - 0.3).abs().max() < 1e-8 and ratios.max() <= 1
        equal = parts.kept_ratios(torch.full((1, crops), 7.0, dtype=torch.float64), 0.3, 10.0)
        assert (equal - 0.3).abs().max() < 1e-8
    assert float(parts.kept_ratios(torch.tensor([[100.0, 0.0]], dtype=torch.float64), 0.8, 10.0).max()) == 1


@pytest.mark.parametrize("share", [0.01, 0.1, 0.29, 0.5, 0.571, 0.9, 0.99, 1])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_as_many_as_were_asked_for(size, share):
    """T3 and T4: the whole budget whatever the scores, no crop more than it has, no padding, ascending."""
    crops = laid(size)
    total = int(share * sum(crops.valid) + 1e-9)
    for seed in range(5):
        kept = keep(drawn(crops, seed, 20.0), size, keep_ratio=share)
        assert len(kept[0]) == int(share * 36 + 1e-9) and sum(counts(kept)) == total
        for crop, patches in enumerate(kept):
            assert patches == sorted(set(patches))
            assert len(patches) <= (crops.valid[crop - 1] if crop else 36)
        valid = set(crops.origins)
        assert all((crop, patch) in valid for crop, patches in enumerate(kept) for patch in patches)


def test_what_padding_holds_does_not_matter():
    crops = laid((40, 30))
    scores, valid = drawn(crops), set(crops.origins)
    wild = scores.clone()
    for crop in range(1 + crops.count):
        for patch in range(36):
            if (crop, patch) not in valid:
                wild[crop, patch] = float("nan")
    assert not torch.equal(scores, wild)
    assert keep(wild, (40, 30), keep_ratio=0.3) == keep(scores, (40, 30), keep_ratio=0.3)


def test_a_picture_without_padding_needs_no_padding_logic():
    """T4: by the definition on whole crops alone."""
    crops = laid((48, 48))
    assert crops.valid == (36,) * 4
    scores = drawn(crops, 3)
    wide = torch.nn.functional.interpolate(scores[:1].view(1, 1, 6, 6), (12, 12), mode="bilinear")[0, 0]
    kept = keep(scores, (48, 48), keep_ratio=0.4)
    for crop in range(4):
        y, x = divmod(crop, 2)
        shown = wide[6 * y : 6 * y + 6, 6 * x : 6 * x + 6].flatten()
        both = 0.5 * shown / shown.norm() + 0.5 * scores[crop + 1] / scores[crop + 1].norm()
        assert kept[crop + 1] == sorted(both.argsort(descending=True)[: len(kept[crop + 1])].tolist())


def test_a_share_of_one_keeps_everything():
    for size in SIZES:
        for budget in ("exact", "floor"):
            crops = laid(size)
            for amount in ({"keep_ratio": 1}, {"tokens": crops.tokens}, {"tokens": 10**6}):
                kept = keep(drawn(crops, 1, 30.0), size, budget=budget, **amount)
                assert (len(kept[0]), tuple(counts(kept))) == (36, crops.valid)


def test_the_floor_may_keep_fewer():
    """Each crop rounds down for itself, so up to one a crop fewer than the budget; a cut ratio is lost too."""
    crops, fewer = laid((48, 48)), 0
    for seed in range(20):
        scores = drawn(crops, seed)
        exact, floor = (keep(scores, (48, 48), keep_ratio=0.3, budget=budget) for budget in ("exact", "floor"))
        assert exact[0] == floor[0] and 0 <= sum(counts(exact)) - sum(counts(floor)) < 4
        fewer += counts(exact) != counts(floor)
    assert fewer > 10
    assert get_method("globalcom2", variant="released").select.budget == "floor"
    assert get_method("globalcom2", variant="released", budget="exact").select.budget == "exact"


def test_what_each_weight_listens_to():
    """T7: with alpha 0 the thumbnail says how many, with alpha 1 the crops' own scores say nothing."""
    crops = laid((48, 48))
    scores = drawn(crops, 5)
    turned = scores.clone()
    turned[0] = scores[0].flip(0)
    one, other = (keep(s, (48, 48), keep_ratio=0.3, alpha=0, temperature=1.0) for s in (scores, turned))
    assert counts(one) == counts(other)[::-1] != counts(one)[::-1]
    for crop in range(1, 5):
        ranked = scores[crop].argsort(descending=True).tolist()
        assert one[crop] == sorted(ranked[: len(one[crop])]) and other[crop] == sorted(ranked[: len(other[crop])])
    others = torch.cat([scores[:1], drawn(crops, 6)[1:]])
    wanted = keep(scores, (48, 48), keep_ratio=0.3, alpha=1)
    assert keep(others, (48, 48), keep_ratio=0.3, alpha=1) == wanted != keep(scores, (48, 48), keep_ratio=0.3)


def test_a_constant_in_a_crop_counts_through_its_length_alone():
    """T8."""
    crops = laid((48, 48))
    scores = drawn(crops, 7)
    moved = scores.clone()
    moved[2] += 3
    bare = {"keep_ratio": 0.3, "normalize": False, "alpha": 0}
    assert keep(moved, (48, 48), **bare) == keep(scores, (48, 48), **bare)
    assert keep(moved, (48, 48), keep_ratio=0.3) != keep(scores, (48, 48), keep_ratio=0.3)


@pytest.mark.parametrize(("size", "crops"), [((24, 48), 2), ((24, 72), 3), ((48, 48), 4)])
def test_large_logits_give_the_richest_crop_all_that_it_may_have(size, crops):
    """T11: its ratio is R (2 - 1/n), or 1."""
    scores = drawn(laid(size), 8) * 100
    for share in (0.2, 0.9):
        ratios = parts.kept_ratios(parts.richness(scores[:1], laid(size), "thumbnail"), share, 1.0)
        assert float(ratios.max()) == pytest.approx(min(1, share * (2 - 1 / crops)), abs=1e-6)


def test_equal_scores_go_by_lowest_patch_and_lowest_crop():
    crops = laid((48, 48))
    flat = torch.full((1 + crops.count, 36), 0.3)
    kept = keep(flat, (48, 48), keep_ratio=0.25)
    assert kept == [list(range(9))] * 5
    assert counts(keep(flat, (48, 48), tokens=9 + 38, alpha=0)) == [10, 10, 9, 9]  # 9 of the thumbnail, 38 of crops
    assert counts(keep(-flat, (48, 48), tokens=9 + 38)) == [10, 10, 9, 9]
    assert keep(torch.zeros(5, 36), (48, 48), keep_ratio=0.25) == [list(range(9))] * 5


def test_crops_that_are_cut_unevenly():
    """The parts of 3 x 1 crops differ, and so do both ways to cut the thumbnail."""
    uneven = [size for size in ((height, 24) for height in range(60, 90)) if len(set(laid(size).valid)) > 1]
    differ = 0
    for seed, size in enumerate(uneven):
        scores, given = drawn(laid(size), seed, 5.0), {"keep_ratio": 0.3, "temperature": 3.0}
        even, own = (keep(scores, size, cells=cells, **given) for cells in ("thumbnail", "crops"))
        differ += counts(even) != counts(own)
    assert len(uneven) > 3 and differ
    for size in ((48, 48), (24, 72)):  # cut evenly: the same to rounding, where the resize is exact
        crops, flat = laid(size), torch.full((1, 36), 2.0, dtype=torch.float64)
        assert torch.allclose(parts.richness(flat, crops, "crops"), parts.richness(flat, crops, "thumbnail"))


def test_a_grid_that_is_larger_than_a_crop():
    """One cell a patch, and crops past the last patch see nothing of the thumbnail."""
    crops = Crops(1, (1, 3), (0, 1, 0, 3))
    assert parts.richness(torch.tensor([[2.0]], dtype=torch.float64), crops, "thumbnail").tolist() == [[2.0, 0.0, 0.0]]
    crops = Crops(3, (1, 2), (0, 3, 0, 6))
    found = parts.richness(torch.arange(9, dtype=torch.float64).unsqueeze(0), crops, "thumbnail")
    assert found.tolist() == [[0.0 + 3 + 6, 1.0 + 2 + 4 + 5 + 7 + 8]]  # the last column of cells has what is left over


def test_the_resize_is_bilinear_and_flat_where_the_map_is():
    for size in SIZES[:6]:
        crops = laid(size)
        small = drawn(crops)[:1]
        to = (crops.lines, crops.columns)
        wanted = torch.nn.functional.interpolate(small.view(1, 1, 6, 6), to, mode="bilinear").flatten(1)
        assert torch.allclose(parts.resized(small, crops), wanted, rtol=0, atol=1e-14)
        assert parts.resized(torch.full((1, 36), 0.1, dtype=torch.float64), crops).unique().tolist() == [0.1]


def test_shares_are_whole_numbers_with_the_sum():
    """A full crop hands on what it cannot take, to six digits equal remainders go to the lower crop."""

    def of(total, sizes, ratios):
        sizes, ratios = (torch.tensor([one], dtype=torch.float64) for one in (sizes, ratios))
        return parts.shared(torch.tensor([[float(total)]], dtype=torch.float64), sizes, ratios)[0].tolist()

    assert of(7, [4, 4, 4], [1, 1, 1]) == [3, 2, 2]
    assert of(10, [4, 6, 6], [1, 0.1, 0.1]) == [4, 3, 3]  # 7.7 of 4, and 6 shared anew
    assert of(12, [2, 4, 6], [1, 1, 0.2]) == [2, 4, 6]
    assert of(0, [2, 0, 6], [1, 1, 1]) == [0, 0, 0]
    assert of(5, [0, 5, 0], [1, 1, 1]) == [0, 5, 0]
    assert of(3, [9, 9, 9], [0.3333333, 0.3333334, 0.3333333]) == [1, 1, 1]
    assert of(4, [9, 9], [0.37499998, 0.625]) == [2, 2]  # 1.5 and 2.5, apart in the eighth digit
    assert of(7, [9, 9, 9], [0.2, 0.3, 0.5]) == [1, 2, 4]  # 1.4, 2.1 and 3.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_scores_of_any_precision_are_compared_in_float64(dtype):
    scores = drawn(laid((40, 30)), 4).to(dtype)
    assert keep(scores, (40, 30), keep_ratio=0.4) == keep(scores.double(), (40, 30), keep_ratio=0.4)
    assert globalcom2_keep(scores, (40, 30), SMALL, 6, 24)[0].dtype == torch.int64


def test_neither_scores_nor_features_are_changed():
    crops = laid((40, 30))
    scores = drawn(crops).requires_grad_()
    before = scores.detach().clone()
    keep(scores, (40, 30), keep_ratio=0.4)
    assert torch.equal(scores, before) and scores.grad is None


def test_through_select_with_tokens():
    """``tokens`` are those of thumbnail and crops; each has its part of them."""
    crops = laid((40, 30))
    visual = visual_of(crops, drawn(crops, 2))
    for tokens in (1, 2, 17, 60, crops.tokens):
        kept = ficoco_ext.select(
            visual.features, tokens, method="globalcom2", crops=crops, class_logits=visual.class_logits
        )
        alone = keep(drawn(crops, 2), (40, 30), tokens=tokens)
        wanted = [t for t, (crop, patch) in enumerate(crops.origins) if patch in alone[crop]]
        assert kept.tolist() == [wanted] and len(wanted) == tokens
        assert len(alone[0]) == tokens * 36 // crops.tokens


def test_counts_of_the_floor_are_those_that_stay():
    crops = laid((48, 48))
    logits = torch.cat([packed(crops, drawn(crops, seed, 3.0)) for seed in range(4)])
    visual = VisualFeatures(logits.unsqueeze(-1), crops=crops, class_logits=logits)
    method = get_method("globalcom2", budget="floor").asked(0.2)
    numbers = method.counts(visual).tolist()
    assert len(set(numbers)) > 1
    for seed, number in enumerate(numbers):
        one = VisualFeatures(visual.features[seed : seed + 1], crops=crops, class_logits=logits[seed : seed + 1])
        alone = keep(drawn(crops, seed, 3.0), (48, 48), keep_ratio=0.2, budget="floor")
        assert method.keep(one, number).shape[1] == number == sum(map(len, alone))
        with pytest.raises(ValueError, match=rf"count must be {number}, what keep_ratio leaves of this picture"):
            method.keep(one, number + 1)


def test_a_share_that_leaves_nothing_leaves_one_token_to_a_model():
    crops = laid((24, 48))
    visual = visual_of(crops, drawn(crops))
    for budget in ("exact", "floor"):
        method = get_method("globalcom2", budget=budget).asked(0.01)
        best = int(drawn(crops)[0].argmax())
        assert method.number(crops.tokens, crops, 0.01) == 1 and method.keep(visual, 1).tolist() == [[best]]
        assert keep(drawn(crops), (24, 48), keep_ratio=0.01, budget=budget) == [[], [], []]
    assert get_method("globalcom2", budget="floor").asked(0.01).counts(visual).tolist() == [1]


def test_the_plan_asks_the_method_how_many_stay():
    """k of the thumbnail and of all crops together, each rounded down; tokens are tokens; other methods round."""
    crops = laid((40, 30))
    ratio, tokens = ProjectorPlan(get_method("globalcom2"), 0.3), ProjectorPlan(get_method("globalcom2"), tokens=9)
    other = ProjectorPlan(get_method("divprune"), 0.3)
    for height in range(20, 90, 7):
        crops = laid((height, 40))
        n = crops.tokens
        assert ratio.count(n, None, crops) == int(0.3 * 36) + int(0.3 * (n - 36) + 1e-9)
        assert tokens.count(n, None, crops) == 9 and other.count(n, None, crops) == int(0.3 * n + 0.5)
    assert ProjectorPlan(get_method("globalcom2"), 1.0).count(crops.tokens, None, crops) == crops.tokens
    assert ratio.count(100) == 30  # where no crops are known, as in a table of costs
    assert ratio.acting(100, 30).select.keep_ratio == 0.3 and tokens.acting(100, 9) is tokens.method
    floor = ProjectorPlan(get_method("globalcom2", budget="floor"), tokens=9)
    assert floor.acting(100, 9).select.keep_ratio == 0.09 and other.acting(100, 30) is other.method
    assert projector_plan("attach", get_method("globalcom2"), Amount()).keep_ratio == 0.25


def test_what_it_says_of_itself():
    method = get_method("globalcom2")
    assert isinstance(method, ProjectorMethod) and method.drops and not method.data_decides
    assert method.needs == (needs.CROPS, needs.CLASS_LOGITS) and not method.reads_question
    assert "thumbnail" in method.describe().filter and method.describe()[1:] == ("none", "dropped")
    shape = Shape(batch=1, tokens=2880, visual=2880, r=2160, channels=4096, heads=32, kv_heads=32, head_dim=128)
    assert next(evaluate(one.operations, values) for one, values in method.operations(shape)) == 16 * 2880
    plain = SelectStage.of(get_method("divprune").select)
    assert not plain.data_decides and plain.number(9, None, 0.5) is None and plain.asked(0.5) is plain
    with pytest.raises(ValueError, match="the caller says how many stay"):
        plain.counts(visual_of(laid((24, 48)), drawn(laid((24, 48)))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, r"temperature must be a finite number >= "),
        ({"alpha": 1.1}, r"alpha must be a number in \[0, 1\], got 1.1"),
        ({"normalize": 2}, r"normalize must be one of True, False, got 2"),
        ({"cells": "patch"}, r"cells must be one of 'thumbnail', 'crops', got 'patch'"),
        ({"budget": "ceil"}, r"budget must be one of 'exact', 'floor', got 'ceil'"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        get_method("globalcom2", **options)
    with pytest.raises(ValueError, match=message):
        keep(drawn(laid((24, 48))), (24, 48), **options)


def test_other_arguments_that_cannot_be():
    crops = laid((24, 48))
    scores = drawn(crops)
    bad = [
        ({"keep_ratio": 0}, ValueError, r"keep_ratio must be a number in \[5e-324, 1\]"),
        ({"keep_ratio": 0.5, "tokens": 4}, ValueError, "one of keep_ratio and tokens, got both"),
        ({"tokens": 0}, ValueError, "tokens must be an integer of at least 1"),
        ({"tokens": -3}, ValueError, "tokens must be an integer of at least 1"),
        ({"tokens": True}, TypeError, "tokens must be an integer of at least 1"),
        ({"tokens": "4"}, TypeError, "tokens must be an integer of at least 1"),
        ({"tokens": 2.5}, TypeError, "tokens must be an integer of at least 1"),
    ]
    for options, kind, message in bad:
        with pytest.raises(kind, match=message):
            keep(scores, (24, 48), **options)
    for wrong, kind, message in (
        (scores[:2], ValueError, r"scores must be \(3, 36\), the thumbnail and 2 crops"),
        (scores.long(), TypeError, "scores must be"),
        (scores.tolist(), TypeError, r"scores must be a tensor \(3, 36\)"),
        (scores / 0, ValueError, "scores must be finite, got NaN or infinity among them"),
    ):
        with pytest.raises(kind, match=message):
            keep(wrong, (24, 48))
    with pytest.raises(ValueError, match="variant must be one of 'exact', 'released', got 'paper'"):
        get_method("globalcom2", variant="paper")
    with pytest.raises(ValueError, match=r"keep_ratio must be a number in \[5e-324, 1\], got 2"):
        GlobalSelect(keep_ratio=2)


def test_pictures_that_cannot_be():
    crops = laid((24, 48))
    visual, method = visual_of(crops, drawn(crops)), get_method("globalcom2")
    hidden = visual._replace(mask=torch.ones(1, crops.tokens, dtype=torch.bool))
    nan = visual._replace(class_logits=visual.class_logits / 0)
    bad = [
        (lambda: method(visual._replace(crops=None), 5), ValueError, "crops must be given, as the method needs it"),
        (lambda: method(visual._replace(class_logits=None), 5), ValueError, "class_logits must be given"),
        (lambda: method(visual._replace(crops=(6, (1, 2))), 5), TypeError, "crops must be a Crops or None"),
        (lambda: method(visual._replace(crops=laid((40, 30))), 5), ValueError, "crops must be of 108 tokens without"),
        (
            lambda: method(visual._replace(class_logits=visual.features), 5),
            ValueError,
            r"class_logits must be \(1, 108\)",
        ),
        (lambda: method(nan, 5), ValueError, "class_logits must be finite"),
        (lambda: method.asked(0.5)(visual, 5), ValueError, "count must be 54, what keep_ratio leaves of this picture"),
        (lambda: method.asked(0.5)(hidden, 54), ValueError, "mask must be None with keep_ratio"),
        (lambda: GlobalSelect(budget="floor")(visual, 5), ValueError, "keep_ratio must be given with budget='floor'"),
        (lambda: GlobalSelect().counts(visual), ValueError, "keep_ratio must be given"),
        (lambda: GlobalSelect()(visual._replace(crops=None), 5), ValueError, "GlobalSelect: crops is needed"),
    ]
    for call, kind, message in bad:
        with pytest.raises(kind, match=message):
            call()


def test_amounts_that_cannot_be():
    method = get_method("globalcom2")
    with pytest.raises(ValueError, match=r"got r; a picture's crops differ in number; pass keep_ratio=0.25"):
        projector_plan("attach", method, Amount(r=8))
    with pytest.raises(ValueError, match=r"layers must be None .* a picture's crops differ in number; say keep_ratio"):
        projector_plan("attach", method, Amount(keep_ratio=0.5, layers=(3,)))
    with pytest.raises(ValueError, match=r"got r; pass keep_ratio=0.25"):
        projector_plan("attach", get_method("divprune"), Amount(r=8))


def test_compiled_as_a_whole():
    crops = laid((40, 30))
    visual, select = visual_of(crops, drawn(crops, 1)), GlobalSelect()
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda logits: select(visual._replace(class_logits=logits), 40), fullgraph=True, backend="eager"
    )
    assert torch.equal(compiled(visual.class_logits), select(visual, 40))
