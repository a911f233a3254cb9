"""HiPrune against loops from its description: anchors, what lies around them, and the rest."""

from __future__ import annotations

import pytest
import torch

import ficoco_ext
from ficoco_ext import describe, get_method
from ficoco_ext.stages import Shape, VisualFeatures, needs

GRID = (6, 8)


def given(b=3, n=48, grid=GRID, **fields):
    features = torch.randn(b, n, 4)
    return VisualFeatures(features, saliency=torch.rand(b, n), early_saliency=torch.rand(b, n), grid=grid, **fields)


def by_hand(saliency, early, count, alpha, grid, frames=1, real=None):
    """Ascending indices of one picture."""
    n = len(saliency)
    real = set(range(n)) if real is None else real
    by_early = sorted(real, key=lambda i: (-float(early[i]), i))
    anchors = by_early[: round(count * alpha / 5)]
    rows, columns = grid if grid is not None else (frames, n // frames)
    high = rows // frames if grid is not None else 1
    around = set()
    for anchor in anchors:
        row, column = divmod(anchor, columns)
        for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if 0 <= c < columns and 0 <= r < rows and r // high == row // high:
                around.add(r * columns + c)
    buffers = [i for i in by_early if i in around and i not in anchors]
    rest = sorted(real, key=lambda i: (-float(saliency[i]), i))
    rest = [i for i in rest if i not in anchors and i not in buffers]
    return sorted([*anchors, *buffers, *rest][:count])


@pytest.mark.parametrize("alpha", [0, 0.1, 0.5, 1, 2.5, 5])
@pytest.mark.parametrize("grid", [GRID, None, (48, 1), (1, 48)], ids=str)
def test_it_is_the_loop(alpha, grid):
    """T1 and T2: exactly as many as asked for, anchors among them."""
    visual = given(grid=grid)
    for count in (1, 2, 5, 17, 30, 48):
        kept = get_method("hiprune", alpha=alpha).keep(visual, count)
        assert kept.shape == (3, count)
        for item in range(3):
            saliency, early = visual.saliency[item], visual.early_saliency[item]
            assert kept[item].tolist() == by_hand(saliency, early, count, alpha, grid), (item, count)
            anchors = early.sort(descending=True).indices[: round(count * alpha / 5)]
            assert set(anchors.tolist()) <= set(kept[item].tolist())


@pytest.mark.parametrize(
    ("anchor", "around"), [(7, {6, 15}), (8, {0, 9, 16}), (0, {1, 8}), (47, {46, 39}), (27, {19, 35, 26, 28})]
)
def test_neighbours_end_with_the_grid(anchor, around):
    """T3: the last token of a row and the first of the next are no neighbours; nothing is doubled at the border."""
    early, saliency = torch.zeros(1, 48), torch.zeros(1, 48)
    early[0, anchor] = 1
    count = 1 + len(around)
    visual = VisualFeatures(torch.randn(1, 48, 4), saliency=saliency, early_saliency=early, grid=GRID)
    kept = get_method("hiprune", alpha=5 / count).keep(visual, count)  # one anchor
    assert set(kept[0].tolist()) == {anchor, *around}


def test_without_a_grid_neighbours_come_before_and_after():
    early, saliency = torch.zeros(1, 48), torch.zeros(1, 48)
    early[0, 8] = 1
    visual = VisualFeatures(torch.randn(1, 48, 4), saliency=saliency, early_saliency=early)
    assert get_method("hiprune", alpha=5 / 3).keep(visual, 3).tolist() == [[7, 8, 9]]


@pytest.mark.parametrize("grid", [(6, 8), None], ids=str)
def test_neighbours_end_with_the_frame(grid):
    """Three frames of 2 x 8, or of 16 tokens in a row."""
    for anchor, others in ((16, {17, 24} if grid else {17}), (15, {14, 7} if grid else {14})):
        early = torch.zeros(1, 48)
        early[0, anchor] = 1
        count = 1 + len(others)
        visual = VisualFeatures(
            torch.randn(1, 48, 4), saliency=torch.zeros(1, 48), early_saliency=early, grid=grid, frames=3
        )
        assert set(get_method("hiprune", alpha=5 / count).keep(visual, count)[0].tolist()) == {anchor, *others}
    visual = given(grid=grid, frames=3)
    kept = get_method("hiprune", alpha=0.8).keep(visual, 20)
    for item in range(3):
        assert kept[item].tolist() == by_hand(visual.saliency[item], visual.early_saliency[item], 20, 0.8, grid, 3)


def test_too_many_neighbours_leave_by_early_saliency():
    """Round(3 * 1 / 5) = 1 anchor with four neighbours, of whom two stay: those that the early layer looks at more."""
    early, saliency = torch.zeros(1, 48), torch.rand(1, 48)
    early[0, [27, 19, 35, 26, 28]] = torch.tensor([1.0, 0.4, 0.1, 0.2, 0.3])
    visual = VisualFeatures(torch.randn(1, 48, 4), saliency=saliency, early_saliency=early, grid=GRID)
    assert get_method("hiprune", alpha=1).keep(visual, 3).tolist() == [[19, 27, 28]]


def test_without_anchors_it_is_top_k():
    """T4; half an anchor goes to the even number: 25 tokens of alpha 0.1 have none, 75 have two."""
    visual = given()
    top = get_method("topk", part="projector")
    assert torch.equal(
        get_method("hiprune", alpha=0).keep(visual._replace(early_saliency=None), 9), top.keep(visual, 9)
    )
    assert torch.equal(get_method("hiprune").keep(visual, 25), top.keep(visual, 25))
    assert not torch.equal(get_method("hiprune").keep(visual, 26), top.keep(visual, 26))
    assert get_method("hiprune", alpha=0).needs == (needs.SALIENCY,)


def test_a_batch_is_a_loop():
    """T5."""
    visual = given()
    together = get_method("hiprune", alpha=0.6)(visual, 20)
    for item in range(3):
        part = slice(item, item + 1)
        alone = VisualFeatures(
            visual.features[part],
            saliency=visual.saliency[part],
            early_saliency=visual.early_saliency[part],
            grid=GRID,
        )
        found = get_method("hiprune", alpha=0.6)(alone, 20)
        assert torch.equal(found.kept, together.kept[part]) and torch.equal(found.features, together.features[part])


@pytest.mark.parametrize("frames", [1, 2])
def test_without_a_grid_neighbours_are_those_that_are_there(frames):
    """What is hidden among tokens parts none of them, as if it had been left out."""
    for seed in range(30):
        draw = torch.Generator().manual_seed(seed)
        saliency, early = torch.rand(2, 1, 40, generator=draw)
        features = torch.randn(1, 40, 4, generator=draw)
        mask = (torch.rand(frames, 40 // frames, generator=draw).argsort(1) < 25 // frames).view(1, 40)
        real = mask[0].nonzero()[:, 0]
        method = get_method("hiprune", alpha=1.5)
        kept = method.keep(VisualFeatures(features, mask, None, saliency, early_saliency=early, frames=frames), 10)
        one, other = saliency[:, real], early[:, real]
        alone = VisualFeatures(features[:, real], None, None, one, early_saliency=other, frames=frames)
        assert torch.equal(kept[0], real[method.keep(alone, 10)[0]]), seed


@pytest.mark.parametrize("hidden", [float("nan"), float("inf"), 3.0])
def test_what_is_hidden_is_no_anchor_and_no_neighbour(hidden):
    mask = torch.rand(3, 48) < 0.6
    mask[:, :21] = True
    visual = given(mask=mask)
    for tensor in (visual.features, visual.saliency, visual.early_saliency):
        tensor[~mask] = hidden
    kept = get_method("hiprune", alpha=0.7).keep(visual, 21)
    for item in range(3):
        real = set(mask[item].nonzero().flatten().tolist())
        wanted = by_hand(visual.saliency[item], visual.early_saliency[item], 21, 0.7, GRID, real=real)
        assert kept[item].tolist() == wanted


def test_ties_go_to_the_lowest_index():
    visual = VisualFeatures(
        torch.ones(1, 48, 2), saliency=torch.ones(1, 48), early_saliency=torch.zeros(1, 48), grid=GRID
    )
    assert get_method("hiprune", alpha=0.5).keep(visual, 10).tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]]
    assert get_method("hiprune", alpha=1).keep(visual, 6).tolist() == [[0, 1, 2, 3, 4, 8]]


def test_compiles_and_reads_nothing(fresh_compiler):
    visual = given(mask=torch.arange(48) < torch.tensor([[48], [30], [20]]))

    def run(features, saliency, early, mask):
        given = VisualFeatures(features, mask=mask, saliency=saliency, early_saliency=early, grid=GRID)
        return get_method("hiprune", alpha=0.5)(given, 13).kept

    tensors = visual.features, visual.saliency, visual.early_saliency, visual.mask
    copies = [tensor.clone() for tensor in tensors]
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(*tensors)
    assert torch.equal(compiled, run(*tensors)) and all(map(torch.equal, tensors, copies))
    assert run(*(tensor.to("meta") for tensor in tensors)).shape == (3, 13)


def test_it_says_what_it_does():
    method = get_method("hiprune", early_layer=0.5)
    assert method.describe() == (
        "features of least saliency, except around those of most early saliency",
        "none",
        "dropped",
    )
    assert describe("hiprune").needs == (needs.SALIENCY, needs.EARLY_SALIENCY)
    assert (method.projector.early_layer, method.projector.saliency) == (0.5, "column")
    shape = Shape(batch=1, tokens=9, visual=9, r=3, channels=4, heads=1, kv_heads=1, head_dim=4)
    assert [one.name for one, _ in method.operations(shape)] == ["compress"]


def test_cost_counts_both_layers():
    """Two columns of the tower, of 9 and of 23 layers that are in use; a method that reads one layer pays for one."""
    from ficoco_ext import cost

    def bill(name, **options):
        shape = cost.architecture("llava-1.5-7b")
        found = cost.prefill(shape, text_tokens=60, projector=64, method=get_method(name, **options))
        return [line for line in found.lines if line.name == "saliency"]

    early, late = bill("hiprune")
    assert (early.layer, late.layer) == (8, 22) and early.operations == late.operations
    assert [line.layer for line in bill("hiprune", early_layer=3)] == [3, 22]
    assert [line.layer for line in bill("hiprune", alpha=0)] == [22]
    with pytest.raises(ValueError, match=r"early_layer must be a layer in \[0, 22\]"):
        bill("hiprune", early_layer=23)


def test_mistakes():
    visual = given()
    with pytest.raises(ValueError, match="hiprune: early_saliency must be given"):
        get_method("hiprune").keep(visual._replace(early_saliency=None), 9)
    with pytest.raises(ValueError, match="early_saliency must be finite and at least 0"):
        ficoco_ext.select(
            visual.features, 9, method="hiprune", saliency=visual.saliency, early_saliency=visual.early_saliency - 1
        )
    with pytest.raises(ValueError, match=r"grid must have equally many rows for each of 4 frames, got \(6, 8\)"):
        get_method("hiprune", alpha=1).keep(visual._replace(frames=4), 20)
    for options, words in (
        ({"alpha": -0.1}, r"alpha must be a number in \[0, 5\]"),
        ({"alpha": 6}, r"alpha must be a number in \[0, 5\]"),
        ({"early_layer": 1.5}, "early_layer must be a layer counted from 0, a share"),
        ({"early_layer": -1}, "early_layer must be a layer counted from 0, a share"),
        ({"early_layer": True}, "early_layer must be a layer counted from 0, a share"),
        ({"early_layer": 0.0}, "early_layer must be a layer counted from 0, a share"),
    ):
        with pytest.raises(ValueError, match=words):
            get_method("hiprune", **options)
