"""Reference of GlobalCom2: of a picture of several crops, what stays of the thumbnail and of each crop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .basic import SMALLEST_NORM, descending


@dataclass(frozen=True)
class Picture:
    """A thumbnail of ``side`` x ``side`` patches and ``grid`` crops of as many; the valid rectangle of the canvas.

    Attributes:
        hidden: (crop, patch) of patches that are not there, 0 for the thumbnail.
    """

    side: int
    grid: tuple[int, int]
    rectangle: tuple[int, int, int, int]
    hidden: frozenset[tuple[int, int]] = frozenset()

    @property
    def crops(self) -> int:
        """How many crops."""
        return self.grid[0] * self.grid[1]

    def places(self, crop: int) -> dict[int, tuple[int, int]]:
        """Of each valid patch of ``crop``, from 1 on, its row and column in the valid rectangle."""
        top, bottom, left, right = self.rectangle
        above, before = (one * self.side for one in divmod(crop - 1, self.grid[1]))
        found = {}
        for patch in range(self.side**2):
            y, x = above + patch // self.side, before + patch % self.side
            if top <= y < bottom and left <= x < right:
                found[patch] = (y - top, x - left)
        return found

    def there(self, crop: int) -> list[int]:
        """The patches of ``crop`` that may stay; of the thumbnail for 0."""
        patches = range(self.side**2) if crop == 0 else self.places(crop)
        return [patch for patch in patches if (crop, patch) not in self.hidden]


@dataclass(frozen=True)
class Settings:
    """What a user may choose; ``share`` or ``tokens`` is None."""

    share: float | None = None
    tokens: int | None = None
    temperature: float = 10.0
    alpha: float = 0.5
    normalize: bool = True
    cells: str = "thumbnail"
    budget: str = "exact"


def globalcom2(picture: Picture, scores: Tensor, settings: Settings) -> list[list[int]]:
    """Patches that stay of the thumbnail and of each crop (GlobalCom2, arXiv 2501.05179).

    Args:
        scores: (1 + crops, side^2) logits of the class token, heads averaged.

    Choices: the budget of crops is exact, by largest remainder compared to six digits, of equal ones the lower crop;
    equal scores by lowest patch; ``cells="thumbnail"`` cuts evenly and the last cells take what is left over; lengths
    below 1e-12 count as 1e-12; a share of 1 keeps everything; where tokens are said the thumbnail gets the floor of its
    part of them.
    """
    scores = scores.double().clone()
    for crop, patch in picture.hidden:
        scores[crop, patch] = 0
    sizes = [len(picture.there(crop)) for crop in range(1 + picture.crops)]
    first, rest, share = budget_of(sizes, settings)
    wide = shown_large(picture, scores[0])
    ratios = crop_ratios(richness(picture, scores[0], wide, settings.cells), share, settings.temperature)
    if settings.budget == "exact":
        counts = exact(sizes[1:], ratios, rest)
    else:
        counts = [n if share == 1 else math.floor(n * r + 1e-9) for n, r in zip(sizes[1:], ratios, strict=True)]
    kept = [sorted(descending(scores[0].tolist(), picture.there(0))[:first])]
    for crop, count in enumerate(counts, 1):
        both = holistic(picture, crop, scores[crop], wide, settings)
        kept.append(sorted(descending(both, picture.there(crop))[:count]))
    return kept


def budget_of(sizes: Sequence[int], settings: Settings) -> tuple[int, int, float]:
    """What the thumbnail keeps, what all crops keep together, and the share that this is."""
    if settings.share is not None:
        return (*(math.floor(settings.share * n + 1e-9) for n in (sizes[0], sum(sizes[1:]))), settings.share)
    tokens = min(settings.tokens, sum(sizes))
    first = tokens * sizes[0] // sum(sizes)
    return first, tokens - first, tokens / sum(sizes)


def shown_large(picture: Picture, thumbnail: Tensor) -> Tensor:
    """The thumbnail's map under the valid rectangle, by torch; (0, 0) if that is empty."""
    top, bottom, left, right = picture.rectangle
    if bottom <= top or right <= left:
        return torch.zeros(0, 0, dtype=torch.float64)
    small = thumbnail.view(1, 1, picture.side, picture.side)
    return torch.nn.functional.interpolate(small, (bottom - top, right - left), mode="bilinear", align_corners=False)[
        0, 0
    ]


def richness(picture: Picture, thumbnail: Tensor, wide: Tensor, cells: str) -> list[float]:
    """z of each crop."""
    (rows, columns), g, found = picture.grid, picture.side, [0.0] * picture.crops
    if cells == "crops":
        for crop in range(1, 1 + picture.crops):
            shown = sum(float(wide[place]) for place in picture.places(crop).values())
            found[crop - 1] = shown * g * g / max(wide.numel(), 1)
        return found
    tall, broad = max(g // rows, 1), max(g // columns, 1)
    for patch, score in enumerate(thumbnail.tolist()):
        y, x = divmod(patch, g)
        found[min(y // tall, rows - 1) * columns + min(x // broad, columns - 1)] += score
    return found


def crop_ratios(z: Sequence[float], share: float, temperature: float) -> list[float]:
    """r of each crop."""
    powers = [math.exp((one - max(z)) / temperature) for one in z]
    s = [one / (sum(powers) + 1e-8) for one in powers]
    return [min(1.0, share * (1 + one - sum(s) / len(s))) for one in s]


def exact(sizes: Sequence[int], ratios: Sequence[float], total: int) -> list[int]:
    """Whole numbers with the sum ``total``: no crop gets more than it has, and remainders go to the largest."""
    full: set[int] = set()
    while True:
        weights = {c: sizes[c] * ratios[c] for c in range(len(sizes)) if c not in full}
        rest = total - sum(sizes[c] for c in full)
        shares = {c: rest * w / sum(weights.values()) if w else 0.0 for c, w in weights.items()}
        over = {c for c, w in shares.items() if w > sizes[c]}
        if not over:
            break
        full |= over
    counts = [sizes[c] if c in full else math.floor(shares[c] + 1e-9) for c in range(len(sizes))]
    left = {c: round(1e6 * (shares[c] - counts[c])) for c in shares if counts[c] < sizes[c]}
    for c in sorted(left, key=lambda c: (-left[c], c))[: total - sum(counts)]:
        counts[c] += 1
    return counts


def holistic(picture: Picture, crop: int, own: Tensor, wide: Tensor, settings: Settings) -> dict[int, float]:
    """The score of each patch of ``crop`` that may stay, from the thumbnail's and its own."""
    places, there = picture.places(crop), picture.there(crop)
    shown, mine = [float(wide[places[p]]) for p in there], [float(own[p]) for p in there]
    if settings.normalize:
        shown, mine = (
            [one / max(math.sqrt(sum(x * x for x in values)), SMALLEST_NORM) for one in values]
            for values in (shown, mine)
        )
    return {p: settings.alpha * a + (1 - settings.alpha) * b for p, a, b in zip(there, shown, mine, strict=True)}
