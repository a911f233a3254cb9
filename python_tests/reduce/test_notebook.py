"""What a notebook shows of a Reduction and a Schedule: well-formed, right in its numbers, bounded in size."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch

import ficoco_ext
from ficoco_ext import QueryKey, Schedule
from ficoco_ext.io import notebook

SVG = "{http://www.w3.org/2000/svg}"


def _reduction(batch=2, grid=(4, 4), r=5, method="ficoco-v"):
    n = grid[0] * grid[1] + 1
    query, key = torch.randn(2, batch, 2, n, 4)
    return ficoco_ext.reduce(
        torch.randn(batch, n, 8), QueryKey(query, key), r, method=method, grid=grid, return_reduction=True
    )


def _rows(html):
    root = ElementTree.fromstring(html)
    return root, [[cell.text for cell in row] for row in root.iter("tr")]


def _area(path):
    """Cells that the rectangles of a path cover."""
    return sum(round(float(width) + 0.1) for width in re.findall(r"h(\d[\d.]*)v", path))


@pytest.mark.parametrize("method", ["ficoco-v", "topk"])
def test_reduction_counts_and_draws_every_patch_once(method):
    record = _reduction(method=method)
    root, (head, *rows) = _rows(record._repr_html_())
    assert head == ["image", "tokens", "left", "merged", "dropped", "kept", "most in one token"]
    merged, dropped = ("0", "5") if method == "topk" else ("5", "0")
    for item, row in enumerate(rows):
        assert row[:6] == [str(item), "16", "11", merged, dropped, "68.8%"]
        assert float(row[6]) == pytest.approx(float(record.size[item].max()), rel=1e-5)
    paths = {path.find(f"{SVG}title").text: path.get("d") for path in root.iter(f"{SVG}path")}
    assert {kind: _area(path) for kind, path in paths.items()} == {
        "left": 11,
        "dropped" if method == "topk" else "merged": 5,
    }
    first_row = [
        (int(float(x)), round(float(w) + 0.1)) for x, w in re.findall(r"M([\d.]+) 0.05h([\d.]+)", paths["left"])
    ]
    drawn = {column for x, width in first_row for column in range(x, x + width)}
    assert drawn == {index - 1 for index in record.kept[0].tolist() if 1 <= index <= 4}


def test_after_several_layers_it_speaks_of_the_first_tokens():
    first = _reduction(batch=1)
    query, key = torch.randn(2, 1, 2, 12, 4)
    second = ficoco_ext.reduce(first.tokens, QueryKey(query, key), 4, previous=first, return_reduction=True)
    _, (_, row) = _rows(second._repr_html_())
    assert row[1:5] == ["16", "7", "9", "0"]


def test_a_reduction_without_a_grid_is_a_table():
    html = replace(_reduction(), grid=None)._repr_html_()
    assert "svg" not in html and len(_rows(html)[1]) == 3


def test_the_size_is_bounded():
    assert len(_reduction(batch=1, grid=(100, 100), r=3000)._repr_html_()) < 400_000
    large = _reduction(batch=1, grid=(101, 100), r=1)._repr_html_()
    assert "svg" not in large and len(large) < 2000
    root, rows = _rows(_reduction(batch=60)._repr_html_())
    assert len(rows) <= 43 and any("images more" in (one.text or "") for one in root.iter("p"))
    _, rows = _rows(Schedule(1000, tuple(range(300)), (1,) * 300)._repr_html_())
    assert rows[-1] == ["260 rows more"]


def test_schedule_says_its_staircase():
    schedule = Schedule.build(576, layers=range(12, 23), tokens=192)
    root, (head, *rows) = _rows(schedule._repr_html_())
    assert head == ["layer", "before", "removed", "after"]
    assert rows == [[str(value) for value in (one.layer, one.before, one.r, one.after)] for one in schedule.steps]
    assert root.find("p").text == "192 of 576 patches are left, keep ratio 0.333"
    path = next(root.iter(f"{SVG}path")).get("d")
    levels = [float(level) for level in re.findall(r"V([\d.]+)", path)][1:-1]
    assert levels == pytest.approx([100 * (1 - one.after / 576) for one in schedule.steps], abs=0.01)
    assert levels == sorted(levels)


def test_a_schedule_that_removes_nothing_is_shown():
    root, rows = _rows(Schedule(7, (), ())._repr_html_())
    assert len(rows) == 1 and root.find("p").text.startswith("7 of 7 patches")


def test_text_is_escaped():
    assert "&lt;b&gt;" in notebook.table(["<b>"], [["<script>"]]) and "<script>" not in notebook.table(
        ["a"], [["<script>"]]
    )


def test_cells_stand_in_their_columns():
    drawn = notebook.cells(["merged", "merged", "left", "left", "dropped", "left"], (2, 3))
    found = {kind: path for path, kind in re.findall(r'd="([^"]*)"><title>(\w+)<', drawn)}
    starts = {kind: re.findall(r"M([\d.]+ [\d.]+)h([\d.]+)", path) for kind, path in found.items()}
    assert starts == {
        "left": [("2.05 0.05", "0.90"), ("0.05 1.05", "0.90"), ("2.05 1.05", "0.90")],
        "merged": [("0.05 0.05", "1.90")],
        "dropped": [("1.05 1.05", "0.90")],
    }
