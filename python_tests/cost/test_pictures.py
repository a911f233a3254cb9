"""Pictures of several crops, by their size: tokens, padding that leaves first, line ends, and what torch counts."""

import dataclasses
import itertools
import random
from types import SimpleNamespace

import pytest
from helpers.cli import document, run
from helpers.models import one_thread  # noqa: F401
from helpers.tiny_families import TINY

from ficoco_ext import Schedule, cost, get_method
from ficoco_ext.cost import advice, pinpoints, schedules, scope
from ficoco_ext.cost.compare import compare as compared
from ficoco_ext.stages import Crops

BASE, NEXT = cost.architecture("llava-1.5-7b"), cost.architecture("llava-next-7b")
TOWER = dataclasses.replace(NEXT.tower, class_token=False)
PADDED, WHOLE, THIN, HALF = (480, 640), (672, 672), (20, 2500), (300, 1000)
SIZES = (PADDED, WHOLE, THIN, HALF, (1200, 900), (37, 41), (1000, 300), (336, 336))


def crops(size):
    return Crops.of(size, pinpoints.LLAVA_NEXT, 24, 336)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("left", [1, 57, 144, 575, 576])
def test_tokens_are_those_of_the_geometry(size, left):
    shape, wanted = cost.architecture("llava-next-7b", picture=size), crops(size)
    assert (shape.picture, shape.crops, shape.visual_tokens) == (wanted, 1 + wanted.count, wanted.before)
    assert shape.tokens_with(left) == wanted.after(left)
    assert shape.line_ends == shape.extra == wanted.lines
    vision = Schedule(576, (12,), (576 - left,))
    found = cost.prefill(shape, vision=vision, images=3)
    assert found.tokens == (3 * wanted.after(left),) * 3
    (projected,) = {dict(line.values)["t"] for line in found.lines if line.name == "linear_1"}
    assert projected == 3 * shape.crops * left  # padding too: the projector runs before it is cut away


def test_without_a_size_all_crops_are_full():
    assert (NEXT.picture, NEXT.crops, NEXT.visual_tokens, NEXT.line_ends) == (None, 5, 2880, 0)
    assert NEXT.leaves_first(576, 100) == {0: 5}
    assert cost.architecture("llava-next-7b", picture=WHOLE).visual_tokens == 2880 + 48
    assert "papers count" in NEXT.seen and cost.architecture("llava-1.5-7b").seen == ""


def test_one_size_after_another():
    first = cost.architecture("llava-next-13b", picture=HALF)
    assert cost.architecture(first, picture=PADDED) == cost.architecture("llava-next-13b", picture=PADDED)


def one_by_one(valid, before, r):
    """Padding that a crop loses first: patch after patch, those that are no padding last."""
    padding = max(before - valid, 0)
    lost = 0
    while lost < min(padding, r):
        lost += 1
    return lost


def test_padding_leaves_first_in_random_pictures():
    """Crop by crop: what is left in the end is the smaller one of valid patches and survivors."""
    draw = random.Random(5)
    for _ in range(200):
        size = draw.randint(1, 3000), draw.randint(1, 3000)
        shape = cost.architecture("llava-next-7b", picture=size)
        before = 576
        padding = [576 - one for one in shape.picture.valid]
        while before > 1:
            r = draw.randint(0, before - 1)
            lost = [one_by_one(one, before, r) for one in shape.picture.valid]
            wanted = {e: lost.count(e) for e in lost}
            wanted[0] = wanted.get(0, 0) + 1
            assert shape.leaves_first(before, r) == wanted
            padding = [one - e for one, e in zip(padding, lost, strict=True)]
            before -= r
            assert [before - one for one in padding] == [min(one, before) for one in shape.picture.valid]
            if r == 0:
                break


def _reduction_lines(shape, vision, method):
    bill = cost.prefill(shape, vision=vision, method=method)
    return [line for line in bill.lines if line.part == "reduction"]


