"""One picture's story through tower and language model: every patch is accounted for, and the maps compose."""

from __future__ import annotations

import functools

import pytest
import torch
from helpers.decoder import tiny
from helpers.models import (
    PATCHES,
    SIDE,
    batch,
    image,
    one_thread,  # noqa: F401
    tiny_llava,
    words,
)

import ficoco_ext
from ficoco_ext import viz
from ficoco_ext.models.pictures import picture_reductions, watched

pytest.importorskip("transformers")

GRID = (SIDE, SIDE)


def story(rows, columns, *, row=0, item=0, **options):
    """The reductions of one picture in a prefill, and the handle's own records."""
    model = tiny(seed=3)
    with torch.no_grad(), ficoco_ext.attach(model, **options) as handle:
        model(**batch(*rows))
        tower, decoder = handle.reductions, handle.decoder_reductions
    decoder = decoder[row] if decoder else ()
    return picture_reductions(tower, decoder, columns, GRID, item=item), tower, decoder


def holder_by_hand(patch, tower, decoder, columns, item):
    """Who holds a patch at the end, followed through one map after the other; -1: nobody on this picture."""
    columns = columns.tolist()
    place = patch
    if tower:
        last = tower[-1]
        place = int(last.source_map[item, patch + 1])
        if place < 0:
            return -1
        original = int(last.kept[item, place]) - 1
        place -= 1
    if decoder:
        place = int(decoder[-1].source_map[0, columns[place]])
        column = int(decoder[-1].kept[0, place]) if place >= 0 else -1
        if column not in columns:
            return -1
        place = columns.index(column)
    if tower:
        original = int(tower[-1].kept[item, place + 1]) - 1
        return original
    return place


