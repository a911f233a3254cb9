"""What is missing in a checkpoint, or belongs to another model, is named before anything is asked or counted."""

from __future__ import annotations

import json
import shutil
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("transformers")

import torch
import typer.testing
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from ficoco_ext import cost
from ficoco_ext.apps import checkpoint, demo, show
from ficoco_ext.apps.checkpoint import EMBEDDED
from ficoco_ext.cli.app import app
from ficoco_ext.cli.common import reported, whole
from ficoco_ext.cost import schedules
from ficoco_ext.methods import get_method


@pytest.fixture
def copy(tmp_path):
    """The embedded checkpoint, to be damaged."""
    return shutil.copytree(EMBEDDED, tmp_path / "copy")


def _load(folder):
    return checkpoint.load(str(folder), torch.float32, torch.device("cpu"))


def _rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})


def _json(folder, name, change):
    found = json.loads((folder / name).read_text())
    change(found)
    (folder / name).write_text(json.dumps(found))


def _ficoco(*arguments):
    return typer.testing.CliRunner().invoke(app, [str(one) for one in arguments])


def _without_projector(tensors):
    return {name: one for name, one in tensors.items() if "multi_modal_projector" not in name}


def _as_its_authors(tensors):
    return {
        name.replace("language_model.", "").replace("vision_tower.", "model.tower."): tensors[name] for name in tensors
    }


def _another_shape(tensors):
    name = "multi_modal_projector.linear_1.weight"
    return tensors | {name: tensors[name][:-1].clone()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_projector, r"drawn at random: .*multi_modal_projector.linear_1.bias.*linear_2.weight"),
        (_as_its_authors, r"layers\.\*\.self_attn.q_proj.weight \(6 of them\).*unexpected, .*model.tower"),
        (
            lambda tensors: tensors | {"stray.weight": torch.zeros(3)},
            r"unexpected, so they would be left out: stray.weight",
        ),
        (_another_shape, r"linear_1.weight is \(127, 128\) and should be \(128, 128\)"),
    ],
)
def test_weights_of_another_model(copy, change, message):
    _rewrite(copy, change)
    with pytest.raises(ValueError, match=f"weights of .*copy are not those of its config: .*{message}"):
        _load(copy)


def test_every_command_that_asks_refuses_them(copy):
    _rewrite(copy, _without_projector)
    for given in (["demo", "scene_6"], ["eval", "--scenes", 1, "--methods", "topk"], ["show", "scene_6"]):
        result = _ficoco(*given, "--model", copy)
        assert result.exit_code == 2 and "multi_modal_projector.linear_1.bias" in result.stderr


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("tokenizer.json", r"no tokenizer \(none of tokenizer.json"),
        ("processor_config.json", r"no picture processor \(none of processor_config.json"),
        ("model.safetensors", r"no weights \(none of \*.safetensors"),
        ("config.json", "no config.json in .*copy"),
    ],
)
def test_a_missing_file_is_named(copy, file, message):
    (copy / file).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        _load(copy)


@pytest.mark.parametrize("file", ["tokenizer.json", "processor_config.json", "model.safetensors", "config.json"])
def test_a_damaged_file_is_an_error_with_its_cause(copy, file):
    (copy / file).write_text('{"cut": ')
    with pytest.raises((ValueError, OSError), match=r"config|processor|weights") as caught:
        _load(copy)
    assert str(copy) in str(caught.value)
    assert _ficoco("demo", "scene_6", "--model", copy).exit_code == 2


def test_processor_and_config_must_be_of_one_model(copy):
    whole_ = (copy / "processor_config.json").read_text()
    _json(copy, "processor_config.json", lambda found: found.update(patch_size=7))
    with pytest.raises(ValueError, match="must have patch_size 14 of the model's config, got 7"):
        _load(copy)
    (copy / "processor_config.json").write_text(whole_)
    _json(copy, "processor_config.json", lambda found: found.pop("patch_size"))
    with pytest.raises(ValueError, match="must have patch_size 14 of the model's config, got None"):
        _load(copy)
    (copy / "processor_config.json").write_text(whole_)
    _json(copy, "config.json", lambda found: found.update(image_token_index=5))
    with pytest.raises(ValueError, match="its config reads token 5 as one"):
        _load(copy)


def test_without_a_chat_template_everybody_is_told(copy):
    (copy / "chat_template.jinja").unlink()
    told = "copy has no chat template"
    (remark,) = _load(copy).remarks
    assert told in remark and "USER: <image>" in remark
    found = demo.run(demo.Request(model=str(copy), method="topk", repeats=1, max_new_tokens=1))
    assert any(told in one for one in found.notices)
    shown = show.run(show.Request("scene_6", model=str(copy), methods=("topk",)))
    assert any(told in one for one in shown.notices)
    assert told in _ficoco("eval", "--scenes", 1, "--methods", "topk", "--model", copy).stderr
    assert checkpoint.load(None, torch.float32, torch.device("cpu")).remarks == []


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("USER: {{ messages[0].content[1].text }}", "must write '<image>' once for one picture, got 0 of them"),
        ("{{ raise_exception('no system turn') }}", "cannot load the chat template of .*no system turn"),
        ("{% if %}", "cannot load the chat template of "),
    ],
)
def test_a_chat_template_must_show_the_picture(copy, template, message):
    (copy / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match=message):
        _load(copy).prompt("why ?")


