"""The fit of FitPrune's recipe: what is measured against loops, the rule against lists, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import typer.testing
from helpers.decoder import tiny
from helpers.models import batch, image, one_thread, snapshot, words  # noqa: F401
from helpers.text_methods import head_maps

pytest.importorskip("transformers")

import ficoco_ext
from ficoco_ext import QueryKey
from ficoco_ext.apps.fitting import Recipe, Sums, counts, fit, measure, recipe_of
from ficoco_ext.cli.app import app
from ficoco_ext.cost import architecture, prefill
from ficoco_ext.models import attention_tap
from ficoco_ext.models.layer_watch import watching
from ficoco_ext.models.model_changes import ModelChanges
from ficoco_ext.schedule import Schedule

ONE = [*words(1, 2), *image(), *words(3, 4, 5)]
OTHER = [*words(6), *image(), *words(7, 8)]
TWO = [*words(6), *image(), *words(7), *image(), *words(8, 9)]
TEXT = words(11, 12, 13, 14)


@pytest.fixture(scope="module")
def model():
    return tiny(seed=51)


def tapped(model, inputs):
    """Query and key of every layer of the model as it is."""
    changes, found = ModelChanges(), []
    for layer in model.model.language_model.layers:
        attention_tap.install(layer.self_attn, changes, found.append)
    with torch.no_grad():
        model(**inputs)
    changes.undo()
    return found


def by_hand(attn, row, visual, text, real):
    """What each visual token of one row receives from the visual tokens, a mean, and from the text, a sum."""
    strongest = head_maps(QueryKey(*(x[row : row + 1] for x in attn[:2]), attn.scale), real[row : row + 1])[0].amax(0)
    among = strongest[visual][:, visual].mean(0)
    return among, strongest[text][:, visual].sum(0)


@pytest.mark.parametrize("rows", [[ONE], [ONE, OTHER], [OTHER, TEXT]])
def test_measured_sums_by_hand(model, rows):
    """With left padding and a row of text alone."""
    inputs = batch(*rows)
    layers, sums = measure(model, [inputs])
    ids, real = inputs["input_ids"], inputs["attention_mask"].bool()
    pictured = [row for row in range(len(rows)) if (ids[row] == 3).any()]
    assert layers == range(4) and len(sums) == len(pictured)
    for layer, attn in enumerate(tapped(model, inputs)):
        for one, row in zip(sums, pictured, strict=True):
            visual = (ids[row] == 3).nonzero()[:, 0].tolist()
            text = list(range(visual[-1] + 1, ids.shape[1]))
            among, cross = by_hand(attn, row, visual, text, real)
            assert torch.allclose(one.visual[layer], among, atol=1e-6)
            assert torch.allclose(one.text[layer], cross, atol=1e-6)
            assert one.words == len(rows[row]) - 36


def test_rows_with_unequal_pictures_are_measured_apart(model):
    """In one batch as alone."""
    inputs = batch(ONE, TWO, OTHER)
    _, together = measure(model, [inputs])
    own = {0: slice(0, 1), 2: slice(3, 4), 1: slice(1, 3)}  # pictures of each row, those with fewer tokens first
    rows = [batch((ONE, TWO, OTHER)[row]) | {"pixel_values": inputs["pixel_values"][of]} for row, of in own.items()]
    alone = [measure(model, [row])[1][0] for row in rows]
    for one, other in zip(together, alone, strict=True):
        assert torch.allclose(one.visual, other.visual, atol=1e-6) and torch.allclose(one.text, other.text, atol=1e-6)
        assert one.words == other.words


def test_measuring_leaves_the_model_as_it_was(model):
    inputs = batch(ONE, OTHER)
    with torch.no_grad():
        plain = model(**inputs).logits
        before = snapshot(model)  # after a call: transformers keeps something in its tower
        measure(model, [inputs])
        assert torch.equal(model(**inputs).logits, plain)
    assert snapshot(model) == before
    with pytest.raises(RuntimeError, match="stop"), watching(model, lambda *_: None):
        raise RuntimeError("stop")
    assert snapshot(model) == before


def drawn(seed=0, samples=3, layers=4, n=30):
    generator = torch.Generator().manual_seed(seed)
    made = lambda: torch.rand(layers, n, generator=generator, dtype=torch.float64) ** 3  # noqa: E731
    return [Sums(made(), made(), 9 + number) for number in range(samples)]


def removed_by_hand(one, alpha):
    left, out = list(range(one.visual.shape[1])), []
    for visual, text in zip(one.visual.tolist(), one.text.tolist(), strict=True):
        may = []
        for received in (visual, text):
            gone = []
            for token in sorted(left, key=lambda k: received[k]):
                rest = sum(received[k] for k in left if k not in (*gone, token))
                if rest < sum(received) * (1 - alpha):
                    break
                gone.append(token)
            may.append(set(gone))
        leave = may[0] & may[1]
        if len(leave) == len(left):
            leave.remove(max(left, key=lambda k: visual[k] * text[k]))
        out.append(len(leave))
        left = [k for k in left if k not in leave]
    return out


@pytest.mark.parametrize("alpha", [0.0, 0.03, 0.2, 0.5, 0.9, 1.0])
def test_the_rule_by_hand(alpha):
    sums = drawn()
    each = [removed_by_hand(one, alpha) for one in sums]
    wanted = tuple(sum(column) // len(sums) for column in zip(*each, strict=True))
    assert counts(sums, alpha) == wanted
    assert sum(wanted) <= 29 and (alpha == 0) == (sum(wanted) == 0)


def saved(shape, layers, r, visual, text):
    given = {"visual_tokens": visual, "text_tokens": text}
    parts = {"include_tower": False, "include_projector": False, "include_head": False}
    few = prefill(shape, decoder=Schedule(visual, layers, r), **given, **parts)
    return 1 - few.total.operations / prefill(shape, **given, **parts).total.operations


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5])
def test_the_smallest_alpha_that_saves_enough(model, ratio):
    shape, sums = architecture(model.config), drawn(seed=1)
    recipe = recipe_of(sums, range(4), shape, ratio)
    assert recipe.r == counts(sums, recipe.alpha) and recipe.text_tokens == 10 and recipe.samples == 3
    assert recipe.saved == pytest.approx(saved(shape, recipe.layers, recipe.r, 30, 10))
    assert saved(shape, recipe.layers, counts(sums, recipe.alpha - 0.01), 30, 10) < ratio <= recipe.saved


def test_a_recipe_is_what_attach_takes(model):
    recipe = fit(model, [batch(ONE), batch(OTHER)], 0.3)
    assert isinstance(recipe, Recipe) and recipe.layers == (0, 1, 2, 3) and recipe.visual_tokens == 36
    inputs = batch(ONE)
    with torch.no_grad(), ficoco_ext.attach(model, "fitprune", r=recipe.r, layers=recipe.layers) as handle:
        out = model(**inputs)
        assert handle.plan.schedule(36).r == recipe.r
    assert out.logits.shape[1] == len(ONE) - sum(recipe.r)
    assert json.loads(json.dumps(recipe.document()))["r"] == list(recipe.r)


def test_layers_after_deepstack_alone_are_fitted():
    from helpers.decoder_families import DECODERS

    make, inputs_of, wide, _ = DECODERS["Qwen3-VL"]
    model = make()
    recipe = fit(model, [inputs_of(model, [[*words(1), wide, *words(2, 3)]])], 0.1)
    assert recipe.layers[0] == 1 and len(recipe.r) == len(recipe.layers)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda model: fit(model, [], 0.3), "samples must be at least one prompt with a picture, got none"),
        (lambda model: fit(model, [batch(TEXT, images=0)], 0.3), "samples must be prompts with pictures, got none in"),
        (lambda model: fit(model, [batch(ONE), batch(TWO)], 0.3), "equally many visual tokens, got 36 and 72"),
        (lambda model: fit(model, [batch(ONE)], 1.0), r"ratio must be a number in \(0, 1\), got 1.0"),
        (lambda model: fit(model, [batch(ONE)], 0.99), "ratio must be at most 0.[0-9]+ for prompts of 36 visual"),
    ],
)
def test_what_cannot_be_fitted_is_refused(model, call, said):
    with pytest.raises(ValueError, match=said):
        call(model)


def test_an_attached_model_is_refused(model):
    with ficoco_ext.attach(model, "fastv"), pytest.raises(ValueError, match="call its detach"):
        fit(model, [batch(ONE)], 0.3)


def run(line):
    return typer.testing.CliRunner().invoke(app, line.split())


def test_the_command_writes_what_it_says(tmp_path):
    file = tmp_path / "recipe.json"
    found = run(f"fit --samples 3 --ratio 0.3 -o {file} --json")
    said, written = json.loads(found.stdout), json.loads(file.read_text())
    assert said["schema"] == "ficoco-fit/1" and said["samples"] == 3 and said["saved"] >= 0.3
    assert {name: said[name] for name in written} == written
    assert said["attach"] == f'ficoco_ext.attach(model, "fitprune", r={written["r"]}, layers=range(0, 6))'
    shown = run("fit --samples 3 --ratio 0.3").stdout
    assert "visual tokens" in shown and said["attach"] in shown


def test_the_command_reads_questions_of_a_file(tmp_path):
    from ficoco_ext.apps.checkpoint import SCENES

    shutil.copy(SCENES / "scene_0.png", tmp_path)
    rows = [
        {"image": "scene_0.png", "question": f"is there a {name} ?", "answer": "no"}
        for name in ("star", "ring", "cross")
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = json.loads(run(f"fit --data {tmp_path / 'rows.jsonl'} --samples 2 --ratio 0.3 --json").stdout)
    assert found["samples"] == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("fit --samples 0", "--samples must be at least 1, got 0"),
        ("fit --ratio 2", "--ratio must be a number in (0, 1), got 2.0"),
        ("fit -o nowhere/recipe.json", "no folder"),
        ("fit --data nowhere.jsonl", "data file not found"),
    ],
)
def test_mistakes_on_the_command_line(line, said):
    found = run(line)
    assert found.exit_code == 2 and said in " ".join(found.output.split())
