"""``ficoco show``: the answers that it prints, and the page that it writes."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import typer.testing
from helpers.pages import known

from ficoco_ext.apps import checkpoint, show
from ficoco_ext.cli.app import app
from ficoco_ext.models import attach
from ficoco_ext.viz.page import data
from ficoco_ext.viz.traces import holders

pytest.importorskip("transformers")

SCENE, QUESTION, TRUTH = "scene_6", "is there a yellow circle ?", "yes"
METHODS = ("ficoco-v", "fastv", "tome")


@pytest.fixture(autouse=True)
def _one_thread(_reproducible):
    torch.set_num_threads(1)  # layers this small only wait for each other on two


@pytest.fixture(scope="module")
def embedded():
    torch.set_num_threads(1)
    return checkpoint.load(None, torch.float32, torch.device("cpu"))


@pytest.fixture
def loaded(monkeypatch, embedded):
    """The embedded model, not read anew."""
    monkeypatch.setattr(show, "load_family", lambda *_: embedded)
    return embedded


def _answer(embedded, question, method=None, ratio=None):
    """What the model says, asked here."""
    image = checkpoint.open_image(checkpoint.find_image(SCENE))
    if method is None:
        return embedded.answer(image, question, 1)
    with attach(embedded.model, method, keep_ratio=ratio):
        return embedded.answer(image, question, 1)


def _run(*arguments):
    return typer.testing.CliRunner().invoke(app, ["show", *map(str, arguments)])


def test_answers_are_those_of_the_model(loaded):
    found = show.run(show.Request(SCENE, question=QUESTION, methods=("topk", "fastv"), keep_ratio=0.1))
    assert (found.truth, found.answer) == (TRUTH, _answer(loaded, QUESTION))
    assert found.right is (found.answer == TRUTH)
    for one in found.methods:
        assert one.answer == _answer(loaded, QUESTION, one.method, 0.1)
        assert one.right is (one.answer == TRUTH)
    assert len({found.answer, *(one.answer for one in found.methods)}) > 1  # else they could be mixed up
    assert (found.picture, found.page, found.refused) == (None, None, ())
    unknown = show.run(show.Request(SCENE, question="is there a star ? ?", methods=("topk",)))
    assert (unknown.truth, unknown.right, unknown.methods[0].right) == (None, None, None)


def test_the_table_has_the_question_and_every_answer(loaded, tmp_path):
    result = _run(SCENE, "--methods", "topk,fastv", "--question", QUESTION, "-o", tmp_path / "out.png")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert f"question: {QUESTION}" in lines and f"known answer: {TRUTH}" in lines
    rows = {line.split("│")[1].strip(): line for line in lines if line.startswith("│")}
    for name, method in (("all tokens", None), ("topk", "topk"), ("fastv", "fastv")):
        answer = _answer(loaded, QUESTION, method, 0.25)
        assert f" {answer} ({'right' if answer == TRUTH else 'wrong'}) " in rows[name]
    assert " 144 " in rows["all tokens"]


def test_a_page_holds_what_was_found(loaded, tmp_path):
    path = tmp_path / "out.html"
    request = show.Request(SCENE, question=QUESTION, methods=METHODS, keep_ratios=(0.1, 0.5), trace=(2, 5), output=path)
    notes = []
    result = show.run(request, notice=notes.append)
    assert (result.page, result.picture) == (str(path), None)
    assert [(one.method, one.keep_ratio) for one in result.refused] == [("tome", 0.1)]
    assert (
        "keep_ratio must be such that r is at most" in result.refused[0].reason and result.refused[0].reason in notes[0]
    )
    found = known(path.read_text("utf-8"))
    assert [found["methods"], found["ratios"], found["selected"]] == [list(METHODS), [0.5, 0.1], 2 * 12 + 5]
    assert [found["grid"], found["sides"]] == [[12, 12], [["vision", 7], ["text", 6]]]
    assert [found["question"], found["truth"]] == [QUESTION, TRUTH]
    assert found["answer"] == {"text": result.answer, "right": result.right}
    assert "scene_6.png" in found["about"] and str(tmp_path) not in path.read_text("utf-8")
    assert found["runs"][2][1] == {"refused": result.refused[0].reason}
    starts = {"vision": 0, "text": 7}
    for one in result.methods:
        run = found["runs"][METHODS.index(one.method)][[0.5, 0.1].index(one.keep_ratio)]
        assert run["answer"] == {"text": one.answer, "right": one.right}
        assert [step["layer"] for step in run["steps"]] == [starts[at.side] + at.layer for at in one.layers]
        held = list(range(144))
        for step in run["steps"]:
            first = {source: target for source, target, *_ in step["moves"]}
            held = [first.get(at, at) for at in held]
        assert held == list(one.holders)
        assert run["colours"].count(".") < 144 or one.method == "fastv"
    json.dumps(dataclasses.asdict(result), allow_nan=False)


def test_records_of_the_page_are_those_of_the_model(loaded, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(data, "record", lambda run, *rest, _record=data.record: seen.append(run) or _record(run, *rest))
    path = tmp_path / "out.html"
    options = {"methods": ("ficoco-v", "ficoco-l"), "hyperparameters": {"targets": 3}}
    result = show.run(show.Request(SCENE, keep_ratios=(0.3,), output=path, **options))
    assert [len(run.reductions[-1].weights[0, 0]) for run in seen] == [3, 3]
    assert [tuple(holders(run.reductions[-1])) for run in seen] == [one.holders for one in result.methods]
    sums = {
        sum(move[2::2]) for run in known(path.read_text())["runs"] for step in run[0]["steps"] for move in step["moves"]
    }
    assert 1_000_000 in sums and sums <= {0, 1_000_000}


def test_command_writes_a_page(loaded, tmp_path):
    path = tmp_path / "out.HTM"
    result = _run(SCENE, "--methods", "topk,tome", "--keep-ratios", "0.5,0.1", "-o", path, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["page"], found["picture"]) == (str(path), None)
    assert [(one["method"], one["keep_ratio"]) for one in found["methods"]] == [
        ("topk", 0.5),
        ("topk", 0.1),
        ("tome", 0.5),
    ]
    assert found["refused"][0]["method"] == "tome"
    assert known(path.read_text("utf-8"))["ratios"] == [0.5, 0.1]
    result = _run(SCENE, "--methods", "topk,tome", "-o", path, "--trace", "1,1")
    assert result.exit_code == 0, result.stderr
    assert known(path.read_text("utf-8"))["ratios"] == [0.5, 0.25, 0.1]  # where none are given
    assert f"page {path}" in result.stdout.splitlines()
    assert "cannot be run" in result.stdout and "topk at 0.25" in result.stdout
    assert "note: tome cannot be run at keep ratio 0.1, which the page says: " in result.stderr
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_page_does_not_replace_the_picture_that_is_read(loaded, tmp_path):
    picture = tmp_path / "in.html"
    picture.write_bytes(checkpoint.find_image(SCENE).read_bytes())
    result = _run(picture, "-o", picture)
    assert (result.exit_code, "would be overwritten" in result.stderr) == (2, True)
    assert picture.read_bytes() == checkpoint.find_image(SCENE).read_bytes()
