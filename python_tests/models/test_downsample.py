"""Pictures that are resized before the vision tower, against the same done by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.models import one_thread  # noqa: F401
from helpers.tiny_families import BY_NAME, TINY, shared_model, untouched_model
from helpers.tiny_oracle import cut, worst
from helpers.tiny_prompts import one_picture, unequal_rows
from torch.utils._python_dispatch import TorchDispatchMode

import ficoco_ext
from ficoco_ext.cost import prefill
from ficoco_ext.models.smaller_pictures import as_reduction
from ficoco_ext.reduction import Reduction

pytest.importorskip("transformers")

SERVED = ("llava-clip", "llava-siglip", "paligemma")
METHOD = ficoco_ext.get_method("downsample")


@pytest.mark.parametrize(
    ("grid", "count", "wanted"),
    [
        ((24, 24), 576, (24, 24)),
        ((24, 24), 192, (12, 16)),
        ((24, 24), 128, (11, 11)),
        ((24, 24), 64, (8, 8)),
        ((12, 12), 36, (6, 6)),
        ((12, 12), 18, (4, 4)),
        ((12, 12), 2, (1, 1)),
        ((12, 12), 1, (1, 1)),
        ((6, 12), 18, (3, 6)),
        ((1, 20), 5, (1, 5)),
        ((20, 1), 5, (5, 1)),
        ((1, 1), 1, (1, 1)),
    ],
)
def test_the_grid_that_is_encoded(grid, count, wanted):
    assert METHOD.encoded_grid(grid, count) == wanted


def test_no_other_grid_is_larger():
    """By trying all of them."""
    for grid in ((24, 24), (7, 12), (5, 5)):
        for count in range(1, grid[0] * grid[1] + 1):
            found = METHOD.encoded_grid(grid, count)
            near = [
                (r, c)
                for r in range(1, grid[0] + 1)
                for c in range(1, grid[1] + 1)
                if r * c <= count and 3 / 4 - 1e-9 <= (r / grid[0]) / (c / grid[1]) <= 4 / 3 + 1e-9
            ]
            assert math.prod(found) <= count
            assert not near or (found in near and math.prod(found) == max(map(math.prod, near)))


def test_more_stretch_finds_larger_grids():
    assert ficoco_ext.get_method("downsample", stretch=2.0).encoded_grid((12, 12), 18) == (3, 6)
    assert ficoco_ext.get_method("downsample", stretch=1).encoded_grid((24, 24), 192) == (13, 13)
    with pytest.raises(ValueError, match=r"downsample: stretch must be a finite number >= 1, got 0.5"):
        ficoco_ext.get_method("downsample", stretch=0.5)


@pytest.mark.parametrize(("grid", "smaller"), [((4, 4), (2, 2)), ((5, 7), (4, 3)), ((3, 3), (1, 1)), ((6, 6), (6, 5))])
def test_where_every_token_went(grid, smaller):
    step = as_reduction(grid, smaller, torch.device("cpu"))
    assert isinstance(step, Reduction)
    kept, cells = step.kept[0].tolist(), step.source_map[0].tolist()
    assert kept == sorted(set(kept)) and len(kept) == math.prod(smaller)
    assert [cells[token] for token in kept] == list(range(len(kept)))
    assert step.size.flatten().tolist() == [cells.count(cell) for cell in range(len(kept))]
    assert step.sources[0].tolist() == [token for token in range(math.prod(grid)) if token not in kept]
    assert step.targets[0, :, 0].tolist() == [cells[token] for token in step.sources[0].tolist()]
    for token, cell in enumerate(cells):  # no other one that stays is nearer, on either side
        row, column = divmod(token, grid[1])
        mine, others = divmod(kept[cell], grid[1]), [divmod(one, grid[1]) for one in kept]
        assert abs(row - mine[0]) == min(abs(row - one[0]) for one in others)
        assert abs(column - mine[1]) == min(abs(column - one[1]) for one in others)


def test_no_device_is_waited_for():
    """Which tokens left is known from two grids, so nothing is counted."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.add(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    seen = set()
    with Watch():
        as_reduction((12, 12), (5, 6), torch.device("cpu"))
    assert not seen & {"nonzero", "_local_scalar_dense", "item", "masked_select", "index"}


def by_hand(name, full, grid, kept, positions="original"):
    """What the untouched model says of smaller pictures."""
    model = untouched_model(name)
    hand = cut(model, full, [kept] * len(full.visuals), positions)
    tower, size = model.model.vision_tower, [side * 14 for side in grid]
    pixels = F.interpolate(full.inputs["pixel_values"], size, mode="bicubic", antialias=True)
    seen = tower(pixels, interpolate_pos_encoding=True, output_hidden_states=True)
    if name == "paligemma":
        seen = seen.last_hidden_state
    else:
        config = model.config
        seen = seen.hidden_states[config.vision_feature_layer]
        seen = seen[:, 1:] if name == "llava-clip" else seen
    features = model.model.multi_modal_projector(seen)
    if name == "paligemma" and not hasattr(model.model, "_scaled"):
        whole = model.model.get_image_features(full.inputs["pixel_values"]).pooler_output
        plain = model.model.multi_modal_projector(tower(full.inputs["pixel_values"]).last_hidden_state)
        features = features * (whole.flatten()[0] / plain.flatten()[0])  # some releases scale what they return
    embeds = hand.embeds.clone()
    embeds[hand.visual] = features.flatten(0, 1)
    return replace(hand, embeds=embeds), model


