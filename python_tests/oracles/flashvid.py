"""Reference of FlashVID: diverse tokens of each frame, and trees of alike tokens through the frames of a scene."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .basic import cosines, descending, first_largest, first_smallest, shared_out
from .language import peak_scores


@dataclass(frozen=True)
class Settings:
    """Hyperparameters, with the published values."""

    diverse: float = 0.7
    cut: float = 0.9
    scenes: int = 8
    link: float = 0.8
    neighbours: int = 7
    weigh: float = 1.0


def diverse_picks(features: Tensor, saliency: Tensor, count: int) -> list[int]:
    """``count`` tokens by max-min distance times the candidate's own saliency."""
    n = len(features)
    distance = 1 - cosines(features)
    apart = [min((float(distance[i, j]) for j in range(n) if j != i), default=2.0) for i in range(n)]
    picked: list[int] = []
    while len(picked) < count:
        if picked:
            apart = [min(float(distance[j, c]) for c in picked) for j in range(n)]
        gains = [float(saliency[j]) * apart[j] for j in range(n)]
        picked.append(first_largest(gains, [j for j in range(n) if j not in picked]))
    return picked


def scene_starts(means: Tensor, cut: float, scenes: int) -> list[bool]:
    """Whether a scene begins at each frame: at the first, where the cosine with the frame before is below ``cut``, and
    where fewer than ``scenes`` begin, at the lowest of the others, too."""
    frames = len(means)
    alike = [1.0] + [float(cosines(means[f : f + 1], means[f - 1 : f])[0, 0]) for f in range(1, frames)]
    starts = [f == 0 or alike[f] < cut for f in range(frames)]
    while sum(starts) < min(scenes, frames):
        starts[first_smallest(alike, [f for f in range(frames) if not starts[f]])] = True
    return starts


def parents(tokens: Tensor, frames: list[list[int]], rest: set[int], starts: list[bool], links: int, above: float):
    """By token of ``rest``, what it is linked to: the token of ``rest`` in the frame before, in the same scene, that is
    most like it, if their cosine is above ``above``; the ``links`` strongest alone."""
    likeness = cosines(tokens)
    best: dict[int, int] = {}
    for f in range(1, len(frames)):
        before = [j for j in frames[f - 1] if j in rest]
        for i in (i for i in frames[f] if i in rest and before and not starts[f]):
            best[i] = first_largest(likeness[i], before)
    strong = [i for i in best if likeness[i, best[i]] > above]
    strong.sort(key=lambda i: (-float(likeness[i, best[i]]), i))
    return {i: best[i] for i in strong[:links]}


def flashvid(
    features: Tensor, saliency: Tensor, frames: list[list[int]], count: int, settings: Settings = Settings()
) -> tuple[list[int], Tensor]:
    """Which tokens stay, and the mean of all that is in each (FlashVID, ICLR 2026, arXiv 2602.08024).

    Args:
        features, saliency: (N, D) and (N,).
        frames: the tokens of each frame, none of them empty.

    Choices: no tokens are added for a later layer; a frame's budget is what equal shares of ``count`` round down to,
    summed up; ceil(``diverse`` x budget) are diverse; no more links than leave enough roots; each frame with a root has
    at least one centre and as many as its share of all roots, as in :func:`oracles.basic.shared_out` (with fewer
    centres than frames, those of most roots); no noise, ``neighbours`` as given; a centre is the mean of all tokens of
    the trees that end in it; a frame without a centre gives its trees to the nearest of all that stay; saliency that is
    0 everywhere counts as 1.
    """
    features, n = features.double(), len(features)
    ends = [count * sum(map(len, frames[: f + 1])) // n for f in range(len(frames))]
    diverse: set[int] = set()
    for frame, budget in zip(frames, [b - a for a, b in zip([0, *ends], ends, strict=False)], strict=True):
        own = saliency[frame].double() ** settings.weigh
        own = own if bool((own > 0).any()) else torch.ones_like(own)
        wanted = math.ceil(settings.diverse * budget - 1e-6)
        diverse |= {frame[place] for place in diverse_picks(features[frame], own, wanted)}
    rest = set(range(n)) - diverse
    starts = scene_starts(torch.stack([features[frame].mean(0) for frame in frames]), settings.cut, settings.scenes)
    parent = parents(features, frames, rest, starts, n - count, settings.link)
    root = {i: i for i in range(n)}
    for i in sorted(parent):
        root[i] = root[parent[i]]  # the frame before is done
    value = {r: features[[i for i in rest if root[i] == r]].mean(0) for r in rest if root[r] == r}
    centres = _centres(frames, value, count - len(diverse), settings.neighbours)
    kept = sorted(diverse | {c for some in centres for c in some})
    held = {token: [token] for token in kept}
    for i in sorted(rest - set(kept)):
        own = next(some for frame, some in zip(frames, centres, strict=True) if root[i] in frame)
        among = [root[i]] if root[i] in kept else own or kept
        away = {c: float((value.get(c, features[c]) - value[root[i]]).norm()) for c in among}
        held[first_smallest(away, among)].append(i)
    return kept, torch.stack([features[held[token]].mean(0) for token in kept])


def _centres(frames: list[list[int]], value: dict[int, Tensor], count: int, neighbours: int) -> list[Sequence[int]]:
    """Of each frame the roots that become centres, by density peaks of their trees' means."""
    roots = [[r for r in frame if r in value] for frame in frames]
    filled = [f for f in range(len(frames)) if roots[f]]
    sizes = [len(roots[f]) for f in filled]
    if count < len(filled):
        most = descending(sizes, range(len(filled)))[:count]
        shares = [int(place in most) for place in range(len(filled))]
    else:
        shares = shared_out([size * count / sum(sizes) for size in sizes], count, sizes)
    found: list[Sequence[int]] = [[] for _ in frames]
    for f, share in zip(filled, shares, strict=True):
        scores = peak_scores(torch.stack([value[r] for r in roots[f]]), neighbours)
        found[f] = [roots[f][place] for place in descending(scores, range(len(roots[f])))[:share]]
    return found
