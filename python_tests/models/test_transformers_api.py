"""Names and shapes of transformers: both names of the cache, and releases that are not the ones we know."""

from __future__ import annotations

import re
import sys
import warnings
from dataclasses import replace

import pytest
import torch
from helpers.decoder import tiny
from helpers.families import next_inputs, qwen_inputs, tiny_next, tiny_qwen
from helpers.models import GREEDY, one_image, words
from helpers.paths import PACKAGE

import ficoco_ext
from ficoco_ext.models import families, transformers_release
from ficoco_ext.models import transformers_api as api
from ficoco_ext.models.families import FAMILIES, LLAVA

pytest.importorskip("transformers")

METHODS = {
    "ficoco-v": {"keep_ratio": 0.5},
    "tome": {"keep_ratio": 0.5},
    "ficoco-l": {"keep_ratio": 0.5, "layers": (1, 2)},
    "fastv": {"layer": 2, "keep_ratio": 0.5},
    "ficoco-vl": {"vision": {"keep_ratio": 0.5}, "decoder": {"keep_ratio": 0.5, "layers": (1,)}},
}
pytestmark = pytest.mark.filterwarnings("ignore:.*past_key_values:FutureWarning")
NAMES = sorted({api.CACHE, api.cache_name(LLAVA.model_class().forward)})
by_name = pytest.mark.parametrize("name", NAMES)


def said(model, inputs, name, length):
    """What is said behind a prompt, token by token, in a loop that hands the cache over by ``name``."""
    with torch.no_grad():
        out = model(**inputs, use_cache=True)
        found = []
        for _ in range(length):
            found.append(out.logits[:, -1:].argmax(-1))
            out = model(input_ids=found[-1], **{name: api.output_cache(out)}, use_cache=True)
        return torch.cat(found, 1)


@by_name
@pytest.mark.parametrize("method", METHODS)
def test_a_loop_of_ones_own(method, name):
    """A cache by either name is seen: what is said is what generate says, and a stale mask is refused."""
    model, inputs = tiny(), one_image()
    with ficoco_ext.attach(model, method, **METHODS[method]):
        wanted = model.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :]
        assert torch.equal(said(model, inputs, name, wanted.shape[1]), wanted)
        if method in ("ficoco-v", "tome"):
            with torch.no_grad():
                cache = api.output_cache(model(**inputs, use_cache=True))
                stale = torch.ones(1, inputs["input_ids"].shape[1] + 1, dtype=torch.long)
                with pytest.raises(ValueError, match=r"attention_mask must be \(1, 23 cached \+ 1\)"):
                    model(input_ids=torch.tensor([[12]]), attention_mask=stale, **{name: cache})


@by_name
@pytest.mark.parametrize("method", METHODS)
def test_a_conversation_goes_on(method, name):
    model, inputs = tiny(), one_image()
    with ficoco_ext.attach(model, method, **METHODS[method]), torch.no_grad():
        first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        cache = api.output_cache(first)
        before = cache.get_seq_length()
        ids = torch.cat([first.sequences, torch.tensor([words(7, 8)])], 1)
        second = model.generate(ids, **{name: cache}, **GREEDY, return_dict_in_generate=True)
        assert api.output_cache(second) is cache
        assert cache.get_seq_length() == before + 3 + 2  # one token that was not cached, two new ones, two said
        assert torch.equal(second.sequences[:, : ids.shape[1]], ids)
        again = model(input_ids=second.sequences[:, -1:], **{name: cache}).logits
        whole = model(**{**inputs, "input_ids": second.sequences, "attention_mask": torch.ones_like(second.sequences)})
        if method in ("ficoco-v", "tome"):  # in the language model the second prompt reduces by another question
            assert torch.allclose(again[:, -1], whole.logits[:, -1], atol=1e-4)