ONE = [*words(1, 2), *image(), *words(3, 4, 5)]
TWO = [*words(6), *image(), *words(7), *image(), *words(8, 9)]
CASES = {
    "tower alone": ({"method": "ficoco-v", "keep_ratio": 0.25}, 9),
    "tome alone": ({"method": "tome", "keep_ratio": 0.5}, 18),
    "language model alone": ({"method": "ficoco-l", "keep_ratio": 0.25}, 36),
    "both": ({"method": "ficoco-vl", "keep_ratio": 0.25}, 18),
    "fastv": ({"method": "fastv"}, 36),
    "pyramiddrop": ({"method": "pyramiddrop"}, 36),
    "several targets": ({"method": "ficoco-l", "r": 9, "targets": 3}, 36),
    "both, pruning in the tower": (
        {
            "method": ficoco_ext.methods.Combined.of(ficoco_ext.get_method("topk"), ficoco_ext.get_method("ficoco-l")),
            "keep_ratio": 0.25,
        },
        18,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_patch_is_accounted_for(case):
    options, reaching = CASES[case]
    columns = torch.arange(2, 2 + reaching)
    told, tower, decoder = story([ONE], columns, **options)
    assert len(told) == len(tower) + len(decoder)
    last = told[-1]
    assert last.grid == GRID
    assert not last.class_token
    gone = [set(step.sources[0].tolist()) for step in told]
    left = set(last.kept[0].tolist())
    assert sum(map(len, gone)) + len(left) == PATCHES  # each leaves once, or stays
    assert set.union(left, *gone) == set(range(PATCHES))
    held = viz.holders(last)
    assert held == [holder_by_hand(patch, tower, decoder, columns, 0) for patch in range(PATCHES)]
    assert left == {patch for patch, holder in enumerate(held) if holder == patch}
    assert float(last.size.sum()) == pytest.approx(PATCHES - held.count(-1), rel=1e-5)
    for step in told:
        assert step.kept.tolist() == [sorted(step.kept[0].tolist())]
        assert step.size.shape == (1, step.kept.shape[1], 1)
        assert step.targets.shape[:2] == step.sources.shape
        if step.targets.numel():
            assert int(step.targets.min()) >= 0 and int(step.targets.max()) < step.kept.shape[1]


@pytest.mark.parametrize("method", ["ficoco-l", "ficoco-vl", "fastv"])
def test_pictures_of_a_padded_row_are_told_apart(method):
    reaching = 18 if method == "ficoco-vl" else PATCHES
    rows, length = [ONE, TWO], 1 + reaching + 1 + reaching + 2
    pad = length - (2 + reaching + 3)  # ONE is shorter
    options = {"method": method, "keep_ratio": 0.25}
    first, _, _ = story(rows, torch.arange(pad + 2, pad + 2 + reaching), row=0, item=0, **options)
    alone, _, _ = story([ONE], torch.arange(2, 2 + reaching), **options)
    if method != "ficoco-vl":  # the same picture in the same prompt: padding changes nothing
        for a, b in zip(first, alone, strict=True):
            assert torch.equal(a.source_map, b.source_map) and torch.equal(a.kept, b.kept)
    second = torch.arange(1, 1 + reaching)
    third = second + reaching + 1
    kept = 0
    for item, columns in ((1, second), (2, third)):
        told, tower, decoder = story(rows, columns, row=1, item=item, **options)
        held = viz.holders(told[-1])
        assert held == [holder_by_hand(patch, tower, decoder, columns, item) for patch in range(PATCHES)]
        kept += told[-1].kept.shape[1]
    assert kept == 2 * PATCHES // 4


def test_what_went_into_another_picture_is_held_by_nobody_here():
    lost = 0
    for start in (1, 2 + PATCHES):
        told, _, decoder = story([TWO], torch.arange(start, start + PATCHES), method="ficoco-l", keep_ratio=0.25)
        lost += viz.holders(told[-1]).count(-1)
        assert float(told[-1].size.sum()) <= PATCHES + 1e-4
    columns = [*range(1, 1 + PATCHES), *range(2 + PATCHES, 2 + 2 * PATCHES)]
    picture = dict.fromkeys(columns[:PATCHES], 0) | dict.fromkeys(columns[PATCHES:], 1)
    last = decoder[-1]
    ends = [int(last.kept[0, int(last.source_map[0, column])]) for column in columns]
    crossing = sum(picture[a] != picture[b] for a, b in zip(columns, ends, strict=True))
    assert lost == crossing > 0


def test_wrong_positions_are_refused():
    _, tower, decoder = story([ONE], torch.arange(2, 20), method="ficoco-vl", keep_ratio=0.25)
    with pytest.raises(ValueError, match=r"positions must be \(18,\), one for each patch that is left .*, got 36"):
        picture_reductions(tower, decoder[:], torch.arange(2, 38), GRID)
    with pytest.raises(ValueError, match=r"positions must be in \[0, 23\)"):
        picture_reductions(tower, decoder, torch.arange(10, 28), GRID)


def test_the_class_token_in_front_of_an_image_is_no_patch():
    model = tiny_llava(strategy="full")
    inputs = batch([*words(1, 2), *image(PATCHES + 1), *words(3, 4)], images=1)
    options = {"method": "fastv", "layer": 1, "keep_ratio": 0.5}
    found = watched(model, lambda: ficoco_ext.attach(model, **options), inputs)
    with torch.no_grad(), ficoco_ext.attach(model, **options) as handle:
        model(**inputs)
        (row,) = handle.decoder_reductions
    first = 2 + 1  # two words and the class token
    left = [position - first for position in row[-1].kept[0].tolist() if first <= position < first + PATCHES]
    assert found[-1].kept[0].tolist() == left
    assert len(left) < PATCHES


@pytest.mark.parametrize("first", [-1, 6])
def test_positions_just_beside_the_prompt_are_refused(first):
    _, tower, decoder = story([ONE], torch.arange(2, 20), method="ficoco-vl", keep_ratio=0.25)
    with pytest.raises(ValueError, match=r"positions must be in \[0, 23\), got \["):
        picture_reductions(tower, decoder, torch.arange(first, first + 18), GRID)


AFTER = {
    "projector alone": ("divprune", {"keep_ratio": 0.25}, 9),
    "merging": ("divprune", {"keep_ratio": 0.25, "merge": True}, 9),
    "and language model": ("divprune+ficoco-l", {"projector": {"tokens": 16}, "decoder": {"r": 3}}, 16),
    "merging, and language model": (
        "divprune+fastv",
        {"projector": {"tokens": 16}, "decoder": {"tokens": 7}, "merge": True},
        16,
    ),
    "tower and projector": ("tome+divprune", {"vision": {"tokens": 24}, "projector": {"tokens": 12}}, 12),
    "all three": (
        "topk+divprune+ficoco-l",
        {"vision": {"tokens": 24}, "projector": {"tokens": 12}, "decoder": {"r": 2}},
        12,
    ),
}


def _followed(patch, tower, projection, decoder, columns):
    """Who holds a patch at the end, through the handle's own records one after the other; -1: no patch."""
    token = patch
    if tower:
        token = int(tower[-1].source_map[0, patch + 1]) - 1
        if token < 0:
            return -1
    token = int(projection.reduction.source_map[projection.item, token])
    if token >= 0 and decoder:
        end = int(decoder[-1].source_map[0, columns[token]])
        column = int(decoder[-1].kept[0, end]) if end >= 0 else -1
        token = columns.index(column) if column in columns else -1
    return -1 if token < 0 else int(projection.kept[token])


@pytest.mark.parametrize("case", AFTER)
def test_after_the_projector_every_patch_is_accounted_for(case):
    method, options, reaching = AFTER[case]
    model, columns = tiny(seed=3), [*range(2, 2 + reaching)]
    with torch.no_grad(), ficoco_ext.attach(model, method, **options) as handle:
        model(**batch(ONE))
        tower, (projection,), decoder = handle.reductions, handle.projections, handle.decoder_reductions
    decoder = decoder[0] if decoder else ()
    found = picture_reductions(tower, decoder, torch.tensor(columns), GRID, projection=projection)
    assert len(found) == len(tower) + 1 + len(decoder)
    held = viz.holders(found[-1])
    assert held == [_followed(patch, tower, projection, decoder, columns) for patch in range(PATCHES)]
    here = found[len(tower)]
    assert here.kept[0].tolist() == projection.kept.tolist() and here.grid == GRID
    gone = [set(step.sources[0].tolist()) for step in found]
    left = set(found[-1].kept[0].tolist())
    assert sum(map(len, gone)) + len(left) == PATCHES and set.union(left, *gone) == set(range(PATCHES))
    assert float(found[-1].size.sum()) == pytest.approx(PATCHES - held.count(-1), rel=1e-5)
    assert (held.count(-1) == 0) == (case == "merging")
    with torch.no_grad():
        seen = watched(model, lambda: ficoco_ext.attach(model, method, **options), batch(ONE))
    assert [viz.holders(step) for step in seen] == [viz.holders(step) for step in found]


def test_pictures_that_were_reduced_together_have_records_of_their_own():
    model = tiny(seed=3)
    with torch.no_grad(), ficoco_ext.attach(model, "divprune", tokens=9) as handle:
        model(**batch(ONE, TWO))
        kept = [one.kept.tolist() for one in handle.projections]
        for one in handle.projections:
            columns = torch.arange(1, 10)
            (found,) = picture_reductions((), (), columns, GRID, projection=one)
            assert found.kept[0].tolist() == one.kept.tolist()
    assert len(kept) == 3 and kept[0] != kept[1] != kept[2]


def test_a_class_token_after_the_projector_is_no_patch():
    """It is the first of the projected tokens, may leave as any other, and what goes into it is on no patch."""
    model = tiny_llava(strategy="full")
    rows = batch([*words(1, 2), *image(PATCHES + 1), *words(3, 4)])
    for tokens in (3, 20, PATCHES):
        attached = functools.partial(ficoco_ext.attach, model, "divprune", tokens=tokens, merge=True)
        with torch.no_grad(), attached() as handle:
            model(**rows)
            (projection,) = handle.projections
        (found,) = watched(model, attached, rows)
        kept = projection.kept.tolist()
        assert found.kept[0].tolist() == [token - 1 for token in kept if token]
        holders = [kept[at] - 1 for at in projection.reduction.source_map[projection.item].tolist()]
        assert viz.holders(found) == holders[1:]


def test_positions_are_of_what_the_projector_left():
    model = tiny(seed=3)
    with torch.no_grad(), ficoco_ext.attach(model, "divprune", tokens=9) as handle:
        model(**batch(ONE))
        (projection,) = handle.projections
    with pytest.raises(ValueError, match="one for each patch that is left before the language model"):
        picture_reductions((), (), torch.arange(2, 2 + PATCHES), GRID, projection=projection)
