"""The figure of a comparison: what its panels say, that no text lies on another, that a file is whole or not there."""

from __future__ import annotations

import colorsys
import itertools

import pytest
import torch
from helpers.pictures import chain, picture
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from ficoco_ext import viz
from ficoco_ext.viz.colours import group_colours, mean_colours, neighbours, patch_means
from ficoco_ext.viz.traces import groups, holders, trace


def story(method, grid=(6, 6), layers=2, patch=None, **options):
    told = chain((method,) * layers, grid, batch=1, ratio=0.5, **options)
    names = [f"vision layer {12 + i}" for i in range(layers)]
    return viz.Story(method, told, names, None if patch is None else trace(told, patch, layers=names))


def hue_distance(a, b):
    difference = abs(colorsys.rgb_to_hls(*a)[0] - colorsys.rgb_to_hls(*b)[0])
    return min(difference, 1 - difference)


@pytest.mark.parametrize("grid", [(6, 6), (4, 9), (12, 12)])
def test_groups_have_colours_of_their_own_and_touching_ones_differ_much(grid):
    told = chain(("ficoco-v",) * 2, grid, ratio=0.5)[-1]
    held, members = holders(told), groups(told)
    colours = group_colours(held, list(members), grid)
    assert set(colours) == set(members)
    assert len({tuple(round(x, 3) for x in colour) for colour in colours.values()}) == len(members)
    touching = neighbours(held, grid)
    most = max(len(touching[holder] & set(members)) for holder in members)  # a greedy colouring needs at most one more
    pairs = [(a, b) for a in members for b in touching[a] & set(members)]
    assert pairs
    assert min(hue_distance(colours[a], colours[b]) for a, b in pairs) >= 0.4 / (most + 1) - 1e-9


def test_a_group_that_touches_many_differs_from_all():
    held = [place // 2 * 2 for place in range(20)] + [20] * 20  # 2 x 20: ten pairs on one long group
    colours = group_colours(held, sorted(set(held)), (2, 20))
    assert len(set(colours.values())) == 11
    others = [colour for holder, colour in colours.items() if holder != 20]
    assert min(hue_distance(colours[20], colour) for colour in others) >= 0.2 / 1.5 - 1e-9  # pairs touch each other too


def test_neighbours_share_an_edge():
    held = [0, 0, 2, 3, -1, 2]  # 2 x 3
    assert neighbours(held, (2, 3)) == {0: {2, 3}, 2: {0}, 3: {0}}


def test_groups_are_filled_with_the_mean_of_their_pixels():
    import numpy as np

    image = picture((4, 6))
    pixels = np.asarray(image, dtype=float) / 255
    wanted = pixels.reshape(4, 14, 6, 14, 3).mean((1, 3))
    assert abs(patch_means(image, (4, 6)) - wanted).max() < 0.005
    got = mean_colours(image, {3: [3, 8, 20]}, (4, 6))[3]
    assert got == pytest.approx(wanted.reshape(-1, 3)[[3, 8, 20]].mean(0), abs=0.005)


def texts(figure):
    """Everything written in a figure with its box, in pixels."""
    FigureCanvasAgg(figure).draw()
    renderer = figure.canvas.get_renderer()
    found = [*figure.texts, *figure.legends[0].get_texts()]
    for axes in figure.axes:
        found += [axes.title, axes._left_title, axes.xaxis.label]
    return [(text.get_text(), text.get_window_extent(renderer)) for text in found if text.get_text()]


@pytest.mark.parametrize("grid", [(12, 12), (24, 24), (5, 14), (14, 5)])
@pytest.mark.parametrize("many", [False, True])
def test_no_text_lies_on_another_or_outside(grid, many):
    patch = grid[0] * grid[1] // 2
    stories = [story("ficoco-v", grid, 9 if many else 1, patch, ficoco_v={"targets": 3})]
    if many:
        stories += [story("topk", grid, 3, patch), story("tome", grid, 3, patch)]
    heats = [viz.Heat("Word 'refrigerator', text layer 31", torch.rand(grid[0] * grid[1]).tolist())] * (1 + many)
    figure = viz.comparison(
        picture(grid), stories, heats=heats, title="a model, a picture, and a question that is quite long " * 3
    )
    boxes = texts(figure)
    assert len(boxes) > 8
    width, height = figure.bbox.width, figure.bbox.height
    for text, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert not (a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1), (one, other)


def test_panels_say_method_layer_and_counts(tmp_path):
    stories = [story("ficoco-v", layers=3, patch=0), story("topk", layers=1, patch=0)]
    figure = viz.comparison(picture(), stories, title="two methods")
    said = [text for text, _ in texts(figure)]
    assert {"two methods", "ficoco-v", "topk", "Merge groups", "What is left", "Patch 0,0 in the end"} <= set(said)
    assert "36 -> 18 patches; 18 dropped" in said
    for step, name in zip(stories[0].reductions, stories[0].layers, strict=True):
        assert f"After {name}: {step.kept.shape[1] - 1} left" in said
        assert f"{step.sources.shape[1]} merged here" in said
    assert said.count("18 dropped here") == 1
    assert {"merged before", "dropped in this layer", "the traced patch"} <= set(said)
    viz.save(figure, tmp_path / "out.png")
    drawn = Image.open(tmp_path / "out.png")
    assert 1200 < drawn.width < 3400 and 800 < drawn.height < 3000
    assert len(drawn.convert("RGB").getcolors(maxcolors=2**24)) > 500


def test_of_many_layers_some_are_shown_and_that_is_said():
    stories = [story("topk", layers=6)]
    said = [text for text, _ in texts(viz.comparison(picture(), stories, panels=3))]
    assert any(text.endswith("3 of 6 reducing layers are shown") for text in said)
    shown = [text.partition(":")[0] for text in said if text.startswith("After")]
    assert shown == [f"After vision layer {layer}" for layer in (12, 14, 17)]
    last = [text for text, _ in texts(viz.comparison(picture(), stories, panels=1)) if text.startswith("After")]
    assert last == ["After vision layer 17: 18 left"]


def test_the_legend_names_what_there_is():
    said = [text for text, _ in texts(viz.comparison(picture(), [story("topk", layers=1)]))]
    assert not {"merged in this layer", "dropped before", "the traced patch"} & set(said)
    assert "dropped in this layer" in said


def test_errors_say_what_does_not_fit():
    one, other = story("topk"), story("topk", (4, 9))
    with pytest.raises(ValueError, match="stories is empty"):
        viz.comparison(picture(), [])
    with pytest.raises(ValueError, match=r"one grid of patches, got \[\(4, 9\), \(6, 6\)\]"):
        viz.comparison(picture(), [one, other])
    with pytest.raises(ValueError, match="panels must be at least 1, got 0"):
        viz.comparison(picture(), [one], panels=0)
    with pytest.raises(ValueError, match="36 values, one a patch, got 35 in 'map'"):
        viz.comparison(picture(), [one], heats=[viz.Heat("map", [0.0] * 35)])


def test_a_picture_is_whole_or_the_older_one_stays(tmp_path, monkeypatch):
    figure, path = viz.comparison(picture(), [story("topk", layers=1)]), tmp_path / "out.png"
    path.write_text("older")

    def breaks(part, **_):
        part.write(b"half of it")
        raise OSError("no space left")

    monkeypatch.setattr(figure, "savefig", breaks)
    with pytest.raises(OSError, match="no space"):
        viz.save(figure, path)
    assert path.read_text() == "older"
    assert [file.name for file in tmp_path.iterdir()] == ["out.png"]
