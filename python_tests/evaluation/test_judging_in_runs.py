"""What a run does with what the judge leaves open, and with results of older rules."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("transformers")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from helpers.embedded import embedded, grid, one_thread  # noqa: F401

from ficoco_ext.evaluation import (
    evaluate,
    markdown,
    questions,
    settings_of,
)

TWO = settings_of(["topk", "fastv"], keep_ratios=[0.3])


def _never_sure(answer, truth):
    return None if "1" in truth or truth in ("yes", "red") else answer == truth


def test_what_the_judge_leaves_open_is_counted_apart_and_not_right(tmp_path):
    path = tmp_path / "out.json"
    found = evaluate(embedded(), grid(3, 6), TWO[:1], judge=_never_sure, results=path)
    truths = [item.answer for item in questions(grid(3, 6)).items]
    for number, line in enumerate(found.summary().lines):
        said = found.answers(number, 0)
        verdicts = [_never_sure(one, truth) for one, truth in zip(said, truths, strict=True)]
        assert line.undecided == verdicts.count(None) > 0
        assert found.tally(number).right.sum() == verdicts.count(True)
    written = json.loads(path.read_text())
    assert [one["undecided"] for one in written["summary"]["lines"]] == [one.undecided for one in found.summary().lines]
    assert "?" in written["cells"][0]["right"]
    page = markdown.page(found, found.summary())
    assert "| undecided |" in page and "undecided: answers" in page
    sure = evaluate(embedded(), grid(), TWO[:1])
    assert sure.summary().lines[0].undecided is None
    assert "undecided" not in json.dumps(sure.document) and "undecided" not in markdown.page(sure, sure.summary())


def test_a_run_judged_by_older_rules_is_not_continued(tmp_path):
    path = tmp_path / "out.json"
    evaluate(embedded(), grid(), TWO[:1], judge="contained", results=path)
    held = json.loads(path.read_text())
    del held["run"]["asking"]["rules"]
    path.write_text(json.dumps(held))
    with pytest.raises(ValueError, match="'asking' in it differs"):
        evaluate(embedded(), grid(), TWO[:1], judge="contained", results=path)
