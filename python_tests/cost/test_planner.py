"""The planner inverts the cost model: what it returns costs what was asked, and no neighbour comes closer."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from helpers.paths import PACKAGE
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from ficoco_ext import Schedule, cost, get_method
from ficoco_ext.cost import architecture, planner, rows, schedules, scope
from ficoco_ext.cost.schedules import Schedules, ranges
from ficoco_ext.methods import Combined, Staged

TOWER, DECODER = ("ficoco-v", "topk", "tome"), ("ficoco-l", "fastv", "pyramiddrop")
PROJECTOR = ("divprune", "scope", "stride")
SEVERAL = ("ficoco-vl", "divprune+fastv", "topk+divprune", "topk+stride+ficoco-l")
EVERY = TOWER + DECODER + PROJECTOR + SEVERAL
MODELS = ("llava-1.5-7b", "llava-1.5-13b", "llava-next-7b")
TINY = PACKAGE / "data" / "tiny_llava"
SLOW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _value(shape, method, quantity, leaves, **rest):
    convention = "matmul" if quantity == "ttft_ms" else rest.pop("convention", "llmviewer")
    cost = scope.bill(shape, convention, method=method, **leaves._asdict(), **rest)
    return cost.tokens.average if quantity == "average_tokens" else getattr(cost, quantity)


def _neighbours(schedule):
    """The same schedule with one token more or less in one layer, as long as it is even."""
    for index, change in itertools.product(range(len(schedule.r)), (-1, 1)):
        r = list(schedule.r)
        r[index] += change
        if r[index] < 0 or sum(r) >= schedule.patches:
            continue
        working = r[: max(i for i, one in enumerate(r) if one) + 1] if any(r) else r
        spent = sum(r) == schedule.patches - 1  # the last layer that removes has what the others left
        even = working[:-1] if spent else r
        if even and max(even) - min(even) > 1:
            continue
        if even == sorted(even, reverse=True) and (not spent or working[-1] <= max(even, default=working[-1])):
            yield Schedule(schedule.patches, schedule.layers, tuple(r), schedule.before_attention)


def _others(found):
    """The same with one token more or less."""
    if found.projector is not None:
        before = found.cost.after_projector.before
        counts = (found.projector + change for change in (-1, 1))
        return [Schedules(projector=count) for count in counts if 1 <= count <= before]
    part = "decoder" if found.vision is None else "vision"
    return [Schedules(**{part: one}) for one in _neighbours(getattr(found, part))]


@SLOW
@given(
    model=st.sampled_from((*MODELS, "qwen2-vl-7b", "video-llava-7b")),
    method=st.sampled_from(TOWER + DECODER + PROJECTOR),
    quantity=st.sampled_from(sorted(planner.QUANTITIES)),
    text_tokens=st.sampled_from((1, 60, 512)),
    share=st.floats(0, 1),
)
def test_round_trip(model, method, quantity, text_tokens, share):
    shape = architecture(model)
    assume(method not in TOWER or model in MODELS)
    rest = {"text_tokens": text_tokens, "hardware": "h200"}
    most = _value(shape, method, quantity, Schedules(), **rest)
    with pytest.raises(ValueError, match="out of reach") as caught:
        planner.plan(model, method, **{quantity: most * 1.01}, **rest)
    words = str(caught.value).split("reaches ")[1].split()
    least = float(words[0]) * 1.001  # as it is printed, to four digits
    wanted = least + share * (most - least)
    found = planner.plan(model, method, **{quantity: wanted}, **rest)
    assert found.reached == _value(shape, method, quantity, found.schedules, **rest)
    assert found.least <= found.reached <= found.most
    off = abs(found.reached - wanted)
    for other in _others(found):
        assert off <= abs(_value(shape, method, quantity, other, **rest) - wanted) * (1 + 1e-9), other


def half(tokens):
    return tokens // 2


@pytest.mark.parametrize("method", TOWER + DECODER)
@pytest.mark.parametrize("quantity", sorted(planner.QUANTITIES))
def test_it_is_the_best_of_all(method, quantity):
    shape, chosen = architecture(TINY), get_method(method)
    rest = {"text_tokens": 8, "hardware": "h200"}
    part = "vision" if method in TOWER else "decoder"
    of = schedules.tower_layers if method in TOWER else schedules.decoder_layers
    layers = of("plan", shape, None, chosen)
    before = getattr(chosen, "before_attention", False)
    largest = [half] * len(layers) if method == "tome" else None
    everything = {
        rows.spread(shape.tower.patches, layers, total, largest=largest, before_attention=before)
        for total in range(len(layers) * shape.tower.patches + 1)
    }
    costs = [_value(shape, method, quantity, Schedules(**{part: one}), **rest) for one in everything]
    for share in (0, 0.1, 0.37, 0.5, 0.9, 1):
        wanted = min(costs) + share * (max(costs) - min(costs))
        if wanted > _value(shape, method, quantity, Schedules(), **rest):
            continue  # a first reduction may cost more than none
        found = planner.plan(TINY, method, **{quantity: wanted}, **rest)
        assert abs(found.reached - wanted) == pytest.approx(min(abs(one - wanted) for one in costs), rel=1e-6)


@SLOW
@given(method=st.sampled_from(EVERY), share=st.floats(0, 1))
@example(method="ficoco-vl", share=0.9999999999999999)
def test_it_costs_what_was_asked_within_one_token(method, share):
    text, layers = 60, 32
    least = planner.plan("llava-1.5-7b", method, average_tokens=576).least
    wanted = least + share * (576 - least)
    found = planner.plan("llava-1.5-7b", method, average_tokens=wanted)
    assert abs(found.reached - wanted) <= 0.5 + 1e-9
    assert found.cost.kv_mb == pytest.approx(2 * 4096 * 2 * layers * (found.reached + text) / 1e6)


@SLOW
@given(method=st.sampled_from(EVERY), shares=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_a_larger_budget_never_removes_more(method, shares):
    full = planner.plan("llava-1.5-7b", method, average_tokens=576)
    low, high = (full.least + share * (576 - full.least) for share in sorted(shares))
    small, large = (planner.plan("llava-1.5-7b", method, average_tokens=wanted) for wanted in (low, high))
    assert small.reached <= large.reached
    if method in PROJECTOR:
        assert small.projector <= large.projector
    elif method not in SEVERAL:
        for few, many in zip(small.schedule.steps, large.schedule.steps, strict=True):
            assert few.after <= many.after


@pytest.mark.parametrize("quantity", sorted(planner.QUANTITIES))
def test_both_parts_keep_the_same_share(quantity):
    full = _value(architecture("llava-1.5-7b"), None, quantity, Schedules(), hardware="h200")
    wanted = {"tflops": 1.5, "kv_mb": 65.0, "average_tokens": 64.0, "ttft_ms": 4.0}[quantity]
    assert wanted < full
    vision, decoder = cost.plan("llava-1.5-7b", "ficoco-vl", **{quantity: wanted}, hardware="h200").schedule
    assert decoder.patches == vision.final
    assert vision.keep_ratio == pytest.approx(decoder.keep_ratio, abs=0.06)
    leaves = Schedules(vision=vision, decoder=decoder)
    reached = _value(architecture("llava-1.5-7b"), "ficoco-vl", quantity, leaves, hardware="h200")
    assert reached == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize("patches", [1, 2, 31, 576])
@pytest.mark.parametrize("layers", [1, 3, 11])
@pytest.mark.parametrize("halves", [False, True])
def test_spread(patches, layers, halves):
    before = None
    for total in range(layers * patches + 1):
        schedule = rows.spread(patches, range(layers), total, largest=[half] * layers if halves else None)
        after = [step.after for step in schedule.steps]
        if before is not None:
            assert all(now <= then <= now + 1 for now, then in zip(after, before, strict=True))
        if not halves and total < patches:
            assert sum(schedule.r) == total
            assert max(schedule.r) - min(schedule.r) <= 1
        if halves:
            assert all(2 * step.r <= step.before for step in schedule.steps)
        before = after
    assert halves or before == [1] * layers


def _merge_first(layers):
    return (get_method("tome"), *[get_method("topk")] * (layers - 1))


def test_every_layer_has_its_own_limit():
    """Matching pairs halves at most; pruning after it leaves one."""
    least = {}
    for method in ("tome", get_method("tome", distill_token=True), Staged("merge-first", _merge_first)):
        layers = (3, 4)
        least[method] = cost.plan("llava-1.5-7b", method, average_tokens=576, layers=layers).least
        found = cost.plan("llava-1.5-7b", method, average_tokens=least[method], layers=layers).schedule
        each = get_method(method).of_layers(2)
        for step, one in zip(found.steps, each, strict=True):
            assert step.r == one.largest(1 + step.before, class_token=True)
    assert list(least.values()) == [144, 145, 1]


def test_known_rows_of_the_papers():
    for tflops, left in ((3.3, 192), (2.45, 128), (1.6, 62)):
        found = cost.plan("llava-1.5-7b", "ficoco-v", tflops=tflops).schedule
        assert abs(found.final - left) <= 1
        assert found.layers == tuple(range(12, 23))
    assert cost.plan("llava-1.5-7b", "ficoco-v", kv_mb=65.0, layers=range(11, 23)).schedule.r == (43,) * 8 + (42,) * 4
    found = cost.plan("llava-1.5-13b", "ficoco-v", tflops=15.42, text_tokens=512, layers=range(11, 23)).schedule
    assert found.r == (41,) * 12


def test_out_of_reach_names_the_range():
    with pytest.raises(ValueError, match=r"tflops=1\.5 is out of reach.* reaches 1\.594 to 8\.453 TFLOPs.*all visual"):
        cost.plan("llava-1.5-7b", "ficoco-l", tflops=1.5, layers=range(3, 32))
    assert cost.plan("llava-1.5-7b", "ficoco-l", tflops=1.5, layers=range(2, 32)).schedule.final == 1
    with pytest.raises(ValueError, match=r"8\.453 is what it costs when nothing is removed"):
        cost.plan("llava-1.5-7b", "ficoco-v", tflops=9)
    for wanted in (0.5, 9):
        with pytest.raises(ValueError, match=r"ficoco-v \+ ficoco-l in layers 12.* reaches 0\.8329 to 8\.453 TFLOPs"):
            cost.plan("llava-1.5-7b", "ficoco-vl", tflops=wanted)
    with pytest.raises(ValueError, match="at most half"):
        cost.plan("llava-1.5-7b", "tome", average_tokens=100, layers=[12, 13])


def test_a_floor_holds():
    found = cost.plan("llava-1.5-7b", "ficoco-l", average_tokens=192, floor=64).schedule
    assert found.final == 64
    with pytest.raises(ValueError, match="all visual tokens but 300"):
        cost.plan("llava-1.5-7b", "ficoco-l", average_tokens=192, floor=300)


def test_images_and_precision_count():
    one = planner.plan("llava-1.5-7b", "ficoco-v", kv_mb=100)
    two = planner.plan("llava-1.5-7b", "ficoco-v", kv_mb=100, images=2)
    assert two.vision.final == pytest.approx((one.vision.final) / 2, abs=1)
    assert planner.plan("llava-1.5-7b", "fastv", kv_mb=100, precision="int8").cost.precision.kv == 8


def test_the_two_conventions_cover_different_parts():
    alone = planner.plan("llava-1.5-7b", "ficoco-v", tflops=3.3)
    everything = planner.plan("llava-1.5-7b", "ficoco-v", tflops=3.3, convention="matmul")
    assert set(alone.cost.parts) == {"decoder", "head"}
    assert set(everything.cost.parts) == {"tower", "projector", "decoder", "head", "reduction"}
    assert everything.vision.final < alone.vision.final


def test_methods_as_values():
    both = Combined.of(get_method("tome"), get_method("fastv", layer=4))
    vision, decoder = cost.plan("llava-1.5-7b", both, average_tokens=100).schedule
    assert decoder.layers == (3,)
    assert all(2 * step.r <= step.before for step in vision.steps)


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("ficoco-v", {}, "exactly one of tflops, kv_mb, average_tokens, ttft_ms, got none"),
        ("ficoco-v", {"tflops": 1, "kv_mb": 3}, "got tflops, kv_mb"),
        ("ficoco-v", {"tflops": -1}, "positive number"),
        ("ficoco-v", {"tflops": float("nan")}, "positive number"),
        ("ficoco-v", {"tflops": "1"}, "positive number"),
        ("ficoco-v", {"ttft_ms": 5}, "pass hardware"),
        ("ficoco-v", {"ttft_ms": 5, "hardware": "abacus"}, "hardware must be one of"),
        ("nope", {"tflops": 1}, "method must be"),
        ("ficoco-v", {"tflops": 3, "layers": [23]}, r"layers must be in 0 \.\.\. 22 of the tower"),
        ("ficoco-l", {"tflops": 3, "layers": [32]}, r"layers must be in 0 \.\.\. 31 of the language model"),
        ("pyramiddrop", {"tflops": 3, "layers": [0, 1]}, r"layers must be in 1 \.\.\. 31"),
        ("ficoco-l", {"tflops": 3, "layers": []}, "at least one layer"),
        ("ficoco-l", {"tflops": 3, "layers": [5, 4]}, "ascending"),
        ("ficoco-vl", {"tflops": 3, "layers": [5]}, "has two"),
        ("divprune", {"tflops": 3, "layers": [5]}, "layers must be None: divprune acts after the projector"),
        ("topk+divprune+fastv", {"tflops": 3, "layers": [5]}, "has three; leave them out"),
        ("ficoco-v", {"tflops": 3, "floor": 0}, r"floor must be an integer in \[1, 576\]"),
        ("ficoco-v", {"tflops": 3, "convention": "none"}, "convention must be one of"),
        ("ficoco-v", {"tflops": 3, "precision": "int3"}, "precision must be one of"),
    ],
)
def test_mistakes(method, given, message):
    with pytest.raises(ValueError, match=message):
        cost.plan("llava-1.5-7b", method, **given)


def test_layers_must_be_a_sequence():
    with pytest.raises(TypeError, match="layers must be a sequence of layer indices, got 3"):
        cost.plan("llava-1.5-7b", "ficoco-l", tflops=3, layers=3)


def test_mistakes_in_the_model():
    with pytest.raises(ValueError, match="16 is what it costs when all patches of a crop but one leave"):
        cost.plan("video-llava-7b", "ficoco-v", average_tokens=5)
    with pytest.raises(ValueError, match=r"model must be one of llava-1\.5-7b"):
        cost.plan("llava-9", "ficoco-v", tflops=1)
    with pytest.raises(ValueError, match="the tower of qwen2-vl-7b joins blocks of patches"):
        cost.plan("qwen2-vl-7b", "ficoco-v", tflops=1)


def test_a_budget_half_way_between_two_schedules_takes_the_one_that_removes_less():
    assert cost.plan("llava-1.5-7b", "topk", average_tokens=100.5).schedule.final == 101
    found = cost.plan("llava-1.5-7b", "fastv", average_tokens=576 - 100.5 * 30 / 32).schedule
    assert (found.layers, found.r) == ((1,), (100,))  # each token that leaves is missing in 30 of 32 layers


def test_images_count_in_the_language_model_and_in_both_parts():
    """A schedule of the language model is that of all visual tokens together."""
    assert cost.plan("llava-1.5-7b", "fastv", average_tokens=1000, images=2).schedule.patches == 2 * 576
    vision, decoder = cost.plan("llava-1.5-7b", "ficoco-vl", average_tokens=200, images=2).schedule
    assert (vision.patches, decoder.patches) == (576, 2 * vision.final)


def test_ranges_in_messages():
    for layers, words in (((4,), "layer 4"), ((4, 5, 6), "layers 4 ... 6"), ((4, 6), "layers 4, 6")):
        assert ranges(layers) == words


def test_the_floor_of_both_parts_holds():
    found = cost.plan("llava-1.5-7b", "ficoco-vl", average_tokens=100, floor=64)
    assert found.decoder.final >= 64
    assert found.least == cost.plan("llava-1.5-7b", "ficoco-vl", average_tokens=300, floor=64).least


@pytest.mark.parametrize("method", ["topk", "ficoco-v", "tome", "ficoco-vl"])
def test_a_tower_without_a_class_token_is_planned_for(method):
    """As of SigLIP. Its schedule is that of a tower with one, and it costs a token less in every layer."""
    base = architecture("llava-1.5-7b")
    shape = dataclasses.replace(base, tower=dataclasses.replace(base.tower, class_token=False))
    found, other = (cost.plan(one, method, average_tokens=400) for one in (shape, base))
    assert found.schedule == other.schedule
    pair = found.schedule if isinstance(found.schedule, tuple) else (found.schedule, None)
    with_one, without = (cost.prefill(one, vision=pair[0], decoder=pair[1]).tflops for one in (base, shape))
    assert without < with_one


@pytest.mark.parametrize("method", ["evit", "prumerge"])
def test_a_method_that_needs_the_class_token_is_refused_without_one(method):
    base = architecture("llava-1.5-7b")
    shape = dataclasses.replace(base, tower=dataclasses.replace(base.tower, class_token=False))
    with pytest.raises(
        NotImplementedError, match=f"plan: method must be one that needs no class token, got '{method}'"
    ):
        cost.plan(shape, method, average_tokens=400)
    with pytest.raises(NotImplementedError, match=f"method must be one that needs no class token, got '{method}'"):
        schedules.build(shape, get_method(method), keep_ratio=0.5)


@pytest.mark.parametrize("method", ["topk+divprune+fastv", "tome+stride+ficoco-l"])
@pytest.mark.parametrize("wanted", [60.0, 150.0, 300.0])
def test_three_parts_keep_the_same_share(method, wanted):
    found = cost.plan("llava-1.5-7b", method, average_tokens=wanted)
    assert found.decoder.patches == found.projector
    shares = found.vision.keep_ratio, found.projector / found.vision.final, found.decoder.keep_ratio
    assert max(shares) - min(shares) < 0.08  # one token of the coarse step is several of the last part
    assert found.reached == pytest.approx(wanted, abs=0.5)


def test_parts_before_the_language_model():
    """The tower and the projector: the last one is tuned, token by token."""
    found = cost.plan("llava-1.5-7b", "topk+divprune", average_tokens=100)
    assert (found.projector, found.decoder) == (100, None)
    assert found.vision.keep_ratio == pytest.approx(100 / found.vision.final, abs=0.01)
    assert found.schedule == (found.vision, found.projector)


def test_shares_of_crops():
    """What is left of a picture of five crops is a share of all their tokens, not the number of one crop's."""
    shape = dataclasses.replace(architecture("llava-next-7b"), pinpoints=())  # in LLaVA-NeXT attach refuses both parts
    method = get_method("topk+divprune")
    for amount in ({"keep_ratio": 0.25}, {"tokens": 144}):
        leaves = schedules.build(shape, method, **amount)
        assert (leaves.vision.final, leaves.projector) == (288, 720)
    three = schedules.build(shape, get_method("topk+divprune+fastv"), keep_ratio=0.125)
    assert (three.vision.final, three.projector, three.decoder.final) == (288, 720, 360)
    found = cost.plan(shape, method, average_tokens=720)
    assert found.projector == 720 and found.vision.final == pytest.approx(288, abs=1)


