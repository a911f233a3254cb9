"""Random pictures for comparisons: batches whose items differ, and what makes selection hard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ficoco_ext.stages import Crops, VisualFeatures

GRIDS = {1: (1, 1), 2: (1, 2), 12: (3, 4), 24: (4, 6), 36: (6, 6)}
CROPS = {  # with so many tokens: no valid patch, a whole crop, two whole ones, padding above, padding that cuts a crop
    1: Crops(1, (1, 1), (0, 0, 0, 1)),
    2: Crops(1, (1, 1), (0, 1, 0, 1)),
    12: Crops(2, (1, 2), (0, 2, 0, 4)),
    24: Crops(4, (1, 2), (1, 2, 0, 8)),
    36: Crops(4, (2, 1), (2, 7, 0, 4)),
}
KINDS = ("shared", "duplicates", "zeros", "ties", "masked")


def picture(kind: str, seed: int, *, b: int = 3, n: int = 24, d: int = 10, frames: int = 1) -> VisualFeatures:
    """``b`` pictures of ``n`` tokens in float64, with everything that a method may ask for.

    Args:
        kind: ``"shared"``: all vectors lean to a direction of their picture, so that sums over tokens are uneven;
            ``"duplicates"``: so, and a third of the tokens are copies of others; ``"zeros"``: so, and every fifth
            vector, saliency and key is 0; ``"ties"``: one-hot vectors whose cosines are exact, and few different
            saliencies; ``"masked"``: so, and up to a third of the tokens and words are hidden, which hold large values.
    """
    draw = torch.Generator().manual_seed(seed * 101 + KINDS.index(kind))
    visual = VisualFeatures(
        _leaning(draw, b, n, d),
        grid=GRIDS.get(n),
        saliency=torch.randn(b, n, generator=draw, dtype=torch.float64).exp(),
        text=_leaning(draw, b, 5, d),
        text_mask=torch.arange(5) < torch.randint(1, 6, (b, 1), generator=draw),
        keys=_leaning(draw, b, n, 8),
        tower_features=_leaning(draw, b, n, 7),
        early_saliency=torch.randn(b, n, generator=draw, dtype=torch.float64).exp(),
        frames=frames,
        crops=CROPS.get(n),
        class_logits=torch.randn(b, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64),
    )
    return _CHANGES[kind](visual, draw)


def _leaning(draw: torch.Generator, b: int, n: int, d: int) -> Tensor:
    own = torch.randn(b, n, d, generator=draw, dtype=torch.float64)
    lean = torch.rand(b, n, 1, generator=draw, dtype=torch.float64)
    return own + 2 * lean * torch.randn(b, 1, d, generator=draw, dtype=torch.float64)


def per_token(visual: VisualFeatures, change: Callable[[Tensor], Tensor]) -> VisualFeatures:
    """``visual`` with ``change`` of everything that has one entry a token."""
    names = ("features", "saliency", "keys", "tower_features", "early_saliency", "class_logits")
    return visual._replace(**{name: change(getattr(visual, name)) for name in names})


def _duplicates(visual: VisualFeatures, draw: torch.Generator) -> VisualFeatures:
    b, n, _ = visual.features.shape
    source = torch.arange(n).repeat(b, 1)
    copies = torch.rand(b, n, generator=draw).argsort(1)[:, : n // 3]
    source.scatter_(1, copies, torch.randint(0, n, copies.shape, generator=draw))
    return per_token(visual, lambda one: torch.stack([row[index] for row, index in zip(one, source, strict=True)]))


def _zeros(visual: VisualFeatures, draw: torch.Generator) -> VisualFeatures:
    gone = torch.rand(visual.features.shape[:2], generator=draw) < 0.2
    return per_token(visual, lambda one: one.masked_fill(gone if one.dim() == 2 else gone.unsqueeze(-1), 0))


def _ties(visual: VisualFeatures, draw: torch.Generator) -> VisualFeatures:
    def few(one: Tensor) -> Tensor:
        if one.dim() == 2:
            return 2.0 ** torch.randint(0, 3, one.shape, generator=draw).double()
        direction = torch.randint(0, min(4, one.shape[-1]), one.shape[:2], generator=draw)
        sign = 2.0 * torch.randint(0, 2, one.shape[:2], generator=draw) - 1
        length = 2.0 ** torch.randint(0, 3, one.shape[:2], generator=draw)
        return torch.nn.functional.one_hot(direction, one.shape[-1]).double() * (sign * length).unsqueeze(-1)

    return per_token(visual, few)._replace(text=few(visual.text))


def _masked(visual: VisualFeatures, draw: torch.Generator) -> VisualFeatures:
    b, n, _ = visual.features.shape
    mask = torch.rand(b, n, generator=draw).argsort(1) >= torch.randint(0, n // 3 + 1, (b, 1), generator=draw)
    return hidden(visual._replace(mask=mask), 1e4)


def hidden(visual: VisualFeatures, value: float) -> VisualFeatures:
    """The same with ``value`` in all tokens and words that its masks hide."""

    def hide(one: Tensor) -> Tensor:
        return one.masked_fill(~visual.mask if one.dim() == 2 else ~visual.mask.unsqueeze(-1), value)

    text = visual.text.masked_fill(~visual.text_mask.unsqueeze(-1), value)
    return per_token(visual, hide)._replace(text=text)


_CHANGES: dict[str, Callable[[VisualFeatures, torch.Generator], VisualFeatures]] = {
    "shared": lambda visual, draw: visual,
    "duplicates": _duplicates,
    "zeros": _zeros,
    "ties": _ties,
    "masked": _masked,
}


def cast(visual: VisualFeatures, dtype: torch.dtype) -> VisualFeatures:
    """Every floating tensor of it as ``dtype``."""
    return VisualFeatures(*(one.to(dtype) if _floating(one) else one for one in visual))


def _floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def item(visual: VisualFeatures, index: slice) -> VisualFeatures:
    """Some pictures of the batch."""
    return VisualFeatures(*(one[index] if isinstance(one, Tensor) else one for one in visual))


def shaken(visual: VisualFeatures, by: float, seed: int = 0) -> VisualFeatures:
    """Every floating value changed by up to the share ``by`` of it."""
    draw = torch.Generator().manual_seed(seed)

    def shake(one: Tensor) -> Tensor:
        return one * (1 + by * (2 * torch.rand(one.shape, generator=draw, dtype=torch.float64) - 1))

    return VisualFeatures(*(shake(one) if _floating(one) else one for one in visual))