def test_a_method_is_billed_for_what_padding_leaves_it():
    """480 x 640: four crops with 144 patches of padding. Layer 12 takes 100 of it, layer 13 the other 44."""
    shape = cost.architecture("llava-next-7b", picture=PADDED)
    vision = Schedule(576, (12, 13, 14), (100, 100, 100))
    found = _reduction_lines(shape, vision, "topk")
    met = {(line.layer, *(dict(line.values)[name] for name in "bnr")) for line in found}
    assert met == {(12, 1, 577, 100), (13, 1, 477, 100), (13, 4, 433, 56), (14, 5, 377, 100)}
    full = _reduction_lines(cost.architecture("llava-next-7b", picture=WHOLE), vision, "topk")
    nominal = _reduction_lines(NEXT, vision, "topk")
    assert [line.operations for line in full] == [line.operations for line in nominal]
    whole, padded = (sum(line.operations for line in lines) for lines in (full, found))
    assert padded < whole


def test_all_padding_and_no_rows():
    """20 x 2500: nothing of the canvas is the picture's; the thumbnail alone costs a choice."""
    shape = cost.architecture("llava-next-7b", picture=THIN)
    assert (shape.visual_tokens, shape.line_ends, sum(shape.picture.valid)) == (576, 0, 0)
    lines = _reduction_lines(shape, Schedule(576, (12,), (432,)), "topk")
    assert {dict(line.values)["b"] for line in lines} == {1}
    assert cost.prefill(shape, vision=Schedule(576, (12,), (432,))).tokens.final == 144


@pytest.mark.parametrize("size", [PADDED, WHOLE, THIN])
def test_line_ends_stay_after_the_projector(size):
    shape = cost.architecture("llava-next-7b", picture=size)
    method = get_method("divprune")
    leaves = schedules.build(shape, method, keep_ratio=0.25)
    ends = crops(size).lines
    free = shape.visual_tokens - ends
    assert leaves.projector == int(free * 0.25 + 0.5)
    found = cost.prefill(shape, projector=leaves.projector, method=method, images=2)
    there = found.after_projector
    assert (there.pictures, there.before, there.after) == (2, free, leaves.projector)
    assert found.tokens.entering == 2 * (leaves.projector + ends)
    assert cost.decode(shape, projector=leaves.projector, images=2).tokens == found.tokens
    with pytest.raises(ValueError, match=rf"projector must be in 1 \.\.\. {free}"):
        cost.prefill(shape, projector=free + 1)


@pytest.mark.parametrize("size", [PADDED, (336, 336)])
def test_line_ends_enter_the_language_model(size):
    shape = cost.architecture("llava-next-7b", picture=size)
    alone = schedules.build(shape, get_method("fastv"), keep_ratio=0.5, images=2)
    assert alone.decoder.patches == 2 * shape.visual_tokens
    after = schedules.build(shape, get_method("divprune+fastv"), keep_ratio=0.25, images=2)
    assert after.decoder.patches == 2 * (after.projector + shape.line_ends)
    both = schedules.build(shape, get_method("ficoco-vl"), keep_ratio=0.25)
    assert both.decoder.patches == shape.tokens_with(both.vision.final)
    cost.prefill(shape, **both._asdict(), method="ficoco-vl")


# ---- budgets


@pytest.mark.parametrize("size", [PADDED, HALF, WHOLE])
@pytest.mark.parametrize("method", ["ficoco-v", "tome", "divprune", "ficoco-l", "ficoco-vl"])
@pytest.mark.parametrize("budget", [{"tflops": 9.5}, {"kv_mb": 500}, {"average_tokens": 700}])
def test_no_plan_comes_closer(size, method, budget):
    """Of the plans that remove one token more or less in one layer."""
    shape = cost.architecture("llava-next-7b", picture=size)
    found = cost.plan(shape, method, **budget)
    chosen = get_method(method)

    def off(leaves):
        bill = scope.bill(shape, "llmviewer", method=chosen, **leaves._asdict())
        value = bill.tokens.average if "average_tokens" in budget else getattr(bill, found.quantity)
        return abs(value - found.wanted)

    here = off(found.schedules)
    assert here == abs(found.reached - found.wanted)
    assert here <= 0.03 * found.wanted
    last = "vision" if method in ("ficoco-v", "tome") else "projector" if method == "divprune" else "decoder"
    there = getattr(found.schedules, last)
    if last == "projector":
        for step in (-1, 1):
            assert off(found.schedules._replace(projector=there + step)) >= here - 1e-9
        return
    first = there.r.index(min(there.r[: len([one for one in there.r if one])] or (0,)))
    for index, step in itertools.product((0, first), (-1, 1)):
        r = list(there.r)
        r[index] += step
        even = [one for one in r if one]
        if min(r) < 0 or sum(r) >= there.patches or max(even) - min(even[:-1] or even) > 1:
            continue
        other = dataclasses.replace(there, r=tuple(r))
        assert off(found.schedules._replace(**{last: other})) >= here - 1e-9


