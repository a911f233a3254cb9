"""A checkpoint folder that anybody may have written: its code never runs, its absurd numbers are refused by name."""

import json
import shutil
import time
from types import SimpleNamespace

import pytest

from ficoco_ext import cost
from ficoco_ext.apps.checkpoint import EMBEDDED, load
from ficoco_ext.io import configs

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

OURS = json.loads((EMBEDDED / "config.json").read_text())
INSIDE = "from transformers import PretrainedConfig\n\n\nclass Evil(PretrainedConfig):\n    model_type = 'evil'\n"
ABSURD = [
    ("text_config.num_hidden_layers", 10**6),
    ("text_config.num_hidden_layers", 10**30),
    ("text_config.num_hidden_layers", 0),
    ("text_config.num_hidden_layers", True),
    ("text_config.num_hidden_layers", 6.0),
    ("text_config.num_attention_heads", 0),
    ("text_config.num_key_value_heads", -1),
    ("text_config.hidden_size", "big"),
    ("text_config.intermediate_size", float("nan")),
    ("text_config.vocab_size", 10**12),
    ("text_config.num_labels", 10**9),
    ("vision_config.image_size", 10**9),
    ("vision_config.image_size", [336, 10**9]),
    ("vision_config.patch_size", 0),
    ("vision_config.mlp_ratio", float("inf")),
    ("vision_config.num_hidden_layers", {"layers": 3}),
]


def changed(path, value):
    found = json.loads(json.dumps(OURS))
    at = found
    *parts, last = path.split(".")
    for part in parts:
        at = at[part]
    at[last] = value
    return found


def folder(tmp_path, config):
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(("path", "value"), ABSURD, ids=str)
def test_absurd_numbers_are_refused_by_name_at_once(tmp_path, path, value):
    where = folder(tmp_path, changed(path, value))
    start = time.process_time()
    with pytest.raises(ValueError, match=rf"config\.json: {path} must be (a number|an integer).*, got ") as told:
        cost.architecture(str(where))
    assert time.process_time() - start < 1
    with pytest.raises(ValueError, match=path):
        load(str(where), torch.float32, torch.device("cpu"))
    assert len(str(told.value)) < 300


@pytest.mark.parametrize(
    ("part", "name", "value", "wanted"),
    [
        (
            "text_config",
            "num_attention_heads",
            0,
            "model: its text config: num_attention_heads must be an integer in 1",
        ),
        ("text_config", "num_hidden_layers", 10**6, "num_hidden_layers must be an integer in 1"),
        ("text_config", "head_dim", "wide", "LanguageModel: head_dim must be in 1 .* got 'wide'"),
        ("text_config", "num_key_value_heads", 1.5, "LanguageModel: kv_heads must be in 1 .* got 1.5"),
        ("vision_config", "patch_size", 0, "model: its vision config: patch_size must be an integer in 1"),
    ],
)
def test_configs_that_are_given_as_objects_are_checked_too(part, name, value, wanted):
    config = SimpleNamespace(
        model_type="llava",
        text_config=SimpleNamespace(**OURS["text_config"]),
        vision_config=SimpleNamespace(**OURS["vision_config"]),
    )
    assert cost.architecture(config).language_model.layers == OURS["text_config"]["num_hidden_layers"]
    setattr(getattr(config, part), name, value)
    with pytest.raises(ValueError, match=wanted):
        cost.architecture(config)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[" * 10**5, "must be JSON"),
        ('{"hidden_size": ' + "9" * 10**4 + "}", "must be JSON"),
        ("{", "must be JSON"),
        ("[]", "must hold one object, got list"),
        ('{"x": "' + "y" * 2**24 + '"}', "must have at most 16,777,216 bytes"),
        ("{}", "transformers reads"),
        ('{"model_type": ["llava"]}', "transformers reads"),
        ('{"model_type": "llava", "text_config": 3}', "text_config|transformers reads"),
        ('{"model_type": "llava", "dtype": "evil"}', "evil|transformers reads"),
    ],
)
def test_what_is_no_config_is_said_to_be_none(tmp_path, text, wanted):
    with pytest.raises((ValueError, OSError), match=wanted):
        cost.architecture(str(folder(tmp_path, text)))


