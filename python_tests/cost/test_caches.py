"""What caches hold and what a new token reads, of an output-aware cache, by hand and against a model that runs."""

import pytest
import torch
from helpers.decoder import tiny
from helpers.models import batch, image, one_thread, words  # noqa: F401

import ficoco_ext
from ficoco_ext import Plan, Schedule, cost, get_method
from ficoco_ext.cost import caches, compare, schedules
from ficoco_ext.methods import Combined
from ficoco_ext.resolve import ProjectorPlan

AWARE = {"cache": "output-aware"}
SHAPE = cost.architecture("llava-1.5-7b")
STAIRS = Schedule(576, (8, 16, 24), (288, 144, 72), before_attention=True)
LAYER = 2 * 4096 * 2  # bytes of a token's keys and values in one layer, in halves


def kv(held):
    return sum((60 + tokens) * LAYER for tokens in held)


def test_bytes_by_hand():
    found = cost.prefill(SHAPE, decoder=STAIRS, **AWARE)
    assert found.kv_bytes == kv([576] * 8 + [72] * 24)
    assert cost.prefill(SHAPE, decoder=STAIRS).kv_bytes == kv([576] * 8 + [288] * 8 + [144] * 8 + [72] * 8)
    assert [one.kv_bytes for one in found.layers if one.part == "decoder"][7:9] == [636 * LAYER, 132 * LAYER]


def test_the_prefill_runs_and_holds_what_it_did():
    """The cache is cut when all layers have read: until then it is as large as ever."""
    stairs, cut = cost.prefill(SHAPE, decoder=STAIRS), cost.prefill(SHAPE, decoder=STAIRS, **AWARE)
    assert cut.lines == stairs.lines and cut.resident_bytes == stairs.resident_bytes and cut.tokens == stairs.tokens


def test_a_new_token_reads_the_cut_cache():
    found = cost.decode(SHAPE, decoder=STAIRS, generated=5, **AWARE)
    stairs = cost.decode(SHAPE, decoder=STAIRS, generated=5)
    keys = [dict(line.values)["c"] for line in found.lines if line.name == "qk_matmul" or line.name == "attention"]
    assert set(keys) == {576 + 60 + 5 + 1, 72 + 60 + 5 + 1}
    assert found.kv_bytes == kv([576 + 6] * 8 + [72 + 6] * 24)
    assert found.total.kv_bytes < stairs.total.kv_bytes and found.total.weight_bytes == stairs.total.weight_bytes


def test_the_last_layer_is_cut_to_what_it_leaves():
    """A layer that reduces between attention and MLP caches all that entered it, until the cut."""
    last = Schedule(576, (4, 31), (100, 76))
    assert cost.prefill(SHAPE, decoder=last).kv_bytes == kv([576] * 5 + [476] * 27)
    assert cost.prefill(SHAPE, decoder=last, **AWARE).kv_bytes == kv([576] * 4 + [400] * 28)


def test_cutting_costs_bytes_and_no_operation():
    stairs, cut = (cost.prefill(SHAPE, decoder=STAIRS, method="pyramiddrop", cache=one) for one in caches.CACHES)
    lines = [line for line in cut.lines if line.name == "cut_cache"]
    assert [line.layer for line in lines] == list(range(8, 24)) and not any(line.operations for line in lines)
    assert lines[0].kv_bytes == 2 * 132 * LAYER and lines[0].part == "reduction"
    assert cut.total.bytes - stairs.total.bytes == 16 * 2 * 132 * LAYER
    assert cut.total.operations == stairs.total.operations


@pytest.mark.parametrize("method", ["fastv", "pyramiddrop", "ficoco-l"])
def test_the_cache_of_a_model_that_runs(method):
    model = tiny(seed=31)
    given = {"r": 9, "layers": (1, 3)} if method == "ficoco-l" else {}
    rows = batch([*words(1, 2), *image(), *words(3, 4, 5)])
    shape = cost.architecture(model.config)
    for cache in caches.CACHES:
        with torch.no_grad(), ficoco_ext.attach(model, method, **given, cache=cache) as handle:
            layers = model(**rows).past_key_values.layers
            plan = handle.plan
        found = cost.prefill(shape, decoder=plan, text_tokens=5, precision="fp32", method=method, cache=cache)
        measured = sum(one.keys.numel() + one.values.numel() for one in layers) * 4
        assert found.kv_bytes == measured


