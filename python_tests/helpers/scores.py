"""What methods inside a language model choose and merge, written out in loops and in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ficoco_ext import QueryKey
from helpers.ops import merge_matrix, query_key

B, H, HK, N, C, D = 2, 4, 2, 50, 6, 8
START, LENGTH = 9, 25  # 9 tokens in front of a picture of 5 x 5, 16 behind
VISUAL = (START, LENGTH)


def sequence(b=B, n=N, seed=0, dtype=torch.float32, hk=HK):
    """Tokens and attention of a layer with fewer key heads than query heads."""
    torch.manual_seed(seed)
    query, key = query_key(b, H, hk, n, D, dtype)
    return torch.randn(b, n, C).to(dtype), QueryKey(query, key)


def padded(b=B, n=N, left=(0, 4), right=(3, 0)):
    """(B, N) bool: some rows are padded in front, some behind."""
    real = torch.ones(b, n, dtype=torch.bool)
    for row in range(b):
        real[row, : left[row]] = False
        real[row, n - right[row] :] = False
    return real


def loud(attn, real):
    """Padding with such long keys and queries that whoever reads it notices."""
    factor = torch.where(real, 1.0, 30.0)[:, None, :, None].to(attn.key.dtype)
    return QueryKey(attn.query * factor, attn.key * factor)


def heads_mean(attn: QueryKey, real: Tensor | None = None, *, probs: bool) -> Tensor:
    """(B, N, N): logits, which know no mask, or causal probabilities over real keys; the mean over heads."""
    query, key = attn.query.double(), attn.key.double()
    b, h, n, d = query.shape
    scale = d**-0.5 if attn.scale is None else attn.scale
    out = torch.zeros(b, n, n, dtype=torch.float64)
    for item in range(b):
        for head in range(h):
            logits = query[item, head] @ key[item, head // (h // key.shape[1])].T * scale
            if not probs:
                out[item] += logits / h
                continue
            for i in range(n):
                seen = [j for j in range(i + 1) if real is None or real[item, j]]
                if seen:
                    out[item, i, seen] += logits[i, seen].softmax(0) / h
    return out


def _reduced(values: list[float], how: str) -> float:
    return sum(values) / (len(values) if how == "mean" else 1)


def redundancy(
    attn: Tensor, visual: list[int], text: list[int], *, probs, beta=0.6, visual_reduce="mean", text_reduce="mean"
) -> list[float]:
    """Scores of the visual tokens: FiCoCo eq. 3, with columns for rows where probabilities are asked for."""
    a = attn.T if probs else attn
    scores = []
    for i in visual:
        among = _reduced([float(a[i, j]) for j in visual], visual_reduce)
        if text:
            scores.append(beta * among - (1 - beta) * _reduced([float(a[i, k]) for k in text], text_reduce))
        else:
            scores.append(among)
    return scores


def penalised(scores: list[float], grid: tuple[int, int], penalty: float, window: int = 2) -> list[float]:
    """The highest score of each whole window times ``penalty``, or over it where negative."""
    out, (height, width) = list(scores), grid
    for top in range(0, height - window + 1, window):
        for left in range(0, width - window + 1, window):
            cells = [(top + i) * width + left + j for i in range(window) for j in range(window)]
            best = max(cells, key=lambda cell: (scores[cell], -cell))
            out[best] = scores[best] * penalty if scores[best] > 0 else scores[best] / penalty
    return out


def split(scores: list[float], visual: list[int], r: int) -> tuple[list[int], list[int], float]:
    """The r columns of highest score, the others, and how clearly they differ."""
    order = sorted(range(len(visual)), key=lambda i: -scores[i])
    gap = scores[order[r - 1]] - scores[order[r]]
    return sorted(visual[i] for i in order[:r]), sorted(visual[i] for i in order[r:]), gap


def correlations(
    attn: Tensor, sources: list[int], kept: list[int], text: list[int], *, probs, gamma=0.6, indirect_reduce="sum"
) -> list[list[float]]:
    """FiCoCo eq. 4: directly, and by way of each text token."""
    rows = []
    for i in sources:
        row = []
        for j in kept:
            way = [float((attn[k, i] if probs else attn[i, k]) * attn[k, j]) for k in text]
            by_text = _reduced(way, indirect_reduce) if way else 0.0
            row.append(gamma * float(attn[i, j]) + (1 - gamma) * by_text)
        rows.append(row)
    return rows


def heirs(row: list[float], eps: float, targets: str | int, alpha: str) -> dict[int, float]:
    """Places of a source's targets, and their weights."""
    order = sorted(range(len(row)), key=lambda j: (-row[j], j))
    if targets == "adaptive":
        threshold = torch.quantile(torch.tensor(row, dtype=torch.float64), eps)
        chosen = [j for j in order if row[j] >= threshold - 1e-12]
        count = len(row) - math.ceil(eps * (len(row) - 1) - 1e-9)
        assert len(chosen) == count or row[chosen[count]] == row[chosen[count - 1]]  # equal ones alone are too many
        chosen = chosen[:count]
    else:
        chosen = order[:targets]
    if alpha == "average" or (alpha == "ratio" and not any(row[j] for j in chosen)):
        shares = [1.0 for _ in chosen]
    elif alpha == "ratio":
        shares = [row[j] for j in chosen]
    else:
        shares = [math.exp(row[j] - row[order[0]]) for j in chosen]
    return {j: share / sum(shares) for j, share in zip(chosen, shares, strict=True)}