@pytest.mark.parametrize("method", ["ficoco-v", "topk"])
@pytest.mark.parametrize("size", [PADDED, HALF, THIN])
def test_cost_never_rises_with_what_leaves_the_tower(method, size):
    """What the planner's search rests on, padding or not, with the price of the choice."""
    shape, chosen = cost.architecture("llava-next-7b", picture=size), get_method(method)
    row = cost.rows.tower_row(shape, chosen, None, 1)
    for convention in ("llmviewer", "matmul"):
        costs = [
            scope.bill(shape, convention, method=chosen, **row.at(step)._asdict()).total.operations
            for step in range(row.start, 600, 7)
        ]
        assert costs == sorted(costs, reverse=True)


def test_a_budget_out_of_reach_names_the_range():
    shape = cost.architecture("llava-next-7b", picture=PADDED)
    least = cost.prefill(
        shape,
        vision=Schedule(576, tuple(range(12, 23)), (53, 53, 53, 52, 52, 52, 52, 52, 52, 52, 52)),
        convention="llmviewer",
        include_tower=False,
        include_projector=False,
        fused_attention=False,
    )
    assert least.tokens.final == 1 + 4 + 36
    with pytest.raises(ValueError, match=rf"reaches {least.tflops:.4g} to 34.14 TFLOPs.*patches of a crop but one"):
        cost.plan(shape, "ficoco-v", tflops=1)


