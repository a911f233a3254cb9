"""Sheets: where the patches of thumbnail and crops are drawn, and that nothing is drawn as one where there is none."""

from __future__ import annotations

import pytest
import torch
from helpers.pictures import reduction
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image

from ficoco_ext import viz
from ficoco_ext.stages import Crops
from ficoco_ext.viz import Sheet, comparisons, panels, steps
from ficoco_ext.viz.traces import NO_PATCH, groups, holders, trace

# One row of crops of 2 x 2, of which the first column and the last are padding: 4 + 4 patches, 7 cells a line.
SMALL = Sheet(2, (1, 2), (0, 2, 1, 3))
LINE = 7


def _told(**given):
    """Patch 1 of the thumbnail went to patch 4, on the canvas, and patch 6 to none."""
    return reduction(sources=((1, 4), (6, -1)), kept=(0, 2, 3, 4, 5, 7), grid=(2, 4), **given)


@pytest.mark.parametrize(
    ("size", "pinpoints"), [((480, 640), [(672, 672)]), ((900, 300), [(1008, 336)]), ((300, 900), [(336, 1008)])]
)
def test_cells_are_where_the_crops_have_their_patches(size, pinpoints):
    crops = Crops.of(size, pinpoints, 24, 336)
    sheet = Sheet(crops.side, crops.grid, crops.rectangle)
    assert len(sheet.cells) == len(set(sheet.cells)) == crops.before - crops.lines
    for cell, (crop, patch) in zip(sheet.cells, crops.origins, strict=True):
        row, column = divmod(cell, sheet.cells_across)
        if crop == 0:
            assert (row, column) == divmod(patch, 24)
        else:
            down, across = divmod(crop - 1, crops.grid[1])
            assert (row - 24 * down, column - 25 - 24 * across) == divmod(patch, 24)
    assert not set(sheet.padding) & set(sheet.cells)
    assert len(sheet.padding) == crops.count * 24 * 24 - sum(crops.valid)
    assert sheet.per_crop(sheet.cells) == [24 * 24, *crops.valid]


def test_a_reduction_is_laid_cell_by_cell():
    told = SMALL.laid(_told())
    cells = SMALL.cells
    assert told.kept[0].tolist() == sorted(cells[patch] for patch in (0, 2, 3, 4, 5, 7))
    held = holders(told)
    wanted = {0: 0, 1: 4, 2: 2, 3: 3, 4: 4, 5: 5, 6: -1, 7: 7}
    for patch, holder in wanted.items():
        assert held[cells[patch]] == (-1 if holder < 0 else cells[holder])
    assert {held[cell] for cell in range(2 * LINE) if cell not in cells} == {NO_PATCH}
    assert groups(told) == {cells[4]: sorted([cells[1], cells[4]])}
    assert trace(told, cells[1]).shares == {cells[4]: 1.0}
    assert trace(told, cells[6]).dropped == 1
    with pytest.raises(ValueError, match=r"trace: patch must be one of the picture, got 2, where the grid has none"):
        trace(told, 2)


def test_only_the_pictures_own_patches_are_laid():
    with pytest.raises(ValueError, match=r"must be of the 8 patches of the picture, got 6"):
        SMALL.laid(reduction())


def test_values_and_places():
    assert SMALL.spread([1, 2, 3, 4, 5, 6, 7, 8]) == [1, 2, 0, 0, 5, 6, 0, 3, 4, 0, 0, 7, 8, 0]
    assert [SMALL.place(cell) for cell in (8, 11)] == ["thumbnail 1,1", "canvas 1,1"]


def test_the_picture_has_the_crops_in_their_places():
    colours = ["red", "blue", "lime"]
    made = SMALL.picture([Image.new("RGB", (20, 20), colour) for colour in colours])
    assert made.size == (70, 20)
    at = [made.getpixel((x, 10)) for x in (10, 25, 40, 60)]
    assert at == [(255, 0, 0), (255, 255, 255), (0, 0, 255), (0, 255, 0)]


def _panel(draw):
    axes = Figure(figsize=(4, 2)).add_subplot()
    draw(axes)
    return axes


