"""Methods in the language models of Qwen3-VL, InternVL3, LLaVA-OneVision and Mistral3, against these models by hand."""

from __future__ import annotations

import pytest
import torch
from helpers.decoder import generated, query_key, watch, worst_error
from helpers.decoder_families import DECODERS, onevision_video, qwen3_video, tiny_onevision, tiny_qwen3
from helpers.families import qwen_inputs
from helpers.models import close, one_thread, snapshot, with_unlike_norms, without, words  # noqa: F401
from helpers.tiny_families import BY_NAME
from helpers.tiny_prompts import one_picture, one_video, unequal_rows

import ficoco_ext
from ficoco_ext import QueryKey

pytest.importorskip("transformers")

STEPS = 5
METHODS = {
    "ficoco-l": {"method": "ficoco-l", "keep_ratio": 0.3},
    "ficoco-l by logits": {"method": "ficoco-l", "variant": "released", "keep_ratio": 0.3},
    "fastv": {"method": "fastv"},
    "pyramiddrop": {"method": "pyramiddrop"},
    "mustdrop": {"method": "mustdrop", "part": "language_model", "keys": 0, "keep_ratio": (0.5, 0.3), "layers": (1, 2)}
    | {"cache": "staircase"},
    "sparsevlm": {"method": "sparsevlm", "keep_ratio": (0.5, 0.3), "layers": (1, 2)},  # 0 is DeepStack's
}


def rows_of(wide, tall):
    """Three rows of unequal length: one picture, two, none."""
    return [[*words(1), wide, *words(2, 3)], [*words(4), wide, *words(5), tall, *words(6, 7)], words(8, 9)]


def made(family, rows=slice(None), **how):
    """A model of the family whose norms differ, and inputs for some of the three rows."""
    make, inputs_of, wide, tall = DECODERS[family]
    model = with_unlike_norms(make(**how))
    return model, inputs_of(model, rows_of(wide, tall)[rows])


def relative_error(model, seen, reductions, plan, **oracle):
    """The largest difference from the language model by hand, as a part of the largest logit."""
    with torch.no_grad():
        error = worst_error(model, seen, reductions, plan, STEPS, new_ids=seen.sequences[:, -STEPS:], **oracle)
    return error / max(1, *(float(step.abs().max()) for step in seen.logits))


def assert_by_hand(model, seen, reductions, plan):
    """A generation equals the language model by hand, and would not if what was dropped were still read."""
    assert relative_error(model, seen, reductions, plan) <= 2e-5
    assert relative_error(model, seen, reductions, plan, dropping=False) > 1e-3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", DECODERS)
def test_generation_equals_the_language_model_by_hand(family, method, attention):
    """Rows with left padding and several pictures too; every cache is as long as its layer needs."""
    for rows in (slice(1), slice(None)):
        model, inputs = made(family, rows, attention=attention, seed=2)
        with torch.no_grad(), ficoco_ext.attach(model, **METHODS[method]) as handle:
            seen = generated(model, inputs, STEPS)
            reductions, plan = handle.decoder_reductions, handle.plan
        lengths = [layer.keys.shape[-2] for layer in seen.cache.layers]
        assert lengths[0] == inputs["input_ids"].shape[1] + STEPS - 1 > lengths[-1]
        assert_by_hand(model, seen, reductions, plan)


