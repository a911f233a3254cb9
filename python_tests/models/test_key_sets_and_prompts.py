"""Key sets after a method after the projector, where a prompt ends with a picture."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.decoder import tiny
from helpers.models import (
    IMAGE,
    PATCHES,
    batch,
    close,
    image,
    one_thread,  # noqa: F401
    words,
)

import ficoco_ext
from ficoco_ext import get_method
from ficoco_ext.methods import Combined
from ficoco_ext.models.key_sets import _placed

pytest.importorskip("transformers")

ONE = [*words(1, 2), *image(), *words(3, 4, 5)]
TWO = [*words(6), *image(), *words(7), *image(), *words(8, 9)]
LAST = [*words(1, 2), *image()]
TWO_LAST = [*words(6), *image(), *words(7), *image()]
TEXT = words(11, 12, 13, 14)
SHARE, READ = 0.3, 5  # of the tokens; the block of the tower that reads the features
AFTER_PROJECTOR = {
    "method": Combined.of(get_method("divprune"), get_method("mustdrop", part="language_model", keys=SHARE)),
    "projector": {"keep_ratio": 0.4},
    "decoder": {"keep_ratio": 0.5, "layers": (1, 2)},
}


@pytest.fixture(scope="module")
def model():
    return tiny(attention="eager", seed=5)


def looked_by_hand(model, pictures):
    """(I, 36): how much the class token of each picture looks at each token, from maps of the model as it is."""
    with torch.no_grad():
        return model.model.vision_tower(pictures, output_attentions=True).attentions[READ].mean(1)[:, 0, 1:]


def flags(looked):
    """Which of the tokens of a picture are its key set."""
    row = looked.tolist()
    chosen = sorted(range(len(row)), key=lambda index: (-row[index], index))[: math.ceil(SHARE * len(row))]
    return [index in chosen for index in range(len(row))]


def pictures_of(rows):
    """For each row the numbers of its pictures."""
    first, found = 0, []
    for row in rows:
        count = row.count(IMAGE) // PATCHES
        found.append(range(first, first + count))
        first += count
    return found


@pytest.mark.parametrize("positions", ["contiguous", "original"])
@pytest.mark.parametrize("rows", [[LAST], [LAST, ONE], [TWO_LAST, LAST, TEXT, TWO]], ids=["one", "two", "four"])
def test_a_last_token_that_is_put_back_may_be_a_key(model, rows, positions):
    """Where a prompt ends with a picture, and the pictures after it have their own key sets."""
    inputs, short = batch(*rows, seed=1), []
    looked = looked_by_hand(model, inputs["pixel_values"])
    with torch.no_grad(), ficoco_ext.attach(model, **AFTER_PROJECTOR, positions=positions) as handle:
        hook = model.model.register_forward_pre_hook(
            lambda module, args, kwargs: short.append(kwargs["input_ids"]), with_kwargs=True
        )
        together = model(**inputs).logits[:, -1]
        hook.remove()
        kept, protected = [one.kept for one in handle.projections], handle._decoder.last.protected
        assert {len(one) for one in kept} >= {15}, "no last token was put back"
        for number, (row, own) in enumerate(zip(rows, pictures_of(rows), strict=True)):
            wanted = [flag for one in own for flag in flags(looked[one][kept[one]])]
            assert protected[number][short[0][number] == IMAGE].tolist() == wanted
            assert int(protected[number].sum()) == sum(wanted)
            pictures = {"pixel_values": inputs["pixel_values"][own.start : own.stop]} if own else {}
            assert close(model(**batch(row, images=0), **pictures).logits[0, -1], together[number])
        model.generate(**inputs, max_new_tokens=2, do_sample=False, num_beams=2)
        repeated = handle._decoder.last.protected
    assert repeated.sum(1)[::2].tolist() == protected.sum(1).tolist() == repeated.sum(1)[1::2].tolist()


def test_key_sets_of_other_numbers_than_the_features_are_refused():
    keys = [torch.tensor([True, False])]
    visual = torch.tensor([[False, True, True, True]])
    with pytest.raises(ValueError, match="with a key set each, got 3 features in 1 rows, and key sets of 2; encode"):
        _placed(keys, 3, visual)
    with pytest.raises(ValueError, match="got 3 placeholders, and key sets of 2 tokens"):
        _placed(keys, 2, visual)
    assert _placed(keys, 2, visual[:, :3]).tolist() == [[False, True, False]]
