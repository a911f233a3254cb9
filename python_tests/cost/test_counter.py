"""The convention "matmul" is what torch counts: tiny models that run, 7B and 13B shapes that have no data."""

import contextlib
import dataclasses
import itertools

import pytest
import torch
from helpers.decoder import decoder_config, tiny
from helpers.flop_counts import AFTER, EXACT, TEXT, compare, of_method, prompt
from helpers.models import PATCHES, TRAINED, batch, image, one_thread, tiny_llava, words  # noqa: F401

import ficoco_ext
from ficoco_ext import Schedule, cost
from ficoco_ext.apps import timing
from ficoco_ext.cost import flop_counter, transformer
from ficoco_ext.cost.lines import Rules

TOWER = [
    ("ficoco-v", {"keep_ratio": 0.5}),
    ("ficoco-v", {"tokens": 9, "layers": (1, 4)}),
    ("ficoco-v", {"r": (3, 0, 5), "layers": (1, 2, 3)}),
    ("ficoco-v", {"r": 5, "variant": "paper"}),
    ("ficoco-v", {"r": 5, "correlation": "key"}),
    ("ficoco-v", {"r": 5, "targets": 0}),
    ("ficoco-v", {"r": 5, "targets": 3, "class_attention": False}),
    ("ficoco-v", {"r": 5, "local_redundancy": False}),
    ("tome", {"keep_ratio": 0.5}),
    ("tome", {"r": 4, "layers": (0, 1, 2, 3, 4), "distill_token": True}),
    ("topk", {"keep_ratio": 0.25}),
    ("ficoco-v", {"r": 5, "correlation": "convergent"}),
    ("evit", {"keep_ratio": 0.5}),
    ("prumerge", {"keep_ratio": 0.25}),
    ("prumerge", {"r": 5, "layers": (1, 3), "neighbours": 0}),
    ("prumerge+", {"r": (3, 0, 5), "layers": (1, 2, 3), "neighbours": 4}),
    ("pool", {"keep_ratio": 0.25}),
    ("random", {"keep_ratio": 0.5}),
    ("prune-then-merge", {"keep_ratio": 0.25}),
    ("prune-then-merge", {"tokens": 3, "layers": (4,)}),
    ("prune-then-merge", {"r": 5, "layers": (0, 1, 2, 3), "split": 0.5, "prune": "ficoco", "weigh": 0.5}),
]
DECODER = [
    ("ficoco-l", {"keep_ratio": 0.5}),
    ("ficoco-l", {"r": 5, "variant": "released"}),
    ("ficoco-l", {"r": 5, "correlation_attention": "logits"}),
    ("ficoco-l", {"r": 5, "layers": (0, 3), "indirect": False}),
    ("ficoco-l", {"r": (6, 0, 2), "layers": (1, 2, 3), "variant": "released", "targets": 2}),
    ("ficoco-l", {"r": 5, "targets": 0}),
    ("ficoco-l", {"tokens": 9, "layers": (2,), "before_attention": True}),
    ("fastv", {}),
    ("fastv", {"tokens": 4, "layer": 3}),
    ("pyramiddrop", {}),
    ("pyramiddrop", {"r": (8, 0, 3), "layers": (1, 2, 3)}),
]
BOTH = [
    ("ficoco-vl", {"keep_ratio": 0.25}),
    ("ficoco-vl", {"vision": {"tokens": 20}, "decoder": {"r": 4}, "variant": "paper"}),
    ("mustdrop", {"vision": {"r": 16}, "decoder": {"r": (3, 2), "layers": (1, 3)}}),
    ("mustdrop", {"vision": {"r": 8}, "decoder": {"r": (3, 2), "layers": (1, 3)}, "keys": 0.0}),
]


def attached(model, method, given):
    return ficoco_ext.attach(model, method, **given) if method else contextlib.nullcontext()


def schedules(handle, visual):
    """Of tower and language model, as the model itself has them."""
    vision = handle.schedule
    entering = visual if vision is None else visual - sum(vision.r)
    return vision, None if handle.plan is None else handle.plan.schedule(entering)


