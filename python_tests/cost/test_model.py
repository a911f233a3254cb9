"""What must hold for any shape and schedule; lines, bytes, seconds and the reduction's own cost by hand."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ficoco_ext import Schedule, cost, get_method
from ficoco_ext.cost.compare import compare
from ficoco_ext.cost.lines import Operation, Rules, evaluate

BASE = cost.architecture("llava-1.5-7b")
CONVENTIONS = st.sampled_from(cost.CONVENTIONS)


def shaped(**changes):
    language_model = dataclasses.replace(BASE.language_model, **changes)
    return dataclasses.replace(BASE, language_model=language_model)


@st.composite
def decoder_schedules(draw):
    layers = sorted(draw(st.sets(st.integers(1, 31), min_size=1, max_size=6)))
    r = [draw(st.integers(0, 90)) for _ in layers]
    return Schedule(576, tuple(layers), tuple(r), draw(st.booleans()))


@st.composite
def vision_schedules(draw):
    layers = sorted(draw(st.sets(st.integers(0, 22), min_size=1, max_size=6)))
    return Schedule(576, tuple(layers), tuple(draw(st.integers(0, 90)) for _ in layers))


@settings(deadline=None, max_examples=30)
@given(decoder_schedules(), CONVENTIONS, st.booleans(), st.integers(0, 600))
def test_removing_more_costs_less(schedule, convention, fused, text):
    """One token more removed in any layer: less of everything."""
    how = {"convention": convention, "fused_attention": fused, "text_tokens": text, "hardware": "h200"}
    before = cost.prefill(BASE, decoder=schedule, **how)
    for place in range(len(schedule.r)):
        r = list(schedule.r)
        r[place] += 1
        after = cost.prefill(BASE, decoder=dataclasses.replace(schedule, r=tuple(r)), **how)
        assert after.total.operations < before.total.operations
        assert after.total.bytes < before.total.bytes
        assert after.ttft_ms <= before.ttft_ms
        assert after.kv_bytes <= before.kv_bytes
        assert after.tokens.average <= before.tokens.average
        assert after.tokens.final == before.tokens.final - 1


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 3000), st.integers(1, 300), CONVENTIONS)
def test_more_tokens_cost_more(visual, more, convention):
    few, many = (
        cost.prefill(BASE, visual_tokens=n, convention=convention, hardware="a100-80g") for n in (visual, visual + more)
    )
    assert few.total.operations < many.total.operations
    assert few.total.bytes < many.total.bytes
    assert few.ttft_ms < many.ttft_ms
    assert few.kv_bytes < many.kv_bytes
    assert few.resident_bytes < many.resident_bytes


@settings(deadline=None, max_examples=30)
@given(decoder_schedules(), vision_schedules(), CONVENTIONS)
def test_lines_layers_and_parts_add_up(schedule, vision, convention):
    schedule = dataclasses.replace(schedule, patches=max(vision.final, sum(schedule.r) + 1))
    visual = schedule.patches
    got = cost.prefill(
        BASE, vision=vision, decoder=schedule, visual_tokens=visual, convention=convention, hardware="h100"
    )
    for field in ("operations", "weight_bytes", "activation_bytes", "kv_bytes", "seconds"):
        parts = sum(getattr(part, field) for part in got.parts.values())
        lines = sum(getattr(line, field) for line in got.lines)
        assert parts == pytest.approx(lines, rel=1e-12)
        assert getattr(got.total, field) == pytest.approx(lines, rel=1e-12)
    for part, count in (("tower", 24), ("decoder", 32)):
        layers = [one for one in got.layers if one.part == part]
        assert [one.layer for one in layers] == list(range(count))
        outside = sum(line.operations for line in got.lines if line.part == part and line.layer is None)
        assert sum(one.total.operations for one in layers) + outside == got.parts[part].operations
    assert got.kv_bytes == sum(one.kv_bytes for one in got.layers)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 12), st.integers(1, 40), CONVENTIONS, st.booleans())
def test_layers_add_up(first, second, convention, fused):
    how = {"convention": convention, "fused_attention": fused, "include_tower": False, "include_projector": False}
    a, b, both = (
        cost.prefill(shaped(layers=layers), include_head=False, **how).total
        for layers in (first, second, first + second)
    )
    assert a.operations + b.operations == both.operations
    assert a.bytes + b.bytes == both.bytes


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([1, 2, 4, 8, 16, 32]), CONVENTIONS, st.booleans())
def test_grouped_heads(kv_heads, convention, fused):
    """The cache shrinks with the key-value heads; as many as heads is multi-head attention."""
    how = {"convention": convention, "fused_attention": fused, "hardware": "a100-80g"}
    full, grouped = cost.prefill(BASE, **how), cost.prefill(shaped(kv_heads=kv_heads), **how)
    assert grouped.kv_bytes * 32 == full.kv_bytes * kv_heads
    assert (grouped.total == full.total) == (kv_heads == 32)
    saved = 2 * 636 * 4096 * (2 * 128 * (32 - kv_heads)) * 32
    assert full.total.operations - grouped.total.operations == saved


@settings(deadline=None, max_examples=30)
@given(decoder_schedules(), st.integers(0, 100))
def test_bases_and_cache(schedule, text):
    got = cost.prefill(BASE, decoder=schedule, text_tokens=text)
    assert got.tokens == (576, pytest.approx(schedule.average_tokens(32)), schedule.final)
    assert got.kv_bytes == pytest.approx((schedule.average_tokens(32) + text) * 32 * 2 * 4096 * 2)
    after = cost.decode(BASE, decoder=schedule, text_tokens=text, hardware="h200")
    full = cost.decode(BASE, text_tokens=text, hardware="h200")
    assert after.tpot_ms <= full.tpot_ms
    assert after.kv_bytes == got.kv_bytes + 32 * 2 * 4096 * 2


def test_causal_attention_visits_half_of_the_pairs():
    full, causal = cost.prefill(BASE, include_tower=False), cost.prefill(BASE, include_tower=False, causal=True)
    pairs = 636 * 636 - 636 * 637 // 2
    assert full.total.operations - causal.total.operations == 32 * 4 * 4096 * pairs


def test_fused_attention_writes_no_map():
    fused, plain = (cost.prefill(BASE, include_tower=False, fused_attention=one) for one in (True, False))
    assert fused.total.operations == plain.total.operations
    assert plain.total.bytes - fused.total.bytes >= 32 * 4 * 32 * 636 * 636 * 2


def test_precision_scales_bytes_and_peaks():
    whole, half = (cost.prefill(BASE, precision=bits, hardware="a100-80g") for bits in ("FP16", "INT8"))
    assert half.total.bytes * 2 == whole.total.bytes
    assert half.ttft_ms == pytest.approx(whole.ttft_ms / 2)  # both bandwidth and peak are twice as good
    assert half.tflops == whole.tflops == half.bit_scaled_tflops * 2
    mixed = cost.prefill(BASE, precision="W4A16KV4", hardware="a100-80g")
    assert mixed.total.weight_bytes * 4 == whole.total.weight_bytes
    assert mixed.total.activation_bytes == whole.total.activation_bytes
    assert mixed.kv_bytes * 4 == whole.kv_bytes
    compute = [line.seconds for line in mixed.lines if line.name == "up_proj"]
    assert compute == [line.seconds for line in whole.lines if line.name == "up_proj"]  # activations are 16 bits wide


def test_without_int4_units_int8_is_the_peak():
    int4 = cost.prefill(BASE, precision="INT4", hardware="h200").lines
    int8 = cost.prefill(BASE, precision="INT8", hardware="h200").lines
    name = "up_proj"
    assert [one.seconds for one in int4 if one.name == name] == [one.seconds for one in int8 if one.name == name]


def test_resident_memory_is_what_the_weights_take():
    """FP16: language model 13.48, tower 0.61, projector 0.04 GB, cache and activations besides."""
    got = cost.prefill(BASE)
    weights = got.total.weight_bytes + 32000 * 4096 * 2
    assert weights == pytest.approx(14.13e9, rel=2e-3)
    assert 0 < got.resident_bytes - weights - got.kv_bytes < 0.1e9
    assert got.resident_gb < got.memory_access_gb
    assert cost.decode(BASE).resident_bytes == pytest.approx(weights + got.kv_bytes, rel=1e-4)


def test_bytes_by_hand():
    """What kernels move that each do one thing: a layer of 8 heads with 2 keys, n in attention, q in the MLP."""
    h, i, a, k, d, v = 64, 96, 8, 2, 8, 50
    shape = cost.LanguageModel(1, h, i, a, k, d, v)
    whole = cost.Architecture("tiny", BASE.tower, cost.Projector(1024, h, h), shape, 576)
    n, q = 600, 500
    how = {"text_tokens": 24, "precision": "W4A16KV8", "include_tower": False, "include_projector": False}
    fused, plain = (
        cost.prefill(whole, decoder=Schedule(576, (0,), (100,)), fused_attention=one, **how) for one in (True, False)
    )
    weights = 2 * h * a * d + 2 * h * k * d + 3 * h * i + 2 * h + h * v
    linear = n * (h + a * d) + 2 * n * h + n * (a * d + h) + 3 * q * (h + i) + h + v
    elementwise = 2 * n * h + 3 * n * h + 2 * q * h + 3 * q * h + 3 * q * i
    cache = 2 * n * k * d
    assert fused.total.weight_bytes == plain.total.weight_bytes == weights / 2
    assert fused.total.kv_bytes == plain.total.kv_bytes == cache + cache  # written, and read by all queries together
    assert fused.total.activation_bytes == 2 * (linear + elementwise + 2 * n * a * d)
    assert plain.total.activation_bytes == 2 * (linear + elementwise + 2 * n * a * d + 4 * a * n * n)


def test_roofline_of_a_line():
    device = cost.Hardware("toy", 10.0, 100.0, None, None, 1e9, 1e6, "made up")
    rules = Rules("matmul", cost.FP16, device)
    busy = rules.line("decoder", 0, Operation("busy", "1000*n", loads="n"), {"n": 2})
    idle = rules.line("decoder", 0, Operation("idle", "n", loads="50*n"), {"n": 2})
    assert (busy.seconds, busy.bound, busy.intensity) == (20.0, "compute", 500.0)
    assert (idle.seconds, idle.bound, idle.intensity) == (20.0, "memory", 0.01)
    assert cost.prefill(BASE).ttft_ms is None
    assert cost.prefill(BASE).total.bound is None
    assert cost.decode(BASE, hardware="h200").total.bound == "memory"
    assert cost.prefill(BASE, hardware="h200").total.bound == "compute"


def test_every_line_explains_itself():
    vision, decoder = Schedule(576, (12,), (300,)), Schedule(276, (4,), (100,))
    got = cost.prefill(BASE, vision=vision, decoder=decoder, method="ficoco-vl")
    assert {line.part for line in got.lines} == {"tower", "projector", "decoder", "head", "reduction"}
    for line in got.lines:
        values = dict(line.values)
        assert set(values) <= set(cost.SYMBOLS)
        assert evaluate(line.formula, values) == line.operations
        assert f"= {line.operations:,} (" in line.explain()
        assert evaluate(line.bytes_formula, values) == line.bytes
        assert line.explain_bytes().startswith(f"{line.name}: {line.bytes_formula} = ")


def test_json():
    got = cost.prefill("llava-1.5-7b", hardware="h200").to_dict()
    assert {"tflops", "kv_mb", "memory_access_gb", "resident_gb", "ttft_ms", "layers"} <= set(got)
    assert json.loads(json.dumps(got)) == got
    assert len(got["layers"]) == 24 + 32
    assert got["tpot_ms"] is None


# The reduction's own cost, against the formulas of the paper's appendix where they count the same work.


def test_the_reduction_costs_little():
    vision = Schedule.build(576, layers=range(12, 23), tokens=64)
    got = cost.prefill(BASE, vision=vision, method="ficoco-v")
    assert 0 < got.parts["reduction"].operations < 2e-4 * got.total.operations
    without = cost.prefill(BASE, vision=vision)
    assert "reduction" not in without.parts
    assert without.total.operations + got.parts["reduction"].operations == got.total.operations
    assert cost.prefill(BASE, vision=vision, method="ficoco-v", include_reduction=False) == without


def test_logits_of_one_reduction_by_hand():
    """Class row and mean row 4 N C, the sources' rows 2 r M C, merging 2 r K C; probabilities 2 N^2 C and 2 r N C."""
    n, r, c = 577, 42, 1024
    vision = Schedule(576, (12,), (42,))
    logits, probs = (
        cost.prefill(BASE, vision=vision, method=get_method("ficoco-v", variant=variant)).parts["reduction"].operations
        for variant in ("released", "paper")
    )
    assert logits == 4 * n * c + 2 * r * (n - r) * c + 2 * r * 2 * c
    assert probs == 2 * n * n * c + 2 * r * n * c + 2 * r * 2 * c


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_one_reduction_of_the_language_model_by_hand(variant):
    """The counter's formulas are these very ones, so here they are written out: n of l tokens visual, e text after."""
    (n, e, r, c), length = (576, 40, 100, 4096), 636
    got = cost.prefill(
        BASE, decoder=Schedule(n, (4,), (r,)), method=get_method("ficoco-l", variant=variant), text_after=e
    )
    m = n - r
    by_way_of_text = 2 * r * e * m
    if variant == "released":
        wanted = 2 * c * 2 * (n + n + e) + 2 * c * (r * m + r * e + e * m) + by_way_of_text
    else:
        wanted = 2 * c * (n + e) * length + 2 * c * (r + e) * length + by_way_of_text
    assert got.parts["reduction"].operations == wanted + 2 * r * 1 * c


