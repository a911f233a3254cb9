"""Reference of VidCom2: unusual tokens of unusual frames."""

from __future__ import annotations

import torch
from torch import Tensor

from .basic import by_largest_remainder, unit

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


def frame_shares(video_scores: Tensor, total: int, temperature: float = 0.01) -> list[float]:
    """What each frame of ``video_scores`` (F, n) should keep of ``total``, no whole numbers yet.

    base * (1 + softmax(z / temperature) - 1 / F), base = total / F, z = minus the frame's mean.
    """
    frames = len(video_scores)
    weights = torch.softmax(-video_scores.double().mean(1) / temperature, 0)
    return [total / frames * (1 + float(weight) - 1 / frames) for weight in weights]


def vidcom2(
    features: Tensor, frames: int, count: int, *, channels: float = 0.5, temperature: float = 0.01
) -> list[int]:
    """Keep the least usual tokens, more of the least usual frames (VidCom2, EMNLP 2025, arXiv 2505.14454).

    Args:
        features: (N, D) of ``frames`` frames, one after the other.

    Choices: the centre is the mean of the unit vectors, not a unit vector itself; shares become whole numbers that sum
    to ``count`` by largest remainder, of equal ones the first frame, each frame at least 1 and at most all its tokens;
    with fewer tokens than frames there is no answer.
    """
    each = len(features) // frames
    if count < frames:
        raise ValueError("fewer tokens than frames")
    tokens = unit(steady_channels(features, channels))
    video = usualness(tokens, tokens.mean(0)).view(frames, each)
    own = torch.stack([usualness(frame, frame.mean(0)) for frame in tokens.view(frames, each, -1)])
    counts = by_largest_remainder(frame_shares(video, count, temperature), count, 1, [each] * frames)
    kept = []
    for frame, share in enumerate(counts):
        scores = (video[frame] + own[frame]).tolist()
        kept += [frame * each + i for i in sorted(range(each), key=lambda i: (scores[i], i))[:share]]
    return sorted(kept)
