"""Random dropping and average pooling: the floor under every method."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers.reductions import inputs, record

from ficoco_ext import QueryKey, get_method, reduce
from ficoco_ext.stages.positional import RandomFilter, _hash, bands_of


def test_a_seed_is_a_choice():
    """Deterministic, other with another seed, whatever tokens and attention are, the same for all images."""
    tokens, attn = inputs()
    choices = {}
    for seed in range(20):
        result = record(tokens, attn, 40, method="random", seed=seed)
        other = record(-tokens, inputs(seed=9)[1], 40, method="random", seed=seed)
        assert torch.equal(result.kept, other.kept) and torch.equal(result.kept[0], result.kept[1])
        choices[tuple(result.kept[0].tolist())] = seed
        assert torch.equal(result.tokens, tokens.gather(1, result.kept.unsqueeze(-1).expand(-1, -1, 12)))
        assert bool((result.source_map.gather(1, result.sources) == -1).all())
    assert len(choices) == 20


def test_the_published_choice_of_seed_zero():
    """So that a change of the hash is noticed: figures of other days would not be comparable."""
    tokens, attn = inputs(n=17, b=1)
    assert record(tokens, attn, 10, method="random").patch_ids.tolist() == [[0, 5, 7, 9, 11, 14]]


def test_seeds_are_no_shifts_of_each_other():
    """Half of 144 patches leave: two independent choices share 36, and one moved along by the seed nearly all 72."""
    attn = QueryKey(*torch.zeros(2, 1, 1, 144, 1))
    options = {"class_token": False, "ids": None, "grid": None}
    first, *others = (set(RandomFilter(seed)(attn, 72, **options).sources[0].tolist()) for seed in range(20))
    for other in others:
        assert max(len({source + shift for source in other} & first) for shift in range(-20, 21)) < 60


def test_layers_drop_what_one_layer_drops():
    """Nested: the score of a place does not depend on who is left."""
    tokens, attn = inputs()
    result = None
    for n, r in ((65, 10), (55, 1), (54, 25)):
        now = inputs(n=n, seed=n)[1]
        result = record(tokens if result is None else result.tokens, now, r, previous=result, method="random", seed=4)
    at_once = record(tokens, attn, 36, method="random", seed=4)
    assert torch.equal(result.kept, at_once.kept) and torch.equal(result.tokens, at_once.tokens)


def test_all_places_are_as_likely():
    """Of 3000 seeds every one of 64 places is kept in a quarter, four standard deviations wide; so are neighbours."""
    ids = torch.arange(64)
    kept = torch.zeros(64)
    pairs = 0.0
    for seed in range(3000):
        chosen = torch.zeros(64).scatter(0, _hash(ids ^ _hash(seed)).argsort()[:16], 1.0)
        kept += chosen
        pairs += float((chosen[1:] * chosen[:-1]).sum()) / 63
    assert (kept / 3000 - 0.25).abs().max() < 4 * (0.25 * 0.75 / 3000) ** 0.5
    assert pairs / 3000 == pytest.approx(16 * 15 / (64 * 63), abs=0.004)
    wide = [_hash(number) for number in range(1 << 12)]
    assert len(set(wide)) == len(wide) and max(wide) < 2**32
    assert _hash(torch.arange(1 << 12)).tolist() == wide


def test_random_takes_anything():
    tokens, attn = inputs(n=64)
    for given in (attn, attn.query @ attn.key.mT, (attn.query @ attn.key.mT).mean(1)):
        result = record(tokens, given, 20, method="random", class_token=False)
        assert result.tokens.shape == (2, 44, 12)


def cells_of(height, width, count):
    """Cell of each patch by the record of a reduction: the places of each survivor's group."""
    n = height * width
    tokens = torch.randn(1, n, 3)
    attn = torch.zeros(1, n, n)
    result = record(tokens, attn, n - count, method="pool", class_token=False, grid=(height, width))
    groups = [(result.source_map[0] == cell).nonzero().flatten().tolist() for cell in range(count)]
    return tokens, result, groups


def test_the_places_of_cells_are_known_without_a_reduction():
    for height, width in ((4, 4), (5, 3), (1, 7), (6, 6)):
        for count in range(1, height * width + 1):
            _, result, _ = cells_of(height, width, count)
            places = get_method("pool").places((height, width), count)
            assert places == tuple(result.kept[0].tolist())
    assert get_method("topk").places((4, 4), 3) is None