def test_ours_and_the_largest_that_there_are_pass():
    configs.check(OURS, "config.json")
    configs.check(
        {"num_hidden_layers": 126, "hidden_size": 16384, "vocab_size": 256000, "head_dim": None}, "config.json"
    )
    configs.check({"image_size": [224, 224], "vision_config": {"mlp_ratio": 3.7362, "depth": 63}}, "config.json")


@pytest.fixture
def bait(tmp_path, monkeypatch):
    """A function that puts code into a folder, and the file that it would write; nobody is asked whether to run it."""
    mark = tmp_path / "ran"

    def put(where, name="evil.py"):
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).write_text(f"open({str(mark)!r}, 'w').write('x')\n{INSIDE}")
        return where

    asked = []
    monkeypatch.setattr("builtins.input", lambda *text: asked.append(text) or "y")
    yield put, mark
    assert not asked and not mark.exists()


@pytest.mark.parametrize("kind", ["evil", "llava", None])
@pytest.mark.parametrize("reference", ["evil.Evil", "org/repo--evil.Evil"])
def test_code_beside_a_config_never_runs(tmp_path, bait, kind, reference):
    put, _ = bait
    config = {**OURS, "model_type": kind, "auto_map": {"AutoConfig": reference, "AutoModel": reference}}
    where = put(folder(tmp_path, config if kind else {"auto_map": config["auto_map"]}))
    if kind == "llava":  # transformers has its own
        assert cost.architecture(str(where)).language_model.layers == OURS["text_config"]["num_hidden_layers"]
    else:
        with pytest.raises(ValueError, match=r"asks to run code of its own \(auto_map\), which is never done"):
            cost.architecture(str(where))
        with pytest.raises(ValueError, match="auto_map"):
            load(str(where), torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("file", ["tokenizer_config.json", "processor_config.json", "config.json", "custom_generate"])
def test_code_in_a_checkpoint_never_runs(tmp_path, bait, file):
    put, _ = bait
    where = tmp_path / "model"
    shutil.copytree(EMBEDDED, where, ignore=shutil.ignore_patterns("samples"))
    put(where)
    if file == "custom_generate":
        put(where, "custom_generate/generate.py")
    else:
        found = json.loads((where / file).read_text())
        names = ("AutoTokenizer", "AutoProcessor", "AutoImageProcessor", "AutoModel", "AutoModelForImageTextToText")
        found["auto_map"] = dict.fromkeys(names, "evil.Evil")
        found["auto_map"]["AutoTokenizer"] = ["evil.Evil", "evil.Evil"]
        for key in ("processor_class", "tokenizer_class"):
            if key in found:
                found[key] = "Evil"
        if isinstance(found.get("image_processor"), dict):
            found["image_processor"] |= {
                "auto_map": {"AutoImageProcessor": "evil.Evil"},
                "image_processor_type": "Evil",
            }
        (where / file).write_text(json.dumps(found))
    try:
        checkpoint = load(str(where), torch.float32, torch.device("cpu"))
        checkpoint.model.generate(torch.tensor([[1, 2]]), max_new_tokens=1)
    except (ValueError, OSError, KeyError):
        pass  # refused is as well


NESTED = {"model_type": "align_text_model", "auto_map": {"AutoModel": "evil.Evil"}}


@pytest.mark.parametrize(
    ("part", "value", "path"),
    [
        ("text_config", NESTED, "text_config.auto_map"),
        ("vision_config", {**NESTED, "model_type": "align_vision_model"}, "vision_config.auto_map"),
        ("text_config", {"model_type": "llama", "more": [[{"auto_map": {}}]]}, r"text_config.more\[0\]\[0\].auto_map"),
        ("", NESTED, r"\.auto_map"),
        ("parts", [NESTED], r"parts\[0\].auto_map"),
        ("text_config", {**NESTED, "auto_map": None}, "text_config.auto_map"),
        (
            "text_config",
            {"model_type": "align_text_model", "attribute_map": {"auto_map": "x"}, "x": NESTED["auto_map"]},
            "text_config.attribute_map",
        ),
        ("attribute_map", {"auto_map": "x"}, "attribute_map"),
    ],
)
def test_code_of_a_part_never_runs(tmp_path, bait, part, value, path):
    put, _ = bait
    where = tmp_path / "model"
    shutil.copytree(EMBEDDED, where, ignore=shutil.ignore_patterns("samples"))
    if isinstance(value, dict):
        value = {**OURS.get(part, {}), **value, "_name_or_path": str(where)}
    put(folder(where, {**OURS, part: value}))
    for ask in (lambda: load(str(where), torch.float32, torch.device("cpu")), lambda: cost.architecture(str(where))):
        with pytest.raises(ValueError, match=rf"config\.json: {path} must not be there, got "):
            ask()


@pytest.mark.parametrize(
    ("part", "kind"), [("text", "align_text_model"), ("text", "opt"), ("vision", "align_vision_model")]
)
def test_parts_that_are_not_served_are_refused_before_weights_are_read(tmp_path, part, kind):
    where = tmp_path / "model"
    shutil.copytree(EMBEDDED, where, ignore=shutil.ignore_patterns("samples"))
    folder(where, changed(f"{part}_config.model_type", kind))
    (where / "model.safetensors").write_text("never read")
    with pytest.raises(ValueError, match=rf"{part}_config.model_type must be one of .*, got '{kind}'; no other"):
        load(str(where), torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
@pytest.mark.parametrize(
    ("value", "got"),
    [
        ("org/kernel", "org/kernel"),
        ("org:kernel", "org:kernel"),
        ("paged|flash_attention_2", "paged"),
        ({"text_config": "evil-org/kern"}, "evil-org/kern"),
        ({"": "evil-org/kern"}, "evil-org/kern"),
        ({"": "sdpa", "vision_config": "evil-org/kern"}, "evil-org/kern"),
        ({"text_config": {"": "evil-org/kern"}}, "evil-org/kern"),
        (["evil-org/kern"], "evil-org/kern"),
        (7, "7"),
    ],
)
def test_attention_is_one_of_transformers(name, value, got):
    for path in (name, f"text_config.{name}"):
        with pytest.raises(ValueError, match=rf"{path} must be attention that transformers has .*got .*{got}"):
            configs.check(changed(path, value), "config.json")
    for fine in ("eager", "sdpa", "flash_attention_2", None, {"": "sdpa", "text_config": "eager"}, {}):
        configs.check(changed(name, fine), "config.json")


def test_attention_is_sdpa_or_what_the_config_names(tmp_path):
    assert load(None, torch.float32, torch.device("cpu")).model.config._attn_implementation == "sdpa"
    where = tmp_path / "model"
    shutil.copytree(EMBEDDED, where, ignore=shutil.ignore_patterns("samples"))
    folder(where, changed("attn_implementation", "eager"))
    model = load(str(where), torch.float32, torch.device("cpu")).model
    assert model.config._attn_implementation == "eager" == model.config.text_config._attn_implementation


def test_a_byte_order_mark_is_refused_by_name(tmp_path):
    where = tmp_path / "model"
    shutil.copytree(EMBEDDED, where, ignore=shutil.ignore_patterns("samples"))
    folder(where, "\ufeff" + json.dumps(OURS))
    for ask in (lambda: load(str(where), torch.float32, torch.device("cpu")), lambda: cost.architecture(str(where))):
        with pytest.raises(ValueError, match="must be JSON without a byte order mark"):
            ask()


def test_a_config_is_read_once(monkeypatch):
    read, found = configs.read, []
    monkeypatch.setattr(configs, "read", lambda folder: found.append(folder) or read(folder))
    cost.architecture(str(EMBEDDED))
    assert found == [EMBEDDED]
    load(None, torch.float32, torch.device("cpu"))
    assert found == [EMBEDDED] * 2