def test_other_reductions_by_hand():
    tower, decoder = {"vision": Schedule(576, (12,), (42,))}, {"decoder": Schedule(576, (1,), (288,))}

    def operations(method, **schedule):
        return cost.prefill(BASE, method=method, **schedule).parts["reduction"].operations

    assert operations("tome", **tower) == 2 * 64 * (289 - 1) * 288 + 2 * 42 * 1024
    assert operations("topk", **tower) == 2 * 577 * 1024
    assert operations("fastv", **decoder) == 2 * 636 * 4096
    by_key = operations(get_method("ficoco-v", correlation="key", targets=1), **tower)
    assert by_key == 4 * 577 * 1024 + 2 * 42 * 535 * 64 + 2 * 42 * 1024
    fused = 2 * 42 * (1024 + 1)
    assert operations("evit", **tower) == 2 * 577 * 1024 + fused
    assert operations("prumerge", **tower) == 2 * 577 * 1024 + fused + 2 * 534 * 576 * (1024 + 1024)
    assert operations("pool", **tower) == 2 * 42 * 1024
    assert operations("random", **tower) == 0
    assert operations("prune-then-merge", **tower) == operations("tome", **tower)  # a single layer merges
    excess = {"vision": Schedule(576, (12,), (400,))}  # 224 are pruned so that 176 of 352 can merge
    by_class = get_method("prune-then-merge", prune="topk")
    assert operations(by_class, **excess) == 2 * 577 * 1024 + 2 * 64 * 176 * 176 + 2 * 176 * 1024
    early = Schedule(576, (1,), (288,), before_attention=True)
    assert operations("pyramiddrop", decoder=early) == 2 * 636 * 4096 + 8 * 636 * 4096 * 4096


