"""Methods that read the prompt after the projector and in the language model: alone, and one after the other."""

from __future__ import annotations

import warnings

import pytest
import torch
from helpers.decoder import decoder_by_hand, generated, real_columns, watch, worst_error
from helpers.models import one_thread  # noqa: F401
from helpers.tiny_configs import WORD
from helpers.tiny_families import BY_NAME, TINY, WITH_VIDEO, shared_model, untouched_model
from helpers.tiny_oracle import cut, features, kept_of, worst
from helpers.tiny_prompts import pictures_and_videos, prompt, unequal_rows, words

import ficoco_ext
from ficoco_ext import QueryKey, get_method
from ficoco_ext.stages import Layout, VisualFeatures, needs

pytest.importorskip("transformers")

STEPS = 4
PROMPTS = [(family, unequal_rows) for family in TINY] + [(family, pictures_and_videos) for family in WITH_VIDEO]
IDS = [f"{family}-{make.__name__}" for family, make in PROMPTS]
BOTH = ["llava-clip", "llava-siglip", "llava-next", "qwen2-vl", "qwen2.5-vl"]
TOGETHER = [(BY_NAME[name], unequal_rows) for name in BOTH]
TOGETHER += [(BY_NAME[name], pictures_and_videos) for name in BOTH if BY_NAME[name].videos]
together = pytest.mark.parametrize(
    ("family", "make"), TOGETHER, ids=[f"{family}-{make.__name__}" for family, make in TOGETHER]
)
WHOLE = {"llava-clip", "llava-siglip", "qwen2-vl", "qwen2.5-vl", "qwen3-vl", "gemma3", "paligemma"}  # a picture is one


def is_word(ids):
    return ids >= WORD


def by_hand(model, full, projections, chosen):
    """(found, wanted) for each picture and video that is reduced as one: its own features and its row's words say."""
    made = features(model, full)
    for kind in {one.kind for one in full.visuals}:
        own = [one for one in full.visuals if one.kind == kind]
        entries = [one for one in projections if one.modality == {"picture": "image"}.get(kind, kind)]
        if [one.before for one in entries] != [len(one.columns) for one in own] or any(one.line_ends for one in own):
            continue  # tiles and frames are apart in some families
        parts = made[kind].projected.split([len(one.columns) for one in own])
        for entry, visual, tokens in zip(entries, own, parts, strict=True):
            ids = full.ids[visual.row]
            text = model.get_input_embeddings()(ids[is_word(ids)])[None]
            frames = len(visual.parts) if kind == "video" else 1
            wanted = chosen.keep(VisualFeatures(tokens[None], text=text, frames=frames), len(entry.kept))
            yield entry.kept.tolist(), wanted[0].tolist()


@pytest.mark.parametrize(("family", "make"), PROMPTS, ids=IDS)
@pytest.mark.parametrize("method", ["cdpruner", "mmtok", "dart"])
@torch.no_grad()
def test_after_the_projector_it_is_the_hand_cut(family, make, method):
    """Each picture with the words of its own row; where it is reduced as one, also which tokens stay."""
    model, full, part = shared_model(family.name), make(family), {"part": "projector"} if method == "dart" else {}
    with ficoco_ext.attach(model, method, keep_ratio=0.25, words=is_word, **part) as handle:
        out = model(**full.inputs)
        projections = handle.projections
    kept, untouched = kept_of(full, projections), untouched_model(family.name)
    assert 0 < sum(map(len, kept)) < sum(len(one.columns) for one in full.visuals)
    hand = cut(untouched, full, kept)
    assert worst(hand, hand.logits(untouched), out.logits) < 2e-5
    chosen = get_method(method, **part).projector
    if chosen.needs == (needs.TEXT,):
        pairs = list(by_hand(untouched, full, projections, chosen))
        assert pairs or family.name not in WHOLE or make is pictures_and_videos
        assert all(found == wanted for found, wanted in pairs)


def in_turn(model, hand, part, reductions, plan, row):
    """Which visual columns the part keeps in each layer, when it is given what the hand cut makes of one row alone."""
    if not bool(hand.visual[row].any()):
        return []
    columns = torch.arange(hand.embeds.shape[1])[hand.mask[row].bool()]
    visual, first = hand.visual[row, columns], int(columns[0])
    marks = part.mark(hand.embeds[row : row + 1, columns], Layout.of(visual.nonzero().T, len(columns)))
    kept, left = [], torch.arange(len(columns))

    def see(_, hidden, query, key):
        nonlocal left, visual
        step = reductions[row][len(kept)]
        stay = set((step.kept[0] - first).tolist())
        r = int(visual.sum()) - sum(int(one) in stay for one in left[visual])
        layout = Layout.of(
            visual.nonzero().T,
            len(left),
            marks=None if marks is None else marks[:, left],
            norm=model.model.language_model.norm,
        )
        at = left + first
        found, _ = part(hidden[at][None], QueryKey(query[None, :, at], key[None, :, at]), r, layout)
        left, visual = left[found.kept[0]], visual[found.kept[0]]
        kept.append((left[visual] + first).tolist())

    positions = hand.positions[..., row : row + 1, :]
    decoder_by_hand(
        model,
        hand.embeds[row : row + 1],
        positions,
        hand.mask[row].bool(),
        reductions[row],
        plan.layers[: len(reductions[row])],
        see=see,
        before=plan.before_attention,
    )
    return kept


