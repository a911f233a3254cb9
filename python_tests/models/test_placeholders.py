"""The prompt's placeholders as pure tensors: against a slow loop over rows, and restoring the caller's prompt."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ficoco_ext.models.generate_options import filler as filler_of
from ficoco_ext.models.placeholders import Placeholders, Prompt, moved, restore, shrink

TOKEN, BEFORE, AFTER = 3, 5, 2
RULE = Placeholders(TOKEN, BEFORE, AFTER, filler=0)


def by_hand(row):
    """One row without padding: ids, and which of its tokens are left."""
    out, places, seen = [], [], 0
    for place, token in enumerate(row):
        if token != TOKEN or seen % BEFORE < AFTER:
            out.append(token)
            places.append(place)
        seen += token == TOKEN
    return out, places


def padded(rows, fill):
    longest = max(map(len, rows))
    return torch.tensor([[fill] * (longest - len(row)) + row for row in rows])


part = st.lists(st.integers(10, 20), max_size=4) | st.just([TOKEN] * BEFORE)
row = st.lists(part, max_size=4).map(lambda parts: [1, *(token for some in parts for token in some)])


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(row, min_size=1, max_size=4), common=st.integers(0, 3), masked=st.booleans())
def test_equals_a_loop_over_rows(rows, common, masked):
    images = sum(r.count(TOKEN) for r in rows) // BEFORE
    if not masked:  # without a mask all rows are as long as the longest: fill them with words in front
        longest, common = max(map(len, rows)), 0
        rows = [[11] * (longest - len(r)) + r for r in rows]
    ids = torch.cat([torch.zeros(len(rows), common, dtype=torch.long), padded(rows, 0)], dim=1)
    mask = torch.cat([torch.zeros(len(rows), common, dtype=torch.long), padded([[1] * len(r) for r in rows], 0)], dim=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    inputs = Prompt(ids, mask if masked else None, positions, ids + 100)
    copies = [None if t is None else t.clone() for t in inputs]
    short = shrink(inputs, RULE, images=images)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))  # never written
    if not images:
        assert short is inputs
        return
    expected = [by_hand(r)[0] for r in rows]
    width = max(map(len, expected)) + common
    assert short.ids.shape == (len(rows), width)
    ragged = len({len(r) for r in expected}) > 1
    assert (short.mask is None) == (not masked and not ragged)
    for b, wanted in enumerate(expected):
        assert short.ids[b, width - len(wanted) :].tolist() == wanted
        assert short.labels[b, width - len(wanted) :].tolist() == [-100, *(token + 100 for token in wanted[1:])]
        assert short.position_ids[b, width - len(wanted) :].tolist() == list(range(len(wanted)))
        if short.mask is not None:
            assert short.mask[b].tolist() == [0] * (width - len(wanted)) + [1] * len(wanted)
        filler = width - len(wanted) - common
        assert short.labels[b, :filler].tolist() == [-100] * filler


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(row, min_size=1, max_size=3), news=st.data(), answers=st.integers(1, 3))
def test_a_continued_conversation_keeps_the_columns_of_its_cache(rows, news, answers):
    ids, mask = padded(rows, 0), padded([[1] * len(r) for r in rows], 0)
    images = sum(r.count(TOKEN) for r in rows) // BEFORE
    first = shrink(Prompt(ids, mask), RULE, images=images) if images else Prompt(ids, mask)
    words = torch.full((len(rows), answers), 30)
    more = news.draw(st.lists(row, min_size=len(rows), max_size=len(rows)))
    longest = max(map(len, more))
    new = torch.tensor([r + [12] * (longest - len(r)) for r in more])
    whole = torch.cat([ids, words, new], dim=1)
    whole_mask = torch.cat([mask, torch.ones_like(whole[:, mask.shape[1] :])], dim=1)
    past = first.ids.shape[1] + answers - 1  # the last generated token is not in the cache
    count = int((new == TOKEN).sum()) // BEFORE
    again = shrink(Prompt(whole, whole_mask), RULE, images=count, past=past, whole=True)
    if int((whole == TOKEN).sum()) == 0:
        return
    assert torch.equal(again.ids[:, : first.ids.shape[1]], first.ids)
    assert torch.equal(again.mask[:, : first.ids.shape[1]], first.mask)
    tails = [[30] + by_hand(r)[0] for r in new.tolist()]
    assert again.ids.shape[1] == past + max(map(len, tails))
    for b, tail in enumerate(tails):
        assert again.ids[b, again.ids.shape[1] - len(tail) :].tolist() == tail


def test_already_short_prompts_come_back_as_they_are():
    prompt = Prompt(torch.tensor([[1, TOKEN, TOKEN, 12]]))
    assert shrink(prompt, RULE, images=1) is prompt


def test_new_ids_behind_a_cache_get_a_mask_over_both():
    ids = torch.tensor([[TOKEN] * 5 + [12], [11] * 6])
    positions = torch.arange(7, 13)[None]
    short = shrink(Prompt(ids, None, positions), RULE, images=1, past=7)
    assert short.mask.tolist() == [[1] * 7 + [0] * 3 + [1] * 3, [1] * 13]
    assert short.position_ids.tolist() == [[0, 0, 0, 7, 8, 9], list(range(7, 13))]
    given = shrink(Prompt(ids, torch.ones(2, 13, dtype=torch.long), positions), RULE, images=1, past=7)
    assert torch.equal(given.mask, short.mask) and torch.equal(given.ids, short.ids)


def test_filler_is_the_one_of_the_rule():
    ids = torch.tensor([[TOKEN] * 5, [11] * 5])
    short = shrink(Prompt(ids), Placeholders(TOKEN, BEFORE, AFTER, filler=7), images=1)
    assert short.ids.tolist() == [[7, 7, 7, TOKEN, TOKEN], [11] * 5]


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float32])
def test_masks_keep_their_dtype(dtype):
    ids = torch.tensor([[0, *[TOKEN] * 5], [11] * 6])
    short = shrink(Prompt(ids, (ids > 0).to(dtype)), RULE, images=1)
    assert short.mask.dtype == dtype and short.mask.long().tolist() == [[0, 0, 0, 0, 1, 1], [1] * 6]


def test_restore_repeats_the_prompt_for_each_sequence():
    prompt = torch.tensor([[1, 2, 3], [4, 5, 6]])
    sequences = torch.tensor([[9, 10], [9, 11], [9, 12], [9, 13]])
    assert restore(prompt, 1, sequences).tolist() == [[1, 2, 3, 10], [1, 2, 3, 11], [4, 5, 6, 12], [4, 5, 6, 13]]


def test_padding_on_the_right_and_holes_stay_where_they_are():
    """Only padding in front of a row is made shorter: what a direct call reads stands at the caller's positions."""
    image = [TOKEN] * BEFORE
    ids = torch.tensor([[0, 11, *image, 12, 0, 13, 0], [11, 12, *image, 13, 14, 15, 16]])
    mask = torch.tensor([[0, 1, *[1] * BEFORE, 1, 0, 1, 0], [1] * 11])
    short = shrink(Prompt(ids, mask), RULE, images=2)
    assert short.ids.tolist() == [[0, 11, TOKEN, TOKEN, 12, 0, 13, 0], [11, 12, TOKEN, TOKEN, 13, 14, 15, 16]]
    assert short.mask.tolist() == [[0, 1, 1, 1, 1, 0, 1, 0], [1] * 8]


