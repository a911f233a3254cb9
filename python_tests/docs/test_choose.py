"""What the page on choosing says of tasks and of text-aware methods is true of the methods that it names."""

from __future__ import annotations

import re

import pytest
from helpers.paths import DOCS

from ficoco_ext import METHODS, get_method
from ficoco_ext.cost import published
from ficoco_ext.stages.needs import TEXT

PAGE = (DOCS / "choose.md").read_text()


def section(title):
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def names(text):
    return re.findall(r'`"([\w+-]+)"`', text)


@pytest.mark.parametrize("title", ["By task", "A choice made for one question"])
def test_named_methods_are_there(title):
    assert len(names(section(title))) >= 3
    assert set(names(section(title))) <= set(METHODS)


def test_the_methods_named_as_text_aware_are_those_that_read_the_prompt():
    """In the language model, or words; a method of both parts, such as FiCoCo-VL, is named by its part."""
    aware = {
        name
        for name, method in ((name, get_method(name)) for name in METHODS)
        if (method.language_model is not None and method.tower is None) or TEXT in method.needs
    }
    assert set(names(section("A choice made for one question"))) == aware


def test_methods_for_several_questions_and_servers_read_no_text():
    """Whatever the rows name: nothing in the language model."""
    rows = [
        line
        for line in section("By task").splitlines()
        if line.startswith(("| one picture", "| on a server", "| docu"))
    ]
    assert len(rows) == 3
    for name in (name for row in rows for name in names(row)):
        method = get_method(name)
        assert method.language_model is None and TEXT not in method.needs


def test_losses_of_documents():
    """From the table in one harness: 94.9 and 85.3 unreduced, at a quarter of the tokens, training-free."""
    (table,) = [one for one in published.tables() if one.id == "same harness"]
    free = [values for method, _, values in table.rows if "trained" not in method]
    best = max(free, key=lambda values: values[0])
    worst = min(values[1] for values in free), min(values[2] for values in free)
    words = section("By task")
    assert (round(94.9 - best[1], 1), round(85.3 - best[2])) == (9.5, 24)
    assert (round(94.9 - worst[0]), round(85.3 - worst[1])) == (23, 42)
    assert "9.5 of 95 points of DocVQA and 24 of 85 of OCRBench" in words and "others up to 23 and 42" in words


def test_losses_of_video():
    (table,) = [one for one in published.tables() if one.id == "video"]
    quarter = [values[0] for *_, values in table.rows if values[0] is not None]
    assert round(100 - min(quarter)) == 7 and max(quarter) > 100
    assert "lose 0 to 7 %" in section("By task")
