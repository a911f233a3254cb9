"""Random draws of methods after the projector against the hand cut. ``FICOCO_PROPERTY_CASES`` says how many."""

from __future__ import annotations

import os

import pytest
from helpers.models import one_thread  # noqa: F401

pytest.importorskip("transformers")
from helpers.tiny_families import TINY
from property.projected import check, drawn, methods

CASES = int(os.environ.get("FICOCO_PROPERTY_CASES", "100"))
START = int(os.environ.get("FICOCO_PROPERTY_START", "0"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", range(START, START + CASES))
def test_a_draw_holds(number):
    draw = drawn(number)
    print(draw)  # property.projected.check of this repeats it
    check(draw)


def test_the_draws_cover_everything():
    draws = [drawn(number) for number in range(600)]
    assert draws[7] == drawn(7) and draws[7] != draws[8]
    assert {one.method for one in draws} == {name for family in TINY for name in methods(family.name)}
    assert {one.family for one in draws} == {family.name for family in TINY}
    assert {one.use for one in draws} == {"forward", "generate", "beams"}
    amounts = {name for one in draws for name in one.amount}
    assert amounts == {"keep_ratio", "tokens", "projector", "decoder", "positions"}
    assert {len(one.rows) for one in draws} == {1, 2, 3}
