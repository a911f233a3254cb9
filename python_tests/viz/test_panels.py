"""Single panels: every patch is drawn where it is, in the colour of what became of it, and counted once."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.pictures import chain, picture, reduction
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation

from ficoco_ext import viz
from ficoco_ext.viz import canvas, comparisons, steps
from ficoco_ext.viz.traces import Move, Trace, TraceStep

GRID = (2, 3)


def _axes():
    return Figure(figsize=(4, 4)).add_subplot()


def _filled(axes):
    """Colour by the (column, row) of every rectangle that is filled."""
    found = {}
    for one in axes.patches:
        if isinstance(one, Rectangle) and one.get_fill():
            x, y = one.get_xy()
            found.setdefault((int(x), int(y)), to_hex(one.get_facecolor()))
    return found


def _arrows(axes):
    return [(one.xyann, one.xy) for one in axes.texts if isinstance(one, Annotation)]


def test_patches_are_drawn_where_they_are():
    axes = _axes()
    canvas.patch(axes, 4, GRID[1], facecolor="red", inset=0.1)
    (square,) = axes.patches
    assert (*square.get_xy(), square.get_width(), square.get_height()) == pytest.approx((1.1, 1.1, 0.8, 0.8))
    canvas.patch(axes, 2, GRID[1], facecolor="red")
    assert axes.patches[1].get_xy() == (2, 0)
    steps.frames(axes, [2, 4], GRID[1], inset=0.0)
    first, second = (path.vertices[:4].tolist() for path in axes.collections[0].get_paths())
    assert first == [[2, 0], [3, 0], [3, 1], [2, 1]] and second == [[1, 1], [2, 1], [2, 2], [1, 2]]
    steps.tint(axes, GRID, {5: "red"}, 0.5)
    assert np.asarray(axes.images[-1].get_array())[1, 2].tolist() == list(to_rgba("red", 0.5))


def test_a_dimmed_picture_is_paler():
    axes, image = _axes(), picture(GRID)
    canvas.canvas(axes, image, GRID, "", dim=0.25)
    wanted = np.asarray(image, float) / 255 * 0.75 + 0.25
    assert np.asarray(axes.images[0].get_array()) == pytest.approx(wanted)


def test_saved_text_is_printable_and_no_formula(tmp_path):
    figure = Figure()
    figure.text(0, 0, "a $\\frac{1}$ \x1b[31m\nb")
    viz.save(figure, tmp_path / "out.svg")
    assert figure.texts[0].get_text() == "a $\\frac{1}$ \\x1b[31m\nb" and not figure.texts[0].get_parse_math()


def test_a_summary_counts_every_patch_once():
    story = comparisons.Story("mine", [reduction(((4, 0), (5, 0), (2, -1)), (0, 1, 3))], ["layer"])
    assert comparisons.summary(story, 1) == "6 -> 3 patches; 2 merged into 1 of them; 1 dropped"


def test_wrong_answers_are_red():
    figure = viz.overview(
        picture(GRID), reduction(), answers=[("q", "t", "full", "few"), ("r", "t", "all", "less")], wrong={(1, 3)}
    )
    red = {text.get_text() for text in figure.texts if text.get_color() == canvas.WRONG}
    assert red == {"less"}


def test_holders_say_how_many_went_where():
    axes = _axes()
    viz.draw_holders(axes, picture(GRID), reduction(((4, 0), (5, -1))))
    assert axes.get_title(loc="left") == "Where they went: 1 merged into 1, 1 dropped"
    filled = _filled(axes)
    assert filled[1, 1] == filled[0, 0] and filled[2, 1] == canvas.DROPPED  # patches 4, 0 and 5
    assert set(filled) == {(1, 1), (0, 0), (2, 1)}


def test_arrows_lead_from_sources_to_their_holder():
    axes = _axes()
    viz.draw_holders(axes, picture(GRID), reduction(), arrows=1)  # of equal groups that of the first patch
    assert _arrows(axes) == [((1.5, 1.5), (0.5, 0.5))]  # from patch 4 to patch 0


def test_a_stage_colours_what_leaves_in_it():
    axes = _axes()
    later = reduction(((5, -1),), (0, 1, 2, 3))  # patch 4 had left before
    viz.draw_stage(axes, picture(GRID), later, 7)
    assert axes.get_title(loc="left") == "After layer 7: 4 left, 1 removed there"
    assert _filled(axes) == {(2, 1): canvas.LEAVING, (1, 1): canvas.DROPPED}


def test_the_legend_of_layers_counts_what_left():
    axes, records = _axes(), chain(("topk", "topk"), ratio=0.25)
    viz.draw_layers(axes, picture(), records, [3, 8])
    said = [text.get_text() for text in axes.get_legend().get_texts()]
    assert said == [f"{layer}: {one.sources.shape[1]}" for layer, one in zip((3, 8), records, strict=True)]


def test_moves_of_a_traced_patch_lead_to_their_targets():
    axes = _axes()
    moves = (Move(4, 0, 0.9, 0.75), Move(4, 2, 0.1, 0.25))
    steps.draw_after(axes, picture(GRID), reduction(), "After", step=TraceStep("x", moves, 0.0, {0: 0.75, 2: 0.25}))
    assert _arrows(axes) == [((1.5, 1.5), (0.5, 0.5)), ((1.5, 1.5), (2.5, 0.5))]
    widths = [one.arrow_patch.get_linewidth() for one in axes.texts if isinstance(one, Annotation)]
    assert widths == pytest.approx([0.9 + 2.2 * 0.75, 0.9 + 2.2 * 0.25])
    dots = axes.collections[-1]
    assert dots.get_offsets().tolist() == [[0.5, 0.5], [2.5, 0.5]]
    large, small = dots.get_sizes()
    assert large == pytest.approx(3 * small)


def test_shares_in_words():
    said = [steps._percent(share) for share in (0.0, 0.001, 0.01, 0.256, 1.0)]
    assert said == ["0 %", "< 1 %", "1 %", "26 %", "100 %"]


def test_the_brightest_patch_of_a_map_has_the_largest_value():
    from matplotlib import colormaps

    axes = _axes()
    steps.draw_heat(axes, picture(GRID), [0.0, 0.1, 0.2, 0.05, 0.0, 0.0], GRID, "map")
    cover = np.asarray(axes.images[-1].get_array())
    assert cover[0, 2].tolist() == pytest.approx([*colormaps["inferno"](1.0)[:3], 0.85])
    assert cover[0, 1].tolist() == pytest.approx([*colormaps["inferno"](0.5)[:3], 0.65])
    assert axes.get_xlabel() == "35 % on patches, most 0.2 at 0,2"


def test_of_many_layers_the_first_and_the_last_are_shown():
    assert viz.spread(28, 4) == [0, 9, 18, 27] and viz.spread(7, 4) == [0, 2, 4, 6]
    assert viz.spread(3, 4) == [0, 1, 2] and viz.spread(5, 1) == [4]


def test_the_largest_share_is_the_darkest():
    from matplotlib import colormaps

    axes = _axes()
    steps.draw_shares(axes, picture(GRID), Trace(4, (), {2: 0.3, 0: 0.1}, 0.6), GRID)
    cover = np.asarray(axes.images[-1].get_array())
    assert cover[0, 2].tolist() == pytest.approx([*colormaps["GnBu"](1.0)[:3], 0.92])
    assert cover[0, 0].tolist() == pytest.approx([*colormaps["GnBu"](0.35 + 0.65 / 3)[:3], 0.92])
    assert axes.get_title(loc="left") == "Patch 1,1 in the end"
    assert axes.get_xlabel() == "30 % in 0,2, rest in 1 more; 60 % dropped"


def test_a_group_is_outlined_as_one():
    """Two patches under each other: no line between them, and those at their sides go through."""
    axes = _axes()
    steps._outline(axes, [0, 1, 0, 3], {0: "red"}, (2, 2), 1.0)
    lines = {tuple(map(tuple, line.round(2).tolist())) for line in axes.collections[0].get_segments()}
    assert lines == {
        ((0.07, 0.07), (0.93, 0.07)),
        ((0.07, 0.07), (0.07, 1.0)),
        ((0.93, 0.07), (0.93, 1.0)),
        ((0.07, 1.0), (0.07, 1.93)),
        ((0.93, 1.0), (0.93, 1.93)),
        ((0.07, 1.93), (0.93, 1.93)),
    }