# ---- words and refusals


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cost.architecture("llava-1.5-7b", picture=PADDED), "no crops .* seen as 336 x 336 pixels"),
        (lambda: cost.architecture("qwen2-vl-7b", picture=PADDED), r"qwen2-vl-7b: no crops .* image_size=, crops="),
        (lambda: cost.architecture("video-llava-7b", picture=PADDED), r"no crops .* image_size=, crops="),
        (lambda: cost.architecture(NEXT, picture=(0, 640)), r"picture must be \(height, width\) in pixels"),
        (lambda: cost.architecture(NEXT, picture=(10**10, 640)), r"in 1 \.\.\. 1000000000, got"),
        (lambda: cost.architecture(NEXT, picture=(480.0, 640)), r"got \(480\.0, 640\)"),
        (lambda: cost.architecture(NEXT, picture=(True, 640)), r"got \(True, 640\)"),
        (lambda: cost.architecture(NEXT, picture=(480,)), r"got \(480,\)"),
        (lambda: cost.architecture(NEXT, picture="480x640"), "got '480x640'"),
        (lambda: cost.architecture(NEXT, picture=480), "got 480"),
        (lambda: cost.architecture(NEXT, picture=PADDED, crops=3), "picture must be None with image_size or crops"),
        (lambda: cost.architecture(NEXT, picture=PADDED, image_size=224), "picture must be None with image_size"),
        (
            lambda: cost.architecture(cost.architecture(NEXT, picture=PADDED), crops=3),
            "image_size and crops must be None: llava-next-7b was given",
        ),
        (
            lambda: dataclasses.replace(NEXT, picture=crops(PADDED)),
            "576 patches a crop, 5 crops and 2880 visual tokens",
        ),
        (
            lambda: dataclasses.replace(NEXT, visual_tokens=2885).of_picture(PADDED),
            "class token each .* vision_feature_select_strategy 'default'",
        ),
        (lambda: dataclasses.replace(NEXT, pinpoints=((300, 672),)).of_picture(PADDED), "multiples of 336"),
        (
            lambda: cost.prefill(cost.architecture(NEXT, picture=PADDED), projector=144, method="downsample"),
            "with a method that resizes pictures",
        ),
        (
            lambda: schedules.build(cost.architecture(NEXT, picture=PADDED), get_method("pool"), tokens=144),
            "one without padding, with pool",
        ),
        (
            lambda: cost.plan(cost.architecture(NEXT, picture=PADDED), "pool", tflops=9, layers=[12]),
            "one without padding, with pool",
        ),
        (
            lambda: schedules.build(BASE, get_method("globalcom2"), keep_ratio=0.5),
            "method must not be globalcom2 for llava-1.5-7b, whose pictures are not cut into crops",
        ),
        (lambda: cost.prefill(BASE, projector=64, method="globalcom2"), "method must not be globalcom2"),
        (lambda: cost.plan(BASE, "globalcom2", tflops=2), "method must not be globalcom2"),
        (
            lambda: cost.prefill(dataclasses.replace(NEXT, tower=TOWER), projector=64, method="globalcom2"),
            "no class token for llava-next-7b, whose tower has none: it reads its class_logits",
        ),
        (
            lambda: schedules.build(NEXT, get_method("topk+divprune"), keep_ratio=0.5),
            "a single part before the language",
        ),
        (lambda: cost.plan(NEXT, "topk+divprune", tflops=9), "a single part before the language model"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_whole_grids_without_padding_are_counted():
    shape = cost.architecture(NEXT, picture=WHOLE)
    vision = schedules.build(shape, get_method("pool"), tokens=144).vision
    assert cost.prefill(shape, vision=vision, method="pool").tokens.final == 768


def test_pinpoints_of_a_config():
    (family,) = (one for one in TINY if one.name == "llava-next")
    config = family.build().config
    shape = cost.architecture(config)
    assert shape.pinpoints == tuple(map(tuple, config.image_grid_pinpoints))
    small = dataclasses.replace(NEXT.tower, image_size=224)
    assert pinpoints.of_config(object(), 336) == pinpoints.LLAVA_NEXT == NEXT.pinpoints
    assert pinpoints.of_config(object(), small.image_size) == ()
    for wrong in (3, [[1]], [[1, 2, 3]], [[0, 4]], [[1.0, 2]], ["ab"], [[True, 2]]):
        with pytest.raises(ValueError, match="image_grid_pinpoints of its config must be pairs"):
            pinpoints.of_config(SimpleNamespace(image_grid_pinpoints=wrong), 336)


def test_advice_on_padding():
    def said(size, left):
        shape = NEXT if size is None else cost.architecture("llava-next-7b", picture=size)
        leaves = schedules.build(shape, get_method("topk"), tokens=left)
        return " ".join(advice.advice(compared(shape, get_method("topk"), leaves)))

    assert "756 of 2340 visual tokens (32%) by 144 of 576 patches of a crop (25%)" in said(PADDED, 144)
    for size in (WHOLE, None):
        assert "Padding" not in said(size, 144) and "attach does not" not in said(size, 144)


def test_the_command_line():
    found = document("cost", "llava-next-7b", "--picture", "480x640", "--method", "topk", "--tokens", 144)
    assert found["crops"] == {"grid": [2, 2], "valid": [432] * 4, "line_ends": 36, "visual_tokens": 2340}
    assert found["visual_tokens"]["final"] == 756 and found["all_tokens"]["visual_tokens"]["final"] == 2340
    assert document("cost", "llava-next-7b")["crops"] is None
    assert "36 line ends" in run("cost", "llava-next-7b", "--picture", "480x640").stdout
    planned = document("plan", "llava-next-7b", "--picture", "480x640", "--method", "divprune", "--kv-mb", 300)
    assert planned["after_projector"]["before"] == 2304 and planned["crops"]["visual_tokens"] == 2340


@pytest.mark.parametrize(
    "text", ["480", "480x", "x640", "480x640x3", "-1x640", "480\u00d7640", "1e3x640", "9" * 10 + "x1"]
)
def test_a_size_that_is_none_is_one_clear_line(text):
    for command in (("cost",), ("plan", "--tflops", "9")):
        result = run(*command, "llava-next-7b", f"--picture={text}")
        assert result.exit_code == 2 and result.stdout == ""
        wanted = f"--picture must be HEIGHTxWIDTH in pixels, such as 480x640, got '{text}'"
        assert wanted in result.stderr.strip()