def test_a_hidden_image_in_front_keeps_what_its_features_need():
    """It stands where padding does, but the model puts a feature at each of its placeholders."""
    ids = torch.tensor([[*[TOKEN] * BEFORE, 12], [11] * 6])
    mask = torch.tensor([[*[0] * BEFORE, 1], [1] * 6])
    short = shrink(Prompt(ids, mask), RULE, images=1)
    assert short.ids.tolist() == [[0, 0, 0, TOKEN, TOKEN, 12], [11] * 6]
    assert short.mask.tolist() == [[0, 0, 0, 0, 0, 1], [1] * 6]


@pytest.mark.parametrize(
    ("pads", "image", "filler"),
    [((7, 8), 3, 7), ((None, 8), 3, 8), ((3, 8), 3, 8), ((-1, None), 3, 0), ((None, 3), 3, 0), ((0, 0), 0, 1)],
)
def test_what_fills_masked_positions_is_never_a_placeholder(pads, image, filler):
    """Else there would be more placeholders than features."""
    own, text = (SimpleNamespace(pad_token_id=pad) for pad in pads)
    model = SimpleNamespace(generation_config=own, config=SimpleNamespace(get_text_config=lambda: text))
    assert filler_of(model, (image,)) == filler


def test_a_mask_may_hide_one_image_and_show_its_neighbour():
    """Their placeholders touch; what would be torn is one image, not two."""
    ids = torch.tensor([[TOKEN] * 2 * BEFORE + [12]])
    mask = torch.tensor([[0] * BEFORE + [1] * (BEFORE + 1)])
    short = shrink(Prompt(ids, mask), RULE, images=2)
    assert short.ids.tolist() == [[TOKEN] * 2 * AFTER + [12]]
    assert short.mask.tolist() == [[0] * AFTER + [1] * (AFTER + 1)]
    with pytest.raises(ValueError, match=r"attention_mask must be .* a mask that hides a part of an image in row 0"):
        shrink(Prompt(ids, mask.roll(1, 1)), RULE, images=2)


def test_positions_move_to_the_same_position_in_every_row_or_are_refused():
    indices = torch.tensor([[-1, 0, 4, 5], [0, 1, 4, 5]])
    assert moved(indices, torch.tensor([4, -1]), 6).tolist() == [2, 3]
    assert moved(indices, torch.arange(6) > 3, 6).tolist() == [2, 3]
    for asked in (0, 1, 3):  # at unequal positions, in one row only, in none
        with pytest.raises(ValueError, match="logits_to_keep must be positions of text, which move to the same"):
            moved(indices, torch.tensor([asked]), 6)


def test_positions_of_filler_are_no_positions_of_the_caller():
    ids = torch.tensor([[TOKEN] * BEFORE + [12], [11] * 6])
    short = shrink(Prompt(ids, indices=torch.arange(6).expand(2, -1)), RULE, images=1)
    assert short.indices.tolist() == [[-1, -1, -1, 0, 1, 5], list(range(6))]


def test_a_whole_conversation_without_a_mask_gets_one_where_rows_come_to_differ():
    """It covers the ids alone: they begin with what is in the cache."""
    ids = torch.tensor([[*[TOKEN] * BEFORE, 30, 12], [*[11] * BEFORE, 30, 12]])
    short = shrink(Prompt(ids), RULE, images=1, past=5, whole=True)
    assert short.ids.tolist() == [[0, 0, 0, TOKEN, TOKEN, 30, 12], [*[11] * BEFORE, 30, 12]]
    assert short.mask.tolist() == [[0, 0, 0, 1, 1, 1, 1], [1] * 7]
