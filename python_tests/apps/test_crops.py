"""``ficoco demo`` and ``ficoco show`` for pictures of several crops: LLaVA-NeXT, and the embedded model so dressed."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import typer.testing
from helpers.embedded import one_thread  # noqa: F401
from PIL import Image

from ficoco_ext import METHODS
from ficoco_ext.apps import checkpoint, demo, next_dress, show, word_spans
from ficoco_ext.cli.app import app
from ficoco_ext.gridvqa import GridVQA
from ficoco_ext.models.attention_rows import class_attention, word_attention

pytest.importorskip("transformers")

NEXT = "llava-next"
PATCHES, LINES = 288, 12  # of the default scene: the thumbnail's 144, and half of each of two crops
NOT_SERVED = {"downsample": "use 'stride'", "mustdrop": "pass part='language_model'"}


@pytest.fixture(scope="module")
def dressed():
    torch.set_num_threads(1)
    return next_dress.load_family(None, NEXT, torch.float32, torch.device("cpu"))


@pytest.fixture
def loaded(monkeypatch, dressed):
    """The dressed model, not made anew."""
    for module in (demo, show):
        monkeypatch.setattr(module, "load_family", lambda *_: dressed)
    return dressed


@pytest.fixture(scope="module")
def saved(dressed, tmp_path_factory):
    """The dressed model as a checkpoint of LLaVA-NeXT."""
    folder = tmp_path_factory.mktemp("next")
    dressed.model.save_pretrained(folder)
    dressed.processor.save_pretrained(folder)
    return folder


def _ficoco(*arguments):
    return typer.testing.CliRunner().invoke(app, [str(one) for one in arguments])


def test_the_dress_shares_the_trained_weights_and_answers(dressed, embedded):
    own, worn = embedded.model.state_dict(), dressed.model.state_dict()
    assert set(worn) - set(own) == {"model.image_newline"}
    assert all(torch.equal(worn[name], tensor) for name, tensor in own.items())
    assert not worn["model.image_newline"].any()
    rows = [row for row in GridVQA("dev", scenes=6, per_scene=8) if row.kind != "position"]
    right = sum(dressed.answer(row.image, row.question, 1) == row.answer for row in rows)
    assert right / len(rows) >= 0.75  # a blind guess is right in about a third


def test_a_picture_is_cut_as_the_processor_cuts_it(dressed):
    for size, grid in (((168, 168), (1, 2)), ((330, 160), (2, 1)), ((330, 330), (2, 2)), ((160, 500), (1, 3))):
        image = Image.new("RGB", size[::-1])
        crops, inputs = dressed.crops_of(image), dressed.inputs(image, "how many shapes ?")
        assert crops.grid == grid
        assert inputs["pixel_values"].shape[1] == 1 + crops.count
        assert (inputs["input_ids"] == dressed.model.config.image_token_id).sum() == crops.before


def test_the_demonstration_counts_and_answers(loaded, tmp_path):
    found = demo.run(demo.Request(family=NEXT, repeats=1, output=tmp_path / "out.png"))
    assert (found.crops.grid, found.crops.valid, found.crops.lines) == ((1, 2), (72, 72), LINES)
    assert (found.patches, found.kept, found.left) == (PATCHES, 3 * 36, 3 * 36 + LINES)
    assert found.all_tokens.tokens - found.reduced.tokens == PATCHES - found.kept
    assert [(one.entering, one.left) for one in found.layers if one.removed] == [(144, 108), (108, 72), (72, 36)]
    assert [a.reduced for a in found.answers if a.kind != "position"] == ["yes", "green", "1", "taxi", "7"]
    assert "trained on pictures of one crop" in found.notices[0]
    assert found.summary == "108 of 288 patches and 12 line ends reach the language model and its last layer"
    document = json.loads(json.dumps(dataclasses.asdict(found), allow_nan=False))
    assert document["crops"] == {"side": 12, "grid": [1, 2], "rectangle": [0, 12, 6, 18]}
    assert Image.open(tmp_path / "out.png").width > 1000


@pytest.mark.parametrize("method", [name for name in METHODS if name not in NOT_SERVED])
def test_every_method_that_is_served_is_demonstrated(loaded, method):
    found = demo.run(demo.Request(family=NEXT, method=method, repeats=1, question="what word is written ?"))
    assert 0 < found.kept <= PATCHES
    assert found.all_tokens.tokens - found.reduced.tokens == PATCHES - found.kept
    assert found.kept + LINES == found.text_layers[0].attention
    assert found.left < PATCHES + LINES


@pytest.mark.parametrize("method", NOT_SERVED)
def test_others_are_refused_with_a_remedy(loaded, method):
    with pytest.raises(NotImplementedError, match=NOT_SERVED[method]):
        demo.run(demo.Request(family=NEXT, method=method, repeats=1))


def test_what_the_data_decide_is_counted(loaded):
    request = demo.Request(family=NEXT, method="globalcom2", hyperparameters={"budget": "floor"}, repeats=1)
    found = demo.run(request)
    assert found.all_tokens.tokens - found.reduced.tokens == PATCHES - found.kept
    assert found.projected == PATCHES


def test_a_checkpoint_of_llava_next_is_loaded_and_asked(saved, dressed, tmp_path):
    image = tmp_path / "wide.png"
    Image.open(checkpoint.SCENES / "scene_2.png").resize((400, 150)).save(image)
    request = demo.Request(
        image=str(image), model=str(saved), question="how many shapes ?", max_new_tokens=1, repeats=1
    )
    found = demo.run(request)
    assert found.model == str(saved) and found.crops == dressed.crops_of(Image.open(image))
    assert found.answers[0].all_tokens == dressed.answer(Image.open(image), "how many shapes ?", 1)
    result = _ficoco(
        "show", image, "--model", saved, "--max-new-tokens", 1, "--methods", "topk", "-o", tmp_path / "s.png"
    )
    assert result.exit_code == 0, result.output
    assert "thumbnail and 1 x 3 crops of 12 x 12 patches each" in result.output


@pytest.mark.parametrize(
    ("model", "family", "message"),
    [
        (None, "llava-nxt", r"family must be one of llava-1.5, llava-next, got 'llava-nxt'; did you mean 'llava-next'"),
        ("saved", "llava-1.5", r"must be a LLaVA-1.5 checkpoint \(model_type 'llava'\), got 'llava_next'"),
        ("embedded", NEXT, r"must be a LLaVA-NeXT checkpoint \(model_type 'llava_next'\), got 'llava'"),
    ],
)
def test_a_checkpoint_of_another_family_is_refused(saved, model, family, message):
    folder = {"saved": str(saved), "embedded": str(checkpoint.EMBEDDED)}.get(model)
    with pytest.raises(ValueError, match=message):
        next_dress.load_family(folder, family, torch.float32, torch.device("cpu"))


def test_commands_for_one_crop_refuse_the_checkpoint(saved):
    result = _ficoco("bench", saved)
    assert result.exit_code != 0
    assert "must be a LLaVA-1.5 checkpoint" in result.output


def test_show_counts_crop_by_crop_and_looks_over_all_crops(loaded, tmp_path):
    path = tmp_path / "out.png"
    request = show.Request(
        "scene_6",
        family=NEXT,
        methods=("ficoco-v", "globalcom2", "ficoco-l"),
        attention=("class:3", "word:yellow:2"),
        trace=(3, 21),
        output=path,
    )
    found = show.run(request)
    assert found.grid == (12, 37) and found.picture == str(path)
    sheet = checkpoint.sheet_of(found.crops)
    for one in found.methods:
        assert one.left + one.merged + one.dropped == PATCHES == len(one.holders) - one.holders.count(-2)
        assert set(one.kept) <= set(sheet.cells) and len(one.kept) == one.left == sum(one.per_crop)
        assert one.trace.patch == 3 * 37 + 21
    of_tower, after, _ = found.methods
    assert of_tower.per_crop == (36, 36, 36)
    assert after.per_crop[0] == 36 and sum(after.per_crop) == 72  # its thumbnail has a budget of its own
    image = checkpoint.open_image(checkpoint.SCENES / "scene_6.png")
    inputs = loaded.inputs(image, found.question)
    of_class, of_word = found.attention
    rows = class_attention(loaded.model, inputs["pixel_values"][0], 3)
    for cell, (crop, patch) in zip(sheet.cells, found.crops.origins, strict=True):
        assert of_class.patches[cell] == pytest.approx(float(rows[crop, patch]) / 3)
    assert of_class.on_patches == pytest.approx(sum(of_class.patches)) and of_class.on_patches < 1
    spans = word_spans.find_words(loaded, inputs, found.question)
    visual = [place for token, place in enumerate(spans.visual) if token not in found.crops.line_ends]
    wanted = word_attention(loaded.model, inputs, visual, spans.words["yellow"], (2,))[2].tolist()
    assert [of_word.patches[cell] for cell in sheet.cells] == pytest.approx(wanted)
    assert sum(of_word.patches) == pytest.approx(sum(wanted))


def test_scores_rank_what_globalcom2_keeps_highest(loaded):
    found = show.run(show.Request("scene_6", family=NEXT, methods=("topk", "globalcom2")))
    (scores,), one = found.scores, found.methods[1]
    assert scores.name == "globalcom2: rank of scores"
    sheet = checkpoint.sheet_of(found.crops)
    side = found.crops.side
    parts = {0: range(side), 1: range(side + 1, 2 * side + 1), 2: range(2 * side + 1, 3 * side + 1)}
    for crop, columns in parts.items():
        cells = [cell for cell in sheet.cells if cell % sheet.cells_across in columns]
        best = sorted(cells, key=lambda cell: -scores.patches[cell])[: one.per_crop[crop]]
        assert sorted(best) == [cell for cell in one.kept if cell % sheet.cells_across in columns]
        assert max(scores.patches[cell] for cell in cells) == 1
    assert all(scores.patches[cell] == 0 for cell in range(len(scores.patches)) if cell not in sheet.cells)


def test_tables_name_crops_and_places(loaded, tmp_path):
    result = _ficoco(
        "show", "scene_6", "--family", NEXT, "--methods", "topk,globalcom2", "--attention", "class", "--trace", "3,21",
        "-o", tmp_path / "out.png",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    assert "144 of the canvas' 288 patches are padding; 12 line ends" in words
    assert "│ all tokens │ 144 │ 72 │ 72 │" in words and "crop 0,1" in words
    assert "│ topk │ 36 │ 36 │ 36 │" in words
    assert "patch canvas 3,8 is" in words and "canvas 9,16" in words


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output": "page.html"}, r"a page shows pictures of one crop, not those of LLaVA-NeXT; .* \.png"),
        ({"trace": (3, 14)}, r"trace must be a patch of the picture, got 3,14, where its sheet has none"),
        ({"trace": (12, 0)}, r"trace must be a patch of the grid of 12 x 37"),
    ],
)
def test_what_a_sheet_cannot_show_is_refused(loaded, tmp_path, change, message):
    if "output" in change:
        change = {"output": tmp_path / change["output"]}
    with pytest.raises(ValueError, match=message):
        show.run(show.Request("scene_6", family=NEXT, methods=("topk",), **change))
    assert not list(tmp_path.iterdir())


def test_a_geometry_has_no_family():
    with pytest.raises(ValueError, match="family does not go with geometry"):
        demo.run(demo.Request(geometry="llava-1.5-7b", family=NEXT))


def test_the_model_is_as_before(loaded):
    before = set(vars(loaded.model.model))
    demo.run(demo.Request(family=NEXT, method="ficoco-vl", repeats=1, question="how many shapes ?"))
    assert set(vars(loaded.model.model)) == before
    assert not hasattr(loaded.model, "ficoco_handle")
