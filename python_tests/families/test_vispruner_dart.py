"""VisPruner and DART in a model of every family keep what the functions of tensors keep of the same inputs."""

from __future__ import annotations

import pytest
import torch
from helpers.models import one_thread  # noqa: F401
from helpers.selects import alone
from helpers.tiny_configs import WORD
from helpers.tiny_families import TINY, WITH_VIDEO, shared_model, untouched_model
from helpers.tiny_oracle import cut, kept_of, worst
from helpers.tiny_prompts import pictures_and_videos, unequal_rows
from helpers.towers import CASES, entries, free_of_line_ends, read

import ficoco_ext
from ficoco_ext.stages import PivotSelect, needs

pytest.importorskip("transformers")

PROMPTS = [(family, unequal_rows) for family in TINY] + [(family, pictures_and_videos) for family in WITH_VIDEO]
IDS = [f"{family}-{make.__name__}" for family, make in PROMPTS]


@pytest.mark.parametrize("one", CASES, ids=str)
@torch.no_grad()
def test_vispruner(one):
    """By saliency and features of the tower, whose readings are those of other tests."""
    model, tensors = shared_model(one.family.name), one.tensors()
    found, features = read(one, model, tensors, (needs.SALIENCY, needs.TOWER_FEATURES), "auto")
    with ficoco_ext.attach(model, "vispruner", keep_ratio=0.5, step=1):
        short = one.encode(model, tensors)
    whole, short = entries(one, features, short)
    saliency, before = (entries(one, found[name], short)[0] for name in ("saliency", "tower_features"))
    for entry, left, numbers, vectors in zip(whole, short, saliency, before, strict=True):
        free = free_of_line_ends(entry, model)
        kept = ficoco_ext.select(
            entry[None, free],
            len(left) - len(entry) + len(free),
            method="vispruner",
            step=1,
            saliency=numbers[None, free],
            tower_features=vectors[None, free],
        )
        ends = sorted(set(range(len(entry))) - set(free.tolist()))
        assert torch.equal(left, entry[sorted([*free[kept[0]].tolist(), *ends])])


@pytest.mark.parametrize(("family", "make"), PROMPTS, ids=IDS)
@torch.no_grad()
def test_dart(family, make, monkeypatch):
    """Every picture's tokens are compared with words of its own row, and the language model reads what stays."""
    seen, select = [], PivotSelect.__call__

    def call(stage, visual, count):
        seen.append((visual, select(stage, visual, count)))
        return seen[-1][1]

    monkeypatch.setattr(PivotSelect, "__call__", call)
    model, full, options = shared_model(family.name), make(family), {"image_pivots": 1, "text_pivots": 2}
    with ficoco_ext.attach(model, "dart", keep_ratio=0.5, words=lambda ids: ids >= WORD, **options) as handle:
        out = model(**full.inputs)
        hand = cut(untouched_model(family.name), full, kept_of(full, handle.projections))
    assert seen and worst(hand, hand.logits(untouched_model(family.name)), out.logits) < 1e-5
    for visual, kept in seen[:]:
        for item in range(len(kept)):
            one = alone(visual, item)
            mine = ficoco_ext.select(one.features, kept.shape[1], method="dart", text=one.text, **options)[0]
            real = slice(None) if visual.mask is None else visual.mask[item]
            assert torch.equal(torch.arange(visual.features.shape[1])[real][mine], kept[item])
