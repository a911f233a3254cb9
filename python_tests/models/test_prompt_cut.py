"""Prompts without some of their columns, with right values by hand."""

from __future__ import annotations

import torch

from ficoco_ext.models.prompt_cut import at_the_end, cut, drop_padding, first_torn, kept_columns, last_columns, torn

PAD = 0
TWO_ROWS = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 1]]).bool()  # 3 and 2 columns stay


def test_columns_that_stay_keep_their_order():
    found = cut(TWO_ROWS[:1], [3])
    assert found.order.tolist() == found.indices.tolist() == [[0, 1, 3]]
    assert (found.valid, found.length) == (None, 4)


def test_a_shorter_row_is_padded_on_the_left():
    found = cut(TWO_ROWS, [3, 2])
    assert found.indices.tolist() == [[0, 1, 3], [-1, 0, 3]]
    assert found.valid.tolist() == [[True, True, True], [False, True, True]]


def test_rows_of_one_width_are_not_padded():
    """Although other columns of them stay."""
    found = cut(torch.tensor([[1, 0, 1], [0, 1, 1]]).bool(), [2, 2])
    assert found.valid is None and found.indices.tolist() == [[0, 2], [1, 2]]


def test_tensors_of_a_prompt_are_cut():
    found = cut(TWO_ROWS, [3, 2])
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    assert found.of(ids, -100).tolist() == [[5, 6, 8], [-100, 9, 12]]
    assert found.of(ids).tolist() == [[5, 6, 8], [0, 9, 12]]
    assert cut(TWO_ROWS[:1], [3]).of(ids[:1], -100).tolist() == [[5, 6, 8]]


def test_positions_of_several_axes_are_cut():
    """(3, B, L), or (3, 1, L) for all rows alike."""
    found = cut(TWO_ROWS, [3, 2])
    each = torch.arange(24).view(3, 2, 4)
    assert found.of(each).tolist() == [[[0, 1, 3], [0, 4, 7]], [[8, 9, 11], [0, 12, 15]], [[16, 17, 19], [0, 20, 23]]]
    assert found.of(each[:, :1])[2].tolist() == [[16, 17, 19], [0, 16, 19]]
    assert found.of(torch.arange(4)[None]).tolist() == [[0, 1, 3], [0, 0, 3]]


def test_embeddings_are_cut():
    found, filler = cut(TWO_ROWS, [3, 2]), torch.tensor([-1.0, -2.0])
    vectors = torch.arange(16.0).view(2, 4, 2)
    assert found.of_vectors(vectors, filler).tolist() == [[[0, 1], [2, 3], [6, 7]], [[-1, -2], [8, 9], [14, 15]]]
    assert found.of_vectors(vectors.half(), filler).dtype == torch.float16
    assert cut(TWO_ROWS[1:], [2]).of_vectors(vectors[1:], filler).tolist() == [[[8, 9], [14, 15]]]


def test_columns_that_left():
    """Padding that was added stands for no column of the prompt, not even for the one that it was gathered from."""
    assert cut(TWO_ROWS, [3, 2]).left_out.tolist() == [[0, 0, 1, 0], [0, 1, 1, 0]]
    found = cut(torch.tensor([[1, 1, 1], [0, 0, 1]]).bool(), [3, 1])
    assert found.left_out.tolist() == [[0, 0, 0], [1, 1, 0]]
    assert cut(torch.ones(2, 3).bool(), [3, 3]).left_out.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_padding_of_some_rows_alone_is_dropped():
    mask = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 0, 1]])  # one column that all rows have, and a hole
    nothing = torch.zeros_like(mask).bool()
    keep = torch.tensor([[1, 1, 1, 0, 1], [1, 1, 1, 1, 1]]).bool()
    assert drop_padding(keep, nothing, mask).long().tolist() == [[1, 0, 1, 0, 1], [1, 1, 1, 1, 1]]
    assert drop_padding(keep, nothing, None) is keep


