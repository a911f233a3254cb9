"""Methods in a SigLIP tower, which has no class token: oracles written by hand, what is refused, records."""

from __future__ import annotations

import pytest
import torch
from helpers.decoder import generated, worst_error
from helpers.families import tiny_siglip
from helpers.models import (
    PATCHES,
    answers,
    assert_refused,
    batch,
    close,
    features,
    image,
    one_image,
    one_thread,  # noqa: F401
    pixels,
    snapshot,
    tower_by_hand,
    with_unlike_norms,
    words,
)

import ficoco_ext
from ficoco_ext import METHODS, QueryKey, get_method
from ficoco_ext.models import resolve
from ficoco_ext.models.families import tower_of
from ficoco_ext.stages.needs import CLASS_TOKEN

pytest.importorskip("transformers")

LAYERS = 6
TOWER = [name for name in METHODS if get_method(name).tower is not None and get_method(name).language_model is None]
WITH_CLASS_TOKEN = [name for name in TOWER if CLASS_TOKEN in get_method(name).tower.needs]
WITHOUT = [name for name in TOWER if name not in WITH_CLASS_TOKEN]
TWO = [*words(6), *image(), *words(7), *image(), *words(8, 9)]


def made(attention="sdpa", **how):
    return with_unlike_norms(tiny_siglip(attention, layers=LAYERS, **how))


@pytest.fixture(scope="module")
def model():
    return made()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_removing_nothing_and_detaching_change_no_bit(attention):
    model, inputs = made(attention), batch(TWO, [*words(1), *image(), *words(2, 3)])
    plain = answers(model, inputs)
    before = snapshot(model)
    for options in ({"r": 0}, {"keep_ratio": 1.0}, {"tokens": PATCHES, "layers": (0, 2)}):
        with ficoco_ext.attach(model, **options) as handle:
            assert all(map(torch.equal, answers(model, inputs), plain)) and handle.reductions == ()
    with ficoco_ext.attach(model, keep_ratio=0.5):
        assert not torch.equal(answers(model, inputs)[0][:, -1], plain[0][:, -1])
    assert snapshot(model) == before and all(map(torch.equal, answers(model, inputs), plain))


def masked_after(model, handle, picture):
    """Oracle: patches dropped in a layer stay in the tensor, but no token may attend to them in later layers."""
    steps = [step for step in handle.schedule.steps if step.r]
    dropped, hidden = torch.zeros(len(picture), PATCHES, dtype=torch.bool), {}
    for index in range(LAYERS):
        hidden[index] = dropped
        for step, reduction in zip(steps, handle.reductions, strict=True):
            if step.layer == index:
                dropped = torch.ones_like(dropped).scatter(1, reduction.kept, False)
    return tower_by_hand(model, picture, hidden_keys=lambda index: hidden[index])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("feature_layer", [-1, -2])
@pytest.mark.parametrize("method", [("ficoco-v", {"targets": 0}), ("topk", {}), ("random", {})], ids=str)
def test_pruning_equals_masking(method, feature_layer, attention):
    """Of the layer that the projector reads: the last one, whose final norm it does not read, or one before."""
    model, picture = made(attention, feature_layer=feature_layer), pixels(3)
    last = LAYERS + feature_layer
    name, options = method
    with torch.no_grad():
        plain = features(model, picture)
        for layers in ((last,), (0, 1), tuple(range(1, last + 1))):
            with ficoco_ext.attach(model, name, r=5, layers=layers, **options) as handle:
                pruned = features(model, picture)
                oracle = masked_after(model, handle, picture)
                kept = handle.reductions[-1].kept.unsqueeze(-1).expand(-1, -1, pruned.shape[-1])
            assert pruned.shape[1] == PATCHES - 5 * len(layers)
            assert close(pruned, oracle.gather(1, kept))
            moved = (pruned - plain.gather(1, kept)).abs().max()
            assert moved == 0 if layers == (last,) else moved > 1e-2  # the test can see a difference


