"""What ``Handle.decoder_reductions`` tells of rows of unequal length, padded on either side."""

from __future__ import annotations

import pytest
import torch
from helpers.decoder import generated, tiny, worst_error
from helpers.models import (
    PAD,
    batch,
    image,
    one_thread,  # noqa: F401
    words,
)

import ficoco_ext

pytest.importorskip("transformers")

ONE = [*words(1, 2), *image(), *words(3, 4, 5)]
TWO = [*words(6), *image(), *words(7), *image(), *words(8, 9)]
LONG = [*words(*range(40)), *ONE]  # as long as TWO and more, with half its visual tokens


def told(inputs, **options):
    model = tiny(seed=2)
    with torch.no_grad(), ficoco_ext.attach(model, **options) as handle:
        model(**inputs)
        return handle.decoder_reductions


def right(*rows):
    """Rows padded on the right."""
    inputs = batch(*rows)
    longest = max(map(len, rows))
    inputs["input_ids"] = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
    inputs["attention_mask"] = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return inputs


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("method", ["ficoco-l", "fastv", "pyramiddrop"])
@pytest.mark.parametrize("rows", [(ONE, TWO), (LONG, TWO), (TWO, LONG, ONE)])
def test_a_padded_row_is_told_as_it_is_alone(side, method, rows):
    options = {"method": method, **({"keep_ratio": 0.25} if method == "ficoco-l" else {})}
    make = right if side == "right" else batch
    inputs, length = make(*rows), max(map(len, rows))
    at = 0
    for row, ids in enumerate(rows):
        alone = batch(ids)
        images = alone["pixel_values"].shape[0]
        alone["pixel_values"] = inputs["pixel_values"][at : at + images]
        at += images
        (wanted,), got = told(alone, **options), told(inputs, **options)[row]
        first = length - len(ids) if side == "left" else 0
        assert len(got) == len(wanted)
        for a, b in zip(got, wanted, strict=True):
            mine = (a.kept[0] >= first) & (a.kept[0] < first + len(ids))
            assert (a.kept[0][mine] - first).tolist() == b.kept[0].tolist()
            assert (a.sources[0] - first).tolist() == b.sources[0].tolist()
            column = torch.cat([torch.tensor([-1]), a.kept[0]])[a.source_map[0] + 1]
            wanted_column = torch.cat([torch.tensor([-1]), b.kept[0] + first])[b.source_map[0] + 1]
            assert column[first : first + len(ids)].tolist() == wanted_column.tolist()


def test_three_reductions_of_rows_that_lose_unequally_many_without_a_mask():
    short = [*words(*([1] * (len(TWO) - len(ONE)))), *ONE]
    model, inputs = tiny(seed=4), batch(short, TWO)
    inputs.pop("attention_mask")
    with torch.no_grad(), ficoco_ext.attach(model, "ficoco-l", keep_ratio=0.25) as handle:
        seen = generated(model, inputs, 5)
        reductions, plan = handle.decoder_reductions, handle.plan
    with torch.no_grad():
        assert worst_error(model, seen, reductions, plan, 5, new_ids=seen.sequences[:, -5:]) <= 2e-5


def test_sizes_weigh_a_second_merge():
    """What a first reduction merged counts as many tokens in the next one; here everything goes into few targets."""
    options = {"method": "ficoco-l", "r": (17, 17), "layers": (1, 2), "targets": 1}
    ((first, second),) = told(batch(ONE), **options)
    merged = first.size[0, :, 0]
    assert merged.max() > 1
    assert float(second.size.sum()) == pytest.approx(len(ONE), rel=1e-5)  # merging loses nothing


def test_every_row_asks_all_the_words_after_its_image():
    """Rows with equally many visual tokens are reduced together, however much text each has after them."""
    wordy = [*words(9), *image(), *words(*range(14))]
    inputs = batch(ONE, wordy)
    together = told(inputs, method="ficoco-l", r=9, beta=0.1)
    for row, ids in enumerate((ONE, wordy)):
        alone = batch(ids) | {"pixel_values": inputs["pixel_values"][row : row + 1]}
        ((*steps,),) = told(alone, method="ficoco-l", r=9, beta=0.1)
        shift = len(wordy) - len(ids)
        assert [(step.sources - shift).tolist() for step in together[row]] == [step.sources.tolist() for step in steps]