def test_placeholders_in_padding_stay():
    mask = torch.tensor([[0, 0, 1], [1, 1, 1]])
    visual = torch.tensor([[0, 1, 0], [0, 0, 0]]).bool()
    assert drop_padding(torch.ones(2, 3).bool(), visual, mask).long().tolist() == [[0, 1, 1], [1, 1, 1]]


def test_padding_that_all_rows_have_stays():
    mask = torch.tensor([[0, 1], [0, 1]])
    assert drop_padding(torch.ones(2, 2).bool(), torch.zeros(2, 2).bool(), mask).all()


def test_pictures_own_placeholders_in_the_order_of_rows():
    """Three pictures of 2, 3 and 1 tokens: the second begins in row 0 and the third is in row 1."""
    visual = torch.tensor([[0, 1, 1, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1, 0]]).bool()
    kept = [torch.tensor([1]), torch.tensor([0, 2]), torch.tensor([0])]
    stays = kept_columns(visual, kept, (2, 3, 1))
    assert stays.long().tolist() == [[1, 0, 1, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1, 1]]


def test_a_picture_may_be_in_two_rows():
    """No processor makes such a prompt, but only counts matter."""
    visual = torch.tensor([[0, 1], [1, 0]]).bool()
    assert kept_columns(visual, [torch.tensor([1])], (2,)).long().tolist() == [[1, 0], [1, 1]]


def test_without_pictures_words_stay():
    visual = torch.zeros(1, 3).bool()
    assert kept_columns(visual, [], ()).all()
    assert kept_columns(visual, [torch.tensor([0])], (1,)).all()


def test_more_placeholders_than_features_are_no_index_error():
    """The fit is checked later, on the host, in one read for all kinds."""
    visual = torch.ones(1, 3).bool()
    assert kept_columns(visual, [torch.tensor([1])], (2,)).long().tolist() == [[0, 1, 1]]
    assert not kept_columns(visual, [], ()).any()


def test_the_last_column_that_the_mask_shows():
    ids = torch.ones(3, 4, dtype=torch.long)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 0]])
    assert last_columns(ids, mask).tolist() == [[3], [1], [2]]
    assert last_columns(ids, None).tolist() == [[3], [3], [3]]


def test_pictures_at_the_end_of_rows():
    """Rows of 5, 0 and 7 placeholders; pictures of 2 and 3, of 4 and 3 tokens."""
    assert at_the_end((5, 0, 7), (1, 0, 1), (2, 3, 4, 3)) == [1, 3]
    assert at_the_end((5, 0, 7), (0, 0, 1), (2, 3, 4, 3)) == [3]
    assert at_the_end((5, 0, 7), (0, 0, 0), (2, 3, 4, 3)) == []


def test_rows_that_end_inside_a_picture():
    """Pictures of 2, 3 and 4 tokens; a row may hold none, or several."""
    assert first_torn([2, 0, 7], [2, 3, 4]) is first_torn([5, 4], [2, 3, 4]) is first_torn([0, 9], [2, 3, 4]) is None
    assert first_torn([2, 4, 3], [2, 3, 4]) == 1
    assert first_torn([3, 6], [2, 3, 4]) == 0


def test_masks_that_hide_a_part_of_a_picture():
    """Row 0 has pictures of 2 and 3 tokens with a word between, row 1 one of 2 with a word inside."""
    visual = torch.tensor([[1, 1, 0, 1, 1, 1], [0, 1, 0, 1, 0, 0]]).bool()
    everything, one_hidden = torch.ones_like(visual), ~torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()
    assert torn(visual, everything, [2, 3, 2]).tolist() == torn(visual, one_hidden, [2, 3, 2]).tolist() == [0, 0]
    part = ~torch.tensor([[1, 0, 0, 0, 0, 1], [0, 1, 0, 0, 0, 0]]).bool()
    assert torn(visual, part, [2, 3, 2]).tolist() == [2, 1]
    assert torn(visual, one_hidden, [3, 2, 2]).tolist() == [1, 0]
