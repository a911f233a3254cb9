"""In a model: who leaves is what the methods' loops say of its prompt's embeddings, its layers and its last norm."""

from __future__ import annotations

import pytest
import torch
from helpers.decoder import decoder_by_hand, real_columns, reducing_layers, row_positions, tiny, watch
from helpers.models import IMAGE, batch, image, one_thread, with_unlike_norms, words  # noqa: F401
from helpers.text_methods import dart, head_maps, rated, raters

pytest.importorskip("transformers")

import ficoco_ext
from ficoco_ext import QueryKey, get_method
from ficoco_ext.models.reduced_prefill import ReducedPrefill
from ficoco_ext.stages.raters import TextRaters

ONE = [*words(1, 2), *image(), *words(3, 4, 5, 6, 7)]
TWO = [*words(6), *image(), *words(7), *image(), *words(8, 9, 10, 11)]
LAST = [*words(1, 2, 3), *image()]  # nothing after the picture: its last token is the text
TEXT = words(11, 12, 13, 14)
ROWS = [ONE, TWO, TEXT, LAST]
SPARSE = {"method": "sparsevlm", "version": "2.0", "keep_ratio": (0.6, 0.3), "layers": (1, 3)}
DART = {"method": get_method("dart", part="language_model"), "tokens": 13}


def prefill(model, inputs, **options):
    """What the language model got, every row's reductions, and the layers that reduce."""
    with torch.no_grad(), ficoco_ext.attach(model, **options) as handle:
        seen, _ = watch(model, lambda: model(**inputs))
        return seen, handle.decoder_reductions, handle.plan


def steps(model, seen, reductions, plan, row):
    """Of each reduction of a row the columns that it met, their hidden states, query and key, and what it kept."""
    met = []
    with torch.no_grad():
        decoder_by_hand(
            model,
            seen.embeds[row : row + 1],
            row_positions(seen, row, seen.embeds.shape[1]),
            real_columns(seen)[row],
            reductions[row],
            reducing_layers(reductions[row], plan),
            see=lambda _, *states: met.append(states),
        )
    columns = torch.arange(seen.embeds.shape[1])
    for (hidden, query, key), reduction in zip(met, reductions[row], strict=True):
        yield (
            columns.tolist(),
            hidden[columns],
            QueryKey(query[None, :, columns], key[None, :, columns]),
            reduction.kept[0],
        )
        columns = reduction.kept[0]


def visual_and_text(inputs, row):
    ids, real = inputs["input_ids"][row], inputs["attention_mask"][row].bool()
    visual = (ids == IMAGE).nonzero()[:, 0].tolist()
    visual = [k for k in visual if k != len(ids) - 1]
    text = [k for k in range(visual[-1] + 1, len(ids)) if real[k]] if visual else []
    return visual, text, real


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_raters_are_of_the_prompt_in_every_layer(kv_heads):
    """With left padding, two pictures, a row of text, and after a first reduction that moved the columns."""
    model, inputs = tiny(seed=61, kv_heads=kv_heads), batch(*ROWS)
    seen, reductions, plan = prefill(model, inputs, **SPARSE)
    for row in (0, 1, 3):
        visual, text, real = visual_and_text(inputs, row)
        chosen = raters(seen.embeds[row], visual, text)
        assert row == 3 or 0 < len(chosen) < len(text)
        for columns, _, attn, kept in steps(model, seen, reductions, plan, row):
            maps = head_maps(attn, real[columns][None])[0].mean(0)
            own = [at for at, column in enumerate(columns) if column in visual]
            scores = rated(maps, own, [columns.index(k) for k in chosen])
            count = sum(int(k) in visual for k in kept)
            best = sorted(range(len(own)), key=lambda i: -scores[i])[:count]
            assert [int(k) for k in kept if int(k) in visual] == sorted(columns[own[i]] for i in best)


def test_raters_stay_with_their_columns(monkeypatch):
    """The notes that a layer gets are those of the columns that are left, whatever moved."""
    model, inputs, noted = tiny(seed=62), batch(*ROWS), []
    plain = TextRaters.__call__

    def watched(self, attn, r, layout, *, given=False):
        noted.append(layout.marks.gather(1, layout.text) & layout.is_text)
        return plain(self, attn, r, layout, given=given)

    monkeypatch.setattr(TextRaters, "__call__", watched)
    seen, _, _ = prefill(model, inputs, **SPARSE)
    wanted = {}
    for row in (0, 1, 3):
        visual, text, _ = visual_and_text(inputs, row)
        chosen = raters(seen.embeds[row], visual, text)
        wanted[len(visual)] = [k in chosen for k in text]
    assert len(noted) == 6  # three numbers of visual tokens in two layers
    for marks, expected in zip(noted, [wanted[n] for n in sorted(wanted)] * 2, strict=True):
        assert marks[0].tolist()[-len(expected) :] == expected and int(marks.sum()) == sum(expected)


def test_the_prompt_is_read_once_for_methods_that_are_alike(monkeypatch):
    calls, plain = [], TextRaters.mark
    monkeypatch.setattr(TextRaters, "mark", lambda self, *given: calls.append(1) or plain(self, *given))
    prefill(tiny(seed=63), batch(ONE), **SPARSE)
    assert len(calls) == 1


def test_pivots_compare_what_the_last_norm_makes():
    model, inputs = with_unlike_norms(tiny(seed=64)), batch(*ROWS)
    seen, reductions, plan = prefill(model, inputs, **DART)
    differs = False
    for row in (0, 1):
        visual, _, real = visual_and_text(inputs, row)
        [(columns, hidden, attn, kept)] = steps(model, seen, reductions, plan, row)
        place = (visual[0], len(visual))
        if visual[-1] - visual[0] + 1 > len(visual):
            continue  # two pictures with words between: the loops know one span
        stay = [int(k) for k in kept if int(k) in visual]
        with torch.no_grad():
            assert dart(hidden[None], attn, 13, place, real[None], model.model.language_model.norm)[0] == stay
        differs |= dart(hidden[None], attn, 13, place, real[None])[0] != stay
        assert columns == list(range(seen.embeds.shape[1]))
    assert differs


def test_a_prompt_that_was_cut_after_the_projector_is_read_as_it_was_cut(monkeypatch):
    model, inputs, read = tiny(seed=65), batch(ONE), []
    plain = TextRaters.mark

    def watched(self, embeddings, layout):
        read.append((embeddings, layout.visual[0].tolist(), plain(self, embeddings, layout)))
        return read[-1][2]

    monkeypatch.setattr(TextRaters, "mark", watched)
    amounts = {"projector": {"tokens": 20}, "decoder": {"tokens": 8, "layers": (1, 2)}}
    seen, reductions, _ = prefill(model, inputs, method="divprune+sparsevlm", **amounts)
    [(embeddings, visual, marks)] = read
    assert torch.equal(embeddings, seen.embeds) and embeddings.shape[1] == len(ONE) - 16
    assert visual == list(range(2, 22)) and len(reductions[0]) == 2
    assert marks[0].nonzero()[:, 0].tolist() == raters(embeddings[0], visual, list(range(22, len(ONE) - 16)))


def test_a_prefill_without_marks_has_none():
    visual = torch.zeros(1, 5, dtype=torch.bool)
    made = ReducedPrefill(visual, None, [])
    made.read_prompt(torch.zeros(1, 5, 4), (ficoco_ext.get_method("fastv"), ficoco_ext.get_method("sparsevlm")))
    assert made._marks == {}