def line(seconds, bound, operations=0.0, weights=0.0, activations=0.0, kv=0.0):
    return cost.Line("decoder", 0, "one", "n", "n", (), operations, weights, activations, kv, 0.0, seconds, bound)


def test_a_sum_of_lines():
    """What takes more than half of the time is its bound, however many lines that are."""
    few = cost.Sum.of([line(4.0, "compute", 100.0, 3.0), line(3.0, "memory", 20.0, 1.0, 4.0, 2.0), line(2.0, "memory")])
    assert (few.operations, few.bytes, few.intensity) == (120.0, 10.0, 12.0)
    assert (few.seconds, few.compute_seconds, few.bound) == (9.0, 4.0, "memory")
    assert cost.Sum.of([line(4.0, "compute"), line(3.0, "memory")]).bound == "compute"
    assert cost.Sum.of([line(3.0, "compute"), line(3.0, "memory")]).bound == "memory"
    nothing = cost.Sum.of([line(None, None, 5.0)])
    assert (nothing.seconds, nothing.bound, nothing.intensity) == (None, None, 0.0)


def test_bit_scaled_operations_are_those_of_the_weights():
    mixed = cost.prefill(BASE, precision="W4A16KV8")
    assert mixed.bit_scaled_tflops * 4 == mixed.tflops


