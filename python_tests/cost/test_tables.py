"""Architectures by name, config and directory; hardware; precisions; and that none of it needs torch."""

import dataclasses
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from helpers.paths import PACKAGE

from ficoco_ext import cost, get_method
from ficoco_ext.cost import schedules

BASE = cost.architecture("llava-1.5-7b")


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
        ("qwen2_5_vl", "qwen2.5-vl-7b"),
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
    elif kind == "qwen2_5_vl":
        config = transformers.Qwen2_5_VLConfig(text_config=sizes, vision_config={"hidden_size": 1280})
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
    got = cost.architecture(config, image_size=wanted.tower.image_size)
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


def test_the_arithmetic_needs_no_models():
    """What a method costs its stages say, which need torch; no model, picture or command line is loaded for it."""
    program = (
        "import sys, types, pathlib, importlib;"
        "root = pathlib.Path(sys.argv[1]);"
        "package = types.ModuleType('ficoco_ext'); package.__path__ = [str(root)]; sys.modules['ficoco_ext'] = package;"
        "cost = importlib.import_module('ficoco_ext.cost');"
        "cost.prefill('llava-1.5-7b', hardware='h200'); cost.decode('llava-1.5-7b');"
        "importlib.import_module('ficoco_ext.cost.reproduce').reproduce();"
        "rooms = {name.split('.')[1] for name in sys.modules if name.startswith('ficoco_ext.')};"
        "assert not {'transformers', 'matplotlib', 'typer', 'rich', 'PIL'} & set(sys.modules);"
        "assert not {'models', 'apps', 'viz', 'evaluation', 'cli'} & rooms, rooms"
    )
    subprocess.run([sys.executable, "-c", program, str(PACKAGE)], check=True)


def test_what_is_measured_of_a_cpu(monkeypatch):
    """A product of n x n is 2 n^3 operations, a copy reads and writes each byte, and the best run counts."""
    hardware, times = sys.modules["ficoco_ext.cost.hardware"], iter([0.5, 0.25])
    monkeypatch.setattr(hardware, "_best_seconds", lambda run, repeats: next(times))
    got = hardware.measure_cpu(1, size=8, copy_bytes=64)
    assert (got.fp16, got.bandwidth, got.int8, got.int4) == (2 * 8**3 / 0.5, 2 * 64 / 0.25, None, None)
    monkeypatch.undo()
    clock, runs = iter([0.0, 5.0, 5.0, 7.0, 7.0, 10.0]), []
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: next(clock))
    assert hardware._best_seconds(lambda: runs.append(1), 3) == 2.0
    assert len(runs) == 4  # the first one warms up


def config(kind=None, text=None, vision=None, **rest):
    """A config of a tower of 36 patches with 4 layers."""
    parts = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    tower = SimpleNamespace(**parts | {"patch_size": 4, "image_size": 24} | (vision or {}))
    language_model = SimpleNamespace(**parts | {"vocab_size": 60} | (text or {}))
    kinds = {} if kind is None else {"model_type": kind}
    return SimpleNamespace(vision_config=tower, text_config=language_model, **kinds, **rest)


@pytest.mark.parametrize(
    ("given", "crops", "visual"),
    [
        ({}, 1, 36),
        ({"vision_feature_select_strategy": "full"}, 1, 37),
        ({"vision_feature_select_strategy": "full", "vision": {"model_type": "siglip_vision_model"}}, 1, 36),
        ({"kind": "llava_next"}, 5, 180),
        ({"kind": "llava_next", "vision_feature_select_strategy": "full"}, 5, 185),
        ({"kind": "llava_onevision"}, 10, 360),
        ({"kind": "video_llava"}, 8, 296),
    ],
)
def test_visual_tokens_of_a_config(given, crops, visual):
    got = cost.architecture(config(**given))
    assert (got.crops, got.visual_tokens) == (crops, visual)


@pytest.mark.parametrize(("layer", "used", "joined"), [(-1, 4, 1), (-2, 3, 1), (2, 2, 1), ([-2, 1], 3, 2)])
def test_layers_that_are_read(layer, used, joined):
    got = cost.architecture(config(vision_feature_layer=layer))
    assert (got.tower.used, got.tower.joined) == (used, joined)
    assert (got.projector.inputs, got.projector.outputs) == (32 * joined, 32)


def test_language_models_of_a_config():
    assert cost.architecture(config()).language_model.gated
    assert not cost.architecture(config(text={"model_type": "opt"})).language_model.gated
    wide = cost.architecture(config(text={"head_dim": 16, "num_key_value_heads": 2})).language_model
    assert (wide.head_dim, wide.kv_heads, wide.kv_width) == (16, 2, 64)


def test_two_kinds_of_qwen():
    old = {"embed_dim": 16, "mlp_ratio": 3}
    new = {"hidden_size": 24, "intermediate_size": 40}
    shared = {"depth": 2, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
    for numbers, shape in ((old, (16, 48, False)), (new, (24, 40, True))):
        got = cost.architecture(
            SimpleNamespace(vision_config=SimpleNamespace(**shared | numbers), text_config=config().text_config)
        )
        assert (got.tower.hidden, got.tower.mlp, got.tower.gated) == shape
        assert (got.tower.merge, got.tower.channels, got.projector.inputs) == (4, 6, 4 * shape[0])


def test_crops_keep_what_each_brings_besides_its_patches():
    assert cost.architecture("video-llava-7b", crops=2).visual_tokens == 2 * 257
    assert cost.architecture("llava-1.5-7b", crops=3, image_size=224).visual_tokens == 3 * 256


def test_configs_of_newer_families():
    """As transformers writes them without numbers of a checkpoint; DeepStack has three levels."""
    transformers = pytest.importorskip("transformers")
    deep = cost.architecture(transformers.Qwen3VLConfig())
    assert (deep.deepstack, deep.tower.gated, deep.tower.mlp, deep.language_model.head_dim) == (3, False, 4304, 128)
    assert (deep.tower.merge, deep.pictures, deep.projector.inputs) == (4, 1, 4 * 1152)
    with pytest.raises(ValueError, match="layer 3 is the first that can reduce; say layer=4"):
        schedules.build(deep, get_method("fastv"))
    assert schedules.build(deep, get_method("fastv", layer=4)).decoder.layers == (3,)
    with pytest.raises(ValueError, match="layer 3 is the first that can reduce"):
        cost.plan(deep, "ficoco-l", average_tokens=500, layers=range(2, 9))
    tiles = cost.architecture(transformers.InternVLConfig(), crops=13)
    assert (tiles.visual_tokens, tiles.pictures, tiles.tower.merge) == (13 * 256, 13, 4)
    assert (tiles.tower.class_token, tiles.tower.trained_class, tiles.tower.used) == (True, False, 24)
    broken = transformers.InternVLConfig()
    broken.downsample_ratio = 0.0
    with pytest.raises(ValueError, match=r"downsample_ratio in \(0, 1\], got 0\.0"):
        cost.architecture(broken)


def test_a_model_type_that_is_not_known_is_refused():
    with pytest.raises(
        ValueError, match="a model of the type 'blip' makes of a picture is not known; known are llava,"
    ):
        cost.architecture(config("blip"))


def test_a_cache_is_as_wide_as_activations_unless_it_is_said():
    assert cost.Precision.parse("W4A8") == cost.Precision(4, 8, 8)
