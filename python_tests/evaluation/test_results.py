"""What is computed from a results file, by hand: tallies of several seeds, rows of the tables, the picture."""

from __future__ import annotations

import pytest

from ficoco_ext.evaluation import Results, price
from ficoco_ext.evaluation.markdown import headings, interval, row
from ficoco_ext.evaluation.plot import draw


def _setting(name, budget, seeds, **cost):
    return {
        "name": name,
        "budget": budget,
        "seeds": list(seeds),
        "cost": cost or None,
        "remark": None,
        "impossible": None,
    }


def _cell(setting, seed, right, seconds=1.0):
    answers = [int(one == "1") for one in right]
    return {"setting": setting, "seed": seed, "seconds": seconds, "threads": 1, "answers": answers, "right": right}


def _table(seed, kinds, kind, scene):
    truth = [1] * len(kind)
    return {"seed": seed, "questions": "", "kinds": kinds, "kind": kind, "scene": scene, "truth": truth, "bad": []}


def _results(tables, cells, settings, grid=True):
    data = {"questions": "", **({"gridvqa": {"split": "test"}} if grid else {})}
    seeds = sorted({cell["seed"] for cell in cells})
    return Results(
        {
            "format": "ficoco eval 1",
            "model": "tiny",
            "run": {"seeds": seeds, "asking": {"judge": "exact"}, "data": data},
            "platform": {},
            "settings": settings,
            "tables": tables,
            "words": ["no", "yes"],
            "cells": cells,
        }
    )


def _two_seeds(kinds=("exist", "attr")):
    """Two scenes a seed; in the second seed all answers are wrong."""
    tables = [_table(0, ["exist", "attr"], [0, 1, 1], [0, 0, 1]), _table(1, list(kinds), [0, 0, 1], [0, 1, 1])]
    cells = [_cell(0, 0, "111"), _cell(0, 1, "000")]
    return _results(tables, cells, [_setting("unreduced", "all tokens", (0, 1))])


def test_scenes_of_two_seeds_are_not_the_same():
    tally = _two_seeds().tally(0)
    assert tally.asked.tolist() == [[1, 1], [0, 1], [1, 0], [1, 1]]
    assert tally.right.tolist() == [[1, 1], [0, 1], [0, 0], [0, 0]]
    assert _two_seeds().tally(0, 1).asked.tolist() == [[0, 0], [0, 0], [1, 0], [1, 1]]
    assert _two_seeds().summary().scenes == 4


def test_kinds_are_the_same_whatever_their_order_in_a_table():
    tally = _two_seeds(kinds=("attr", "exist")).tally(0)
    assert tally.asked.tolist() == [[1, 1], [0, 1], [0, 1], [1, 1]]


def test_count_is_left_out_of_the_mean_of_grid_scenes_alone():
    def mean_of(kinds, grid):
        table = _table(0, kinds, list(range(len(kinds))), [0] * len(kinds))
        cells = [_cell(0, 0, "1" * len(kinds))]
        return _results([table], cells, [_setting("unreduced", "all tokens", (0,))], grid).summary().mean_of

    assert mean_of(["exist", "count"], grid=True) == ("exist",)
    assert mean_of(["exist", "count"], grid=False) == ("exist", "count")
    assert mean_of(["count"], grid=True) == ("count",)


def test_a_setting_that_lacks_a_seed_has_no_accuracy():
    found = _two_seeds()
    found.document["cells"].pop()
    assert found.cells(0) == []
    (line,) = found.summary().lines
    assert line.mean is None and line.remark == "not all of it was run"


TOKENS = {"entering": 36.0, "average": 20.5, "final": 9.0}


def _compared():
    """A method that is right where the model is wrong, in half the time."""
    settings = [
        _setting("unreduced", "all tokens", (0,), flops_ratio=1.0, kv_ratio=1.0, visual_tokens=TOKENS),
        _setting("topk", "r 1", (0,), flops_ratio=0.25, kv_ratio=0.5, visual_tokens=TOKENS),
    ]
    table = _table(0, ["exist", "attr"], [0, 0, 0, 0, 1], [0, 1, 2, 3, 3])
    return _results([table], [_cell(0, 0, "00001", 2.0), _cell(1, 0, "00010", 0.5)], settings)


def test_a_row_has_every_number_in_its_column():
    summary = _compared().summary()
    full, line = summary.lines
    found = dict(zip(headings(summary), row(summary, line), strict=True))
    assert found == {
        "method": "topk",
        "mean [95 %]": interval(line.mean),
        "less unreduced": interval(line.difference),
        "exist": "25.0",
        "attr": "0.0",
        "same answer": "60.0",
    }
    assert dict(zip(price.headings(summary), price.row(summary, line), strict=True)) == {
        "method": "topk",
        "tokens in": "36",
        "tokens mean": "20.5",
        "tokens out": "9",
        "FLOPs": "25.0",
        "KV cache": "50.0",
        "s": "0.5",
        "questions/s": "10",
    }
    assert found["mean [95 %]"] == f"12.5 [{100 * line.mean.low:.1f}, {100 * line.mean.high:.1f}]"
    assert line.mean.low < line.mean.value < line.mean.high and line.rate == 10
    assert found["less unreduced"].startswith("-37.5 [") and row(summary, full)[2] == "-"


def test_intervals_are_drawn_where_they_are():
    pytest.importorskip("matplotlib")
    results = _compared()
    summary = results.summary()
    (axes,) = draw(results, summary).axes
    (bars,) = [one for one in axes.containers if one.get_label() == "topk"]
    ((start, end),) = bars.lines[2][0].get_segments()
    mean = summary.lines[1].mean
    assert [*start, *end] == pytest.approx([25, 100 * mean.low, 25, 100 * mean.high])
    assert mean.value - mean.low < mean.high - mean.value  # so the two cannot be mixed up
