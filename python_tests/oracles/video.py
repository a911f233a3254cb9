"""Reference of VidCom2: unusual tokens of unusual frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .basic import first_largest, first_smallest, shared_out, unit

ALPHAS = tuple(2.0**power for power in range(-3, 2))


def steady_channels(tokens: Tensor, share: float = 0.5) -> Tensor:
    """``tokens`` (N, D) with the int(share * D) channels alone that vary least over all tokens, in their order.

    Choices: of equal variances the lower channel; at least one channel.
    """
    spread = tokens.double().var(0, correction=0).tolist()
    order = sorted(range(len(spread)), key=lambda channel: (spread[channel], channel))
    return tokens.double()[:, sorted(order[: max(1, int(share * len(spread)))])]


def usualness(tokens: Tensor, centre: Tensor) -> Tensor:
    """(N,) sum over alpha of exp(-||x - centre||^2 / (2 alpha))."""
    squares = ((tokens - centre) ** 2).sum(-1)
    return torch.stack([torch.exp(-squares / (2 * alpha)) for alpha in ALPHAS]).sum(0)


def frame_claims(unusual: Sequence[float], sizes: Sequence[int], total: int, temperature: float) -> list[float]:
    """What each frame should keep of ``total``, no whole numbers yet: base * (1 + softmax(z / temperature) - mean).

    Args:
        unusual: z, minus each frame's mean score. sizes: tokens of each frame; base is the same share of each.
    """
    weights = torch.softmax(torch.tensor(unusual, dtype=torch.float64) / temperature, 0).tolist()
    mean = 1 / len(weights)
    ratio = total / sum(sizes)
    return [min(size * ratio * (1 + one - mean), size) for one, size in zip(weights, sizes, strict=True)]


def vidcom2(
    features: Tensor,
    frames: int,
    count: int,
    *,
    channels: float = 0.5,
    temperature: float = 0.01,
    real: Tensor | None = None,
    either: Sequence[int] = (),
) -> list[int]:
    """Keep the least usual tokens, more of the least usual frames (VidCom2, EMNLP 2025, arXiv 2505.14454).

    Args:
        features: (N, D) of ``frames`` frames, one after the other.
        real: (N,) False for a token that may not stay, in whose place there is none.
        either: an answer that decides where scores or claims differ by rounding alone. Two tokens are equally far from
            their centre. A softmax of scores a few temperatures apart is 0 or 1, and then all claims have one fraction.

    Choices: the centre is the mean of the unit vectors, not a unit vector itself; claims become whole numbers that sum
    to ``count`` as in :func:`oracles.basic.shared_out`, each frame at least 1 and at most all its tokens; with fewer
    tokens than frames, the frames of the lowest mean score have one each; frames without a real token do not count.
    """
    each = len(features) // frames
    there = [i for i in range(len(features)) if real is None or bool(real[i])]
    tokens = unit(steady_channels(features[there], channels))
    video = usualness(tokens, tokens.mean(0))
    places = [[place for place, i in enumerate(there) if i // each == frame] for frame in range(frames)]
    places = [one for one in places if one]
    scores = torch.cat([video[one] + usualness(tokens[one], tokens[one].mean(0)) for one in places]).tolist()
    unusual = [-float(video[one].mean()) for one in places]
    sizes = [len(one) for one in places]
    hinted = [place for place, i in enumerate(there) if i in either]
    judged = [sum(there[place] in either for place in one) for one in places] if either else []
    if count < len(places):
        counts = [0] * len(places)
        for _ in range(count):
            empty = [frame for frame, some in enumerate(counts) if not some]
            counts[first_largest(unusual, empty, [frame for frame, some in enumerate(judged) if some])] = 1
    else:
        counts = shared_out(frame_claims(unusual, sizes, count, temperature), count, sizes, judged)
    kept: list[int] = []
    for one, share in zip(places, counts, strict=True):
        for _ in range(share):
            kept.append(first_smallest(scores, [place for place in one if place not in kept], hinted))
    return sorted(there[place] for place in kept)
