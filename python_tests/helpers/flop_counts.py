"""What the cost model predicts of a prefill beside what torch counted on a tiny model."""

from __future__ import annotations

import pytest

import ficoco_ext
from helpers.models import batch, image, words

EXACT = 1e-9  # relative; the difference is 0
TEXT, AFTER = 7, 4


def of_method(method, given):
    amounts = ("r", "keep_ratio", "tokens", "layers", "vision", "decoder")
    return ficoco_ext.get_method(method, **{name: value for name, value in given.items() if name not in amounts})


def prompt(images=1):
    """TEXT words, AFTER of them after the last image."""
    row = [*words(*range(TEXT - AFTER)), *(image() * images), *words(*range(AFTER))]
    return batch(row)


def compare(predicted, counted):
    """All parts. What a reduction computes by torch's own products, extra projections in the decoder and neighbours
    in the tower, is in the part where it runs for torch, and in the reduction's for us."""
    ours = {name: part.operations for name, part in predicted.parts.items()}
    for name in ("projector", "head"):
        assert ours[name] == pytest.approx(getattr(counted, name), rel=EXACT), name
    extra = sum(line.operations for line in predicted.lines if line.name.startswith("extra "))
    near = sum(line.operations for line in predicted.lines if line.name in ("neighbours", "borrow"))
    assert ours["tower"] + near == pytest.approx(counted.tower, rel=EXACT)
    assert ours["decoder"] + extra == pytest.approx(counted.decoder, rel=EXACT)
    assert ours.get("reduction", 0) - extra - near == pytest.approx(counted.reduction, rel=EXACT)
    assert predicted.total.operations == pytest.approx(counted.total, rel=EXACT)
