"""Density peaks against a loop over tokens written from the definition, and what ties and padding do."""

from __future__ import annotations

import math

import pytest
import torch

from ficoco_ext.stages import density
from ficoco_ext.stages.density import density_peaks


def by_hand(x: list[list[float]], count: int, neighbours: int) -> tuple[list[int], list[int]]:
    """Centres and assignment of one row, in Python's own numbers."""
    m = len(x)
    distance = [[math.dist(a, b) / math.sqrt(len(a)) for b in x] for a in x]
    near = [sorted(row)[:neighbours] for row in distance]
    rho = [math.exp(-sum(d * d for d in row) / len(row)) for row in near]
    largest = max(max(row) for row in distance)
    delta = []
    for i in range(m):
        denser = [j for j in range(m) if rho[j] > rho[i] or (rho[j] == rho[i] and j < i)]
        delta.append(min((distance[i][j] for j in denser), default=largest))
    centres = sorted(sorted(range(m), key=lambda i: (-rho[i] * delta[i], i))[:count])
    joined = [min(range(count), key=lambda c: (distance[i][centres[c]], c)) for i in range(m)]
    for cluster, centre in enumerate(centres):
        joined[centre] = cluster
    return centres, joined


def points(seed: int, b: int, m: int, d: int) -> torch.Tensor:
    return torch.randn(b, m, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("m", "count", "neighbours"), [(1, 1, 1), (7, 1, 3), (23, 4, 4), (40, 11, 7), (30, 30, 50)])
def test_it_is_the_definition(m: int, count: int, neighbours: int) -> None:
    x = points(m, 3, m, 5)
    centres, assignment = density_peaks(x, count, neighbours)
    for row in range(3):
        want = by_hand(x[row].tolist(), count, neighbours)
        assert (centres[row].tolist(), assignment[row].tolist()) == want


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = points(0, 2, 50, 4).float()
    mask = torch.rand(2, 50, generator=torch.Generator().manual_seed(1)) < 0.7
    for hidden in (None, mask):
        monkeypatch.setattr(density, "_BLOCK", 512)
        whole = density_peaks(x, 6, 5, hidden)
        monkeypatch.setattr(density, "_BLOCK", 7)
        monkeypatch.setattr(density, "_STRIP", 9)
        blocked = density_peaks(x, 6, 5, hidden)
        monkeypatch.setattr(density, "_STRIP", 64)
        assert all(torch.equal(a, b) for a, b in zip(whole, blocked, strict=True))


def test_of_equal_tokens_the_first_is_the_densest_and_joins_itself() -> None:
    x = torch.ones(1, 6, 3)
    centres, assignment = density_peaks(x, 3, 2)
    assert centres.tolist() == [[0, 1, 2]]
    assert assignment.tolist() == [[0, 1, 2, 0, 0, 0]]


def test_copies_of_a_dense_token_are_no_other_centres() -> None:
    x = torch.tensor([[[0.0], [0.0], [0.0], [5.0], [5.5]]])
    assert density_peaks(x, 2, 2)[0].tolist() == [[0, 3]]


def test_tokens_far_from_all_others_still_have_an_order() -> None:
    """Their densities are exp of less than -3000, which is 0 in every float: the first would be the centres."""
    x = torch.tensor([[[0.0], [100.0], [201.0], [290.0]]])
    centres, assignment = density_peaks(x, 2, 2)
    assert (centres.tolist(), assignment.tolist()) == ([[2, 3]], [[0, 0, 0, 1]])


def test_padding_is_not_there() -> None:
    x = points(3, 1, 20, 4)
    mask = torch.ones(1, 20, dtype=torch.bool)
    mask[0, [0, 4, 5, 19]] = False
    real = mask[0].nonzero()[:, 0]
    alone = density_peaks(x[:, real], 5, 3)
    for filling in (0.0, math.inf, math.nan):
        padded = x.masked_fill(~mask.unsqueeze(-1), filling)
        centres, assignment = density_peaks(padded, 5, 3, mask)
        assert torch.equal(centres, real[alone[0]])
        assert torch.equal(assignment[:, real], alone[1])


def test_more_neighbours_than_a_row_has_tokens_are_all_of_them() -> None:
    x = points(4, 1, 12, 3)
    mask = torch.arange(12)[None] < 8
    alone = density_peaks(x[:, :8], 3, 8)
    centres, assignment = density_peaks(x, 3, 10, mask)
    assert torch.equal(centres, alone[0])
    assert torch.equal(assignment[:, :8], alone[1])


def test_fewer_tokens_than_centres_join_none_that_are_not_there() -> None:
    x = points(5, 1, 6, 3)
    mask = torch.tensor([[False, True, False, True, False, False]])
    centres, assignment = density_peaks(x, 4, 2, mask)
    assert {1, 3} < set(centres[0].tolist())
    assert centres[0, assignment[0, [1, 3]]].tolist() == [1, 3]


def test_a_batch_is_its_rows() -> None:
    x = points(6, 4, 33, 8).float()
    centres, assignment = density_peaks(x, 5, 4)
    for row in range(4):
        alone = density_peaks(x[row : row + 1], 5, 4)
        assert torch.equal(alone[0][0], centres[row])
        assert torch.equal(alone[1][0], assignment[row])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((torch.ones(2, 3), 1, 1), r"features must be \(B, M, D\)"),
        ((torch.ones(1, 3, 2), 4, 1), r"count must be an integer in 1 ... 3"),
        ((torch.ones(1, 3, 2), 0, 1), r"count must be an integer in 1 ... 3"),
        ((torch.ones(1, 3, 2), 1, 0), r"neighbours must be an integer >= 1"),
        ((torch.ones(1, 3, 2), 1, 1, torch.ones(1, 2, dtype=torch.bool)), r"mask must be \(1, 3\) bool"),
    ],
)
def test_wrong_arguments_are_refused(arguments: tuple, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        density_peaks(*arguments)
