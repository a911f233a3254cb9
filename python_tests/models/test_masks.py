"""Masks and static caches under reduction: every language model that is served, and placeholders that a mask hides."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.decoder import generated, tiny, worst_error
from helpers.families import next_inputs, qwen_inputs, tiny_next, tiny_qwen
from helpers.models import PATCHES, batch, close, image, one_image, one_thread, tiny_llava, words  # noqa: F401

import ficoco_ext
from ficoco_ext.models.families import LANGUAGE_MODELS

pytest.importorskip("transformers")

DECODER = {"ficoco-l": {"keep_ratio": 0.5, "layers": (0, 2)}, "fastv": {"layer": 1, "keep_ratio": 0.5}}
TOWER = {"ficoco-v": {"keep_ratio": 0.5}, "tome": {"keep_ratio": 0.5}}
ONE, LONGER = [*words(1, 2), *image(), *words(3, 4, 5)], [*words(1, 2, 6, 7), *image(), *words(3, 4, 5)]


def of_llava(make):
    return make, lambda model, rows: batch(*rows)


def of_next(kind):
    def inputs(model, rows):
        return next_inputs(model, [[*row[: row.index(3)], (24, 24), *row[row.index(3) + PATCHES :]] for row in rows])

    return lambda attention: tiny_next(kind, attention), inputs


def of_qwen(version):
    def inputs(model, rows):
        return qwen_inputs(model, [[*row[: row.index(3)], (8, 8), *row[row.index(3) + PATCHES :]] for row in rows])

    return lambda attention: tiny_qwen(version, attention), inputs


FAMILIES = {
    **{kind: of_llava(lambda attention, kind=kind: tiny(kind, attention)) for kind in ("llama", "mistral", "qwen2")},
    **{f"next-{kind}": of_next(kind) for kind in ("llama", "qwen2")},
    "qwen2-vl": of_qwen("2"),
    "qwen2.5-vl": of_qwen("2.5"),
}


@pytest.mark.parametrize("rows", [(ONE,), (ONE, LONGER)], ids=["alike", "padded"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_static_cache_equals_dynamic_cache(family, attention, rows):
    """Where the config has layer_types, transformers hands over a dict of masks, in which None needs no mask."""
    make, inputs_of = FAMILIES[family]
    model = make(attention)
    inputs, said = inputs_of(model, rows), {"max_new_tokens": 4, "do_sample": False}
    for method, options in (DECODER | (TOWER if family in LANGUAGE_MODELS else {})).items():
        with ficoco_ext.attach(model, method, **options):
            wanted = model.generate(**inputs, **said)
            static = model.generate(**inputs, **said, cache_implementation="static", disable_compile=True)
        assert torch.equal(static, wanted), method


def hidden(inputs, row, first, last):
    mask = inputs["attention_mask"].clone()
    mask[row, first:last] = 0
    return inputs | {"attention_mask": mask}


@pytest.mark.parametrize("method", DECODER)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize(
    ("rows", "hide"),
    [((ONE,), (0, 0, 30)), ((ONE,), (0, 10, 20)), ((ONE, LONGER), (1, 0, 20)), ((ONE, ONE), (0, 0, 38))],
    ids=["left", "middle", "one of two", "whole picture"],
)
def test_placeholders_that_the_mask_hides_are_padding(method, family, rows, hide):
    """No real token is lost for them: what is removed are visual tokens that can be seen."""
    model, plain = tiny(family), tiny(family)
    inputs = hidden(batch(*rows), *hide)
    visual = (inputs["input_ids"] == 3) & (inputs["attention_mask"] == 1)
    options = DECODER[method]
    with ficoco_ext.attach(model, method, **options) as handle, torch.no_grad():
        seen = generated(model, inputs, steps=3)
        reductions = handle.decoder_reductions
        for row, told in enumerate(reductions):
            gone = set(range(visual.shape[1])) - set(told[-1].kept[0].tolist()) if told else set()
            lost = {column for column in gone if inputs["attention_mask"][row, column]}
            assert lost <= set(visual[row].nonzero()[:, 0].tolist())
            removes = handle.plan.schedule(int(visual[row].sum())).r if visual[row].any() else ()
            assert len(lost) == sum(removes)
        new = seen.sequences[:, visual.shape[1] :]
        assert worst_error(plain, seen, reductions, handle.plan, 3, new_ids=new) < 2e-4


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", TOWER)
def test_a_tower_needs_to_see_all_of_a_picture_or_nothing(method, attention):
    model = tiny_llava(attention=attention)
    for rows, hide in (((ONE,), (0, 0, 30)), ((ONE,), (0, 10, 20)), ((ONE, LONGER), (1, 0, 10))):
        inputs = hidden(batch(*rows), *hide)
        with ficoco_ext.attach(model, method, **TOWER[method]):
            for call in (model, lambda **inputs: model.generate(**inputs, max_new_tokens=2)):
                message = rf"attention_mask must be one that shows all placeholders .* in row {hide[0]}; .*processor"
                with pytest.raises(ValueError, match=message):
                    call(**inputs)
    inputs = hidden(batch(LONGER, ONE), 0, 0, 40)  # the whole picture of the first row
    with torch.no_grad():
        wanted = model(**inputs).logits[0, -3:]  # of the words behind a picture that nobody sees
        with ficoco_ext.attach(model, method, **TOWER[method]):
            assert close(model(**inputs).logits[0, -3:], wanted)
            assert model.generate(**inputs, max_new_tokens=2).shape == (2, inputs["input_ids"].shape[1] + 2)


@pytest.mark.parametrize("method", TOWER)
@pytest.mark.parametrize("mask", [torch.ones(1, 1, 41, 41), {"full_attention": None}], ids=["4-D", "dict"])
def test_masks_of_other_kinds_are_refused_in_our_words(method, mask):
    model = tiny_llava()
    message = r"forward: attention_mask must be \(1, 41\), got .*2-D mask"
    with ficoco_ext.attach(model, method, **TOWER[method]), pytest.raises(ValueError, match=message):
        model(**one_image() | {"attention_mask": mask})


@pytest.mark.parametrize("method", TOWER)
def test_logits_of_chosen_positions(method):
    """Positions are the caller's; those of removed placeholders have no logits."""
    model, inputs = tiny_llava(), one_image()
    alike = batch(ONE, [*words(6, 7), *image(), *words(8, 9, 1)])
    uneven = batch(ONE, [*words(6, 7), *image(), *image(), *words(8)])
    length = inputs["input_ids"].shape[1]
    with ficoco_ext.attach(model, method, **TOWER[method]), torch.no_grad():
        for given in (inputs, alike):
            every = model(**given).logits
            chosen = torch.tensor([1, length - 2, -1])
            wanted = every[:, [1, -2, -1]]
            assert close(model(**given, logits_to_keep=chosen).logits, wanted)
            flags = torch.zeros(length, dtype=torch.bool)
            flags[chosen] = True
            assert close(model(**given, logits_to_keep=flags).logits, wanted)
        for given, asked in ((inputs, [length - 4]), (uneven, [3])):
            with pytest.raises(
                ValueError, match=r"logits_to_keep must be positions of text, .*the number of last positions"
            ):
                model(**given, logits_to_keep=torch.tensor(asked))
    with ficoco_ext.attach(model, "ficoco-l", keep_ratio=0.5), torch.no_grad():
        with pytest.raises(ValueError, match=r"logits_to_keep must be a number: .* got \(1,\) .*; pass how many"):
            model(**inputs, logits_to_keep=torch.tensor([1]))
        assert model(**inputs, logits_to_keep=2).logits.shape[1] == 2