@by_name
@pytest.mark.parametrize(
    ("make", "inputs_of"),
    [
        (tiny_next, lambda model: next_inputs(model, [[*words(1, 2), (24, 24), *words(3, 4)]])),
        (tiny_qwen, lambda model: qwen_inputs(model, [[*words(1, 2), (8, 8), *words(3, 4)]])),
        (lambda: tiny_qwen("2.5"), lambda model: qwen_inputs(model, [[*words(1, 2), (8, 8), *words(3, 4)]])),
    ],
)
def test_other_families(make, inputs_of, name):
    model = make()
    inputs = inputs_of(model)
    with ficoco_ext.attach(model, "fastv", layer=2, keep_ratio=0.5):
        wanted = model.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :]
        assert torch.equal(said(model, inputs, name, wanted.shape[1]), wanted)


def test_the_installed_release_is_known():
    assert transformers_release.structure_problems() == {}
    assert len({family.name for family in FAMILIES}) == len(FAMILIES) >= 4
    assert all(set(family.language_models) <= set(families.LANGUAGE_MODELS) for family in FAMILIES)
    assert all(set(family.towers) <= set(families.TOWERS) for family in FAMILIES)
    assert all((not family.towers) == (family.why_no_tower is not None) for family in FAMILIES)


def moved(monkeypatch, module, name, parameters):
    """A class of transformers whose forward takes other arguments."""
    space: dict = {}
    exec(f"def forward({', '.join(parameters)}): ...", space)
    monkeypatch.setattr(api.model_class(module, name), "forward", space["forward"])


def served_with(kind):
    """Families whose language model may be of this kind."""
    return {family.name for family in FAMILIES if kind in family.language_models}


CHANGES = [
    ("llama.modeling_llama", "LlamaDecoderLayer", "x, memory, **kwargs", served_with("llama")),
    ("llava.modeling_llava", "LlavaForConditionalGeneration", "self, pictures, **kwargs", {"LLaVA-1.5"}),
    ("clip.modeling_clip", "CLIPEncoderLayer", "self, hidden_states, mask, **kwargs", {"LLaVA-1.5", "LLaVA-NeXT"}),
    (
        "siglip.modeling_siglip",
        "SiglipEncoderLayer",
        "self, hidden_states, mask, **kwargs",
        {"LLaVA-1.5", "LLaVA-NeXT", "PaliGemma"},
    ),
    ("qwen2_vl.modeling_qwen2_vl", "Qwen2VLAttention", "self, hidden_states, memory, **kwargs", {"Qwen2-VL"}),
    (  # DeepStack would come in another way
        "qwen3_vl.modeling_qwen3_vl",
        "Qwen3VLTextModel",
        "self, input_ids, attention_mask, position_ids, inputs_embeds, cache, past_key_values, **kwargs",
        {"Qwen3-VL"},
    ),
]


@pytest.mark.parametrize(("module", "changed", "parameters", "families"), CHANGES)
def test_a_structure_that_is_not_known(module, changed, parameters, families, monkeypatch):
    moved(monkeypatch, module, changed, parameters.split(", "))
    problems = transformers_release.structure_problems()
    assert set(problems) == families and all(f"{changed}.forward must be" in reason for reason in problems.values())


def test_a_packing_that_is_not_known(monkeypatch):
    inner = api.model_class("llava_next.modeling_llava_next", "LlavaNextModel")
    monkeypatch.setattr(inner, "pack_image_features", lambda self, crops, sizes: crops)
    problems = transformers_release.structure_problems()
    assert set(problems) == {"LLaVA-NeXT"}
    assert "LlavaNextModel.pack_image_features must be one that takes image_features" in problems["LLaVA-NeXT"]


def test_a_class_that_is_gone(monkeypatch):
    gone = replace(families.LANGUAGE_MODELS["qwen2"], layer="Qwen9Layer")
    monkeypatch.setitem(families.LANGUAGE_MODELS, "qwen2", gone)
    assert set(transformers_release.structure_problems()) == served_with("qwen2") >= {"LLaVA-1.5", "LLaVA-NeXT"}
    assert "Qwen9Layer" in transformers_release.structure_problems()["LLaVA-1.5"]