@pytest.mark.parametrize(("method", "given"), [(None, {}), *TOWER, *DECODER, *BOTH])
@pytest.mark.parametrize("images", [1, 2])
def test_a_whole_prefill_with_and_without_reduction(method, given, images):
    model = tiny("llama", "eager")
    inputs = prompt(images)
    with attached(model, method, given) as handle:
        counted, output = flop_counter.count(model, lambda: model(**inputs, use_cache=True, logits_to_keep=1))
        vision, decoder = (None, None) if handle is None else schedules(handle, PATCHES)
        if decoder is not None:
            decoder = handle.plan.schedule(images * (PATCHES if vision is None else vision.final))
    predicted = cost.prefill(
        model.config,
        vision=vision,
        decoder=decoder,
        text_tokens=TEXT,
        text_after=AFTER,
        images=images,
        method=None if method is None else of_method(method, given),
        precision="FP32",
    )
    compare(predicted, counted)
    assert (counted.reduction == 0) == (method in (None, "random"))
    layers = output.past_key_values.layers
    assert predicted.kv_bytes == sum(
        t.numel() * t.element_size() for layer in layers for t in (layer.keys, layer.values)
    )
    held = [layer.keys.shape[-2] for layer in layers]
    each = 4 * predicted.architecture.language_model.kv_width
    assert held == [one.kv_bytes / each for one in predicted.layers if one.part == "decoder"]
    if method != "mustdrop":  # which cuts its cache
        assert held == [one.tokens for one in predicted.layers if one.part == "decoder"]


@pytest.mark.parametrize("method", [None, "ficoco-v"])
def test_the_class_token_may_go_to_the_language_model(method):
    model = tiny_llava(attention="eager", strategy="full")
    inputs = batch([*words(1, 2), *image(PATCHES + 1), *words(3)], images=1)
    with attached(model, method, {"tokens": 9}) as handle:
        counted, _ = flop_counter.count(model, lambda: model(**inputs, use_cache=True, logits_to_keep=1))
        vision = None if handle is None else handle.schedule
    predicted = cost.prefill(model.config, vision=vision, text_tokens=3, method=method)
    assert predicted.tokens.entering == (PATCHES if method is None else 9) + 1
    compare(predicted, counted)


def test_a_plan_serves_as_the_schedule_of_the_decoder():
    model = tiny("llama", "eager")
    with ficoco_ext.attach(model, "ficoco-l", r=5) as handle:
        plan = handle.plan
    given = {"text_tokens": TEXT, "text_after": AFTER, "method": "ficoco-l"}
    assert cost.prefill(model.config, decoder=plan, **given) == cost.prefill(
        model.config, decoder=plan.schedule(PATCHES), **given
    )


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_families_grouped_heads_and_kernels(kind, kv_heads, attention):
    model = tiny(kind, attention, kv_heads=kv_heads)
    counted, _ = flop_counter.count(model, lambda: model(**prompt(), use_cache=True, logits_to_keep=1))
    compare(cost.prefill(model.config, text_tokens=TEXT), counted)


@pytest.mark.parametrize(("method", "given"), [(None, {}), *DECODER[:1], *DECODER[-4:]])
def test_new_tokens(method, given):
    model = tiny("llama", "eager")
    with attached(model, method, given) as handle, torch.no_grad():
        output = model(**prompt(), use_cache=True, logits_to_keep=1)
        decoder = None if handle is None else handle.plan.schedule(PATCHES)
        for generated in range(3):
            cache, ids = output.past_key_values, torch.tensor([[20]])
            with flop_counter.counter() as mode:
                output = model(input_ids=ids, past_key_values=cache, use_cache=True)
            predicted = cost.decode(model.config, decoder=decoder, text_tokens=TEXT, generated=generated)
            assert predicted.total.operations == pytest.approx(mode.get_total_flops(), rel=EXACT)


def test_the_trained_model_from_its_directory():
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(TRAINED, attn_implementation="eager").eval()
    shape = cost.architecture(TRAINED)
    vision = model.config.vision_config
    ids = torch.tensor([[7, 8, *[model.config.image_token_id] * shape.visual_tokens, 9]])
    picture = torch.zeros(1, 3, vision.image_size, vision.image_size)
    counted, _ = flop_counter.count(model, lambda: model(input_ids=ids, pixel_values=picture, logits_to_keep=1))
    compare(cost.prefill(shape, text_tokens=3), counted)


def test_two_matrices_of_an_mlp():
    """OPT's layers have GELU-like MLPs of two matrices."""
    from transformers import OPTConfig, OPTModel

    config = OPTConfig(hidden_size=32, ffn_dim=80, num_hidden_layers=2, num_attention_heads=4, vocab_size=60)
    config._attn_implementation = "eager"
    with flop_counter.counter() as mode, torch.no_grad():
        OPTModel(config.__class__(**config.to_dict())).eval()(input_ids=torch.ones(1, 9, dtype=torch.long))
    shape = cost.LanguageModel(2, 32, 80, 4, 4, 8, 60, gated=False)
    base = cost.architecture("llava-1.5-7b")
    other = cost.Architecture("opt", base.tower, base.projector, shape, 576)
    assert cost.prefill(other, visual_tokens=0, text_tokens=9).parts["decoder"].operations == mode.get_total_flops()


# True shapes on the meta device: nothing is computed, torch counts by shape.