@pytest.mark.parametrize("proportional", [True, False])
def test_proportional_attention_counts_patches_that_were_merged(proportional):
    """Merging as a matrix in a tower written by hand, whose later layers add log(size) to the logits of each key."""
    model, picture, layers = made(), pixels(2), (1, 3)
    with (
        torch.no_grad(),
        ficoco_ext.attach(model, "tome", r=8, layers=layers, proportional_attention=proportional) as handle,
    ):
        merged, records = features(model, picture), handle.reductions
    alive, matrices, bias = torch.arange(PATCHES).repeat(2, 1), {}, dict.fromkeys(range(LAYERS), torch.zeros(2, 1))
    held = torch.ones(2, PATCHES)
    for layer, record in zip(layers, records, strict=True):
        matrices[layer] = torch.stack([averaging(record, alive[b], held[b], b) for b in range(2)])
        alive, held = record.kept, record.size[..., 0]
        for later in range(layer + 1, LAYERS):
            bias[later] = held.log() if proportional else torch.zeros(2, 1)
    with torch.no_grad():
        oracle = tower_by_hand(
            model,
            picture,
            after_attention=lambda index, hidden: matrices[index] @ hidden if index in matrices else hidden,
            key_bias=lambda index: bias[index],
        )
    assert merged.shape[1] == PATCHES - 16 and close(merged, oracle)
    assert torch.equal(records[-1].size.sum((1, 2)), torch.full((2,), float(PATCHES)))


def averaging(record, alive, held, b):
    """(M, N) of one picture: every survivor is the mean of what it holds, counted by how many each stands for."""
    column = {int(token): place for place, token in enumerate(alive)}
    matrix = torch.zeros(record.kept.shape[1], len(alive))
    for row, token in enumerate(record.kept[b]):
        matrix[row, column[int(token)]] = held[column[int(token)]]
    last = [place for place, token in enumerate(record.sources[b].tolist()) if token in column]
    for place in last:
        token = int(record.sources[b, place])
        for target, weight in zip(record.targets[b, place].tolist(), record.weights[b, place].tolist(), strict=True):
            matrix[target, column[token]] += weight * held[column[token]]
    return matrix / matrix.sum(-1, keepdim=True)


@pytest.mark.parametrize("method", WITHOUT)
def test_selection_is_that_of_reduce_without_a_class_token(method, model):
    """The layer's own query and key, taken from a tower written by hand, give the reduction that the tower did."""
    picture, layer, seen = pixels(2), 2, {}
    with torch.no_grad(), ficoco_ext.attach(model, method, r=7, layers=(layer,)) as handle:
        short = features(model, picture)
        (record,) = handle.reductions
        tower_by_hand(model, picture, see=lambda index, query, key: seen.update({index: QueryKey(query, key)}))
        wanted = ficoco_ext.reduce(
            torch.zeros(2, PATCHES, 1), seen[layer], 7, method=method, class_token=False, grid=(6, 6),
            return_reduction=True,
        )  # fmt: skip
    assert short.shape[1] == PATCHES - 7
    assert torch.equal(record.kept, wanted.kept) and torch.equal(record.sources, wanted.sources)
    assert torch.equal(record.targets, wanted.targets)
    torch.testing.assert_close(record.weights, wanted.weights, rtol=1e-4, atol=1e-6)


def test_records_speak_of_patches_alone(model):
    with torch.no_grad(), ficoco_ext.attach(model, r=[5, 0, 7], layers=(1, 2, 4)) as handle:
        features(model, pixels(3))
        first, last = handle.reductions
    assert not first.class_token and first.grid == last.grid == (6, 6)
    assert torch.equal(last.patch_ids, last.kept) and last.kept.shape == (3, 24)
    for b in range(3):
        left, gone = set(last.kept[b].tolist()), {*first.sources[b].tolist(), *last.sources[b].tolist()}
        assert left | gone == set(range(PATCHES)) and not left & gone
    torch.testing.assert_close(last.size.sum((1, 2)), torch.full((3,), float(PATCHES)))