@pytest.mark.parametrize("method", ["ficoco-l", "fastv"])
@pytest.mark.parametrize("family", DECODERS)
def test_scores_are_of_the_query_and_key_that_attention_uses(family, method):
    """After their norms, rotary positions and scales, where a model has these."""
    model, inputs = made(family, slice(1), seed=3)
    layer = 1
    options = {"method": method, "tokens": 4} | ({"layers": (layer,)} if method == "ficoco-l" else {})
    found = []
    hook = model.model.language_model.layers[layer].register_forward_pre_hook(
        lambda module, args, kwargs: found.append((args[0], kwargs)), with_kwargs=True
    )
    with torch.no_grad(), ficoco_ext.attach(model, **options) as handle:
        seen, _ = watch(model, lambda: model(**inputs))
        (given,) = handle.decoder_reductions[0]
    hook.remove()
    (hidden, kwargs) = found[0]
    positions = torch.arange(hidden.shape[1])[None]
    query, key = query_key(model.model.language_model.layers[layer], hidden, kwargs["position_embeddings"], positions)
    visual = inputs["input_ids"][0] == 3
    first, count = int(visual.int().argmax()), int(visual.sum())
    with torch.no_grad():
        alone = ficoco_ext.reduce(
            hidden,
            QueryKey(query[None], key[None], model.model.language_model.layers[layer].self_attn.scaling),
            count - 4,
            method=method,
            visual=(first, count),
            return_reduction=True,
        )
    assert torch.equal(alone.kept, given.kept) and torch.equal(alone.sources, given.sources)
    assert seen.embeds.shape[1] == hidden.shape[1]


@pytest.mark.parametrize("family", DECODERS)
def test_removing_nothing_and_detaching_change_no_bit(family):
    model, inputs = made(family, slice(1, 2))

    def said():
        with torch.no_grad():
            generated_ids = model.generate(**inputs, max_new_tokens=3, do_sample=False)
            return model(**inputs).logits, generated_ids

    def left():
        model.model.rope_deltas = None  # Qwen3-VL keeps there what the last prompt was
        return snapshot(model)

    plain = said()
    before = left()
    with ficoco_ext.attach(model, "ficoco-l", tokens=10_000) as handle:
        assert all(map(torch.equal, said(), plain)) and not any(handle.decoder_reductions)
    with ficoco_ext.attach(model, "ficoco-l", keep_ratio=0.5):
        assert not torch.equal(said()[1], plain[1]) or said()[0].shape != plain[0].shape
    assert left() == before and all(map(torch.equal, said(), plain))