def meta(*shape, dtype=torch.float16):
    return torch.empty(*shape, dtype=dtype, device="meta")


def counted_on_meta(run):
    with flop_counter.counter() as mode, torch.inference_mode():
        run()
    return mode.get_total_flops()


@pytest.fixture(scope="module", params=["llava-1.5-7b", "llava-1.5-13b"])
def full_size(request):
    layers = {"llava-1.5-7b": 32, "llava-1.5-13b": 40}[request.param]
    return request.param, timing.shapes(request.param, 24, layers, torch.float16)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_modules_of_the_true_shapes(full_size, attention):
    name, model = full_size
    text = {"llava-1.5-7b": 60, "llava-1.5-13b": 512}[name]
    model.set_attn_implementation(attention)
    body, width = model.model, model.config.text_config.hidden_size
    runs = {
        "tower": lambda: body.vision_tower(meta(1, 3, 336, 336)),
        "projector": lambda: body.multi_modal_projector(meta(1, 576, 1024)),
        "decoder": lambda: body.language_model(inputs_embeds=meta(1, 576 + text, width)),
    }
    for shape in (model.config, name):
        predicted = cost.prefill(shape, text_tokens=text).parts
        for part, run in runs.items():
            assert predicted[part].operations == pytest.approx(counted_on_meta(run), rel=EXACT), part
    head = counted_on_meta(lambda: model.lm_head(meta(1, 1, width)))
    assert cost.prefill(model.config).parts["head"].operations == pytest.approx(head, rel=EXACT)


@pytest.mark.parametrize("kv_heads", [1, 8, 28])
def test_grouped_heads_of_a_true_shape(kv_heads):
    """Qwen2-7B, whose 28 heads share 4 keys, and 1, 8 (here of 32) and all."""
    from transformers import Qwen2Config, Qwen2Model

    heads = 32 if kv_heads == 8 else 28
    config = Qwen2Config(
        hidden_size=128 * heads,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=152064,
    )
    with torch.device("meta"):
        model = Qwen2Model(config).to(torch.float16).eval()
    shape = cost.LanguageModel(28, 128 * heads, 18944, heads, kv_heads, 128, 152064)
    base = cost.architecture("llava-1.5-7b")
    projector = cost.Projector(1024, 128 * heads, 128 * heads)
    whole = cost.Architecture("grouped", base.tower, projector, shape, 576)
    count = counted_on_meta(lambda: model(inputs_embeds=meta(1, 636, 128 * heads)))
    assert cost.prefill(whole).parts["decoder"].operations == pytest.approx(count, rel=EXACT)


def test_the_tower_of_qwen2_vl():
    from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

    config = Qwen2VLVisionConfig()
    config._attn_implementation = "eager"
    with torch.device("meta"):
        tower = Qwen2VisionTransformerPretrainedModel(config).to(torch.float16).eval()
    side = 48
    parts = cost.prefill("qwen2-vl-7b").parts
    grid = torch.tensor([[1, side, side]])
    layers, merger = tower.blocks, tower.merger
    tokens = meta(side * side, 1280)
    rotary = meta(side * side, 80)
    bounds = torch.tensor([0, side * side], dtype=torch.int32)

    def run():
        tower.patch_embed(meta(side * side, 1176))
        hidden = tokens
        for layer in layers:
            hidden = layer(hidden, cu_seqlens=bounds, position_embeddings=(rotary, rotary))

    assert int(grid.prod()) == side * side
    assert parts["tower"].operations == pytest.approx(counted_on_meta(run), rel=EXACT)
    assert parts["projector"].operations == pytest.approx(counted_on_meta(lambda: merger(tokens)), rel=EXACT)


@pytest.mark.parametrize("layer", [6, 7])
def test_a_layer_of_qwen2_5_vl_in_windows_and_without(layer):
    """27 patches a side are three windows of 8 and three patches more."""
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionBlock

    config = Qwen2_5_VLVisionConfig(hidden_size=1280)
    config._attn_implementation = "eager"
    with torch.device("meta"):
        block = Qwen2_5_VLVisionBlock(config).to(torch.float16).eval()
    side = 27
    tower = dataclasses.replace(cost.architecture("qwen2.5-vl-7b").tower, image_size=side * 14)
    sides = [8, 8, 8, 3]
    lengths = [rows * columns for rows in sides for columns in sides] if layer == 6 else [side * side]
    bounds = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    rotary = meta(side * side, 80)

    def run():
        block(meta(side * side, 1280), cu_seqlens=bounds, position_embeddings=(rotary, rotary))

    rules = Rules("matmul", cost.FP16, None, True, False)
    lines = transformer.tower_layer(rules, tower, layer, 1, side * side, side * side)
    assert sum(line.operations for line in lines) == pytest.approx(counted_on_meta(run), rel=EXACT)


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("ficoco-v", {"tokens": 64}),
        ("tome", {"tokens": 192}),
        ("topk", {"r": 42}),
        ("evit", {"tokens": 64}),
        ("prumerge+", {"tokens": 64}),
        ("pool", {"tokens": 64}),
        ("prune-then-merge", {"tokens": 64}),
    ],
)
def test_a_reduced_tower_of_the_true_shape(full_size, method, given):
    name, model = full_size
    model.set_attn_implementation("sdpa")
    with ficoco_ext.attach(model, method, **given) as handle:
        count = counted_on_meta(lambda: model.model.vision_tower(meta(1, 3, 336, 336)))
        predicted = cost.prefill(name, vision=handle.schedule, method=method).parts
    assert predicted["tower"].operations + predicted["reduction"].operations == pytest.approx(count, rel=EXACT)


