"""What must hold for any shape and schedule, what is refused, and the tables of architectures and hardware."""

import dataclasses
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ficoco_ext import Plan, Schedule, cost
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
        cost.prefill(BASE, vision=vision, method=cost_method(variant)).parts["reduction"].operations
        for variant in ("released", "paper")
    )
    assert logits == 4 * n * c + 2 * r * (n - r) * c + 2 * r * 2 * c
    assert probs == 2 * n * n * c + 2 * r * n * c + 2 * r * 2 * c


def cost_method(variant):
    from ficoco_ext import get_method

    return get_method("ficoco-v", variant=variant)


# Architectures, hardware, precisions.


def test_presets_have_sources_and_true_sizes():
    for name, preset in cost.PRESETS.items():
        assert preset.name == name
        assert len(preset.source) > 20
        assert cost.prefill(name).tflops > 1
    tokens = {name: preset.visual_tokens for name, preset in cost.PRESETS.items()}
    assert tokens["llava-next-7b"] == 2880
    assert tokens["video-llava-7b"] == 2056
    parameters = {"llava-1.5-7b": 6.74e9, "llava-1.5-13b": 13.0e9, "qwen2-vl-7b": 7.6e9}
    for name, count in parameters.items():
        shape = cost.PRESETS[name].language_model
        held = cost.prefill(name).parts
        weights = (held["decoder"].weight_bytes + held["head"].weight_bytes) / 2 + shape.vocabulary * shape.hidden
        assert weights == pytest.approx(count, rel=0.01)


@pytest.mark.parametrize(
    ("kind", "preset"),
    [
        ("llava", "llava-1.5-7b"),
        ("llava_next", "llava-next-7b"),
        ("qwen2_vl", "qwen2-vl-7b"),
        ("video_llava", "video-llava-7b"),
    ],
)
def test_configs_of_transformers_give_the_presets(kind, preset):
    """The defaults of these configs are the 7B models, but for some sizes that are given here."""
    transformers = pytest.importorskip("transformers")
    wanted = cost.PRESETS[preset]
    text = wanted.language_model
    sizes = {
        "vocab_size": text.vocabulary,
        "hidden_size": text.hidden,
        "intermediate_size": text.mlp,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads,
    }
    if kind == "qwen2_vl":
        config = transformers.Qwen2VLConfig(text_config=sizes, vision_config={"hidden_size": 3584})
    else:
        vision = {
            "model_type": "clip_vision_model",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "patch_size": 14,
            "image_size": wanted.tower.image_size,
            "projection_dim": 768,
        }
        config = transformers.AutoConfig.for_model(
            kind, vision_config=vision, text_config={"model_type": "llama", **sizes}
        )
    got = cost.architecture(config)
    assert dataclasses.replace(got, name=wanted.name, source=wanted.source) == wanted


def test_a_config_that_is_no_object_of_transformers():
    vision = SimpleNamespace(
        hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, patch_size=4, image_size=24
    )
    text = SimpleNamespace(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, vocab_size=60, head_dim=16
    )
    got = cost.architecture(SimpleNamespace(vision_config=vision, text_config=text, vision_feature_layer=[-2, -3]))
    assert (got.tower.used, got.language_model.kv_heads, got.language_model.head_dim) == (3, 4, 16)
    siglip = SimpleNamespace(**vars(vision), model_type="siglip_vision_model")
    assert not cost.architecture(SimpleNamespace(vision_config=siglip, text_config=text)).tower.class_token
    del vision.patch_size
    with pytest.raises(ValueError, match="vision config says no patch_size"):
        cost.architecture(SimpleNamespace(vision_config=vision, text_config=text))