@pytest.mark.parametrize(
    ("method", "options"),
    [*TOWER.items(), ("ficoco-vl", {"vision": {"keep_ratio": 0.5}, "decoder": {"keep_ratio": 0.5, "layers": (1,)}})],
)
def test_the_model_inside_takes_the_same_prompt(method, options):
    model, inputs = tiny_llava(), batch(ONE, LONGER)
    with ficoco_ext.attach(model, method, **options) as handle, torch.no_grad():
        wanted = model(**inputs).logits
        told = handle.reductions
        inside = model.model(**inputs)
        assert torch.equal(model.lm_head(inside.last_hidden_state), wanted)
        assert all(torch.equal(a.kept, b.kept) for a, b in zip(told, handle.reductions, strict=True))


@pytest.mark.parametrize("method", ["ficoco-v", "ficoco-l"])
def test_a_list_of_one_feature_layer(method):
    model, other, inputs = tiny_llava(), tiny_llava(feature_layer=[-2]), one_image()
    with torch.no_grad(), ficoco_ext.attach(model, method, keep_ratio=0.5) as handle:
        wanted = model(**inputs).logits
        with ficoco_ext.attach(other, method, keep_ratio=0.5) as same:
            assert repr(handle) == repr(same)
            assert torch.equal(other(**inputs).logits, wanted)
            if method == "ficoco-v":
                assert torch.equal(other(**inputs, vision_feature_layer=-2).logits, wanted)


@pytest.mark.parametrize("method", ["ficoco-v", "ficoco-l", "fastv"])
@pytest.mark.parametrize("count", [PATCHES - 1, PATCHES + 1, 2 * PATCHES])
def test_a_wrong_number_of_placeholders_says_where_it_comes_from(method, count):
    model, inputs = tiny_llava(), batch([*words(1, 2), *image(count), *words(3)], images=1)
    with ficoco_ext.attach(model, method, keep_ratio=0.5):
        for call in (model, lambda **inputs: model.generate(**inputs, max_new_tokens=2)):
            with pytest.raises(ValueError, match=rf"got {count} placeholders \(Image features and image") as error:
                call(**inputs)
            assert all(word in str(error.value) for word in ("patch_size", "truncated", "num_additional_image_tokens"))


def test_a_kernel_that_looks_for_packed_sequences_gets_a_mask(monkeypatch):
    """Positions that jump, without a mask, are sequences packed into one row to flash attention."""
    from transformers import AttentionInterface, AttentionMaskInterface

    found = []

    def kernel(module, query, key, value, mask, scaling=None, position_ids=None, **kwargs):
        jumps = position_ids is not None and bool((position_ids.diff() != 1).any())
        found.append((jumps, mask is None, module.config._attn_implementation))
        groups = query.shape[1] // key.shape[1]
        key, value = (one.repeat_interleave(groups, 1) for one in (key, value))
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling).transpose(1, 2), None

    AttentionInterface.register("flash_probe", kernel)
    AttentionMaskInterface.register("flash_probe", lambda *args, attention_mask=None, **kwargs: None)
    model, inputs = tiny(), one_image()
    with torch.no_grad(), ficoco_ext.attach(model, "ficoco-l", keep_ratio=0.5, layers=(0, 2)):
        wanted = model(**inputs).logits
        config = model.model.language_model.config
        monkeypatch.setattr(config, "_attn_implementation_internal", "flash_probe")
        assert close(model(**inputs).logits, wanted)
    assert (True, True) not in {one[:2] for one in found} and any(one[0] for one in found)
    assert {one[2] for one in found} == {"flash_probe"}  # the kernel sees the model's own config