def test_two_by_two():
    """144 patches to 36: every cell is 2 x 2, its mean stands at its first patch."""
    tokens, result, groups = cells_of(12, 12, 36)
    assert groups[7] == [26, 27, 38, 39]  # second row of cells, second column
    assert result.kept[0].tolist() == [24 * (i // 6) + 2 * (i % 6) for i in range(36)]
    pooled = torch.nn.functional.avg_pool2d(tokens.mT.view(1, 3, 12, 12), 2).flatten(2).mT
    assert torch.allclose(result.tokens, pooled, atol=1e-6)
    assert bool((result.size == 4).all())


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (7, 1), (5, 5), (6, 8), (12, 12)])
def test_cells_are_rectangles_of_near_equal_size(height, width):
    """For every M: exact, a partition, rectangles without holes, led by their first patch; no two sides far apart."""
    for count in range(1, height * width):
        tokens, result, groups = cells_of(height, width, count)
        assert sorted(itertools.chain(*groups)) == list(range(height * width))
        tall, wide = set(), {}
        for cell, group in enumerate(groups):
            rows, columns = {i // width for i in group}, {i % width for i in group}
            assert len(group) == len(rows) * len(columns) and group[0] == int(result.kept[0, cell])
            assert max(rows) - min(rows) < len(rows) and max(columns) - min(columns) < len(columns)
            tall.add(len(rows))
            wide.setdefault(min(rows), set()).add(len(columns))
            assert torch.allclose(result.tokens[0, cell], tokens[0, group].mean(0), atol=1e-6)
        assert max(tall) - min(tall) <= 1  # bands
        assert all(max(run) - min(run) <= 1 for run in wide.values())  # runs of one band


def test_the_number_of_bands_leaves_patches_nearest_to_centres():
    for height, width in ((5, 7), (6, 6), (3, 9)):
        for count in range(1, height * width):
            bands, found = bands_of(height, width, count), {}
            for candidate in range(-(-count // width), min(height, count) + 1):
                spread = 0.0
                cells = {}
                for row, column in itertools.product(range(height), range(width)):
                    band = row * candidate // height
                    start, stop = band * count // candidate, (band + 1) * count // candidate
                    cells.setdefault(start + column * (stop - start) // width, []).append((row, column))
                assert len(cells) == count
                for cell in cells.values():
                    places = torch.tensor(cell).double()
                    spread += float(((places - places.mean(0)) ** 2).sum())
                found[candidate] = round(spread, 6)
            assert found[bands] == min(found.values())


def test_of_equally_good_numbers_of_bands_the_smallest():
    """Halves, thirds and quarters of a square lie as well as they stand: 2 x 1 cells, not 1 x 2."""
    assert [bands_of(2, 2, 2), bands_of(6, 6, 18), bands_of(12, 12, 72)] == [1, 3, 6]


def test_pooling_with_sizes_and_class_token():
    tokens, attn = inputs()
    size = torch.randint(1, 4, (2, 65, 1)).float()
    result = record(tokens, attn, 48, method="pool", size=size)
    assert torch.allclose((result.size * result.tokens).sum(1), (size * tokens).sum(1), atol=1e-4)
    assert torch.equal(result.tokens[:, 0], tokens[:, 0])


def test_pooling_needs_the_whole_grid():
    tokens, attn = inputs(n=64)
    with pytest.raises(ValueError, match=r"Cells: pooling needs the patches' grid.*pass grid=\(height, width\)"):
        reduce(tokens, attn, 4, method="pool")
    tokens, attn = inputs()
    first = record(tokens, attn, 16, method="pool")
    later = QueryKey(attn.query[:, :, :49], attn.key[:, :, :49])
    message = "needs the whole grid of 8 x 8 patches, and only 48 are left of it; pool in one layer, before anything"
    with pytest.raises(ValueError, match=message):
        reduce(first.tokens, later, 4, method="pool", previous=first)
    untouched = record(tokens, attn, 0, method="topk")
    assert reduce(tokens, attn, 4, method="pool", previous=untouched).shape == (2, 61, 12)
