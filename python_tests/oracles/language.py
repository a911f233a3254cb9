"""References of the methods inside a language model: FitPrune, and SparseVLM with its clusters."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .basic import descending, without_smallest


def causal_attention(query: Tensor, key: Tensor, real: list[bool] | None = None) -> Tensor:
    """(H, S, S) softmax of q . k / sqrt(d) over the keys that are not later and not padding; rows of padding are 0.

    Args:
        query: (H, S, d). key: (G, S, d), each of whose heads serves H / G heads of the query, one after the other.
        real: False for padding.
    """
    heads, length, width = query.shape
    found = torch.zeros(heads, length, length, dtype=torch.float64)
    for h in range(heads):
        own = key[h // (heads // len(key))].double()
        for i in range(length):
            seen = [j for j in range(i + 1) if real is None or real[j]]
            if seen:
                found[h, i, seen] = torch.softmax((own[seen] @ query[h, i].double()) / math.sqrt(width), 0)
    return found


def fitprune(attention: Tensor, visual: list[int], text: list[int], count: int) -> list[int]:
    """Indices among ``visual`` that stay in one layer (FitPrune, AAAI 2025, arXiv 2409.10197).

    With A the largest probability over the heads: self_j = sum over visual i of A_ij / n, cross_j = sum over i of the
    text after the picture of A_ij. The tokens of the smallest self_j * cross_j leave.

    Args:
        attention: (H, S, S) probabilities of the layer.

    Choices: of equal products the lower index leaves; without text self-attention alone decides.
    """
    largest = attention.double().amax(0)
    own = largest[visual][:, visual].sum(0) / len(visual)
    cross = largest[text][:, visual].sum(0) if text else torch.ones_like(own)
    return without_smallest(own * cross, count)


def fitted_counts(samples: list[tuple[Tensor, Tensor]], alpha: float) -> list[int]:
    """How many tokens FitPrune removes in each layer if it may lose the share ``alpha`` of its attention.

    For each sample and layer, in order: the tokens that are left, least first by what they receive; as many as leave
    the others at least (1 - alpha) of what all received without reduction. That by self- and by cross-attention; the
    tokens in both leave. Means over the samples, rounded down.

    Args:
        samples: of each, self- and cross-attention (layers, n) without reduction.

    Choices: one token stays in every layer, of the largest product.
    """
    removed = []
    for own, cross in samples:
        left, counts = list(range(own.shape[1])), []
        for layer in range(len(own)):
            both = [set(_light(one[layer], left, alpha)) for one in (own, cross)]
            leave = both[0] & both[1]
            if len(leave) == len(left):
                leave.remove(max(left, key=lambda i: (float(own[layer, i] * cross[layer, i]), -i)))
            counts.append(len(leave))
            left = [i for i in left if i not in leave]
        removed.append(counts)
    return [sum(column) // len(samples) for column in zip(*removed, strict=True)]


def _light(received: Tensor, left: list[int], alpha: float) -> list[int]:
    order = sorted(left, key=lambda i: (float(received[i]), i))
    enough = float(received.sum()) * (1 - alpha)
    fits = [k for k in range(len(order) + 1) if sum(float(received[i]) for i in order[k:]) >= enough]
    return order[: max(fits, default=0)]


def text_raters(vision: Tensor, text: Tensor) -> list[int]:
    """Words that the picture has to do with (SparseVLM, ICML 2025, arXiv 2410.04417).

    Of the language model's input embeddings v and t: m = mean over the picture of softmax over the words of v . t. The
    raters are the words k with m_k > mean(m), or all words where there is none.
    """
    vision, text = vision.double(), text.double()
    if not len(text):
        return []
    share = torch.stack([torch.softmax((text * one).sum(-1), 0) for one in vision]).mean(0)
    mean = share.mean()
    return [k for k in range(len(text)) if share[k] > mean] or list(range(len(text)))


def rated_attention(attention: Tensor, raters: list[int], visual: list[int]) -> Tensor:
    """(n,) what each visual token receives: mean over the heads and over the rows of the raters, given as columns.

    Choices: without raters nothing, so that all visual tokens are equal.
    """
    if not raters:
        return torch.zeros(len(visual), dtype=torch.float64)
    return attention.double().mean(0)[raters][:, visual].mean(0)


class Clusters(NamedTuple):
    """What density peaks make of points.

    Attributes:
        centres: indices, in descending order of density times distance.
        owner: of each point the centre that it belongs to.
    """

    centres: list[int]
    owner: list[int]


def distances(points: Tensor) -> Tensor:
    """(n, n) ||x_i - x_j|| / sqrt(C) of ``points`` (n, C)."""
    points = points.double()
    return torch.stack([(points - one).norm(dim=-1) for one in points]) / math.sqrt(points.shape[1])


def peak_scores(points: Tensor, neighbours: int) -> list[float]:
    """Density times separation of each of ``points`` (n, C), as of :func:`dpc_knn`, as logarithms."""
    distance, n = distances(points), len(points)
    near = min(neighbours, n)
    sparse = [float((distance[i].sort().values[:near] ** 2).mean()) for i in range(n)]
    farthest = float(distance.max())
    scores = []
    for i in range(n):
        denser = [j for j in range(n) if sparse[j] < sparse[i] or (sparse[j] == sparse[i] and j < i)]
        gap = min((float(distance[i, j]) for j in denser), default=farthest)
        scores.append((math.log(gap) if gap > 0 else -math.inf) - sparse[i])
    return scores


def dpc_knn(points: Tensor, clusters: int, neighbours: int) -> Clusters:
    """Clustering by density peaks among nearest neighbours (Du et al., Knowledge-Based Systems 2016).

    D_ij = ||x_i - x_j|| / sqrt(C). Density: exp of minus the mean of squared D to the ``neighbours`` nearest, the point
    itself among them. Separation: the smallest D to a denser point; the largest D of all where none is. The centres
    have the largest products; every other point goes to the nearest centre.

    Choices: no noise on densities; of equal ones the lower index is the denser; no more neighbours than points; the
    "largest D of all" is that of all pairs; of equally near centres a point takes that of the lowest index.
    """
    distance, n = distances(points), len(points)
    centres = descending(peak_scores(points, neighbours), range(n))[:clusters]
    owner = [i if i in centres else min(centres, key=lambda c: (float(distance[i, c]), c)) for i in range(n)]
    return Clusters(centres, owner)


class Recycled(NamedTuple):
    """What SparseVLM makes of a layer's visual tokens.

    Attributes:
        kept: indices among the visual tokens, ascending.
        chosen: of those that leave, the ones that are recycled, ascending.
        owner: by recycled token, its cluster's centre.
        features: (c, D) mean of each cluster, in the order of its centre's index.
    """

    kept: list[int]
    chosen: list[int]
    owner: dict[int, int]
    features: Tensor


def sparsevlm(features: Tensor, rated: Tensor, count: int, share: float = 0.3, members: int = 10) -> Recycled:
    """Keep by the raters' attention, recycle some of the rest as cluster means (SparseVLM, v1.5).

    The ``count`` of the largest ``rated`` (n,) stay. Of the L that leave, the int(share * L) + 1 of the largest are
    clustered into int(that / members) + 1 clusters of ``features`` (n, D), the layer's output; each cluster's mean is a
    new token.

    Choices: of equally rated tokens the lower index leaves, and of those that leave it is recycled; neighbours of the
    density are as many as clusters; the mean is exact (released: sum / (members + 1e-6)).
    """
    n = len(rated)
    kept = without_smallest(rated, count)
    left = descending(rated, [i for i in range(n) if i not in kept])
    if not left:
        return Recycled(kept, [], {}, features.new_zeros(0, features.shape[1]).double())
    chosen = sorted(left[: int(share * len(left)) + 1])
    clusters = int(len(chosen) / members) + 1
    found = dpc_knn(features[chosen], clusters, clusters)
    owner = {token: chosen[found.owner[place]] for place, token in enumerate(chosen)}
    centres = sorted(chosen[centre] for centre in found.centres)
    means = [features[[token for token in chosen if owner[token] == one]].double().mean(0) for one in centres]
    return Recycled(kept, chosen, owner, torch.stack(means))
