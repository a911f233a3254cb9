"""The demonstration of methods in the language model: its staircase, caches, FLOPs by hand, and the picture."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from helpers.embedded import (
    LAYERS,
    MLP,
    PATCHES,
    PIXELS,
    TEXT_MLP,
    VOCABULARY,
    WIDTH,
    one_thread,  # noqa: F401
)
from PIL import Image

from ficoco_ext import viz
from ficoco_ext.apps import demo, timing
from ficoco_ext.cli import demo as demo_command
from ficoco_ext.schedule import Schedule

METHODS = ("ficoco-l", "ficoco-vl", "fastv", "pyramiddrop")
QUESTION = "what word is written ?"
# Visual tokens in every layer's attention, and in its MLP.
LENGTHS = {
    "ficoco-v": ((36,) * 6, (36,) * 6),
    "ficoco-l": ((144, 144, 122, 100, 78, 56), (144, 122, 100, 78, 56, 36)),
    "ficoco-vl": ((72, 72, 64, 56, 48, 40), (72, 64, 56, 48, 40, 36)),
    "fastv": ((144, 144, 72, 72, 72, 72), (144, 72, 72, 72, 72, 72)),
    "pyramiddrop": ((144, 72, 72, 36, 18, 18), (144, 72, 72, 36, 18, 18)),
}


@pytest.fixture(scope="module")
def results():
    torch.set_num_threads(1)
    return {
        method: demo.run(demo.Request(method=method, question=QUESTION, repeats=1)) for method in ("ficoco-v", *METHODS)
    }


@pytest.mark.parametrize("method", LENGTHS)
def test_staircase_and_caches_of_the_language_model(results, method):
    found = results[method]
    attention, mlp = LENGTHS[method]
    assert tuple(layer.attention for layer in found.text_layers) == attention
    assert tuple(layer.mlp for layer in found.text_layers) == mlp
    before = (attention[0], *mlp[:-1])
    assert [layer.removed for layer in found.text_layers] == [a - b for a, b in zip(before, mlp, strict=True)]
    assert found.left == mlp[-1]
    words = found.all_tokens.tokens - PATCHES
    # Measured on the cache, keys and values of every layer: what entered its attention, and the text.
    assert [layer.kv_bytes for layer in found.text_layers] == [2 * (n + words) * WIDTH * 4 for n in attention]
    assert {layer.kv_bytes_all for layer in found.text_layers} == {2 * (PATCHES + words) * WIDTH * 4}
    assert found.reduced.kv_bytes == sum(layer.kv_bytes for layer in found.text_layers)
    assert found.all_tokens.kv_bytes == sum(layer.kv_bytes_all for layer in found.text_layers)
    assert found.reduced.tokens == attention[0] + words
    tower = sum(layer.removed for layer in found.layers)
    assert tower == PATCHES - found.kept == {"ficoco-v": 108, "ficoco-vl": 72}.get(method, 0)


def _decoder_by_hand(attention, mlp, words, again=()):
    """FLOPs of the language model; ``again``: tokens on which a layer runs its projections a second time."""
    total = sum(8 * n * WIDTH * WIDTH for n in again)
    for a, m in zip(attention, mlp, strict=True):
        total += 8 * (a + words) * WIDTH * WIDTH + 4 * (a + words) ** 2 * WIDTH + 6 * (m + words) * WIDTH * TEXT_MLP
    return total


def _tower_by_hand(found):
    total = 2 * PATCHES * PIXELS * WIDTH
    for layer in found.layers:
        n, m = 1 + layer.entering, 1 + layer.left
        total += 8 * n * WIDTH * WIDTH + 4 * n * n * WIDTH + 4 * m * WIDTH * MLP
    assert len(found.layers) == LAYERS
    return total


@pytest.mark.parametrize("method", LENGTHS)
def test_flops_add_up_and_each_part_is_without_our_operators(results, method):
    found = results[method]
    words = found.all_tokens.tokens - PATCHES
    attention, mlp = LENGTHS[method]
    again = [n + words for n in (144, 72, 36)] if method == "pyramiddrop" else []
    cost = found.reduced.flops
    assert cost.tower == _tower_by_hand(found)
    assert cost.decoder == _decoder_by_hand(attention, mlp, words, again)
    assert cost.projector == 4 * found.kept * WIDTH * WIDTH
    assert cost.head == 2 * WIDTH * VOCABULARY
    assert cost.reduction > 0
    for one in (cost, found.all_tokens.flops):
        assert one.total == one.tower + one.reduction + one.projector + one.decoder + one.head
    assert found.all_tokens.flops.reduction == 0


def test_reduction_of_both_sides_is_counted(results):
    vision, text, both = (results[name].reduced.flops for name in ("ficoco-v", "ficoco-l", "ficoco-vl"))
    assert vision.tower < text.tower == results["ficoco-l"].all_tokens.flops.tower
    assert text.decoder < results["ficoco-l"].all_tokens.flops.decoder
    assert min(vision.reduction, text.reduction) < both.reduction < vision.reduction + text.reduction


def test_defaults_of_the_amount(results):
    amounts = {method: found.amount for method, found in results.items()}
    assert amounts["fastv"] == {"keep_ratio": 0.5}
    assert amounts["pyramiddrop"] == {"keep_ratio": (0.5, 0.25, 0.125)}
    assert amounts["ficoco-v"] == amounts["ficoco-l"] == amounts["ficoco-vl"] == {"keep_ratio": 0.25}
    assert json.loads(json.dumps(dataclasses.asdict(results["pyramiddrop"]), allow_nan=False))["left"] == 18


def test_summary_says_how_many_are_left_in_the_last_layer(results):
    end = "36 visual tokens are left in its last layer"
    assert results["ficoco-l"].summary == f"144 of 144 patches reach the language model, {end}"
    assert results["ficoco-vl"].summary == f"72 of 144 patches reach the language model, {end}"
    assert results["ficoco-v"].summary == "36 of 144 patches reach the language model and its last layer"


@pytest.mark.parametrize(
    ("change", "kept", "left"),
    [
        ({"method": "ficoco-l", "layers": (0, 3), "amount": {"tokens": 30}}, 144, 30),
        ({"method": "ficoco-l", "amount": {"r": (5, 6, 7, 0, 0)}}, 144, 126),
        ({"method": "fastv", "hyperparameters": {"layer": 1}, "amount": {"keep_ratio": 0.25}}, 144, 36),
        ({"method": "ficoco-vl", "amount": {"vision": {"keep_ratio": 0.5}, "decoder": {"keep_ratio": 0.5}}}, 72, 36),
        ({"method": "ficoco-vl", "amount": {"tokens": 9}}, 36, 9),
    ],
)
def test_amounts_and_layers_go_to_the_side_that_the_method_reduces(change, kept, left):
    found = demo.run(demo.Request(question=QUESTION, repeats=1, **change))
    assert (found.kept, found.left) == (kept, left)
    if "layers" in change:
        assert [layer.layer for layer in found.text_layers if layer.removed] == list(change["layers"])


def _right(method, **change):
    found = demo.run(demo.Request(method=method, question=QUESTION, repeats=1, all_samples=True, **change))
    assert found.samples.all_tokens_right == 46
    return found.samples.reduced_right, any("says little" in note for note in found.notices)


@pytest.mark.parametrize(("method", "least"), [("ficoco-l", 31), ("ficoco-vl", 27), ("pyramiddrop", 42)])
def test_answers_stay_right_with_a_quarter_of_the_tokens(method, least):
    right, notice = _right(method)
    assert right >= least
    assert notice == (method == "pyramiddrop")


def test_what_the_demonstration_says_of_its_own_model_is_true():
    """It has read most of the picture after two text layers, and not after one."""
    (one, early), (two, late) = (
        _right("fastv", amount={"tokens": 1}, hyperparameters={"layer": layer}) for layer in (1, 2)
    )
    assert one < 24 and not early
    assert two > 38 and late


@pytest.mark.parametrize("method", METHODS)
def test_picture_tells_every_patch_of_tower_and_language_model(tmp_path, monkeypatch, method):
    drawn = {}
    overview = viz.overview

    def watch(image, reductions, **options):
        drawn.update(options, reductions=reductions)
        return overview(image, reductions, **options)

    monkeypatch.setattr(viz, "overview", watch)
    path = tmp_path / "out.png"
    found = demo.run(demo.Request(method=method, question=QUESTION, repeats=1, output=path))
    assert found.picture == str(path)
    records = drawn["reductions"]
    gone = viz.removal_layers(records, drawn["layers"])
    names = [("vision ", layer) for layer in found.layers] if method == "ficoco-vl" else []
    names += [("text " if method == "ficoco-vl" else "", layer) for layer in found.text_layers]
    removed = {f"{side}{layer.layer}": layer.removed for side, layer in names if layer.removed}
    assert {str(layer): gone.count(layer) for layer in drawn["layers"]} == removed
    assert gone.count(None) == found.left
    held = viz.holders(records[-1])
    assert [i for i, holder in enumerate(held) if holder == i] == [i for i, layer in enumerate(gone) if layer is None]
    assert held.count(-1) == (0 if method.startswith("ficoco") else PATCHES - found.left)
    assert float(records[-1].size.sum()) == pytest.approx(PATCHES - held.count(-1))
    assert drawn["stages"]
    assert f"{found.left} visual tokens are left in its last layer" in drawn["title"]
    with Image.open(path) as picture:
        assert picture.height > 1000


def test_geometry_of_a_language_model_that_reduces(monkeypatch):
    monkeypatch.setitem(timing.GEOMETRIES, "llava-1.5-7b", timing.TextShape(32, hidden=64, heads=2, mlp=96))
    request = demo.Request(
        geometry="llava-1.5-7b", vision_layers=2, text_layers=4, text_tokens=7, repeats=1, method="ficoco-l"
    )
    found = demo.run(request)
    assert (found.patches, found.kept, found.left) == (576, 576, 144)
    wanted = Schedule.build(576, layers=(1, 2, 3), keep_ratio=0.25)
    assert tuple(layer.attention for layer in found.text_layers) == wanted.tokens_entering(4)
    assert [layer.kv_bytes for layer in found.text_layers] == [2 * (n + 7) * 64 * 4 for n in wanted.tokens_entering(4)]
    assert [layer.layer for layer in found.text_layers] == [0, 1, 2, 3]


THREE = {"vision": {"tokens": 100}, "projector": {"tokens": 50}, "decoder": {"tokens": 20}}


def _printed(result, capsys):
    """What the command prints of it, without lines and columns."""
    demo_command.show(result)
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_what_is_left_after_the_projector(tmp_path, capsys):
    path = tmp_path / "out.png"
    found = demo.run(demo.Request(method="divprune", repeats=1, output=path))
    assert (found.patches, found.projected, found.kept, found.left) == (144, 144, 36, 36)
    assert found.all_tokens.tokens - found.reduced.tokens == 108
    assert found.reduced.flops.tower == found.all_tokens.flops.tower and found.reduced.flops.reduction > 0
    assert found.picture == str(path) and path.stat().st_size > 10_000
    text = _printed(found, capsys)
    assert "After the projector: 36 of 144 visual tokens are left." in text and "vision layer" not in text
    both = demo.run(demo.Request(method="topk+divprune+fastv", repeats=1, amount=THREE))
    assert (both.projected, both.kept, both.left) == (100, 50, 20)
    assert both.summary.startswith("50 of 144 patches reach the language model, 20 visual tokens are left")
    text = _printed(both, capsys)
    assert "vision layer" in text and "After the projector: 50 of 100" in text and "text layer" in text
    plain = demo.run(demo.Request(method="topk", repeats=1))
    assert plain.projected is None and "After the projector" not in _printed(plain, capsys)
