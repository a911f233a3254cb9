"""References of the methods that pick one token after the other: DivPrune, SCOPE, CDPruner, MMTok.

Their sums have ties on paper that rounding breaks: two tokens that are left and only gain by each other, or copies of
picked ones. ``either`` is an answer to be judged: where scores differ by rounding alone, the reference takes what that
answer has, so it ends in the same set exactly if the answer is right.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from .basic import between_0_and_1, cosines, descending, first_largest

RANK = 1e-6  # of the first gain: below it the kernel's rank is exhausted
LEAST = 1e-10  # under a root


def divprune(features: Tensor, count: int, either: Collection[int] = ()) -> list[int]:
    """Max-min diversity (DivPrune, CVPR 2025, arXiv 2503.02175).

    D_ij = 1 - cos(x_i, x_j). First the token whose nearest other token is farthest, then always the one whose
    nearest picked token is farthest.

    Choices: a zero vector is at distance 1 from everything; a picked token is never picked again, whatever its
    duplicates; a picture of one token has that one.
    """
    n = len(features)
    distance = 1 - cosines(features)
    nearest = [min((float(distance[i, j]) for j in range(n) if j != i), default=0.0) for i in range(n)]
    picked = [first_largest(nearest, range(n), either)]
    while len(picked) < count:
        left = [j for j in range(n) if j not in picked]
        apart = {j: min(float(distance[c, j]) for c in picked) for j in left}
        picked.append(first_largest(apart, left, either))
    return sorted(picked)


def coverage_picks(rows: Tensor, count: int, weight: Tensor | None = None, either: Collection[int] = ()) -> list[int]:
    """Greedy coverage: in the order of picking, ``count`` columns j of ``rows`` (R, N).

    Each takes the largest weight_j * sum_r max(0, rows_rj - m_r), where m_r is the best of row r among the picked,
    0 before the first.
    """
    rows = rows.double()
    n = rows.shape[1]
    weight = torch.ones(n, dtype=torch.float64) if weight is None else weight.double()
    best = torch.zeros(len(rows), dtype=torch.float64)
    picked: list[int] = []
    while len(picked) < count:
        left = [j for j in range(n) if j not in picked]
        score = {j: float(weight[j] * (rows[:, j] - best).clamp(min=0).sum()) for j in left}
        picked.append(first_largest(score, left, either))
        best = torch.maximum(best, rows[:, picked[-1]])
    return picked


def scope(
    features: Tensor, saliency: Tensor, count: int, alpha: float = 1.0, either: Collection[int] = ()
) -> list[int]:
    """Saliency times coverage (SCOPE, NeurIPS 2025, arXiv 2510.24214).

    Rows are the tokens themselves by cosine: score_j = a_j^alpha * sum_i max(0, cos(x_i, x_j) - m_i).

    Choices: a picture whose saliency is 0 everywhere is covered without it; 0^0 = 1; when no token gains anything any
    more, the rest follow by index.
    """
    saliency = saliency.double()
    flat = not bool((saliency > 0).any())
    # The unit of saliency does not matter, so that its largest is 1 keeps large powers finite.
    weight = torch.ones_like(saliency) if flat else (saliency / saliency.max()) ** alpha
    return sorted(coverage_picks(cosines(features), count, weight, either))


def mmtok(
    features: Tensor,
    words: Tensor | None,
    count: int,
    *,
    tower_features: Tensor | None = None,
    text_temperature: float = 0.02,
    vision_temperature: float = 0.2,
    alpha: float = 0.5,
    either: Collection[int] = (),
) -> list[int]:
    """Coverage of words and of the picture (MMTok, ICLR 2026, arXiv 2508.18264).

    Rows are P = softmax_j(cos(word_m, x_j) / tau_t) / M and alpha * Q, Q = softmax_j(cos(u_i, u_j) / tau_v) / N, with u
    the tower's features before the projector.

    Choices: without words the rows are alpha * Q alone; without u the projected features are in its place.
    """
    seen = features if tower_features is None else tower_features
    rows = [alpha * torch.softmax(cosines(seen) / vision_temperature, dim=1) / len(seen)]
    if words is not None and len(words):
        rows.insert(0, torch.softmax(cosines(words, features) / text_temperature, dim=1) / len(words))
    return sorted(coverage_picks(torch.cat(rows), count, None, either))


def word_relevance(features: Tensor, words: Tensor, sign: float = 1.0) -> Tensor:
    """(N,) mean over the words of ``sign`` * cos(x_i, word), brought to [0, 1] with 1e-6 added (CDPruner).

    ``sign`` = -1 is how the paper's code has it with CLIP's two towers; +1 goes with a language model's word embeddings
    (OpenVINO GenAI). Choices: no words, or all relevances equal: 1 for every token.
    """
    if not len(words):
        return torch.ones(len(features), dtype=torch.float64)
    return between_0_and_1(sign * cosines(features, words).mean(1), 1e-6)


def cdpruner_kernel(features: Tensor, relevance: Tensor, theta: float, blend: str) -> Tensor:
    """(N, N) the conditional kernel, from similarity S (cosines) and relevance rho (N,).

    ``"product"``: rho_i S_ij rho_j (CDPruner, NeurIPS 2025, arXiv 2506.10967); ``"exp"``: the same with
    exp(theta / (2 (1 - theta)) * rho) in place of rho; ``"linear"``: (1 - theta) S + theta rho S rho (both OpenVINO
    GenAI).
    """
    similarity, rho = cosines(features), relevance.double()
    if blend == "exp":
        rho = torch.exp(theta / (2 * (1 - theta)) * rho)
    product = rho[:, None] * similarity * rho[None, :]
    return (1 - theta) * similarity + theta * product if blend == "linear" else product


def determinant_picks(kernel: Tensor, count: int, fill: Tensor, either: Collection[int] = ()) -> list[int]:
    """Greedy maximum of log det of the picked part of ``kernel`` (Chen et al., NeurIPS 2018, algorithm 1).

    Choices: once the largest gain left is below 1e-6 of the first, or nothing, the rank is exhausted and
    the rest follow by ``fill`` (N,), largest first; a gain under a root is at least 1e-10.
    """
    kernel = kernel.double()
    n = len(kernel)
    gain = [float(kernel[j, j]) for j in range(n)]
    factors: list[list[float]] = [[] for _ in range(n)]
    picked: list[int] = []
    first = max(gain)
    while len(picked) < count:
        left = [j for j in range(n) if j not in picked]
        chosen = first_largest(gain, left, either)
        if gain[chosen] < RANK * first or gain[chosen] <= 0:
            return picked + descending(fill, left)[: count - len(picked)]
        root = math.sqrt(max(gain[chosen], LEAST))
        for j in (j for j in left if j != chosen):
            shared = sum(a * b for a, b in zip(factors[chosen], factors[j], strict=True))
            step = (float(kernel[chosen, j]) - shared) / root
            factors[j].append(step)
            gain[j] -= step * step
        picked.append(chosen)
    return picked


def cdpruner(
    features: Tensor,
    words: Tensor | None,
    count: int,
    *,
    theta: float = 0.5,
    blend: str = "exp",
    sign: float = 1.0,
    blocks: int = 1,
    either: Collection[int] = (),
) -> list[int]:
    """Conditional diversity (CDPruner, NeurIPS 2025, arXiv 2506.10967).

    Args:
        words: (M, D) embeddings; None: relevance 1 for every token, pure diversity.
        blocks: cut the tokens into so many runs, each with a relevance and a share of ``count`` of its own (OpenVINO
            GenAI: 2).

    Choices: of what does not divide evenly, the last runs have one more, of tokens and of ``count``; past the rank the
    rest follow by what weighs the kernel, by index where that is nothing (theta = 0).
    """
    n, kept, start = len(features), [], 0
    for block in range(blocks):
        size, share = _share(n, block, blocks), _share(count, block, blocks)
        part = features[start : start + size]
        if not share:
            start += size
            continue
        rho = torch.ones(size, dtype=torch.float64) if words is None else word_relevance(part, words, sign)
        here = [index - start for index in either]
        fill = torch.ones_like(rho) if theta == 0 and blend != "product" else rho
        picks = determinant_picks(cdpruner_kernel(part, rho, theta, blend), share, fill, here)
        kept += [start + index for index in picks]
        start += size
    return sorted(kept)


def _share(whole: int, block: int, blocks: int) -> int:
    return whole // blocks + (block >= blocks - whole % blocks)