def test_every_crop_passes_through_the_tower():
    one, five = cost.prefill("llava-1.5-7b"), cost.prefill("llava-next-7b")
    assert five.parts["tower"].operations == 5 * one.parts["tower"].operations
    assert five.layers[0].tokens == 5 * 577
    assert cost.prefill(BASE, images=2).parts["tower"].operations == 2 * one.parts["tower"].operations


def test_tokens_of_a_decode_are_those_of_its_prefill():
    decoder = Schedule(576, (4, 31), (100, 76))
    assert cost.decode(BASE, decoder=decoder).tokens == cost.prefill(BASE, decoder=decoder).tokens
    assert cost.decode(BASE, decoder=decoder).tokens.final == 400


def test_what_is_held_by_the_convention_of_papers():
    """The language model's layers, its cache and the most that a layer writes; no head, embedding or tower."""
    how = {"convention": "llmviewer", "fused_attention": False}
    weights = cost.prefill(BASE, **how).parts["decoder"].weight_bytes
    for found in (cost.prefill(BASE, **how), cost.decode(BASE, **how)):
        assert 0 < found.resident_bytes - weights - found.kv_bytes < 0.2e9


def test_a_comparison_counts_a_token_in_the_middle_of_the_answer():
    found = compare(BASE, new_tokens=100, hardware=cost.hardware("h200"))
    assert found.full.token == cost.decode(BASE, generated=50, hardware="h200")
    assert found.reduced is None and found.shown is found.full
    assert found.full.answer_ms == pytest.approx(found.full.ttft_ms + 99 * found.full.token.tpot_ms)


def test_attention_runs_at_the_peak_of_the_cache():
    """Its second operand is the cache: with 8-bit activations and a 16-bit cache it is the wider one."""
    device = cost.hardware("a100-80g")
    for precision, peak in (("W4A8KV16", device.fp16), ("W16A8KV8", device.int8)):
        got = cost.prefill(BASE, precision=precision, hardware=device, include_tower=False, text_tokens=20000)
        (one,) = [each for each in got.lines if each.name == "attention" and each.layer == 0]
        assert (one.bound, one.seconds) == ("compute", one.operations / peak)


def test_keys_and_values_of_the_tower_are_activations():
    """A projection reads its input and writes its output, all of one width; nothing is cached."""
    for name in ("q_proj", "k_proj", "v_proj"):
        (one,) = [
            each for each in cost.prefill(BASE).lines if each.name == name and each.part == "tower" and each.layer == 0
        ]
        assert (one.kv_bytes, one.activation_bytes) == (0.0, 2 * 2 * 577 * 1024)


def test_the_activation_of_the_projector_counts_as_papers_count():
    got = {one: cost.prefill(BASE, convention=one).parts["projector"].operations for one in cost.CONVENTIONS}
    assert got["llmviewer"] - got["matmul"] == 2 * 576 * 4096