def test_a_directory(tmp_path):
    pytest.importorskip("transformers")
    config = {
        "model_type": "llava",
        "vision_config": {"model_type": "clip_vision_model", "image_size": 224, "patch_size": 32},
        "text_config": {"model_type": "llama", "num_hidden_layers": 5},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    got = cost.architecture(str(tmp_path))
    assert (got.visual_tokens, got.language_model.layers) == (49, 5)


def test_free_resolution():
    got = cost.architecture("qwen2-vl-7b", image_size=1288)
    assert got.visual_tokens == 46 * 46
    assert cost.architecture("llava-next-7b", crops=3).visual_tokens == 3 * 576


def test_hardware():
    for name, row in cost.HARDWARE.items():
        assert cost.hardware(name.upper().replace("-", "_")) is row
        assert row.name == name and len(row.source) > 20
        assert row.peak(32) == row.peak(16) == row.fp16 < row.peak(8) <= row.peak(4)
        assert 100 < row.balance < 500
    assert set(cost.HARDWARE) == {"a100-80g", "h100", "h200", "l40s", "rtx-4090", "mi300x"}


def test_this_cpu():
    import torch

    before = torch.get_num_threads()
    got = cost.measure_cpu(1, size=256, copy_bytes=2**24, repeats=2)
    assert torch.get_num_threads() == before
    assert 1e8 < got.bandwidth < 1e12 and 1e8 < got.fp16 < 1e14
    assert cost.prefill(BASE, hardware=got).ttft_ms > 100


def test_precisions():
    assert cost.Precision.parse("w4a16kv4") == cost.Precision(4, 16, 4)
    assert cost.Precision.parse("W8A16") == cost.Precision(8, 16, 16)
    for name in ("FP16", "INT8", "INT4", "FP32", "W4A16KV8"):
        assert cost.Precision.parse(name).name == name


def test_the_arithmetic_needs_no_torch():
    """The package itself imports torch; its cost model, loaded alone, does not."""
    program = (
        "import sys, types, pathlib, importlib;"
        "root = pathlib.Path(sys.argv[1]);"
        "package = types.ModuleType('ficoco_ext'); package.__path__ = [str(root)]; sys.modules['ficoco_ext'] = package;"
        "cost = importlib.import_module('ficoco_ext.cost');"
        "cost.prefill('llava-1.5-7b', hardware='h200'); cost.decode('llava-1.5-7b');"
        "importlib.import_module('ficoco_ext.cost.reproduce').reproduce();"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    )
    from pathlib import Path

    import ficoco_ext

    subprocess.run([sys.executable, "-c", program, str(Path(ficoco_ext.__file__).parent)], check=True)


# What is refused.

LATE = Schedule(576, (40,), (1,))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cost.prefill("llava-2"), "model must be one of llava-1.5-7b, .*video-llava-7b, a directory"),
        (lambda: cost.prefill(3), "vision_config and a text_config, got int"),
        (lambda: cost.prefill(BASE, hardware="tpu"), "hardware must be one of a100-80g, .* mi300x, cpu"),
        (lambda: cost.prefill(BASE, convention="macs"), "convention must be one of 'matmul', 'llmviewer'"),
        (lambda: cost.prefill(BASE, precision="FP8"), "precision must be one of FP32, .* W4A16KV4, got 'FP8'"),
        (lambda: cost.prefill(BASE, precision="W3A16"), "weights must be one of 4, 8, 16, 32, got 3"),
        (lambda: cost.prefill(BASE, text_tokens=-1), "text_tokens must be at least 0, got -1"),
        (lambda: cost.prefill(BASE, images=0), "images must be at least 1, got 0"),
        (lambda: cost.prefill(BASE, text_behind=61), r"text_behind must be in \[0, 60\]"),
        (lambda: cost.prefill(BASE, visual_tokens=-2), "visual_tokens must not be negative"),
        (lambda: cost.prefill(BASE, causal=True, fused_attention=False), "causal must be False with unfused"),
        (lambda: cost.prefill(BASE, decoder=LATE), r"decoder must reduce in layers 0 ... 31, got layer 40"),
        (lambda: cost.decode(BASE, decoder=LATE), r"decoder must reduce in layers 0 ... 31, got layer 40"),
        (lambda: cost.prefill(BASE, decoder=Plan((40,), r=1)), r"decoder must reduce in layers 0 ... 31, got layer 40"),
        (lambda: cost.prefill(BASE, decoder=Schedule(575, (4,), (1,))), "start with the 576 visual tokens .* got 575"),
        (
            lambda: cost.prefill(BASE, vision=Schedule(575, (4,), (1,))),
            "576 patches of a crop of llava-1.5-7b, got 575",
        ),
        (lambda: cost.prefill(BASE, vision=Schedule(576, (23,), (1,))), "layers 0 ... 22 .* last that is used, got"),
        (lambda: cost.prefill(BASE, vision=Schedule(576, (4,), (1,), True)), "between attention and MLP"),
        (lambda: cost.prefill("qwen2-vl-7b", vision=Schedule(2304, (4,), (1,))), "joins blocks of 4 patches"),
        (lambda: cost.prefill(BASE, vision=Schedule(576, (4,), (1,)), method="fastv"), "vision must be None: fastv"),
        (lambda: cost.prefill(BASE, decoder=Schedule(576, (4,), (1,)), method="tome"), "decoder must be None: tome"),
        (lambda: cost.prefill(BASE, decoder=Schedule(576, (4,), (1,)), method="sparse"), "one of 'ficoco-v'"),
        (
            lambda: cost.prefill(BASE, decoder=Schedule(576, (4,), (1,)), method="pyramiddrop"),
            "must reduce before attention, as pyramiddrop does",
        ),
        (
            lambda: cost.prefill(BASE, decoder=Schedule(576, (4,), (1,)), include_reduction=True),
            "method must be given to count the reduction's own cost",
        ),
        (lambda: cost.architecture(BASE, image_size=3), "image_size must be at least 14, one patch, got 3"),
        (lambda: dataclasses.replace(BASE, visual_tokens=5), "visual_tokens must be at least 576"),
        (lambda: shaped(kv_heads=5), "kv_heads must divide heads, got 5 and 32"),
        (lambda: shaped(layers=0), "layers must be at least 1, got 0"),
        (lambda: dataclasses.replace(BASE.tower, used=25), "used must be at most layers, got 25 of 24"),
        (lambda: dataclasses.replace(cost.HARDWARE["h200"], bandwidth=0), "bandwidth must be positive"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("bad", [1.5, True, "60"])
def test_counts_are_integers(bad):
    with pytest.raises(TypeError, match="text_tokens must be an integer"):
        cost.prefill(BASE, text_tokens=bad)


def test_a_stage_of_ones_own():
    from ficoco_ext import Compress, Method

    method = Method("mine", filter=lambda *a, **b: None, correlate=None, compress=Compress())
    vision = Schedule(576, (4,), (1,))
    with pytest.raises(ValueError, match="the cost of the filter function is not known; pass include_reduction=False"):
        cost.prefill(BASE, vision=vision, method=method)
    assert "reduction" not in cost.prefill(BASE, vision=vision, method=method, include_reduction=False).parts