@pytest.mark.parametrize("method", WITH_CLASS_TOKEN)
def test_methods_that_need_a_class_token_are_refused(method):
    """With the names of some that do without, which work."""
    model = made()
    message = f"attach: method must be one that needs no class token, got '{method}' as it is given here; this tower"
    assert_refused(model, {"method": method, "keep_ratio": 0.5}, NotImplementedError, message)
    assert_refused(model, {"method": ["tome", method], "r": 3, "layers": (1, 2)}, NotImplementedError, message)
    with pytest.raises(NotImplementedError, match="use one that does without, such as 'ficoco-v', 'tome' or 'topk'"):
        resolve(model, method, keep_ratio=0.5)
    assert {"ficoco-v", "tome", "topk"} <= set(WITHOUT) and WITH_CLASS_TOKEN == ["evit", "prumerge", "prumerge+"]


def test_a_distillation_token_comes_after_a_class_token():
    message = (
        "attach: method must be one that needs no class token, got 'tome' as it is given here; this tower has none"
    )
    options = {"method": "tome", "keep_ratio": 0.5, "distill_token": True}
    assert_refused(made(), options, NotImplementedError, message)


def test_a_strategy_that_leaves_out_a_patch_is_refused():
    model = tiny_siglip(strategy="default")
    message = "vision_feature_select_strategy must be 'full' with a SiglipVisionModel, got 'default'"
    with pytest.raises(NotImplementedError, match=message):
        ficoco_ext.attach(model, "ficoco-v", keep_ratio=0.5)


def test_a_class_of_the_same_name_is_another_tower(model):
    tower = model.model.vision_tower
    namesake = type(type(tower).__name__, (type(tower),), {})(model.config.vision_config)
    assert tower_of(namesake) is None and tower_of(tower).model == "SiglipVisionModel"


def test_pictures_of_another_size_are_refused(model):
    """In the words of a tower without a class token."""
    layer = model.model.vision_tower.encoder.layers[3]
    with torch.no_grad(), ficoco_ext.attach(model, r=5, layers=(3,)):
        with pytest.raises(ValueError, match=r"vision layer 3 must be 36 patches without a mask, got 37 tokens;"):
            layer(torch.randn(1, PATCHES + 1, 32), None)
        assert layer(torch.randn(1, PATCHES, 32), None).shape == (1, PATCHES - 5, 32)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "ficoco-vl", "keep_ratio": 0.3},
        {"method": "ficoco-l", "r": 9, "static_counts": True},
        {"method": "ficoco-l", "r": 9, "penalty": 3.0},
        {"method": "fastv"},
    ],
    ids=str,
)
def test_the_language_model_after_the_tower(options, model):
    """Every picture has its whole grid, so its number is known, and the language model may know where a token was."""
    inputs = batch(TWO, TWO)
    with torch.no_grad(), ficoco_ext.attach(model, **options) as handle:
        seen = generated(model, inputs, 4)
        reductions, plan = handle.decoder_reductions, handle.plan
    assert handle.attach_plan.per_image == (handle.schedule.final if handle.schedule else PATCHES)
    with torch.no_grad():
        scale = max(1, *(float(step.abs().max()) for step in seen.logits))
        check = {"new_ids": seen.sequences[:, -4:], "steps": 4}
        assert worst_error(model, seen, reductions, plan, **check) <= 2e-5 * scale
        assert worst_error(model, seen, reductions, plan, dropping=False, **check) > 1e-3 * scale


def test_gradient_checkpointing_and_labels():
    """Training sees the same loss, and the pixels get a gradient."""
    losses, gradients = [], []
    for checkpointed in (False, True):
        model = made().train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        inputs = one_image()
        inputs["pixel_values"].requires_grad_()
        labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == 3, -100)
        with ficoco_ext.attach(model, keep_ratio=0.5, layers=(1, 3)):
            loss = model(**inputs, labels=labels).loss
            loss.backward()
        losses.append(loss.detach())
        gradients.append(inputs["pixel_values"].grad)
    assert torch.equal(*losses) and close(*gradients) and gradients[0].abs().sum() > 0


def test_the_plan_says_that_there_is_no_class_token(model):
    plan = resolve(model, "tome", keep_ratio=0.5)
    assert plan.facts.tower.class_token is False and plan.facts.tower.extra == 0 and plan.facts.tower.used == LAYERS
    assert "6 x 6 = 36 patches of an image, 6 layers in the vision tower (6 used)" in str(plan)
