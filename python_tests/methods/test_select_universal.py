"""What every method after the projector promises, whatever it does. Methods are found, none is listed to be run."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from helpers.drawn_pictures import KINDS, cast, hidden, item, per_token, picture

from ficoco_ext import get_method
from ficoco_ext.methods import distinct, part_after_projector
from ficoco_ext.stages import VisualFeatures, needs


def after_projector(name):
    """The method's part that acts there, or None."""
    return get_method(name, **part_after_projector(name)).projector


NAMES = [name for name in distinct() if name != "downsample" and after_projector(name) is not None]  # it resizes
# What a smaller number keeps, a larger one keeps too.
GROWS = {"divprune", "scope", "cdpruner", "mmtok", "topk", "fastervlm", "random"}
# Each of these vectors may have any length: only its direction counts, or nothing.
DIRECTIONS = {
    "divprune": ("features",),
    "scope": ("features",),
    "cdpruner": ("features", "text"),
    "mmtok": ("features", "text", "tower_features"),
    "vispruner": ("tower_features", "features"),
    "visionzip": ("keys", "features"),
}
DIRECTIONS |= dict.fromkeys(("topk", "fastervlm", "hiprune", "random", "stride"), ("features",))
# The unit of these does not matter.
UNITS = dict.fromkeys(("scope", "topk", "fastervlm", "vispruner", "visionzip"), ("saliency",))
UNITS["hiprune"] = ("saliency", "early_saliency")

READS = {
    needs.SALIENCY: "saliency",
    needs.EARLY_SALIENCY: "early_saliency",
    needs.TEXT: "text",
    needs.TOWER_KEYS: "keys",
    needs.TOWER_FEATURES: "tower_features",
    needs.GRID: "grid",
    needs.WHOLE_GRID: "grid",
    needs.CROPS: "crops",
    needs.CLASS_LOGITS: "class_logits",
}

ON_A_GRID = {needs.GRID, needs.WHOLE_GRID, needs.CROPS}  # where padding would move tokens

every = pytest.mark.parametrize("name", NAMES)


def fewest(visual):
    return visual.features.shape[1] if visual.mask is None else int(visual.mask.sum(1).min())


def same(one, other):
    """Bit for bit the same tokens and features."""
    return torch.equal(one.kept, other.kept) and torch.equal(one.features, other.features)


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_as_many_as_asked_for_ascending_and_real(name, kind, dtype):
    for n in (1, 2, 12):
        visual = cast(picture(kind, 3, n=n, frames=math.gcd(n, 3)), dtype)
        for count in range(1, fewest(visual) + 1):
            found = after_projector(name)(visual, count)
            assert found.kept.dtype == torch.int64 and found.kept.shape == (3, count)
            assert bool((found.kept.diff(dim=1) > 0).all())
            assert int(found.kept.min()) >= 0 and int(found.kept.max()) < n
            assert found.features.shape == (3, count, 10) and found.features.dtype == dtype
            assert bool(found.features.isfinite().all())
            if visual.mask is not None:
                assert bool(visual.mask.gather(1, found.kept).all())


@every
def test_all_of_them_is_the_identity(name):
    visual = cast(picture("shared", 1), torch.float32)
    found = after_projector(name)(visual, 24)
    assert found.kept.tolist() == [list(range(24))] * 3 and torch.equal(found.features, visual.features)


@every
@pytest.mark.parametrize("kind", ["shared", "masked", "duplicates"])
def test_batch_is_a_loop_in_any_order(name, kind):
    """Pictures of a batch know nothing of each other, bit for bit."""
    for seed in range(3):
        visual = cast(picture(kind, seed, frames=(1, 4, 2)[seed]), torch.float32)
        method = after_projector(name)
        for count in (1, 5, 12):
            together = method(visual, count)
            turned = method(item(visual, torch.tensor([2, 0, 1])), count)
            assert torch.equal(turned.kept, together.kept[[2, 0, 1]])
            assert torch.equal(turned.features, together.features[[2, 0, 1]])
            for index in range(3):
                alone = method(item(visual, slice(index, index + 1)), count)
                assert torch.equal(alone.kept[0], together.kept[index])
                assert torch.equal(alone.features[0], together.features[index])


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_same_call_gives_the_same_bits(name, dtype):
    """Twice, and with another number of threads."""
    visual, method = cast(picture("shared", 2, n=36), dtype), after_projector(name)
    first = method(visual, 9)
    assert same(first, method(visual, 9))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert same(first, method(visual, 9))
    finally:
        torch.set_num_threads(threads)


@every
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e4, 1e4])
def test_what_hidden_tokens_and_words_hold_does_not_matter(name, value):
    for seed in range(3):
        visual = cast(picture("masked", seed, frames=4), torch.float32)
        other, method = hidden(visual, value), after_projector(name)
        for count in (1, 6, fewest(visual)):
            assert same(method(visual, count), method(other, count))


