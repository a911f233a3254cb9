"""Architectures by name, config and directory; hardware; precisions; and that none of it needs torch."""

import dataclasses
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from helpers.paths import PACKAGE

from ficoco_ext import cost

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