@pytest.mark.parametrize(
    ("method", "given"),
    [("ficoco-l", {"tokens": 64}), ("ficoco-l", {"r": 14, "variant": "released"}), ("fastv", {}), ("pyramiddrop", {})],
)
def test_a_reduced_language_model_of_the_true_shape(full_size, method, given, monkeypatch):
    """The whole model; its check that placeholders and features are equally many reads data, which there is none of."""
    _name, model = full_size
    model.set_attn_implementation("sdpa")

    def placeholders(input_ids, inputs_embeds, image_features):
        return (input_ids == model.config.image_token_id).unsqueeze(-1).expand_as(inputs_embeds)

    monkeypatch.setattr(model.model, "get_placeholder_mask", placeholders)
    ids = torch.full((1, 60 + 576), 5, device="meta")
    with ficoco_ext.attach(model, method, static_counts=True, **given) as handle:
        count = counted_on_meta(lambda: model(input_ids=ids, pixel_values=meta(1, 3, 336, 336), logits_to_keep=1))
        decoder = handle.plan.schedule(576)
    predicted = cost.prefill(model.config, decoder=decoder, method=of_method(method, given))
    assert predicted.total.operations == pytest.approx(count, rel=EXACT)


def test_a_wrong_schedule_is_noticed():
    """One token more or less in one layer changes the count far beyond the tolerance."""
    right = cost.prefill("llava-1.5-7b", vision=Schedule.build(576, layers=range(12, 23), tokens=64))
    wrong = cost.prefill("llava-1.5-7b", vision=Schedule.build(576, layers=range(12, 23), tokens=65))
    assert abs(wrong.total.operations / right.total.operations - 1) > 1e-4


def test_config_of_the_helpers_is_grouped():
    assert cost.architecture(tiny_llava(text=decoder_config(kv_heads=2)).config).language_model.kv_heads == 2


def test_square_keys_are_no_map():
    """A map is only looked up and counts nothing; keys as wide as there are tokens are compared all the same."""
    b, n, r = 2, 8, 3
    key, sources = torch.randn(b, 1, n, n), torch.tensor([[1, 2, 5]] * b)
    kept = torch.tensor([[0, 3, 4, 6, 7]] * b)
    given = {"alpha": "softmax", "class_token": True}
    with flop_counter.counter() as mode:
        ficoco_ext.ops.correlate_key(key, sources, kept, 1, **given)
    assert mode.get_total_flops() == 2 * b * r * (n - r) * n
    with flop_counter.counter() as mode:
        ficoco_ext.ops.correlate(key.softmax(-1), sources, kept, 1, **given)
    assert mode.get_total_flops() == 0


def test_the_counter_of_torch_alone_tells_the_other_overloads_apart():
    n, d, r = 9, 8, 3
    query, key = torch.randn(2, 1, 2, n, d)
    tokens, sources, kept = torch.randn(1, n, 4), torch.tensor([[1, 2, 5]]), torch.tensor([[0, 3, 4, 6, 7, 8]])
    seen, given = ficoco_ext.QueryKey(query, key), {"alpha": "softmax", "class_token": True}
    chart = torch.rand(1, n, n)
    for call in (
        lambda: ficoco_ext.ops.correlate_key(key, sources, kept, 1, **given),
        lambda: ficoco_ext.ops.correlate(seen, sources, kept, 1, **given),
        lambda: ficoco_ext.ops.correlate(chart, sources, kept, 1, **given),
        lambda: ficoco_ext.reduce(tokens, seen, r, penalty=1),
        lambda: ficoco_ext.reduce(tokens, chart, r, penalty=1),
    ):
        with flop_counter.counter() as ours:
            call()
        with torch.utils.flop_counter.FlopCounterMode(display=False) as theirs:
            call()
        assert ours.get_total_flops() == theirs.get_total_flops()