@pytest.mark.parametrize("method", ["ficoco-v", "ficoco-l"])
def test_attach_refuses_a_structure_that_is_not_known(method, monkeypatch):
    model = tiny()
    moved(monkeypatch, "llama.modeling_llama", "LlamaDecoderLayer", ["self", "memory"])
    message = r"LlamaDecoderLayer.forward must be one that takes .*; transformers changed LLaVA-1.5; .* 5\.17\.0 to "
    with pytest.raises(NotImplementedError, match=message) as error:
        ficoco_ext.attach(model, method, keep_ratio=0.5)
    assert str(error.value).endswith(f'pip install "transformers<={transformers_release.TESTED_NEWEST}"')
    assert not hasattr(model, "ficoco_handle")


@pytest.mark.parametrize(
    ("version", "warned"),
    [("5.23.4", False), (transformers_release.TESTED_NEWEST, False), ("5.24.1", True), ("5.99.0", True)],
)
def test_a_release_that_was_not_tested_draws_a_warning(version, warned, monkeypatch):
    model = tiny()
    monkeypatch.setattr(sys.modules["transformers"], "__version__", version)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        ficoco_ext.attach(model, "ficoco-l", keep_ratio=0.5).detach()
    texts = [str(one.message) for one in found if "ficoco" in str(one.message)]
    assert len(texts) == warned
    for text in texts:
        assert (
            version in text
            and f"{transformers_release.TESTED_OLDEST} to {transformers_release.TESTED_NEWEST}" in text
            and transformers_release.REMEDY in text
        )
        assert found[0].filename == __file__


def test_nothing_else_spells_the_names():
    names = re.compile(r"past_key_values|transformers\.(models|masking_utils|modeling_utils|cache_utils)\b")
    spelled = [
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if names.search(path.read_text()) and path.name not in ("transformers_api.py", "transformers_release.py")
    ]
    assert spelled == []


def gone(monkeypatch, what):
    """Takes away what every family needs, or changes its arguments."""
    import transformers
    from transformers import cache_utils, masking_utils

    if what == "Cache.reset":
        monkeypatch.delattr(cache_utils.Cache, "reset")
    elif what == "create_causal_mask":
        space: dict = {}
        swapped = "config, attention_mask, inputs_embeds, cache, layer_idx=0, allow_is_causal_skip=True"
        exec(f"def {what}({swapped}): ...", space)
        monkeypatch.setattr(masking_utils, what, space[what])
    else:
        module = sys.modules[transformers.LlamaModel.__module__]
        monkeypatch.delattr(module, "eager_attention_forward")


@pytest.mark.parametrize(
    ("what", "families"),
    [
        ("Cache.reset", {family.name for family in FAMILIES}),
        ("create_causal_mask", {family.name for family in FAMILIES}),
        ("eager_attention_forward", served_with("llama")),
    ],
)
def test_what_all_families_share_must_be_there(what, families, monkeypatch):
    gone(monkeypatch, what)
    problems = transformers_release.structure_problems()
    assert set(problems) == families
    assert all(what in reason for reason in problems.values())


def test_a_cache_by_both_names_is_one():
    """The new name goes first, as in transformers; and a call without a cache has it by neither."""
    assert api.cache_of({"cache": 1, api.CACHE: 2}, "cache") == 1
    assert api.cache_of({api.CACHE: 2, "mask": 3}, "cache") == api.cache_of({api.CACHE: 2}, api.CACHE) == 2
    assert api.cache_of({"cache": None, api.CACHE: 2}, "cache") is None
    assert api.without_cache({"cache": 1, api.CACHE: 2, "mask": 3}, "cache") == {"mask": 3, "cache": None}
    assert api.without_cache({api.CACHE: 2}, api.CACHE) == {api.CACHE: None}
