"""The picture of where tokens and operations go: what each panel draws, and what it is called."""

from __future__ import annotations

import pytest

from ficoco_ext import Schedule, cost, get_method
from ficoco_ext.cost import staircase
from ficoco_ext.cost.compare import compare
from ficoco_ext.cost.schedules import Schedules

pytest.importorskip("matplotlib")
BASE = cost.architecture("llava-1.5-7b")
BOTH = (
    get_method("ficoco-vl"),
    Schedules(vision=Schedule(576, (12,), (300,)), decoder=Schedule(276, (4,), (100,))),
)


def drawn(axes):
    """What the stairs of a panel show, by label."""
    return {patch.get_label(): patch.get_data()[:2] for patch in axes.patches}


def test_every_panel_shows_the_layers_of_its_part():
    found = compare(BASE, *BOTH)
    panels = staircase.draw(found).axes
    for column, (part, count) in enumerate((("tower", 24), ("decoder", 32))):
        for row, value in enumerate((lambda one: one.tokens, lambda one: one.total.operations / 1e9)):
            stairs = drawn(panels[2 * row + column])
            assert set(stairs) == {"all tokens", "reduced"}
            for label, side in (("all tokens", found.full), ("reduced", found.reduced)):
                values, edges = stairs[label]
                assert list(values) == [value(one) for one in side.running.layers if one.part == part]
                assert list(edges) == [index - 0.5 for index in range(count + 1)]
    assert list(drawn(panels[0])["all tokens"][0]) == [577] * 24
    assert list(drawn(panels[1])["all tokens"][0]) == [636] * 32
    tokens = list(drawn(panels[1])["reduced"][0])
    assert tokens[:6] == [336.0] * 5 + [236.0]  # 276 and 60 of text enter the layer that reduces
    assert [one.get_title() for one in panels[:2]] == ["vision tower", "language model"]


def test_without_reduction_there_is_one_line():
    assert all(set(drawn(one)) == {"all tokens"} for one in staircase.draw(compare(BASE)).axes)


def test_its_title():
    assert staircase.title(compare(BASE)) == "llava-1.5-7b: 1 image and 60 text tokens"
    several = compare(BASE, BOTH[0], Schedules(vision=BOTH[1].vision), images=2, text_tokens=7)
    assert staircase.title(several) == "llava-1.5-7b, ficoco-v + ficoco-l: 2 images and 7 text tokens"
