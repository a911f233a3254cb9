"""SCOPE in a model of every family: it ranks by what the family's own tower looks at, token by token."""

from __future__ import annotations

import pytest
import torch
from helpers.models import one_thread  # noqa: F401
from helpers.tiny_families import shared_model
from helpers.towers import CASES, EagerCalls, case, expected, measured, of_patches

import ficoco_ext

pytest.importorskip("transformers")


@pytest.mark.parametrize("kind", ["auto", "keys"])
@pytest.mark.parametrize("one", CASES, ids=str)
@torch.no_grad()
def test_what_is_kept_follows_from_eager_attention(one, kind, monkeypatch):
    """Indices of each entry are those that the function for features picks, with numbers averaged from maps by hand."""
    model, tensors = shared_model(one.family.name), one.tensors()
    features = one.encode(model, tensors)
    eager = one.family.model("eager")
    calls = EagerCalls(monkeypatch, one.attention(eager))
    one.encode(eager, tensors)
    auto = "class" if one.family.name in ("llava-clip", "llava-next", "video-llava") else "column"
    counts = [len(entry) for entry in features]
    saliency = expected(one, of_patches(auto if kind == "auto" else kind, calls, one), counts)
    with ficoco_ext.attach(model, "scope", keep_ratio=0.5, saliency=kind) as handle:
        short = one.encode(model, tensors)
        assert handle.attach_plan.projector is not None
    if one.family.name in ("smolvlm", "idefics3"):  # an entry is a row of tiles, and each tile is a picture
        features, short = torch.cat(features).split(4), torch.cat(short).split(2)
    for entry, left, numbers in zip(features, short, saliency, strict=True):
        free = torch.tensor([index for index in range(len(entry)) if not is_line_end(entry, index, model)])
        wanted = ficoco_ext.select(
            entry[None, free], len(left) - len(entry) + len(free), method="scope", saliency=numbers[None, free]
        )
        ends = sorted(set(range(len(entry))) - set(free.tolist()))
        kept = sorted([*free[wanted[0]].tolist(), *ends])
        assert len(left) < len(entry) and torch.equal(left, entry[kept])


def is_line_end(entry, index, model):
    """Line ends are one vector that the model has learnt; they stay."""
    newline = getattr(model.model, "image_newline", None)
    return newline is not None and torch.equal(entry[index], newline)


@pytest.mark.parametrize("tower", ["ficoco-v", "tome"])
@pytest.mark.parametrize("name", ["llava-clip", "llava-siglip", "paligemma"])
@torch.no_grad()
def test_after_a_reduction_inside_the_tower(name, tower):
    """By default it reduces in the layer that is measured, too: what is left is ranked by its own numbers."""
    one, model = case(name), shared_model(name)
    tensors = one.tensors()
    with ficoco_ext.attach(model, f"{tower}+scope", keep_ratio=0.25) as handle:
        both = one.encode(model, tensors)
        last = handle.reductions[-1].patch_ids
        assert [len(entry) for entry in both] == [4, 4] and last.shape == (2, 8)
        step = next(step for step in handle.schedule.steps if step.layer == handle._features.readings.layer)
        assert step.r == 8  # it leaves in the layer that is measured
    whole, _ = measured(one, model, tensors)
    with ficoco_ext.attach(model, tower, keep_ratio=0.5):
        left = torch.stack(one.encode(model, tensors))
    numbers = torch.stack(whole).gather(1, last)
    kept = ficoco_ext.select(left, 4, method="scope", saliency=numbers)
    assert torch.equal(torch.stack(both), left.gather(1, kept.unsqueeze(-1).expand(-1, -1, left.shape[-1])))
