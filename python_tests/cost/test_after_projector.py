"""What is removed after the projector: its count, its price by hand, and what torch counts on models that run."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
import torch
from helpers.decoder import tiny
from helpers.flop_counts import AFTER, EXACT, TEXT, compare, of_method, prompt
from helpers.models import PATCHES, batch, image, one_thread, tiny_llava, words  # noqa: F401
from helpers.tiny_families import TINY
from helpers.tiny_processors import Picture
from helpers.tiny_prompts import one_picture

import ficoco_ext
from ficoco_ext import Schedule, cost, get_method
from ficoco_ext.cost import flop_counter, schedules, scope
from ficoco_ext.methods import ProjectorMethod
from ficoco_ext.ops.costs import Operation
from ficoco_ext.resolve import ProjectorPlan
from ficoco_ext.stages import SelectStage

BASE = cost.architecture("llava-1.5-7b")
ALONE = [
    ("divprune", {"keep_ratio": 0.25}),
    ("divprune", {"tokens": 9, "merge": True}),
    ("divprune", {"tokens": 1}),
    ("scope", {"tokens": 9}),
    ("scope", {"tokens": 9, "saliency": "column"}),
    ("scope", {"tokens": 9, "saliency": "keys", "merge": True}),
    ("scope", {"tokens": 9, "alpha": 0.0}),
    ("vispruner", {"tokens": 9}),
    ("vispruner", {"tokens": 9, "before_projector": False, "share": 0.75}),
    ("fastervlm", {"tokens": 9}),
    ("dart", {"tokens": 9}),
    ("dart", {"tokens": 3}),
    ("stride", {"tokens": 9}),
    ("random", {"tokens": 9, "part": "projector"}),
    ("divprune", {"tokens": lambda grid: grid[0]}),
]
JOINED = [
    ("divprune+ficoco-l", {"keep_ratio": 0.25}),
    ("topk+divprune", {"tokens": 9}),
    ("tome+divprune+fastv", {"keep_ratio": 0.2}),
]


def attached(model, method, given):
    return ficoco_ext.attach(model, method, **given) if method else contextlib.nullcontext()


def of_plan(plan, images):
    """What the cost model is given, from the plan of an attached model."""
    decoder = None if plan.plan is None else plan.plan.schedule(images * plan.per_image)
    return {"vision": plan.schedule, "projector": plan.projector, "decoder": decoder}


@pytest.mark.parametrize(("method", "given"), [*ALONE, *JOINED])
@pytest.mark.parametrize("images", [1, 2])
def test_a_whole_prefill(method, given, images):
    model = tiny("llama", "eager")
    with ficoco_ext.attach(model, method, **given) as handle:
        run = lambda: model(**prompt(images), use_cache=True, logits_to_keep=1)  # noqa: E731
        counted, output = flop_counter.count(model, run)
        leaves = of_plan(handle.attach_plan, images)
    rest = {"text_tokens": TEXT, "images": images, "precision": "FP32"}
    found = cost.prefill(model.config, **leaves, text_after=AFTER, method=of_method(method, given), **rest)
    compare(found, counted)
    layers = output.past_key_values.layers
    assert [layer.keys.shape[-2] for layer in layers] == [one.tokens for one in found.layers if one.part == "decoder"]
    assert found.kv_bytes == sum(t.numel() * t.element_size() for one in layers for t in (one.keys, one.values))
    there = found.after_projector
    assert there.pictures == images and there.before == PATCHES - (0 if leaves["vision"] is None else 36 - there.before)
    assert found.tokens.entering == images * there.after == images * handle.attach_plan.per_image
    after = cost.decode(model.config, **leaves, **rest, generated=2)
    assert after.tokens == found.tokens
    count = {**leaves, "projector": there.after}
    assert cost.prefill(model.config, **count, text_after=AFTER, method=of_method(method, given), **rest) == found


def test_the_class_token_may_leave():
    model = tiny_llava(attention="eager", strategy="full")
    inputs = batch([*words(1, 2), *image(PATCHES + 1), *words(3)], images=1)
    with ficoco_ext.attach(model, "divprune", tokens=9):
        counted, _ = flop_counter.count(model, lambda: model(**inputs, use_cache=True, logits_to_keep=1))
    found = cost.prefill(model.config, projector=9, text_tokens=3, method="divprune")
    assert (found.after_projector.before, found.tokens.entering) == (PATCHES + 1, 9)
    compare(found, counted)


@pytest.mark.parametrize("name", ["qwen2-vl", "qwen2.5-vl", "llava-siglip"])
@pytest.mark.parametrize(
    ("method", "given"),
    [("divprune", {"tokens": 3}), ("scope", {"tokens": 3, "merge": True}), ("vispruner", {"tokens": 3})],
)
def test_towers_that_merge_patches_or_have_no_class_token(name, method, given):
    """Of a model that runs: all that the method adds, by the difference of the two."""
    (family,) = (one for one in TINY if one.name == name)
    model = family.build().eval()
    model.set_attn_implementation("eager")
    picture = Picture(4, 4) if "qwen" in name else None
    inputs = one_picture(family, picture).inputs

    def ours():
        with flop_counter.counter() as mode, torch.no_grad():
            model(**inputs)
        counts = mode.get_flop_counts()["Global"]
        return sum(n for op, n in counts.items() if str(op).removeprefix("ficoco.") in flop_counter.FORMULAS)

    assert ours() == 0
    with ficoco_ext.attach(model, method, **given) as handle:
        counted = ours()
        (projection,) = handle.projections
    shape = cost.architecture(model.config)
    side = int((projection.before * shape.tower.merge) ** 0.5)
    assert side * side == projection.before * shape.tower.merge
    shape = cost.architecture(shape, image_size=side * shape.tower.patch)
    assert shape.visual_tokens == projection.before
    found = cost.prefill(shape, projector=3, method=of_method(method, given))
    assert found.after_projector.total.operations == counted


@pytest.mark.parametrize("name", ["qwen3-vl", "internvl"])
@pytest.mark.parametrize(
    ("method", "given"),
    [
        (None, {}),
        ("divprune", {"tokens": 3}),
        ("scope", {"tokens": 3, "merge": True}),
        ("vispruner", {"tokens": 3}),
        ("dart", {"tokens": 3, "image_pivots": 2, "text_pivots": 0}),
        ("stride+fastv", {"keep_ratio": 0.25, "layer": 3}),
    ],
)
def test_a_whole_prefill_of_other_families(name, method, given):
    """DeepStack has further projectors and features to merge; InternVL reduces each tile."""
    (family,) = (one for one in TINY if one.name == name)
    model = family.build().eval()
    model.set_attn_implementation("eager")
    asked = one_picture(family, Picture(4, 4) if "qwen" in name else None)
    ids = asked.ids
    visual = int((ids == model.config.image_token_id).sum())
    after = ids.shape[1] - 1 - int((ids[0] == model.config.image_token_id).nonzero().max())
    shape = cost.architecture(model.config)
    if "qwen" in name:
        shape = cost.architecture(shape, image_size=shape.tower.patch * int((visual * shape.tower.merge) ** 0.5))
    else:
        shape = cost.architecture(shape, crops=visual // shape.visual_tokens)
    assert shape.visual_tokens == visual
    leaves = schedules.Schedules()
    with attached(model, method, given), flop_counter.counter() as mode, torch.no_grad():
        model(**asked.inputs, use_cache=True, logits_to_keep=1)
    if method is not None:
        amount = {key: value for key, value in given.items() if key in ("tokens", "keep_ratio")}
        leaves = schedules.build(shape, of_method(method, given), **amount)
    text = {"text_tokens": ids.shape[1] - visual, "text_after": after}
    chosen = None if method is None else of_method(method, given)
    found = cost.prefill(shape, **leaves._asdict(), **text, method=chosen)
    assert found.total.operations == mode.get_total_flops()


def test_selection_is_below_two_percent_of_a_7b_prefill():
    """DivPrune, 64 of 576 tokens of width 4096: 576^2 x 4096 for half of all cosines, 2 x 576 for each pick."""
    assert (BASE.visual_tokens, BASE.language_model.hidden) == (576, 4096)
    full = cost.prefill(BASE)
    for text in (0, 60):
        found = cost.prefill(BASE, projector=64, method="divprune", text_tokens=text)
        chosen = found.after_projector.total.operations
        assert chosen == found.parts["reduction"].operations == 576 * 576 * 4096 + 2 * 576 * 64
        assert chosen < 0.02 * found.parts["decoder"].operations  # of the short prompt, not the full one
        assert found.selection_share == chosen / found.total.operations < 0.02
        assert chosen < 0.0002 * full.total.operations


@pytest.mark.parametrize("text", [0, 60, 2000])
def test_words_are_priced(text):
    """cdpruner asks for the mean of the words, mmtok compares each of them with all 576 tokens, and covers it.

    mmtok compares tokens with each other by the 1024 channels of the tower.
    """
    wanted = {
        "cdpruner": 2 * 4096 * (576 + text) + 576 * (576 * 4096 + 64 * 64),
        "mmtok": 2 * 576 * (576 * (1024 + 1) + text * (4096 + 1)),
    }
    for name, operations in wanted.items():
        found = cost.prefill(BASE, projector=64, method=name, text_tokens=text)
        assert found.after_projector.total.operations == operations
        assert found.selection_share < 0.02


def test_what_is_left_is_a_shorter_prompt():
    """Language model, cache and head are those of so many visual tokens; tower and projector do not change."""
    few, short = cost.prefill(BASE, projector=64, method="divprune"), cost.prefill(BASE, visual_tokens=64)
    full = cost.prefill(BASE)
    for part in ("decoder", "head"):
        assert few.parts[part] == short.parts[part]
    for part in ("tower", "projector"):
        assert few.parts[part] == full.parts[part]
    assert few.kv_bytes == short.kv_bytes and few.tokens == short.tokens
    assert cost.decode(BASE, projector=64) == cost.decode(BASE, visual_tokens=64)
    assert short.after_projector is None and cost.decode(BASE, projector=64).after_projector is None


@pytest.mark.parametrize(
    ("kind", "operations"),
    [
        ("auto", 2 * 577 * 1024),
        ("class", 2 * 577 * 1024),
        ("column", 2 * 577 * 577 * 1024),
        ("keys", 2 * 576 * 1024),
    ],
)
def test_saliency_by_hand(kind, operations):
    found = cost.prefill(BASE, projector=64, method=get_method("scope", saliency=kind))
    saliency, chosen, survivors = (line for line in found.lines if line.part == "reduction")
    assert (survivors.name, survivors.operations) == ("compress", 0)
    assert (saliency.name, saliency.layer, saliency.operations) == ("saliency", 22, operations)
    assert (chosen.name, chosen.layer, chosen.operations) == ("greedy_select", None, 576 * (576 * 4096 + 2 * 576))
    assert found.after_projector.total.operations == operations + chosen.operations
    tower = [one.total.operations for one in found.layers if one.part == "tower"]
    assert tower[22] - tower[21] == operations


def test_saliency_is_measured_of_what_the_tower_has_left():
    vision = Schedule(576, (12,), (300,))
    method = get_method("topk+scope")
    found = cost.prefill(BASE, vision=vision, projector=64, method=method)
    (line,) = (one for one in found.lines if one.name == "saliency")
    assert line.operations == 2 * 277 * 1024


def test_a_class_token_that_was_not_trained_is_not_asked():
    shape = dataclasses.replace(BASE, tower=dataclasses.replace(BASE.tower, trained_class=False))
    (line,) = (one for one in cost.prefill(shape, projector=64, method="scope").lines if one.name == "saliency")
    assert line.operations == 2 * 577 * 577 * 1024
    bare = dataclasses.replace(BASE, tower=dataclasses.replace(BASE.tower, class_token=False))
    (line,) = (one for one in cost.prefill(bare, projector=64, method="scope").lines if one.name == "saliency")
    assert line.operations == 2 * 576 * 576 * 1024
    with pytest.raises(ValueError, match=r"saliency must be 'column' or 'keys' for llava-1\.5-7b, whose tower has no"):
        cost.prefill(bare, projector=64, method=get_method("scope", saliency="class"))


@pytest.mark.parametrize(
    ("model", "images", "pictures", "before"),
    [
        ("llava-1.5-7b", 2, 2, 576),
        ("llava-next-7b", 1, 1, 2880),
        ("video-llava-7b", 1, 8, 257),
        ("video-llava-7b", 2, 16, 257),
        ("qwen2-vl-7b", 1, 1, 576),
    ],
)
def test_pictures_are_reduced_each_on_its_own(model, images, pictures, before):
    """A picture cut into crops is laid out again before; frames of Video-LLaVA stay apart; blocks are merged."""
    found = cost.prefill(model, projector=before - 10, images=images, method="divprune")
    there = found.after_projector
    assert (there.pictures, there.before, there.after) == (pictures, before, before - 10)
    assert found.tokens.entering == pictures * (before - 10)
    width = cost.architecture(model).language_model.hidden
    assert there.total.operations == pictures * before * (before * width + 2 * (before - 10))
    assert found.parts["projector"] == cost.prefill(model, images=images).parts["projector"]
    leaves = schedules.build(cost.architecture(model), get_method("divprune+fastv"), keep_ratio=0.25, images=images)
    assert leaves.projector == int(before * 0.5 + 0.5)
    assert leaves.decoder.patches == pictures * leaves.projector


def test_nothing_removed_costs_nothing():
    for method in ("divprune", "scope"):
        found = cost.prefill(BASE, projector=576, method=method)
        assert "reduction" not in found.parts and found.total == cost.prefill(BASE).total
        assert found.after_projector.total.operations == 0


def test_a_function_of_the_grid():
    shape, method = cost.architecture("llava-1.5-7b"), get_method("divprune")
    assert schedules.build(shape, method, tokens=lambda grid: 3 * grid[1]).projector == 72
    seen = []
    for model in ("llava-next-7b", "video-llava-7b"):
        schedules.build(cost.architecture(model), method, tokens=lambda grid: seen.append(grid) or 7)
    assert seen == [None, None]
    plan = ProjectorPlan(method, tokens=lambda grid: 3 * grid[1])
    assert cost.prefill(shape, projector=plan, method=method).tokens.entering == 72


def test_merging_is_priced():
    drop, merge = (
        cost.prefill(BASE, projector=64, method=get_method("divprune", merge=merge)).after_projector.total.operations
        for merge in (False, True)
    )
    assert merge - drop == 2 * 512 * 64 * 4096 + 2 * 512 * 4096


def test_a_select_of_ones_own():
    method = ProjectorMethod("mine", lambda visual, count: None)
    with pytest.raises(ValueError, match="the cost of the select function is not known; pass include_reduction=False"):
        cost.prefill(BASE, projector=64, method=method)
    found = cost.prefill(BASE, projector=64, method=method, include_reduction=False)
    assert found.tokens.entering == 64 and "reduction" not in found.parts
    assert scope.bill(BASE, "llmviewer", projector=64, method=method).tokens.entering == 64


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: cost.prefill(BASE, projector=577), ValueError, r"projector must be in 1 \.\.\. 576, .* got 577"),
        (lambda: cost.decode(BASE, projector=0), ValueError, r"projector must be in 1 \.\.\. 576, .* got 0"),
        (lambda: cost.prefill(BASE, projector=0.5), TypeError, r"projector must be an integer, .* got 0\.5"),
        (lambda: cost.prefill(BASE, projector=True), TypeError, "projector must be an integer"),
        (
            lambda: cost.prefill(BASE, projector=64, visual_tokens=64),
            ValueError,
            "visual_tokens must be None with projector, which says how many stay, got 64",
        ),
        (
            lambda: cost.prefill(BASE, projector=64, method="fastv"),
            ValueError,
            "projector must be None: fastv does",
        ),
        (
            lambda: cost.prefill(BASE, projector=64, include_reduction=True),
            ValueError,
            "method must be given to count the reduction's own cost",
        ),
        (
            lambda: dataclasses.replace(BASE, crops=3, visual_tokens=1729, apart=True),
            ValueError,
            "visual_tokens must be a multiple of the 3 crops, which are apart, got 1729",
        ),
    ],
)
def test_mistakes(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_json():
    found = cost.prefill(BASE, projector=64, images=2, method="divprune", hardware="h200")
    there = found.to_dict()["after_projector"]
    assert (there["pictures"], there["before"], there["after"]) == (2, 576, 64)
    assert there["operations"] == 2 * (576 * 576 * 4096 + 2 * 576 * 64)
    assert there["seconds"] == found.after_projector.total.seconds > 0
    assert there["share_of_operations"] == pytest.approx(there["operations"] / found.total.operations, rel=EXACT)
    assert cost.prefill(BASE).to_dict()["after_projector"] is None


def test_words_of_the_prompt_have_a_price():
    """A select that compares every token with every word."""

    class WordSelect(SelectStage):
        def operations(self, shape):
            return [shape.price(Operation("words", "2*b*n*t*h", loads="b*t*h"), n=shape.visual, t=shape.text)]

    method = ProjectorMethod("mine", WordSelect())
    found = cost.prefill(BASE, projector=64, text_tokens=70, text_after=20, method=method)
    assert found.parts["reduction"].operations == 2 * 576 * 70 * 4096
