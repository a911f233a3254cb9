"""``ficoco show``: what it finds for several methods side by side, what it prints, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import torch
import typer.testing
from helpers.embedded import one_thread  # noqa: F401
from PIL import Image

import ficoco_ext
from ficoco_ext.apps import attention_maps, checkpoint, show, word_spans
from ficoco_ext.cli.app import app

pytest.importorskip("transformers")

SCENE, QUESTION = "scene_4", "what color is the circle ?"


@pytest.fixture
def loaded(monkeypatch, embedded):
    """The embedded model, not read anew."""
    monkeypatch.setattr(show, "load_family", lambda *_: embedded)
    return embedded


def _run(*arguments):
    return typer.testing.CliRunner().invoke(app, ["show", *map(str, arguments)])


def test_methods_of_tower_language_model_and_both_side_by_side(loaded, tmp_path):
    path = tmp_path / "out.png"
    request = show.Request(
        SCENE,
        question=QUESTION,
        methods=("ficoco-v", "topk", "tome", "ficoco-l", "ficoco-vl"),
        keep_ratio=0.5,
        hyperparameters={"targets": 2},
        trace=(3, 7),
        attention=("class", "circle", "word:color:0"),
        output=path,
    )
    found = show.run(request)
    height, width = found.grid
    patches = height * width
    sides = {}
    for one in found.methods:
        assert one.left == patches // 2 == len(one.kept)
        assert one.left + one.merged + one.dropped == patches == len(one.holders)
        assert [place for place, holder in enumerate(one.holders) if holder == place] == list(one.kept)
        assert [layer.left for layer in one.layers] == sorted((layer.left for layer in one.layers), reverse=True)
        assert patches - sum(layer.merged + layer.dropped for layer in one.layers) == one.left
        assert (one.dropped == 0) == (one.method != "topk")
        assert one.hyperparameters == ({} if one.method in ("topk", "tome") else {"targets": 2})
        assert one.trace.patch == 3 * width + 7
        assert [step.layer for step in one.trace.steps] == [layer.name for layer in one.layers]
        assert sum(one.trace.shares.values()) + one.trace.dropped == pytest.approx(1)
        assert one.keep_ratio == 0.5
        assert set(one.trace.shares) <= set(one.kept)
        sides[one.method] = {layer.side for layer in one.layers}
    assert sides["ficoco-v"] == sides["topk"] == sides["tome"] == {"vision"}
    assert (sides["ficoco-l"], sides["ficoco-vl"]) == ({"text"}, {"vision", "text"})
    of_class, circle, color = found.attention
    tower = [layer.layer for one in found.methods for layer in one.layers if layer.side == "vision"]
    assert (of_class.of, of_class.side, of_class.layer) == ("class token", "vision", max(tower))
    assert (circle.of, circle.side) == ("circle", "text")
    assert (color.of, color.layer) == ("color", 0)
    for one in found.attention:
        assert len(one.patches) == patches
        assert 0 < one.on_patches < 1 and one.on_patches == pytest.approx(sum(one.patches))
    assert not hasattr(loaded.model, "ficoco_handle")
    assert found.picture == str(path)
    with Image.open(path) as picture:
        assert 1500 < picture.width < 4000
        assert picture.height > 5 * 250
    document = json.loads(json.dumps(dataclasses.asdict(found), allow_nan=False))
    assert document["methods"][0]["trace"]["steps"][0]["layer"].startswith("vision layer ")


def test_what_stays_after_the_projector(loaded, tmp_path):
    methods = ("divprune", "stride", "prune-then-merge+divprune", "divprune+ficoco-l")
    request = show.Request(SCENE, question=QUESTION, methods=methods, trace=(3, 7), output=tmp_path / "out.png")
    found = {one.method: one for one in show.run(request).methods}
    inputs = loaded.inputs(show.open_image(show.find_image(SCENE)), QUESTION)
    for name in methods:
        one = found[name]
        with ficoco_ext.attach(loaded.model, name, keep_ratio=0.25) as handle, torch.inference_mode():
            loaded.model(**inputs)
            (projection,) = handle.projections
        here = next(layer for layer in one.layers if layer.side == "projector")
        assert here.left == len(projection.kept) and here.name == "projector"
        assert one.left == len(one.kept) == 36 and one.left + one.merged + one.dropped == 144
        if "+" not in name:
            assert list(one.kept) == projection.kept.tolist() and one.dropped == 108
        assert set(one.kept) <= set(projection.kept.tolist())
        assert one.answer == _answered(loaded, name)
    assert [layer.side for layer in found["prune-then-merge+divprune"].layers] == ["vision"] * 3 + ["projector"]
    assert [layer.side for layer in found["divprune+ficoco-l"].layers] == ["projector"] + ["text"] * 5
    assert list(found["stride"].kept) == [2 + 4 * k for k in range(36)]
    assert (tmp_path / "out.png").stat().st_size > 10_000


def _answered(loaded, name):
    with ficoco_ext.attach(loaded.model, name, keep_ratio=0.25):
        return loaded.answer(show.open_image(show.find_image(SCENE)), QUESTION, 1)


def test_a_page_has_the_projector_where_a_method_acts_there(loaded, tmp_path):
    for methods, sides in (
        (("topk", "divprune"), [["vision", 7], ["projector", 1], ["text", 6]]),
        (("topk",), [["vision", 7], ["text", 6]]),
    ):
        path = tmp_path / "out.html"
        show.run(show.Request(SCENE, question=QUESTION, methods=methods, keep_ratios=(0.5,), output=path))
        data = json.loads(
            re.search(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', path.read_text(), re.S)[1]
        )
        assert data["sides"] == sides
        if "divprune" in methods:
            assert [step["layer"] for step in data["runs"][1][0]["steps"]] == [7]


def test_tables_say_after_the_projector(loaded, tmp_path):
    result = _run(SCENE, "--methods", "divprune", "-o", tmp_path / "out.png", "--question", QUESTION)
    words = " ".join(result.stdout.replace("│", " ").split())
    assert result.exit_code == 0 and "divprune after the projector 36 0 108" in words


def test_layers_of_one_method_and_of_the_others(loaded):
    request = show.Request(
        SCENE, methods=("ficoco-v", "topk", "ficoco-l"), layers={"": (1, 2), "ficoco-l": (0,)}, keep_ratio=0.5
    )
    found = show.run(request)
    where = {one.method: [(layer.side, layer.layer) for layer in one.layers] for one in found.methods}
    assert where["ficoco-v"] == where["topk"] == [("vision", 1), ("vision", 2)]
    assert where["ficoco-l"] == [("text", 0)]
    assert found.picture is None


def test_words_are_found_where_the_prompt_has_them(embedded):
    picture = checkpoint.open_image(checkpoint.find_image(SCENE))
    inputs = embedded.inputs(picture, QUESTION)
    found = word_spans.find_words(embedded, inputs, QUESTION)
    ids = inputs["input_ids"][0]
    assert list(found.words) == ["what", "color", "is", "the", "circle", "?"]
    for word, columns in found.words.items():
        assert [embedded.processor.tokenizer.decode(int(ids[column])).strip() for column in columns] == [word]
        assert min(columns) > max(found.visual)
    assert {int(ids[column]) for column in found.visual} == {embedded.model.config.image_token_id}
    twice = "is the circle above the square ?"
    again = word_spans.find_words(embedded, embedded.inputs(picture, twice), twice)
    assert again.words["the"][0] == again.words["is"][0] + 1  # the first of two


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("class", (None, None)),
        ("class:3", (None, 3)),
        ("circle", ("circle", None)),
        ("circle:2", ("circle", 2)),
        ("word:circle", ("circle", None)),
        ("word:class:0", ("class", 0)),
        ("word:12:1", ("12", 1)),
    ],
)
def test_attention_is_spelled_in_several_ways(text, wanted):
    assert attention_maps.parse(text) == wanted


@pytest.mark.parametrize("text", ["", "word:", "class:x", "class:", "class:-1", "word: :2"])
def test_attention_that_is_nothing_is_refused(text):
    with pytest.raises(ValueError, match="attention must be class, class:LAYER, word:TOKEN or word:TOKEN:LAYER"):
        attention_maps.parse(text)


def test_command_prints_json_and_draws(loaded, tmp_path):
    path = tmp_path / "out.png"
    result = _run(SCENE, "--methods", "topk,ficoco-l", "--trace", 13, "--attention", "class", "-o", path, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert [one["method"] for one in found["methods"]] == ["topk", "ficoco-l"]
    assert [one["keep_ratio"] for one in found["methods"]] == [0.25, 0.25]
    assert found["methods"][0]["trace"]["patch"] == 13
    assert found["picture"] == str(path)
    assert path.stat().st_size > 10_000


def test_command_prints_tables(loaded, tmp_path):
    options = [
        "--layers",
        "1-2",
        "--layers",
        "ficoco-l=0",
        "--set",
        "targets=3",
        "--trace",
        "2,5",
        "--question",
        QUESTION,
    ]
    result = _run(SCENE, "--methods", "ficoco-v,ficoco-l", *options, "--attention", "circle", "-o", tmp_path / "o.png")
    assert result.exit_code == 0, result.stderr
    for said in ("vision 1-2", "text 0", "patch 2,5 is", "circle", "ficoco-l", "attention of"):
        assert said in result.stdout, said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/nowhere/x.png", "image not found: /nowhere/x.png"),
        ("{text}", "cannot read image"),
        ("{half}", "cannot read image"),
        ("scene_4 --methods ficoco-v,nope", "methods must be some of ficoco-v"),
        ("scene_4 --methods topk,topk", "methods must all be different, got topk, topk"),
        ("scene_4 --keep-ratio 1.5", "--keep-ratio must be in (0, 1], got 1.5"),
        ("scene_4 --keep-ratio 0", "--keep-ratio must be in (0, 1], got 0"),
        ("scene_4 --keep-ratio few", "--keep-ratio must be numbers"),
        ("scene_4 --keep-ratio 1", "--keep-ratio 1.0 removes nothing with ficoco-v"),
        ("scene_4 --trace 12,0", "trace must be a patch of the grid of 12 x 12: ROW,COLUMN up to 11,11"),
        ("scene_4 --trace 0,-1", "got 0,-1"),
        ("scene_4 --trace 144", "or one number up to 143, got 144"),
        ("scene_4 --trace -1", "up to 143, got -1"),
        ("scene_4 --trace 1,2,3", "--trace must be ROW,COLUMN or the number of a patch, got '1,2,3'"),
        ("scene_4 --set beta=1", "none of the methods ficoco-v, topk has a hyperparameter 'beta'"),
        ("scene_4 --set lam=7", "ficoco-v: Filter: lam must be"),
        ("scene_4 --layers 99", "ficoco-v: ficoco::attach: --layers must be in"),
        ("scene_4 --layers fastv=1", "layers are given for 'fastv', which is not one of the methods"),
        ("scene_4 --layers 1 --layers 2", "--layers is given twice"),
        ("scene_4 --attention dog --question is_it", "the question has no word 'dog'; it has is_it"),
        ("scene_4 --attention class:99", "layer must be in 0 ... "),
        ("scene_4 --attention shapes:99 --question shapes", "name a layer of the language model"),
        ("scene_4 --attention class:first", "attention must be class, class:LAYER"),
        ("scene_4 --panels 0", "panels must be at least 1, got 0"),
        ("scene_4 --max-new-tokens 0", "--max-new-tokens must be at least 1, got 0"),
        ("scene_4 --keep-ratios 0.5", "--keep-ratios are for a page, whose name ends in .html or .htm"),
        ("scene_4 --output {page} --keep-ratio 0.5", "--keep-ratio is for a picture; for a page give --keep-ratios"),
        ("scene_4 --output {page} --attention class", "attention is for a picture; a page has no attention maps"),
        ("scene_4 --output {page} --panels 3", "panels is for a picture; a page has every layer"),
        ("scene_4 --output {page} --keep-ratios 0.5,1", "--keep-ratios must be in (0, 1), got 1.0"),
        ("scene_4 --output {page} --keep-ratios 0.5,0.5", "--keep-ratios must all be different, got 0.5, 0.5"),
        ("scene_4 --output {page} --keep-ratios few", "--keep-ratios must be numbers"),
        (
            "scene_4 --output {page} --keep-ratios 0.1,0.05 --methods topk,tome",
            "tome: ficoco::attach: --keep-ratio must be such that r is at most",
        ),
        ("scene_4 --output {page}/x.html", "for the page x.html"),
        ("scene_4 --output {page} --layers 99", "ficoco-v: ficoco::attach: --layers must be in"),
        ("scene_4 --output {text}", "picture must end in one of .png"),
        ("scene_4 --device tpu", "device must be"),
    ],
)
def test_mistakes_get_one_line_and_leave_no_picture(loaded, tmp_path, line, said):
    text, half, out = tmp_path / "x.txt", tmp_path / "half.png", tmp_path / "out.png"
    text.write_text("no picture")
    whole = checkpoint.find_image(SCENE).read_bytes()
    half.write_bytes(whole[: len(whole) // 2])
    arguments = line.format(text=text, half=half, page=tmp_path / "out.html").split()
    arguments += [] if "--methods" in line else ["--methods", "ficoco-v,topk"]
    arguments += [] if "--output" in line else ["-o", out]
    before = sorted(tmp_path.iterdir())
    result = _run(*arguments)
    errors = [one for one in result.stderr.splitlines() if not one.startswith(("ficoco: note:", "  because of "))]
    assert (result.exit_code, len(errors)) == (2, 1), result.stderr
    assert errors[0].startswith("ficoco: error: ") and said in errors[0]
    assert sorted(tmp_path.iterdir()) == before


def test_a_tower_without_class_token_is_named(loaded, monkeypatch):
    from ficoco_ext.models import attention_rows

    monkeypatch.setattr(attention_rows, "has_class_token", lambda tower: False)
    with pytest.raises(NotImplementedError, match="class must be a CLIP tower, which has a class token"):
        show.run(show.Request(SCENE, methods=("fastv",), attention=("class",)))