THEIRS = {"model_type": "llava", "mm_vision_tower": "clip", "mm_hidden_size": 1024, "hidden_size": 4096}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.clear() or found.update(THEIRS), "no vision_config.*mm_vision_tower, mm_hidden_size.*-hf"),
        (lambda found: found.pop("text_config"), "has no text_config"),
        (lambda found: found.update(vision_config={}), "has no vision_config"),
        (
            lambda found: [
                found["vision_config"].pop(name) for name in ("model_type", "patch_size", "num_hidden_layers")
            ],
            "its vision_config says neither num_hidden_layers, patch_size nor its model_type",
        ),
    ],
)
def test_no_default_stands_in_for_a_config(copy, change, message):
    _json(copy, "config.json", change)
    with pytest.raises(ValueError, match=message):
        _load(copy)
    with pytest.raises(ValueError, match=message):
        cost.architecture(str(copy))
    for given in (["cost", copy], ["plan", copy, "--tflops", 1]):
        assert _ficoco(*given).exit_code == 2


def test_numbers_that_follow_from_a_type_are_said(copy):
    _json(copy, "config.json", lambda found: found["text_config"].pop("num_hidden_layers"))
    assert "not in it, by its model types: text num_hidden_layers 32" in cost.architecture(str(copy)).source
    assert "text num_hidden_layers 32" in " ".join(_ficoco("cost", copy).stdout.split())
    assert "not in it" not in cost.architecture(str(EMBEDDED)).source


def test_key_heads_are_a_fact(copy, monkeypatch):
    _json(copy, "config.json", lambda found: found["text_config"].pop("num_key_value_heads"))
    found = cost.architecture(str(copy))
    assert found.source.endswith("not in it, by its model types: text num_key_value_heads 4")
    _json(copy, "config.json", lambda found: found["text_config"].update(model_type="mistral", num_attention_heads=16))
    found = cost.architecture(str(copy))
    assert found.language_model.kv_heads == 8 and "text num_key_value_heads 8" in found.source
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"text_config says no num_key_value_heads, and .* is not installed"):
        cost.architecture(str(copy))
    monkeypatch.undo()
    _json(copy, "config.json", lambda found: found["text_config"].update(model_type="opt", ffn_dim=96))
    assert "num_key_value_heads" not in cost.architecture(str(copy)).source  # every head has its own
    _json(copy, "config.json", lambda found: found["text_config"].pop("model_type"))
    with pytest.raises(ValueError, match="its text_config says neither num_key_value_heads nor its model_type"):
        cost.architecture(str(copy))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "vip"}, "vip"),
        ({"vision_feature_layer": 9}, r"must name layers of a tower of 8, in -8 ... 8 without 0, got 9"),
        ({"vision_feature_layer": -9}, r"got -9"),
        ({"vision_feature_layer": []}, r"got \[\]"),
        ({"vision_feature_layer": "last"}, r"last|vision_feature_layer"),
        ({"vision_feature_select_strategy": "cls"}, "select_strategy"),
    ],
)
def test_cost_refuses_what_it_cannot_know(copy, change, message):
    _json(copy, "config.json", lambda found: found.update(change))
    with pytest.raises(ValueError, match=message):
        cost.architecture(str(copy))


def test_models_whose_visual_tokens_are_not_known_are_refused():
    config = AutoConfig.from_pretrained(EMBEDDED)
    other = SimpleNamespace(model_type="paligemma", vision_config=config.vision_config, text_config=config.text_config)
    with pytest.raises(ValueError, match="how many visual tokens a model of the type 'paligemma'"):
        cost.architecture(other)


def test_several_feature_layers_are_billed_and_not_promised(copy):
    one = cost.architecture(str(copy))
    _json(copy, "config.json", lambda found: found.update(vision_feature_layer=[-2, -3, -5]))
    several = cost.architecture(str(copy))
    assert (several.tower.joined, several.tower.used) == (3, one.tower.used)
    assert several.projector.inputs == 3 * one.projector.inputs
    with pytest.raises(ValueError, match=r"vision_feature_layer must be one integer .* got 3 layers"):
        schedules.build(several, get_method("ficoco-v"), keep_ratio=0.5)
    vision = schedules.build(one, get_method("ficoco-v"), keep_ratio=0.5).vision
    with pytest.raises(ValueError, match="3 layers of its tower are read together"):
        cost.prefill(several, vision=vision)
    assert schedules.build(several, get_method("fastv"), keep_ratio=0.5).decoder is not None
    for given in (["cost", copy, "--method", "ficoco-v"], ["plan", copy, "--average-tokens", 60]):
        result = _ficoco(*given)
        assert result.exit_code == 2 and "vision_feature_layer must be one integer" in result.stderr


def test_causes_are_told_whole(capsys):
    def fail():
        try:
            try:
                raise KeyError("llama")
            except KeyError:
                raise OSError("line one\nline two") from None
        except OSError as error:
            raise ValueError("cannot load\nYou need sentencepiece") from error

    with pytest.raises(ValueError, match="cannot") as caught:
        fail()
    assert whole(caught.value) == "cannot load\n  You need sentencepiece\n  because of OSError: line one\n  line two"
    import typer

    with pytest.raises(typer.Exit), reported(debug=False):
        fail()
    told = capsys.readouterr().err
    assert told.startswith("ficoco: error: cannot load\n  You need sentencepiece") and told.endswith("line two\n")