@pytest.mark.parametrize("positions", ["original", "contiguous"])
@pytest.mark.parametrize("make", [one_picture, unequal_rows])
@pytest.mark.parametrize("name", SERVED)
@torch.no_grad()
def test_forward_and_generate_are_those_of_smaller_pictures(name, make, positions):
    full, model = make(BY_NAME[name]), shared_model(name)
    with ficoco_ext.attach(model, "downsample", tokens=6, positions=positions) as handle:
        got = model(**full.inputs).logits
        (kept,) = {tuple(one.kept.tolist()) for one in handle.projections}
        out = model.generate(
            **full.inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    assert kept == (5, 7, 13, 15) and {one.grid for one in handle.projections} == {(4, 4)}
    hand, untouched = by_hand(name, full, (2, 2), torch.tensor(kept), positions)
    assert worst(hand, hand.logits(untouched), got) < 1e-5
    new = out.sequences[:, -3:]
    steps = hand.logits(untouched, new[:, :-1])[:, -3:]
    assert max(float((steps[:, index] - one).abs().max()) for index, one in enumerate(out.logits)) < 1e-5


@torch.no_grad()
def test_all_tokens_are_the_model_itself():
    full, model = one_picture(BY_NAME["llava-clip"]), shared_model("llava-clip")
    plain = model(**full.inputs).logits
    with ficoco_ext.attach(model, "downsample", tokens=16) as handle:
        assert torch.equal(model(**full.inputs).logits, plain)
        assert handle.projections[0].kept.tolist() == list(range(16))
    with ficoco_ext.attach(model, "downsample", tokens=4):
        model(**full.inputs)
    assert torch.equal(model(**full.inputs).logits, plain)


@torch.no_grad()
def test_with_a_method_of_the_language_model():
    """It sees the tokens of the smaller picture, and static counts know how many."""
    full, model = one_picture(BY_NAME["llava-clip"]), shared_model("llava-clip")
    parts = {"projector": {"tokens": 6}, "decoder": {"tokens": 2}}
    answers = []
    for static in (False, True):
        with ficoco_ext.attach(model, "downsample+fastv", **parts, layer=1, static_counts=static) as handle:
            answers.append(model(**full.inputs).logits)
            assert handle.attach_plan.per_image == 4
            assert [len(one.sources[0]) for one in handle.decoder_reductions[0]] == [2]
    assert torch.equal(*answers)


@pytest.mark.parametrize("name", [one.name for one in TINY if one.name not in SERVED])
def test_models_that_cannot_read_smaller_pictures_are_refused(name):
    with pytest.raises(
        NotImplementedError, match=r"method must be one that chooses among features.*got downsample.*max_pixels"
    ):
        ficoco_ext.attach(shared_model(name), "downsample", tokens=2)


def test_together_with_a_method_of_the_tower_it_is_refused():
    with pytest.raises(NotImplementedError, match="one without a part in the vision tower beside downsample, got topk"):
        ficoco_ext.attach(shared_model("llava-clip"), "topk+downsample", keep_ratio=0.25)


@torch.no_grad()
def test_features_are_refused():
    full, model = one_picture(BY_NAME["llava-clip"]), shared_model("llava-clip")
    features = model.model.get_image_features(full.inputs["pixel_values"], return_dict=True)
    given = {key: value for key, value in full.inputs.items() if key != "pixel_values"}
    with ficoco_ext.attach(model, "downsample", tokens=4):
        reduced = model.model.get_image_features(full.inputs["pixel_values"], return_dict=True)
        assert reduced.pooler_output[0].shape[0] == 4
        if "mm_encoder_outputs" in type(model).forward.__code__.co_varnames:
            with pytest.raises(ValueError, match="mm_encoder_outputs must be None with a method that resizes pictures"):
                model(**given, mm_encoder_outputs={"image": features})
    for call in (ficoco_ext.select, ficoco_ext.merge):
        with pytest.raises(ValueError, match="got downsample, which works before the tower; use attach for it, or one"):
            call(torch.ones(1, 4, 2), 2, method="downsample")


def test_the_tower_costs_less_too():
    smaller, after = (prefill("llava-1.5-7b", method=method, projector=64) for method in ("downsample", "divprune"))

    def of(cost, part):
        return sum(line.operations for line in cost.lines if line.part == part)

    assert of(smaller, "decoder") == of(after, "decoder") and of(smaller, "reduction") == 0
    assert of(smaller, "tower") < 65 / 577 * of(after, "tower") and smaller.tokens.entering == 64
    assert of(smaller, "projector") * 9 == of(after, "projector")
    assert smaller.kv_bytes == after.kv_bytes and smaller.after_projector.after == 64
    assert prefill("llava-1.5-7b", method="downsample", projector=64, include_reduction=False).total == smaller.total
    packed = prefill("qwen2-vl-7b", method="downsample", projector=100)
    assert packed.tokens.entering == 100


def test_windows_of_a_smaller_picture_are_smaller():
    """Qwen2.5-VL: windows of 8 x 8 patches; 36 tokens are 12 x 12 patches, one whole window and three cut ones."""
    smaller = prefill("qwen2.5-vl-7b", method="downsample", projector=36)
    scores = {
        line.operations
        for line in smaller.lines
        if line.part == "tower" and line.layer == 0 and line.name == "attention"
    }
    assert scores == {4 * 1280 * (64**2 + 2 * 32**2 + 16**2)}
