"""Pictures of several crops: what torch counts of a model that runs, and what a method keeps of them."""

import pytest
import torch
from helpers.flop_counts import of_method
from helpers.models import one_thread  # noqa: F401
from helpers.tiny_families import TINY
from helpers.tiny_processors import Picture
from helpers.tiny_prompts import one_picture

import ficoco_ext
from ficoco_ext import cost, get_method
from ficoco_ext.cost import flop_counter, schedules


def _tiny():
    (family,) = (one for one in TINY if one.name == "llava-next")
    model = family.build().eval()
    model.set_attn_implementation("eager")
    return family, model


@pytest.mark.parametrize(
    ("method", "given"),
    [
        (None, {}),
        ("divprune", {"keep_ratio": 0.25}),
        ("divprune", {"tokens": 5}),
        ("scope", {"tokens": 5, "merge": True}),
        ("fastv", {"keep_ratio": 0.5, "layer": 2}),
        ("divprune+fastv", {"keep_ratio": 0.25, "layer": 3}),
        ("globalcom2", {}),
        ("globalcom2", {"tokens": 9}),
        ("globalcom2+fastv", {"keep_ratio": 0.4, "layer": 3}),
        ("ficoco-v", {"keep_ratio": 0.25}),
        ("ficoco-v", {"r": (3, 5), "layers": (0, 1), "variant": "paper"}),
        ("tome", {"keep_ratio": 0.5}),
        ("topk", {"tokens": 5}),
        ("evit", {"keep_ratio": 0.5}),
        ("prumerge", {"keep_ratio": 0.25, "neighbours": 0}),
        ("prune-then-merge", {"keep_ratio": 0.25}),
        ("ficoco-vl", {"keep_ratio": 0.25}),
        ("ficoco-vl", {"vision": {"tokens": 7}, "decoder": {"r": 4}}),
    ],
)
@pytest.mark.parametrize("size", [Picture(56, 112), Picture(100, 60), Picture(112, 100), Picture(40, 44)])
def test_a_whole_prefill_of_a_model_that_runs(method, given, size):
    """Counted by torch: crops without their padding, line ends, and a choice that they do not take part in."""
    family, model = _tiny()
    asked = one_picture(family, size)
    shape = cost.architecture(model.config, picture=tuple(size))
    visual = int((asked.ids == model.config.image_token_id).sum())
    assert shape.visual_tokens == visual
    handle = ficoco_ext.attach(model, method, **given) if method else None
    with flop_counter.counter() as mode, torch.no_grad():
        output = model(**asked.inputs, use_cache=True, logits_to_keep=1)
    found_by_torch = mode.get_total_flops()
    after = asked.ids.shape[1] - 1 - int((asked.ids[0] == model.config.image_token_id).nonzero().max())
    text = {"text_tokens": asked.ids.shape[1] - visual, "text_after": after}
    leaves, chosen = schedules.Schedules(), None
    if handle is not None:
        chosen, plan = of_method(method, given), handle.attach_plan
        entering = handle.tokens_of(*size)
        decoder = None if plan.plan is None else plan.plan.schedule(entering)
        leaves = schedules.Schedules(plan.schedule, plan.projector, decoder)
        amount = {name: value for name, value in given.items() if name in ("r", "tokens", "keep_ratio", "layers")}
        if amount or chosen.amount:
            made = schedules.build(shape, chosen, **amount)
            assert (made.vision, made.decoder) == (leaves.vision, leaves.decoder)
    found = cost.prefill(shape, **leaves._asdict(), **text, method=chosen)
    assert found.tokens.entering == (visual if handle is None else entering)
    arithmetic = sum(line.operations for line in found.lines if line.name == "global_select")  # no products
    assert found.total.operations - arithmetic == found_by_torch
    held = [layer.keys.shape[-2] for layer in output.past_key_values.layers]
    assert held == [one.tokens for one in found.layers if one.part == "decoder"]


@pytest.mark.parametrize("share", [0.4, 0.3, 0.21])
@pytest.mark.parametrize("size", [Picture(112, 100), Picture(100, 60), Picture(40, 44)])
def test_what_globalcom2_keeps_is_said_beforehand(share, size):
    """Thumbnail and crops round down, each for itself; by the handle, by the cost model, and by what was kept."""
    family, model = _tiny()
    asked = one_picture(family, size)
    with ficoco_ext.attach(model, "globalcom2", keep_ratio=share) as handle, torch.no_grad():
        model(**asked.inputs)
        kept = len(handle.projections[0].kept)
        assert handle.tokens_of(*size) == kept
    shape = cost.architecture(model.config, picture=tuple(size))
    left = schedules.build(shape, get_method("globalcom2"), keep_ratio=share).projector
    assert left == int(share * 16 + 1e-9) + int(share * sum(shape.picture.valid) + 1e-9)
    assert left + shape.line_ends == kept
    with ficoco_ext.attach(model, "globalcom2", keep_ratio=1) as handle:
        assert handle.tokens_of(*size) == shape.visual_tokens
    handle = ficoco_ext.attach(model, "globalcom2", budget="floor", keep_ratio=share)
    with pytest.raises(NotImplementedError, match="the data, as with the amount of globalcom2"):
        handle.tokens_of(*size)


def test_globalcom2_of_full_crops_is_as_its_table_counts():
    """720 of 2880 at a quarter; a picture of 672 x 672 has 48 line ends besides, one of 480 x 640 fewer patches."""
    method, shape_of_papers = get_method("globalcom2"), cost.architecture("llava-next-7b")
    for size, wanted in ((None, 720), ((672, 672), 768), ((480, 640), 612)):
        shape = shape_of_papers if size is None else cost.architecture("llava-next-7b", picture=size)
        leaves = schedules.build(shape, method, keep_ratio=0.25)
        found = cost.prefill(shape, projector=leaves.projector, method=method)
        assert found.tokens.entering == wanted
        logits = [line for line in found.lines if line.name == "class_logits"]
        assert [(line.layer, line.operations) for line in logits] == [(23, 2 * 5 * 576 * 1024)]
        assert found.selection_share < 1e-5
    assert cost.plan(shape_of_papers, method, tflops=9.6).projector == 720 - 60  # of text