def test_tokens_of_every_picture():
    """Frames that stay apart are planned each, and so is a floor."""
    found = cost.plan("video-llava-7b", "divprune", average_tokens=800)
    assert (found.projector, found.reached) == (100, 800)
    assert cost.plan("video-llava-7b", "divprune", average_tokens=500, floor=60).least == 480
    with pytest.raises(ValueError, match=r"divprune after the projector of video.* all visual tokens of a crop but 90"):
        cost.plan("video-llava-7b", "divprune", average_tokens=500, floor=90)
    with pytest.raises(ValueError, match=r"floor must be an integer in \[1, 257\]"):
        cost.plan("video-llava-7b", "divprune", average_tokens=500, floor=258)


def test_towers_that_merge_patches_can_be_planned_after_the_projector():
    found = cost.plan("qwen2-vl-7b", "divprune+fastv", average_tokens=200, images=2)
    assert found.decoder.patches == 2 * found.projector
    assert found.projector / 576 == pytest.approx(found.decoder.keep_ratio, abs=0.03)
    with pytest.raises(ValueError, match="keep_ratio, for the number of visual tokens depends on the picture"):
        schedules.build(architecture("qwen2-vl-7b"), get_method("divprune+fastv"), tokens=100)  # as attach has it
    assert schedules.build(architecture("qwen2-vl-7b"), get_method("divprune"), tokens=100).projector == 100