def amounts(method):
    """A quarter, or for the method that acts in every layer of a model, one of them."""
    if "fitprune" not in method:
        return {"keep_ratio": 0.25}
    return {"projector": {"keep_ratio": 0.6}, "decoder": {"keep_ratio": 0.5, "layers": (1,)}}


@together
@pytest.mark.parametrize("method", ["cdpruner+sparsevlm", "cdpruner+fitprune", "mmtok+fastv", "cdpruner+ficoco-l"])
@torch.no_grad()
def test_two_parts_are_one_after_the_other(family, make, method):
    """The prompt is the hand cut; the second part keeps what it keeps of the hand cut; the model says the same."""
    model, full, untouched = shared_model(family.name), make(family), untouched_model(family.name)
    with ficoco_ext.attach(model, method, words=is_word, **amounts(method)) as handle:
        seen = generated(model, full.inputs, STEPS)
        projections, reductions, plan = handle.projections, handle.decoder_reductions, handle.plan
    kept = kept_of(full, projections)
    hand = cut(untouched, full, kept)
    real = hand.mask.bool()
    assert torch.equal(seen.embeds[real], hand.embeds[real]) and torch.equal(real_columns(seen), real)
    assert torch.equal(seen.positions[-3:, real] if family.mrope else seen.positions[real], hand.positions[..., real])
    assert any(reductions)
    part = get_method(method.split("+")[1]).language_model
    for row in range(len(real)):
        met = in_turn(untouched, hand, part, reductions, plan, row)
        for own, reduction in zip(met, reductions[row], strict=True):
            left = [one for one in reduction.kept[0].tolist() if hand.visual[row, one]]
            assert left == own
    details = {"new_ids": seen.sequences[:, -STEPS:]}
    assert worst_error(untouched, seen, reductions, plan, STEPS, **details) < 2e-5


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=str)
@torch.no_grad()
def test_a_row_of_a_batch_is_what_it_is_alone(name, options):
    """The first row, which a longer one pads: what stays in both parts, and what is said, also with beams."""
    family, model = BY_NAME[name], shared_model(name)
    rows = [[*words(2), family.pictures[0], *words(4, 5)], [*words(5, 9), family.pictures[-1], *words(30, 20)]]
    whole, alone = prompt(family, rows), prompt(family, rows[:1])
    assert whole.ids.shape[1] > alone.ids.shape[1]
    got = []
    for full in (alone, whole):
        with ficoco_ext.attach(model, "cdpruner+sparsevlm", words=is_word, **amounts("")) as handle:
            said = model.generate(**full.inputs, max_new_tokens=3, do_sample=False, **options)
            first, *_ = handle.decoder_reductions
            got.append((said[0, -3:].tolist(), kept_of(full, handle.projections)[0].tolist(), first))
    (one, kept, alone_steps), (same, also, steps) = got
    assert one == same and kept == also and len(alone_steps) == len(steps) > 0
    for ours, theirs in zip(alone_steps, steps, strict=True):
        assert ours.kept.shape[1] < ours.source_map.shape[1]
        shift = theirs.sources[0, 0] - ours.sources[0, 0]
        assert torch.equal(ours.sources + shift, theirs.sources)
        assert torch.equal(ours.kept[0, 1:] + shift, theirs.kept[0, -ours.kept.shape[1] + 1 :])


@pytest.mark.parametrize("name", BOTH)
@torch.no_grad()
def test_a_conversation_goes_on_from_the_cache(name):
    """What a second turn says is what the language model says by hand of what the first turn left."""
    family, model, untouched = BY_NAME[name], shared_model(name), untouched_model(name)
    full = prompt(family, [[*words(3), family.pictures[0], *words(5, 4), family.pictures[-1], *words(6, 30)]])
    question = torch.tensor([words(3, 13)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it was cut for another question, which is said
        with ficoco_ext.attach(model, "cdpruner+sparsevlm", words=is_word, **amounts("")) as handle:
            seen, out = watch(model, lambda: model(**full.inputs, use_cache=True))
            reductions, plan = handle.decoder_reductions, handle.plan
            again = model(input_ids=question, past_key_values=out.past_key_values, use_cache=True)
    seen.logits = [out.logits[:, -1], *again.logits.unbind(1)]
    assert len(reductions[0]) == len(plan.layers)
    new = torch.cat([question, question[:, :1]], 1)
    assert worst_error(untouched, seen, reductions, plan, 4, new_ids=new) < 2e-5