@pytest.mark.parametrize("method", ["ficoco-l", "pyramiddrop"])
@pytest.mark.parametrize("family", DECODERS)
def test_caches_of_both_kinds_and_none_say_the_same(family, method):
    model, inputs = made(family, slice(1, 2), seed=4)
    with torch.no_grad(), ficoco_ext.attach(model, **METHODS[method]):
        wanted = generated(model, inputs, 4)
        static = generated(model, inputs, 4, cache_implementation="static", disable_compile=True)
        assert torch.equal(static.sequences, wanted.sequences) and all(map(close, static.logits, wanted.logits))
        # A row of its own, without padding, is reduced as a row of a batch.
        ids = torch.cat([inputs["input_ids"], wanted.sequences[:, -4:-3]], 1)
        again = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if "mm_token_type_ids" in inputs:
            again["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, 1))
        direct = model(**inputs | again).logits
    assert direct.shape[1] < ids.shape[1] and torch.isfinite(direct).all()


@pytest.mark.parametrize("family", DECODERS)
def test_a_row_alone_equals_the_row_in_a_batch(family):
    make, inputs_of, wide, tall = DECODERS[family]
    if family == "LLaVA-OneVision":
        tall = wide  # its crops are random, so all rows must have the same number of them in the same order
    model = with_unlike_norms(make(seed=5))
    rows = [[*words(1), wide, *words(2, 3)], [*words(1, 2, 3, 4), tall, *words(6, 7)]]
    inputs = inputs_of(model, rows)
    with torch.no_grad(), ficoco_ext.attach(model, "ficoco-l", keep_ratio=0.4):
        whole = generated(model, inputs, 3)
        for row in range(2):
            single = generated(model, row_of(inputs, row, inputs_of, model), 3)
            assert torch.equal(single.sequences[0, -3:], whole.sequences[row, -3:])
            assert all(close(one[0], many[row]) for one, many in zip(single.logits, whole.logits, strict=True))


def row_of(inputs, row, inputs_of, model):
    """Inputs of one row of two with one picture each."""
    real = inputs["attention_mask"][row].bool()
    one = {name: inputs[name][row : row + 1, real] for name in ("input_ids", "attention_mask")}
    if "mm_token_type_ids" in inputs:
        one["mm_token_type_ids"] = inputs["mm_token_type_ids"][row : row + 1, real]
    for name in ("image_sizes", "batch_num_images", "image_grid_thw"):
        if name in inputs:
            one[name] = inputs[name][row : row + 1]
    pixels = inputs["pixel_values"]
    if "image_grid_thw" in inputs:
        counts = inputs["image_grid_thw"].prod(1).tolist()
    elif inputs_of is DECODERS["InternVL3"][1]:
        counts = [3, 2]
    else:
        counts = [1, 1]
    one["pixel_values"] = pixels.split(counts)[row]
    if inputs_of is DECODERS["Mistral3"][1]:
        height, width = inputs["image_sizes"][row].tolist()
        one["pixel_values"] = one["pixel_values"][..., :height, :width]
    return one


VIDEOS = {"Qwen3-VL": (tiny_qwen3, qwen3_video), "LLaVA-OneVision": (tiny_onevision, onevision_video)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", VIDEOS)
def test_frames_of_videos_are_visual_tokens(family, method):
    make, inputs_of = VIDEOS[family]
    model = with_unlike_norms(make(seed=6))
    inputs = inputs_of(model)
    with torch.no_grad(), ficoco_ext.attach(model, **METHODS[method]) as handle:
        seen = generated(model, inputs, STEPS)
        reductions, plan = handle.decoder_reductions, handle.plan
        kept = reductions[0][-1].kept.shape[1]
    assert_by_hand(model, seen, reductions, plan)
    visual = int((inputs["input_ids"] == 4).sum())
    assert kept == inputs["input_ids"].shape[1] - visual + plan.schedule(visual).final


KIT = ("video-llava", "smolvlm", "idefics3")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", KIT)
def test_llama_inside_other_models(name, method, attention):
    """Of Video-LLaVA, SmolVLM and Idefics3, with pictures and with the videos that they take."""
    family = BY_NAME[name]
    model = with_unlike_norms(family.model(attention))
    stages = {"keep_ratio": (0.5, 0.25), "layers": (1, 2)} if method == "pyramiddrop" else {}
    for full in [one_picture(family), unequal_rows(family)] + ([one_video(family)] if family.videos else []):
        with torch.no_grad(), ficoco_ext.attach(model, **METHODS[method] | stages) as handle:
            seen = generated(model, full.inputs, STEPS)
            reductions, plan = handle.decoder_reductions, handle.plan
        lengths = [layer.keys.shape[-2] for layer in seen.cache.layers]
        assert lengths[0] == full.ids.shape[1] + STEPS - 1 > lengths[-1]
        assert_by_hand(model, seen, reductions, plan)


# DeepStack


LEVELS = (0, 1)  # features come after layers 0 and 1


@pytest.mark.parametrize("options", [{"layers": (2,)}, {"layers": (2, 4)}, {"layers": (2,), "before_attention": True}])
@pytest.mark.parametrize("experts", [False, True], ids=["dense", "experts"])
def test_reduction_right_after_deepstack(experts, options):
    model = with_unlike_norms(tiny_qwen3(experts, levels=LEVELS, layers=5, seed=7))
    inputs = qwen_inputs(model, rows_of((8, 12), (6, 8)))
    with torch.no_grad(), ficoco_ext.attach(model, "ficoco-l", keep_ratio=0.3, **options) as handle:
        seen = generated(model, inputs, STEPS)
        reductions, plan = handle.decoder_reductions, handle.plan
    assert seen.planes.shape[0] == 2
    assert_by_hand(model, seen, reductions, plan)
    seen.planes = seen.planes * 0
    assert relative_error(model, seen, reductions, plan) > 1e-3  # what DeepStack adds matters


EARLY = {
    "fastv": ({}, r"must be in 2 \.\.\. 4 of the language model, got 1; DeepStack adds features .* after layers "
              r"0 \.\.\. 1, so layer 2 is the first that can reduce; say layer=3, the first block that sees"),
    "pyramiddrop": ({}, r"got 1; .*so layer 2 is the first that can reduce; pass layers=\(2, 3\)"),
    "ficoco-l": ({"r": 2}, r"got 1; .*so layer 2 is the first that can reduce; pass layers=\(2, 3, 4\)"),
    "ficoco-l, named": ({"r": 2, "layers": (0,)}, r"got 0; .*is the first that can reduce; pass layers=\(2,\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", EARLY)
def test_layers_that_deepstack_needs_whole_are_refused(case):
    """By the layers that a method takes of itself, too; what the message says then works."""
    options, message = EARLY[case]
    model = tiny_qwen3(levels=LEVELS, layers=5)
    method = case.partition(",")[0]
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        ficoco_ext.attach(model, method, **options)
    assert snapshot(model) == before
    instead = {"layer": 3} if method == "fastv" else {"layers": (2, 3)}
    keep = {"keep_ratio": (0.5, 0.25)} if method == "pyramiddrop" else {k: v for k, v in options.items() if k == "r"}
    with ficoco_ext.attach(model, method, **instead, **keep) as handle:
        assert handle.plan.layers[0] == 2


def test_a_language_model_that_deepstack_fills_cannot_reduce():
    model = tiny_qwen3(levels=(0, 1, 2), layers=3)
    with pytest.raises(ValueError, match="layers of the language model must be more than 3, got 3, after each of"):
        ficoco_ext.attach(model, "ficoco-l", r=2)


def test_the_tower_without_deepstack_leaves_all_layers_to_methods():
    model = tiny_qwen3(levels=())
    inputs = qwen_inputs(model, rows_of((8, 12), (6, 8))[:2])
    with torch.no_grad(), ficoco_ext.attach(model, "ficoco-l", keep_ratio=0.3, layers=(0, 2)) as handle:
        seen = generated(model, inputs, STEPS)
        reductions, plan = handle.decoder_reductions, handle.plan
    assert_by_hand(model, seen, reductions, plan)


# What is refused


@pytest.mark.parametrize("where", ["call", "config"])
def test_router_logits_of_unequal_layers_are_refused(where):
    model, inputs = made("Qwen3-VL-MoE", slice(1))
    said = {}
    if where == "call":
        said["output_router_logits"] = True
    else:
        model.config.text_config.output_router_logits = True
    with torch.no_grad(), ficoco_ext.attach(model, "ficoco-l", r=3):
        with pytest.raises(NotImplementedError, match="output_router_logits must be False in a call with images"):
            model(**inputs, **said)
        model(**inputs, output_router_logits=False)
        text = without(inputs, "pixel_values", "image_grid_thw", "mm_token_type_ids")
        model(**text | {"input_ids": torch.tensor([words(1, 2)]), "attention_mask": torch.ones(1, 2)}, **said)


@pytest.mark.parametrize("family", ["Mistral3", "Mistral3 on Ministral"])
def test_sliding_windows_are_refused(family):
    model, _ = made(family, slice(1))
    model.model.language_model.config.sliding_window = 8
    with pytest.raises(NotImplementedError, match="full attention in every layer, got sliding_window=8; a window"):
        ficoco_ext.attach(model, "ficoco-l", r=3)


@pytest.mark.parametrize("family", DECODERS)
def test_towers_that_cannot_be_reduced_are_refused(family):
    model, _ = made(family, slice(1))
    for method in ("ficoco-v", "tome", "ficoco-vl"):
        with pytest.raises(NotImplementedError, match="method must be one for another part of"):
            ficoco_ext.attach(model, method, keep_ratio=0.5)
    assert not hasattr(model, "ficoco_handle")


def test_the_loss_of_a_mixture_of_experts_is_that_of_what_is_left():
    model, inputs = made("Qwen3-VL-MoE", slice(1), seed=8)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == 3, -100)
    with torch.no_grad(), ficoco_ext.attach(model, "ficoco-l", keep_ratio=0.3) as handle:
        out = model(**inputs, labels=labels)
        left = labels[0, handle.decoder_reductions[0][-1].kept[0]]
    assert len(left) == out.logits.shape[1] < labels.shape[1]
    wanted = torch.nn.functional.cross_entropy(out.logits[0, :-1], left[1:])
    assert torch.allclose(out.loss, wanted)