def _covered(axes):
    """Cells that a panel covers with a colour of its own, as rectangles or as one image."""
    found = {int(p.get_y() + 0.5) * LINE + int(p.get_x() + 0.5) for p in axes.patches if p.get_facecolor()[3] > 0}
    for image in axes.images[1:]:
        cover = image.get_array()
        found |= {cell for cell in range(2 * LINE) if cover[cell // LINE, cell % LINE][3] > 0}
    return found


def test_what_is_no_patch_is_neither_kept_nor_removed():
    image, told = Image.new("RGB", (70, 20), "white"), SMALL.laid(_told())
    titles = {}
    for name, draw in {
        "input": lambda axes: panels.draw_input(axes, image, told),
        "kept": lambda axes: panels.draw_kept(axes, image, told),
        "holders": lambda axes: panels.draw_holders(axes, image, told),
        "stage": lambda axes: panels.draw_stage(axes, image, told, 3),
        "layers": lambda axes: panels.draw_layers(axes, image, [told], [3]),
        "after": lambda axes: steps.draw_after(axes, image, told, "After 3"),
        "groups": lambda axes: steps.draw_groups(axes, image, told),
    }.items():
        axes = _panel(draw)
        assert _covered(axes) <= set(SMALL.cells), name
        framed = {int(p.get_y() + 0.5) * LINE + int(p.get_x() + 0.5) for p in axes.patches}
        assert framed <= set(SMALL.cells), name
        titles[name] = axes.get_title(loc="left")
    assert titles["input"] == "What the model sees: 8 patches"
    assert titles["kept"] == "Kept: 6 of 8 patches"
    assert titles["holders"] == "Where they went: 1 merged into 1, 1 dropped"
    assert titles["after"] == "After 3: 6 left"


def test_borders_padding_and_what_is_outside_are_marked():
    tall = Sheet(2, (2, 1), (1, 3, 0, 2))
    axes = _panel(tall.mark)
    borders = [p for p in axes.patches if not p.get_fill()]
    assert [(p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in borders] == [
        (0, 0, 2, 2),
        (3, 0, 2, 2),
        (3, 2, 2, 2),
    ]
    white = [p for p in axes.patches if p.get_facecolor() == to_rgba("white")]
    assert [(p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in white] == [(0, 2, 2, 2), (2, 0, 1, 4)]
    (padding,) = axes.collections
    corners = sorted(tuple(path.vertices[0].astype(int)) for path in padding.get_paths())
    assert corners == [(3, 0), (3, 3), (4, 0), (4, 3)] and padding.get_hatch()


def test_figures_say_how_much_each_crop_keeps(tmp_path):
    told, image = SMALL.laid(_told()), Image.new("RGB", (70, 20), "white")
    story = viz.Story("topk", [told], ["vision layer 1"], trace(told, SMALL.cells[1]))
    said = comparisons.summary(story, 1, 0, SMALL)
    assert said == "8 -> 6 patches; 1 merged into 1 of them; 1 dropped; 3 in the thumbnail, 1 + 2 in the crops"
    heat = viz.Heat("Word 'a'", SMALL.spread([0.01] * 7 + [0.2]))
    scores = viz.Heat("Scores", SMALL.spread([0.1] * 7 + [0.2]), shares=False)
    figure = viz.comparison(image, [story], heats=[heat, scores], sheet=SMALL)
    texts = [axes.get_xlabel() for axes in figure.axes]
    assert texts[1:3] == ["27 % on patches, most 0.2 at canvas 1,2", "most 0.2 at canvas 1,2"]
    assert "100 % in canvas 0,1" in texts
    assert [axes.get_title(loc="left") for axes in figure.axes].count("Patch thumbnail 0,1 in the end") == 1
    for axes in [*figure.axes, *viz.overview(image, told, sheet=SMALL, stages=True).axes]:
        assert sum(not p.get_fill() and p.get_width() == 2 for p in axes.patches) == 3
    viz.save(figure, tmp_path / "figure.png")


def test_batches_are_laid_item_by_item():
    one, other = _told(), reduction(sources=((7, 2), (0, -1)), kept=(1, 2, 3, 4, 5, 6), grid=(2, 4))
    names = ("size", "kept", "sources", "source_map", "targets", "weights")
    both = torch.utils._pytree.tree_map(
        lambda *parts: torch.cat(parts), *([getattr(r, n) for n in names] for r in (one, other))
    )
    laid = SMALL.laid(type(one)(tokens=None, class_token=False, grid=None, **dict(zip(names, both, strict=True))))
    for item, alone in enumerate((one, other)):
        assert holders(laid, item) == holders(SMALL.laid(alone))
