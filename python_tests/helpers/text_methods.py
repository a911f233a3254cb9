"""SparseVLM, FitPrune and DART inside a language model, written out in loops and in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ficoco_ext import QueryKey
from helpers.scores import Wanted, _merged, split


def head_maps(attn: QueryKey, real: Tensor | None = None) -> Tensor:
    """(B, H, N, N): causal probabilities over real keys of each head."""
    query, key = attn.query.double(), attn.key.double()
    b, h, n, d = query.shape
    scale = d**-0.5 if attn.scale is None else attn.scale
    out = torch.zeros(b, h, n, n, dtype=torch.float64)
    for item in range(b):
        for head in range(h):
            logits = query[item, head] @ key[item, head // (h // key.shape[1])].T * scale
            for i in range(n):
                seen = [j for j in range(i + 1) if real is None or real[item, j]]
                if seen:
                    out[item, head, i, seen] = logits[i, seen].softmax(0)
    return out


def columns_of(visual: tuple[int, int], n: int, real: Tensor | None) -> tuple[list[int], list[int]]:
    """Columns of one row: the picture's, and those of the real text after it."""
    text = [k for k in range(sum(visual), n) if real is None or bool(real[k])]
    return list(range(visual[0], sum(visual))), text


def raters(embeddings: Tensor, visual: list[int], text: list[int]) -> list[int]:
    """The text tokens that a picture is most like, of one row (N, C)."""
    if not text:
        return []
    shares = [0.0] * len(text)
    for i in visual:
        logits = [float(embeddings[i].double() @ embeddings[k].double()) for k in text]
        weights = [math.exp(one - max(logits)) for one in logits]
        for place, weight in enumerate(weights):
            shares[place] += weight / sum(weights) / len(visual)
    mean = sum(shares) / len(shares)
    return [k for k, share in zip(text, shares, strict=True) if share > mean + 1e-9] or text


def rated(attention: Tensor, visual: list[int], chosen: list[int]) -> list[float]:
    """What each visual token gets from the raters, (N, N) heads averaged."""
    return [sum(float(attention[k, i]) for k in chosen) / len(chosen) for i in visual]


def density_clusters(x: list[list[float]], count: int) -> tuple[list[int], list[int]]:
    """Centres, and for each token the centre that it joins."""
    m = len(x)
    distance = [[math.dist(a, b) / math.sqrt(len(a)) for b in x] for a in x]
    rho = [math.exp(-sum(d * d for d in sorted(row)[:count]) / min(count, m)) for row in distance]
    largest = max(map(max, distance))
    score = []
    for i in range(m):
        denser = [distance[i][j] for j in range(m) if rho[j] > rho[i] or (rho[j] == rho[i] and j < i)]
        score.append(rho[i] * min(denser, default=largest))
    centres = sorted(sorted(range(m), key=lambda i: (-score[i], i))[:count])
    return centres, [i if i in centres else min(centres, key=lambda c: (distance[i][c], c)) for i in range(m)]


def recycled(tokens: Tensor, scores: list[float], visual: list[int], keep: int) -> tuple[list[int], dict[int, int]]:
    """Columns that leave for good or go elsewhere, and where those go: version 1.5 of one row."""
    order = sorted(range(len(visual)), key=lambda i: (-scores[i], i))
    gone = order[keep:]
    best = sorted(gone[: int(0.3 * len(gone)) + 1])
    centres, joins = density_clusters(tokens[[visual[i] for i in best]].double().tolist(), int(len(best) / 10) + 1)
    heirs = {visual[best[i]]: visual[best[joins[i]]] for i in range(len(best)) if i not in centres}
    leave = sorted(visual[i] for i in gone if i not in [best[c] for c in centres])
    return leave, heirs


def sparsevlm(tokens, attn, keep, visual, real=None, embeddings=None):
    """(sources, heirs by source, merged tokens) of version 1.5 for every item; ``keep`` without the clusters."""
    maps, found = head_maps(attn, real).mean(1), []
    for item, attention in enumerate(maps):
        own, text = columns_of(visual, tokens.shape[1], None if real is None else real[item])
        chosen = raters((tokens if embeddings is None else embeddings)[item], own, text)
        leave, heirs = recycled(tokens[item], rated(attention, own, chosen), own, keep)
        merged = tokens[item].double().clone()
        for centre in set(heirs.values()):
            members = [centre, *(source for source, heir in heirs.items() if heir == centre)]
            merged[centre] = tokens[item, members].double().mean(0)
        found.append((leave, heirs, merged[[k for k in range(tokens.shape[1]) if k not in leave]]))
    return found


def dropping(tokens, attn, r, visual, real, score) -> list[Wanted]:
    """What is left of every item where the lowest scores leave; ``score`` of (heads' maps, visual, text)."""
    out = []
    for item, maps in enumerate(head_maps(attn, real)):
        own, text = columns_of(visual, tokens.shape[1], None if real is None else real[item])
        sources, _, gap = split([-one for one in score(maps, own, text, tokens[item])], own, r)
        out.append(_merged(tokens[item], sources, [{} for _ in sources], gap, None, False))
    return out


def by_raters(maps, visual, text, tokens):
    """SparseVLM without recycling."""
    return [1e3 * one for one in rated(maps.mean(0), visual, raters(tokens, visual, text))]


def by_product(maps, visual, text, tokens):
    """FitPrune."""
    strongest = maps.amax(0)
    among = [sum(float(strongest[i, j]) for i in visual) / len(visual) for j in visual]
    if not text:
        return [1e3 * one for one in among]
    return [1e3 * a * sum(float(strongest[k, j]) for k in text) for a, j in zip(among, visual, strict=True)]


def dart(tokens, attn, keep, visual, real=None, norm=None) -> list[list[int]]:
    """Columns of the visual tokens that stay, for every item."""
    out = []
    for item in range(tokens.shape[0]):
        own, text = columns_of(visual, tokens.shape[1], None if real is None else real[item])
        norms = attn.key[item].double().abs().sum((0, 2)).tolist()
        pivots = sorted(own, key=lambda k: (-norms[k], k))[: min(4, keep)]
        stay, asking = list(pivots), [*pivots, *sorted(text, key=lambda k: (-norms[k], k))[:4]]
        features = (tokens[item] if norm is None else norm(tokens[item])).double()
        left = keep - len(pivots)
        for place, pivot in enumerate(asking):
            cosines = torch.nn.functional.cosine_similarity(features, features[pivot][None], dim=1).tolist()
            free = sorted((k for k in own if k not in stay), key=lambda k: (cosines[k], k))
            stay += free[: left // len(asking) + (place < left % len(asking))]
        out.append(sorted(stay))
    return out
