"""VisionZip and HiPrune in a model of every family: what stays follows from eager layers of its own tower."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.models import one_thread  # noqa: F401
from helpers.tiny_families import shared_model
from helpers.towers import (
    CASES,
    EagerCalls,
    case,
    entries,
    expected,
    free_of_line_ends,
    keys_of_patches,
    of_patches,
    read,
    vectors,
)

import ficoco_ext
from ficoco_ext.stages import needs

pytest.importorskip("transformers")

CLASS_ROW = ("llava-clip", "llava-next", "video-llava")


@pytest.mark.parametrize("one", CASES, ids=str)
@torch.no_grad()
def test_visionzip(one, monkeypatch):
    """The same as the function of tensors gives with saliency and keys that are averaged by hand."""
    model, tensors = shared_model(one.family.name), one.tensors()
    features = one.encode(model, tensors)
    eager = one.family.model("eager")
    calls = EagerCalls(monkeypatch, one.attention(eager))
    one.encode(eager, tensors)
    kind, counts = "class" if one.family.name in CLASS_ROW else "column", [len(entry) for entry in features]
    saliency = expected(one, of_patches(kind, calls, one), counts)
    keys = vectors(one, keys_of_patches(calls, one), counts)
    if str(one) == "video-llava-video":  # the class token among the features has its own key
        own = torch.cat([rows.double().mean(1)[:, :1] for rows in calls.keys])
        keys = [torch.cat([mine, entry[1:]]) for mine, entry in zip(own, keys, strict=True)]
    with ficoco_ext.attach(model, "visionzip", keep_ratio=0.5) as handle:
        short = one.encode(model, tensors)
        assert handle.attach_plan.projector is not None
    whole, short = entries(one, features, short)
    merged = False
    for entry, left, numbers, key in zip(whole, short, saliency, keys, strict=True):
        free = free_of_line_ends(entry, model)
        made = ficoco_ext.merge(
            entry[None, free],
            len(left) - len(entry) + len(free),
            method="visionzip",
            saliency=numbers[None, free].float(),
            keys=key[None, free].float(),
        )
        ours = left if len(free) == len(entry) else left[free_of_line_ends(left, model)]
        torch.testing.assert_close(ours, made.features[0], atol=1e-5, rtol=1e-4)
        merged = merged or bool((made.reduction.size > 1).any())
    assert merged


@pytest.mark.parametrize("one", CASES, ids=str)
@torch.no_grad()
def test_hiprune(one):
    """Neighbours in the grid where the tokens are one; in their order else. Readings are those of other tests."""
    model, tensors = shared_model(one.family.name), one.tensors()
    found, features = read(one, model, tensors, (needs.SALIENCY, needs.EARLY_SALIENCY), "column")
    with ficoco_ext.attach(model, "hiprune", keep_ratio=0.5, alpha=1.0):
        short = one.encode(model, tensors)
    grids = [grid_of(one, visual) for visual in one.visuals]
    whole, short = entries(one, features, short)
    saliency, early = (entries(one, found[name], short)[0] for name in ("saliency", "early_saliency"))
    grids = grids * (len(whole) // len(grids))
    for entry, left, numbers, before, (grid, frames) in zip(whole, short, saliency, early, grids, strict=True):
        free = free_of_line_ends(entry, model)
        kept = ficoco_ext.select(
            entry[None, free],
            len(left) - len(entry) + len(free),
            method="hiprune",
            alpha=1.0,
            saliency=numbers[None, free],
            early_saliency=before[None, free],
            grid=grid,
            frames=frames,
        )
        ends = sorted(set(range(len(entry))) - set(free.tolist()))
        assert torch.equal(left, entry[sorted([*free[kept[0]].tolist(), *ends])])


def grid_of(one, visual):
    """Rows and columns of the tokens of a picture of a family, and frames, or None where they are no whole grid."""
    from helpers.towers import NAMES

    from ficoco_ext.models.families import FAMILIES

    family = next(found for found in FAMILIES if found.name == NAMES[one.family.name])
    model, tensors = shared_model(one.family.name), one.tensors([visual])
    modality = next(found for found in family.modalities if (found.name == "video") == one.video)
    counts = [len(entry) for entry in one.encode(model, tensors)]
    layout = family.layout(model.model, tensors, modality, counts)[0]
    return layout.grid, getattr(layout, "frames", 1)


@torch.no_grad()
def test_the_early_layer_is_the_one_that_is_named():
    one, model = case("llava-clip"), shared_model("llava-clip")
    tensors = one.tensors()
    kept = {}
    for layer in (0, 1, 0.5, None):
        with ficoco_ext.attach(model, "hiprune", tokens=8, alpha=5, early_layer=layer) as handle:
            kept[layer] = torch.stack(one.encode(model, tensors))
            assert handle._features.readings.early_layer == (0 if layer is None else int(layer == 0.5 or layer == 1))
    assert torch.equal(kept[0], kept[None]) and torch.equal(kept[1], kept[0.5])
    assert not torch.equal(kept[0], kept[1])
    with pytest.raises(ValueError, match=r"early_layer must be a layer in \[0, 1\]"):
        ficoco_ext.attach(model, "hiprune", tokens=8, early_layer=2)


@torch.no_grad()
def test_after_a_method_in_the_tower():
    """What is left of the patches has its own keys, saliency and early saliency."""
    one, model = case("llava-clip"), copy.deepcopy(shared_model("llava-clip"))
    for name in ("visionzip", "hiprune"):
        with ficoco_ext.attach(model, f"topk+{name}", keep_ratio=0.25) as handle:
            made = one.encode(model, one.tensors())
            assert [len(entry) for entry in made] == [4, 4] and all(entry.isfinite().all() for entry in made)
            assert handle._features.readings.reductions is handle._tower


@pytest.mark.parametrize("name", ["visionzip", "hiprune"])
def test_the_class_row_of_a_tower_without_a_class_token_is_refused(name):
    with pytest.raises(NotImplementedError, match="must be 'column' or 'keys', got class"):
        ficoco_ext.attach(shared_model("qwen2-vl"), name, tokens=2, saliency="class")