@pytest.mark.parametrize("name", [name for name in NAMES if ON_A_GRID.isdisjoint(after_projector(name).needs)])
def test_padding_at_the_end_changes_nothing(name):
    """A picture alone, and the same one padded."""
    method, visual = after_projector(name), cast(picture("shared", 4)._replace(grid=None, crops=None), torch.float32)

    def padded(one):
        return torch.cat([one, one[:, :7] * 50], 1)

    longer = per_token(visual, padded)
    longer = longer._replace(mask=(torch.arange(31) < 24).expand(3, -1))
    for count in (1, 6, 24):
        assert same(method(visual, count), method(longer, count))


@every
def test_inputs_are_not_written(name):
    visual = cast(picture("masked", 5), torch.float32)
    copies = [one.clone() if isinstance(one, torch.Tensor) else one for one in visual]
    after_projector(name)(visual, 6)
    for one, copy in zip(visual, copies, strict=True):
        assert torch.equal(one, copy) if isinstance(one, torch.Tensor) else one == copy


@pytest.mark.parametrize("name", sorted(GROWS))
@pytest.mark.parametrize("kind", ["shared", "masked", "zeros"])
def test_more_tokens_are_more_of_the_same(name, kind):
    visual, method = cast(picture(kind, 6), torch.float32), after_projector(name)
    kept = [method(visual, count).kept for count in range(1, fewest(visual) + 1)]
    for fewer, more in itertools.pairwise(kept):
        for index in range(3):
            assert set(fewer[index].tolist()) < set(more[index].tolist())


@pytest.mark.parametrize("name", sorted(DIRECTIONS))
def test_only_directions_count(name):
    """Each vector at another length, by a power of two so that nothing is rounded."""
    visual = cast(picture("shared", 7), torch.float64)
    draw = torch.Generator().manual_seed(7)
    for field in DIRECTIONS[name]:
        one = getattr(visual, field)
        longer = one * 2.0 ** torch.randint(-3, 4, (*one.shape[:2], 1), generator=draw)
        for count in (2, 8, 16):
            kept = after_projector(name)(visual, count).kept
            assert torch.equal(kept, after_projector(name)(visual._replace(**{field: longer}), count).kept)


@pytest.mark.parametrize("name", sorted(UNITS))
def test_units_do_not_count(name):
    visual = cast(picture("shared", 8), torch.float32)
    for field in UNITS[name]:
        for unit in (2.0**-20, 64.0):
            other = visual._replace(**{field: getattr(visual, field) * unit})
            for count in (2, 8, 16):
                assert torch.equal(after_projector(name)(visual, count).kept, after_projector(name)(other, count).kept)


@every
def test_the_order_of_words_does_not_matter(name):
    visual = picture("shared", 9)
    turned = torch.tensor([3, 0, 4, 1, 2])
    other = visual._replace(text=visual.text[:, turned], text_mask=visual.text_mask[:, turned])
    for count in (2, 8, 16):
        assert torch.equal(after_projector(name)(visual, count).kept, after_projector(name)(other, count).kept)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_chooses_as_float32_does(name, dtype):
    """From the same values, as everything that is compared is accumulated in float32 at least."""
    for seed in range(3):
        half = cast(picture("shared", seed, frames=2), dtype)
        for count in (2, 8, 16):
            wide = after_projector(name)(cast(half, torch.float32), count)
            assert torch.equal(after_projector(name)(half, count).kept, wide.kept)


@every
def test_nothing_is_read_on_the_way(name):
    """On the meta device there is nothing to read."""
    visual = picture("masked", 1)
    there = VisualFeatures(*(one.to("meta") if isinstance(one, torch.Tensor) else one for one in visual))
    found = after_projector(name)(there, 6)
    assert found.kept.shape == (3, 6) and found.features.shape == (3, 6, 10)


@every
@pytest.mark.parametrize("kind", ["shared", "masked"])
def test_no_pictures_are_no_tokens(name, kind):
    none = item(cast(picture(kind, 1, frames=2), torch.float32), slice(0, 0))
    methods = (
        [after_projector(name), get_method("hiprune", alpha=2.0)] if name == "hiprune" else [after_projector(name)]
    )
    for method in methods:
        found = method(none, 6)
        assert found.kept.shape == (0, 6) and found.features.shape == (0, 6, 10)


@every
def test_what_it_says_it_needs_is_what_it_reads(name):
    """Anything else may be missing; each thing it names is missed by its name."""
    method, visual = after_projector(name), cast(picture("shared", 1), torch.float32)
    named = {READS[need] for need in method.needs}
    bare = VisualFeatures(visual.features, **{field: getattr(visual, field) for field in named})
    assert torch.equal(method(bare, 6).kept, method(visual._replace(text_mask=None), 6).kept)
    for field in named:
        with pytest.raises(ValueError, match=rf"{field} must be given, as the method needs it"):
            method(bare._replace(**{field: None}), 6)
