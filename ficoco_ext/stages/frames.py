"""What selects of videos share: budgets of frames that come out exactly, and ranks, without a look at the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..ops import checks
from .features import VisualFeatures


def tokens_there(stage: str, visual: VisualFeatures) -> Tensor:
    """(B, F, n) which of the n tokens of each frame are there.

    Raises:
        ValueError: the tokens are not equally many in each frame.
    """
    b, n, _ = visual.features.shape
    if visual.frames < 1 or n % visual.frames:
        remedy = "pass videos whose frames have equally many tokens, without line ends"
        checks.fail(stage, "frames", f"a divisor of the {n} tokens", str(visual.frames), remedy)
    there = visual.mask
    if there is None:
        there = torch.ones(b, n, dtype=torch.bool, device=visual.features.device)
    return there.view(b, visual.frames, n // visual.frames)


def rank(numbers: Tensor) -> Tensor:
    """Which of the last dimension each is in ascending order, from 0; of equal ones the first is the lower."""
    order = numbers.sort(dim=-1, stable=True).indices
    index = torch.arange(order.shape[-1], device=order.device)
    return torch.zeros_like(order).scatter(-1, order, index.expand_as(order))


def dealt(turn: Tensor, claim: Tensor, precedence: Tensor, there: Tensor) -> Tensor:
    """(B, F, n) numbers, of which the T lowest are the tokens that frames get; of equal ones that of the lowest frame.

    Each frame gets one token, and each further one goes to the frame with most left of its claim. With fewer tokens
    than frames those of the lowest ``precedence`` get one each. All T at once, so T may be a number of the device.

    Args:
        turn: (B, F, n) which token of its frame each is, from 0: a frame that gets 3 gets the turns 0, 1 and 2.
        claim: (B, F) float64, what each frame should get. precedence: (B, F), distinct, from 0.
        there: (B, F, n): others get infinity.
    """
    first = precedence.unsqueeze(2) - 4.0 * there.shape[1] * there.shape[2]  # before all others: claims are at most n
    order = torch.where(turn == 0, first, turn + 1 - claim.unsqueeze(2))
    return order.masked_fill(~there, math.inf)


def lowest(order: Tensor, count: int) -> Tensor:
    """(B, ``count``) indices, ascending, of the lowest numbers of (B, F, n); of equal ones the first."""
    return order.flatten(1).sort(dim=1, stable=True).indices[:, :count].sort(1).values
