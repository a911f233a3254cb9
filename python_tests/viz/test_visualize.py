"""Pictures: what they show is checked as data, that they show anything as pixels."""

from __future__ import annotations

import sys

import pytest
import torch
from PIL import Image

import ficoco_ext
from ficoco_ext import Schedule, viz


def _chain(patches: int = 16, methods=("ficoco-v", "ficoco-v"), batch: int = 2):
    """Reductions in a row to half the patches, as a tower gives them."""
    schedule = Schedule.build(patches, layers=range(3, 3 + len(methods)), keep_ratio=0.5)
    tokens, previous, done = torch.randn(batch, patches + 1, 8), None, []
    for step, method in zip(schedule.steps, methods, strict=True):
        attn = ficoco_ext.QueryKey(*torch.randn(2, batch, 2, tokens.shape[1], 4))
        previous = ficoco_ext.reduce(tokens, attn, step.r, method=method, previous=previous, return_reduction=True)
        tokens = previous.tokens
        done.append(previous.without_tokens())
    return schedule, done


def _picture(size=(56, 56)):
    return Image.linear_gradient("L").resize(size).convert("RGB")


def test_holders_follow_every_patch():
    _, done = _chain()
    for item in (0, 1):
        held, left = viz.holders(done[-1], item), done[-1].patch_ids[item].tolist()
        assert len(held) == 16
        assert all(holder in left for holder in held)
        assert [place for place, holder in enumerate(held) if holder == place] == left


def test_dropped_patches_are_held_by_nobody():
    _, done = _chain(methods=("topk", "topk"))
    held = viz.holders(done[-1])
    assert held.count(-1) == 8


def test_removal_layers_name_the_layer_of_each_patch():
    schedule, done = _chain()
    gone = viz.removal_layers(done, schedule.layers)
    assert [gone.count(layer) for layer in schedule.layers] == list(schedule.r)
    assert [place for place, layer in enumerate(gone) if layer is None] == done[-1].patch_ids[0].tolist()


@pytest.mark.parametrize("methods", [("ficoco-v", "ficoco-v"), ("topk", "topk"), ("topk", "ficoco-v")])
@pytest.mark.parametrize("rows", [0, 1, 6])
def test_overview_is_written_and_not_blank(tmp_path, methods, rows):
    schedule, done = _chain(methods=methods)
    answers = [("what is it ?", "red", "red", "a very long answer " * 20)] * rows
    figure = viz.overview(
        _picture(), done, layers=schedule.layers, title="title", answers=answers, wrong={(0, 3)}, item=1
    )
    viz.save(figure, tmp_path / "out.png")
    drawn = Image.open(tmp_path / "out.png").convert("RGB")
    assert 1500 < drawn.width < 2500
    assert 400 < drawn.height < 1200
    panels = [drawn.crop((i * drawn.width // 4 + 40, 150, (i + 1) * drawn.width // 4 - 40, 400)) for i in range(4)]
    assert all(len(panel.getcolors(maxcolors=2**24)) > 50 for panel in panels)
    assert len({panel.tobytes() for panel in panels}) == 4


@pytest.mark.parametrize(("layers", "shown"), [(1, [0]), (3, [0, 1, 2]), (4, [0, 1, 2, 3]), (7, [0, 2, 4, 6])])
def test_stages_have_panels_of_their_own(tmp_path, layers, shown):
    schedule, done = _chain(methods=("ficoco-v",) * layers)
    labels = [f"text {layer}" for layer in schedule.layers]
    figure = viz.overview(_picture(), done, layers=labels, stages=True)
    titles = [axes.get_title(loc="left") for axes in figure.axes[4:]]
    left = [done[step].patch_ids.shape[1] for step in shown]
    assert titles == [
        f"After {labels[step]}: {n} left, {schedule.r[step]} removed there" for step, n in zip(shown, left, strict=True)
    ]
    flat = viz.overview(_picture(), done, layers=labels)
    assert len(flat.axes) == 4
    assert figure.get_figheight() > 1.7 * flat.get_figheight()
    viz.save(figure, tmp_path / "out.png")
    drawn = Image.open(tmp_path / "out.png").convert("RGB")
    below = drawn.crop((0, drawn.height // 2 + 60, drawn.width // 4, drawn.height - 40))
    assert len(below.getcolors(maxcolors=2**24)) > 50


def test_wide_pictures_and_single_reductions():
    _, done = _chain()
    figure = viz.overview(_picture((112, 56)), done[0])
    assert figure.get_figwidth() > 2.5 * figure.get_figheight()


def test_no_backend_is_chosen_and_nothing_is_left_open():
    import matplotlib

    before = matplotlib.rcParams._get_backend_or_none()
    viz.overview(_picture(), _chain()[1])
    assert matplotlib.rcParams._get_backend_or_none() == before
    if "matplotlib.pyplot" in sys.modules:
        assert not sys.modules["matplotlib.pyplot"].get_fignums()


def test_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "ficoco_ext\[viz\]"'):
        viz.overview(_picture(), _chain()[1])


def test_errors_say_what_is_missing(tmp_path):
    _, done = _chain()
    with pytest.raises(ValueError, match="empty"):
        viz.overview(_picture(), [])
    with pytest.raises(ValueError, match="item"):
        viz.overview(_picture(), done, item=2)
    with pytest.raises(ValueError, match="all be different"):
        viz.overview(_picture(), done, layers=[1, 1])
    with pytest.raises(ValueError, match="one layer a reduction"):
        viz.overview(_picture(), done, layers=[1])
    tokens, attn = torch.randn(1, 8, 4), torch.rand(1, 8, 8)
    flat = ficoco_ext.reduce(tokens, attn, 2, method="topk", return_reduction=True)  # 7 patches have no grid
    with pytest.raises(ValueError, match="grid"):
        viz.overview(_picture(), flat)
    with pytest.raises(ValueError, match="must end in"):
        viz.require(tmp_path / "x.txt")
    with pytest.raises(FileNotFoundError, match="no folder"):
        viz.require(tmp_path / "no" / "x.png")
