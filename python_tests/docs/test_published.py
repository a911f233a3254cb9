"""The page of published accuracies is its data, and says what the data says."""

from __future__ import annotations

import itertools

import pytest
from helpers.paths import DOCS

from ficoco_ext.cost import published
from ficoco_ext.cost.paper_rows import paper_rows

PAGE = (DOCS / "published.md").read_text()
KEPT, HARNESS, *_ = published.tables()


@pytest.mark.parametrize("table", published.tables(), ids=lambda table: table.id)
def test_tables_of_the_page_are_the_data(table):
    """After a change of the data: print(published.markdown(table))."""
    assert published.markdown(table) in PAGE
    assert {source for _, source, _ in table.rows} == set(table.sources)
    assert all(len(values) == len(table.amounts) and any(values) for *_, values in table.rows)
    methods = [(method, source) for method, source, _ in table.rows]
    assert len(set(methods)) == len(methods)


def test_the_rows_of_ficoco_are_computed():
    assert published.markdown_of_rows() in PAGE


def test_every_source_stands_on_the_page():
    for name in ("2602.05809", "2602.04657", "2411.17686", "4d6c1c8", "2602.08024", "2501.05179", "96b2d00"):
        assert name in PAGE
    text = " ".join(" ".join(table.sources.values()) for table in published.tables())
    assert all(name in text for name in ("2602.05809", "2602.04657", "4d6c1c8", "2602.08024", "2501.05179"))


def test_the_spread_is_on_the_page_and_wider_than_two_points():
    for one in published.spread():
        assert f"| {one.method}, {one.amount} | {one.low:g} | {one.high:g} |" in PAGE
        assert one.high - one.low > 2
        values = [values[KEPT.amounts.index(one.amount)] for method, _, values in KEPT.rows if method == one.method]
        assert all(one.low <= value <= one.high for value in values if value is not None)
    assert published.spread_source() in " ".join(PAGE.split())


def test_values_by_hand():
    """FiCoCo-L at 1.5 TFLOPs over seven sets; a row with three sets has no mean."""
    full = (69.5, 58.2, 86.4, 59.3, 62.5, 66.1, 79.1)
    scores = (69.5, 55.7, 84.1, 53.3, 60.0, 64.0, 75.6)
    (row,) = [row for row in paper_rows("3") if row.label == "FiCoCo-L" and row.printed == 1.5]
    got, sets = published.retained(row)
    assert sets == 7
    assert got == pytest.approx(100 * sum(score / whole for score, whole in zip(scores, full, strict=True)) / 7)
    (few,) = [row for row in paper_rows("3") if row.label.startswith("PyramidDrop")]
    assert published.retained(few) is None


def test_what_the_page_says_of_the_number_of_tokens():
    old = ("FastV", "PyramidDrop", "SparseVLM")
    values = {(method, name): row for method, name, row in KEPT.rows}
    at_192 = [row[0] for (method, _), row in values.items() if method not in old and row[0] is not None]
    assert f"keep {min(at_192)} to {max(at_192)} %" in " ".join(PAGE.split())
    others = {
        method: [row[2] for (m, name), row in values.items() if m == method and name != "own"] for method, _ in values
    }
    groups = [("CDPruner", "SCOPE"), ("HoloV", "VisPruner", "DivPrune", "VisionZip"), ("DART", "SparseVLM"), old[:2]]
    means = [[sum(others[method]) / len(others[method]) for method in group] for group in groups]
    assert all(min(better) > max(worse) for better, worse in itertools.pairwise(means))


def test_copied_rows():
    """What the page says of FastV: FiCoCo's six scores at 3.3 TFLOPs."""
    (row,) = [row for row in paper_rows("3") if row.label.startswith("FastV") and row.printed == 3.3]
    said = {cell.benchmark: cell.printed for cell in row.accuracy if cell.printed is not None}
    assert said == {"GQA": 52.7, "MMB": 61.2, "POPE": 64.8, "SQA": 67.3, "VQAv2": 67.1, "TextVQA": 52.5}
    words = " ".join(PAGE.split())
    for name, value in said.items():
        assert f"{name.replace('MMB', 'MMBench')} {value}" in words


def test_losses_in_one_harness():
    (values,) = [values for method, _, values in HARNESS.rows if method == "SCOPE"]
    free = [values for method, _, values in HARNESS.rows if "trained" not in method]
    assert values[0] == max(one[0] for one in free) and values[3] == max(one[3] for one in free)
    words = " ".join(PAGE.split())
    assert "SCOPE, loses 7.5 % on average" in words and round(100 - values[0], 1) == 7.5
    assert "9.5 of 94.9 points of DocVQA and 23.6 of 85.3 of OCRBench" in words
    assert round(94.9 - values[1], 1) == 9.5 and round(85.3 - values[2], 1) == 23.6
    assert values[5] < 85.3 / 2


def test_what_is_not_here_is_not_a_method():
    import ficoco_ext

    lines = PAGE.partition("## Not here, and why")[2].partition("## Licences")[0].splitlines()
    names = [line.split("|")[1].strip() for line in lines if line.startswith("| ")][1:]
    assert len(names) >= 13
    said = {name.partition(" (")[0].lower() for row in names for name in row.split(", ")}
    assert not said & set(ficoco_ext.METHODS)
    assert {"recoverable compression", "tops", "trio", "fsr", "visiontrim", "prunesid", "vitcop", "flowcut"} <= said
