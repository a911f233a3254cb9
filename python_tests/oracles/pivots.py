"""References of DART: tokens that differ from a few pivots, after the projector and inside a language model."""

from __future__ import annotations

from torch import Tensor

from .basic import cosines, descending, first_smallest


def pivot_picks(
    vision: Tensor,
    text: Tensor,
    vision_norms: Tensor,
    text_norms: Tensor,
    count: int,
    pivots: tuple[int, int] = (4, 4),
) -> list[int]:
    """Tokens of lowest cosine to pivots of largest norm (DART, EMNLP 2025, arXiv 2502.11494).

    The pivots are the vision tokens and the words of the largest L1 norms. Each pivot in turn adds its quota of vision
    tokens, those of the lowest cosine to it among what is left. Vision pivots stay themselves.

    Choices: vision pivots by descending norm, then text pivots by descending norm (released: the order of a set); the
    quotas are equal, and what does not divide goes one each to the first pivots, so that ``count`` is exact; no
    more vision pivots than ``count``; without text, vision pivots alone.
    """
    n = len(vision)
    own = descending(vision_norms, range(n))[: min(pivots[0], count)]
    asked = descending(text_norms, range(len(text)))[: pivots[1]]
    to_vision, to_text = cosines(vision), cosines(text, vision)
    references = [to_vision[i] for i in own] + [to_text[k] for k in asked]
    kept, missing = list(own), count - len(own)
    for turn, likeness in enumerate(references):
        for _ in range(missing // len(references) + (turn < missing % len(references))):
            kept.append(first_smallest(likeness, [i for i in range(n) if i not in kept]))
    return sorted(kept)


def dart_after_projector(features: Tensor, words: Tensor, count: int, pivots: tuple[int, int] = (4, 4)) -> list[int]:
    """DART on what enters the language model: the norms are those of the embeddings themselves."""
    norms = [one.double().abs().sum(-1) for one in (features, words)]
    return pivot_picks(features, words, norms[0], norms[1], count, pivots)


def dart_in_a_layer(
    normed: Tensor, keys: Tensor, visual: list[int], text: list[int], count: int, pivots: tuple[int, int] = (4, 4)
) -> list[int]:
    """DART before a layer of the language model: indices among ``visual`` that stay.

    Args:
        normed: (S, C) what enters the layer, after the model's final norm; cosines are of it.
        keys: (S, K) keys of the layer before, positions rotated in, all heads side by side; norms are of them.
        visual, text: columns of the sequence; text is what follows the picture.
    """
    norms = keys.double().abs().sum(-1)
    return pivot_picks(normed[visual], normed[text], norms[visual], norms[text], count, pivots)