def test_a_method_says_which_cache():
    from dataclasses import replace

    own = replace(get_method("pyramiddrop"), cache="output-aware")
    assert cost.prefill(SHAPE, decoder=STAIRS, method=own).kv_bytes == kv([576] * 8 + [72] * 24)
    both = Combined.of(get_method("topk"), own)
    assert caches.chosen(None, both) == "output-aware" and caches.chosen("staircase", both) == "staircase"
    found = compare.compare(SHAPE, own, schedules.Schedules(decoder=STAIRS))
    assert found.cache == "output-aware" and found.to_dict()["cache"] == "output-aware"
    assert found.shown.token.kv_bytes == kv([576 + 51] * 8 + [72 + 51] * 24)
    assert found.full.counted.kv_bytes == kv([576] * 32)


def test_a_budget_of_cache_with_a_cut_cache():
    found = {one: cost.plan(SHAPE, "ficoco-l", kv_mb=120, cache=one) for one in (*caches.CACHES, None)}
    assert found["staircase"] == found[None]
    stairs, cut = found["staircase"], found["output-aware"]
    assert abs(cut.reached - 120) < 1 and cut.schedule.final > stairs.schedule.final
    assert cut.reached == cost.prefill(SHAPE, decoder=cut.schedule, convention="llmviewer", **AWARE).kv_mb


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cost.prefill(SHAPE, cache="h2o"), r"cache must be 'staircase' or 'output-aware', got 'h2o'"),
        (lambda: cost.decode(SHAPE, cache="h2o"), r"cache must be 'staircase' or 'output-aware', got 'h2o'"),
        (
            lambda: cost.prefill(SHAPE, decoder=Schedule(576, (0, 2), (9, 9)), **AWARE),
            r"ficoco::cost: layers must be from 1 on with an output-aware cache, got \(0, 2\)",
        ),
        (lambda: cost.plan(SHAPE, "topk", kv_mb=120, **AWARE), r"cache must be None without a method for the language"),
        (lambda: compare.compare(SHAPE, **AWARE), r"cache must be None without a method for the language model"),
        (lambda: cost.prefill(SHAPE, decoder=Plan(layers=(2,), by_data=True)), "there is no schedule before"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_the_data_decide_has_no_cost_before():
    from decoder.test_data_counts import BELOW

    with pytest.raises(ValueError, match="how many tokens below removes is decided while a prompt is read"):
        schedules.build(SHAPE, BELOW["method"])


FLOOR = get_method("globalcom2", budget="floor")
BY_THRESHOLDS = get_method("mustdrop", thresholds=True)


@pytest.mark.parametrize("method", [FLOOR, BY_THRESHOLDS, Combined.of(FLOOR, get_method("fastv"))])
@pytest.mark.parametrize("picture", [None, (480, 640)])
def test_what_the_data_decide_is_neither_billed_nor_planned(method, picture):
    """Numbers that the picture decides would look exact."""
    shape = cost.architecture("llava-next-7b", picture=picture)
    amount = {} if method is BY_THRESHOLDS else {"keep_ratio": 0.25}
    example = "mustdrop with thresholds=False" if method is BY_THRESHOLDS else "globalcom2 with budget='exact'"
    message = f"removes is decided while a prompt is read, so {{}} is not known before; .*, such as {example}"
    with pytest.raises(ValueError, match=message.format("its cost")):
        schedules.build(shape, method, **amount)
    for floor in (1, 300):
        with pytest.raises(ValueError, match=message.format("what reaches a budget")):
            cost.plan(shape, method, tflops=20, floor=floor)
    if method.projector is not None:
        with pytest.raises(ValueError, match=message.format("its cost")):
            cost.prefill(shape, projector=ProjectorPlan(FLOOR, keep_ratio=0.25), method=FLOOR)
    exact = get_method("globalcom2")
    assert schedules.build(shape, exact, keep_ratio=0.25).projector