@dataclass
class Wanted:
    """One item of a batch as it should be."""

    sources: list[int]
    kept: list[int]  # of the whole sequence
    heirs: list[dict[int, float]]  # for each source: column of the target -> weight
    tokens: Tensor
    size: Tensor
    gap: float


VARIANTS = {"released": (False, "softmax"), "paper": (True, "ratio")}


def ficoco_l(tokens, attn, r, visual, real=None, *, variant="paper", grid=None, size=None, **options):
    """FiCoCo-L of every item, by hand; the options are those of the method."""
    probs, alpha = VARIANTS[variant]
    probs = options.pop("attention", "probs" if probs else "logits") == "probs"
    by_probs = options.pop("correlation_attention", "probs" if probs else "logits") == "probs"
    alpha, eps = options.pop("alpha", alpha if by_probs else "softmax"), options.pop("eps", 0.998)
    targets, penalty, window = options.pop("targets", "adaptive"), options.pop("penalty", 1.0), options.pop("window", 2)
    gamma, beta = options.pop("gamma", 0.6), options.pop("beta", 0.6)
    gamma = {(False, True): 0.0, (True, False): 1.0}.get(
        (options.pop("direct", True), options.pop("indirect", True)), gamma
    )
    beta = {(False, True): 0.0, (True, False): 1.0}.get(
        (options.pop("visual_redundancy", True), options.pop("text_relevance", True)), beta
    )
    indirect_reduce = options.pop("indirect_reduce", "sum")
    maps, links, out = heads_mean(attn, real, probs=probs), heads_mean(attn, real, probs=by_probs), []
    for item, a in enumerate(maps):
        columns = list(range(visual[0], sum(visual)))
        there = [real is None or bool(real[item, k]) for k in range(tokens.shape[1])]
        text = [k for k in range(sum(visual), tokens.shape[1]) if there[k]]
        scores = redundancy(a, columns, text, probs=probs, beta=beta, **options)
        if penalty != 1:
            scores = penalised(scores, grid, penalty, window)
        sources, left, gap = split(scores, columns, r)
        rows = correlations(
            links[item], sources, left, text, probs=by_probs, gamma=gamma, indirect_reduce=indirect_reduce
        )
        found = [{left[j]: w for j, w in heirs(row, eps, targets, alpha).items()} for row in rows]
        out.append(_merged(tokens[item], sources, found, gap, None if size is None else size[item], size is not None))
    return out


def last_token(tokens, attn, r, visual, real=None):
    """FastV of every item, by hand: what the last real token attends to least leaves."""
    maps, out = heads_mean(attn, real, probs=True), []
    for item, a in enumerate(maps):
        columns = list(range(visual[0], sum(visual)))
        last = max(k for k in range(tokens.shape[1]) if real is None or real[item, k])
        sources, _, gap = split([-float(a[last, i]) for i in columns], columns, r)
        out.append(_merged(tokens[item], sources, [{} for _ in sources], gap, None, False))
    return out


def _merged(tokens, sources, found, gap, size, size_weighted):
    kept = [k for k in range(len(tokens)) if k not in sources]
    width = max(map(len, found))
    targets = torch.tensor([[kept.index(j) for j in one] for one in found]).reshape(len(found), width)
    weights = torch.tensor([list(one.values()) for one in found], dtype=torch.float64).reshape(len(found), width)
    matrix, new_size = merge_matrix(
        len(tokens), torch.tensor(sources), torch.tensor(kept), targets, weights, size, size_weighted
    )
    return Wanted(sources, kept, found, matrix @ tokens.double(), new_size, gap)


def assert_equals(result, wanted, tolerance=1e-5):
    """A :class:`ficoco_ext.Reduction` is what was worked out by hand for every item."""
    for item, one in enumerate(wanted):
        assert one.gap > 1e-6, "the test's own inputs do not decide"
        assert result.sources[item].tolist() == one.sources
        kept = result.kept[item].tolist()
        assert kept == one.kept
        for i, heirs_ in enumerate(one.heirs):
            got = [kept[j] for j in result.targets[item, i].tolist()]
            assert got == list(heirs_)
            shares = torch.tensor(list(heirs_.values()), dtype=torch.float64)
            assert torch.allclose(result.weights[item, i].double(), shares, rtol=0, atol=tolerance)
        scale = one.tokens.abs().max()
        assert (result.tokens[item].double() - one.tokens).abs().max() <= tolerance * scale
        assert torch.allclose(result.size[item, :, 0].double(), one.size, rtol=tolerance, atol=tolerance)
        for place, heir in enumerate(result.source_map[item].tolist()):
            if place in one.kept:
                assert heir == one.kept.index(place)
            elif one.heirs[0]:
                mine = one.heirs[one.sources.index(place)]
                assert one.kept[heir] == max(mine, key=mine.get)
            else:
                assert heir == -1
