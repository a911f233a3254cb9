"""What is unlike the rest of a video stays, and unusual frames keep more (VidCom2, arXiv 2505.14454)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..ops.attention import TINY, accumulate
from ..ops.costs import Operation
from .features import SelectStage, VisualFeatures
from .frames import dealt, lowest, rank, tokens_there
from .frozen import require_number, value
from .shape import Priced, Shape

WIDTHS = tuple(2.0**power for power in range(-3, 2))  # variances of the Gaussians that are added up

# Mean and variance of all channels; length, two centres and two distances of the d that are compared.
_COST = Operation("outliers", "b*n*(4*h+11*d)", loads="b*n*h", stores="b*n")


@value
class Outliers(SelectStage):
    """Keeps in each frame what is least like the video and the frame, and more of frames that are unlike the video.

    Tokens are compared by the channels of lowest variance over the video, of equal ones the first, divided by their
    length. With c the mean of such vectors and s(x, c) = sum over :data:`WIDTHS` a of exp(-|x - c|^2 / 2a), a token is
    the more usual the larger s is, with c of the video and with c of the frame added up.

    A frame's claim is n T / N (1 + p - 1/F) of its n tokens, at most n, where T of all N tokens stay and p is the
    softmax over the F frames of (minus the mean of s with c of the video) / ``temperature``. Each frame gets one token,
    and each further one goes to the frame with most left of its claim, the lowest of equal ones, until T are dealt:
    where no claim was cut to n, claims are rounded by largest remainder. With fewer tokens than frames the most unusual
    frames get one each. Inside a frame the least usual tokens stay, the lowest index of equal ones. A picture is a
    video of one frame.

    Args:
        channels: share of the channels that are compared, in (0, 1]; rounded down, at least one.
        temperature: above 0. The smaller it is, the more goes to the most unusual frame.
    """

    channels: float = 0.5
    temperature: float = 0.01

    def __post_init__(self) -> None:
        require_number("Outliers", "channels", self.channels, math.ulp(0.0), 1)
        require_number("Outliers", "temperature", self.temperature, math.ulp(0.0), math.inf)

    def describe(self) -> str:
        """What leaves."""
        return "features most like their frame and the whole video"

    def operations(self, shape: Shape) -> list[Priced]:
        """All tokens compared with two centres. No N x N cosines."""
        return [shape.price(_COST, n=shape.visual, d=self._count(shape.channels))]

    def _count(self, channels: int) -> int:
        """How many of so many channels are compared."""
        return max(1, int(self.channels * channels + 1e-9))

    def __call__(self, visual: VisualFeatures, count: int) -> Tensor:
        """(B, ``count``) indices of the tokens that stay, ascending.

        Raises:
            ValueError: the tokens are not equally many in each frame.
        """
        there = tokens_there(self.title, visual)
        usual, of_frames = self._usual(visual.features.detach(), there)
        return lowest(self._order(usual, of_frames, there, count), count)

    def _usual(self, features: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """(B, F, n) how usual each token is, and (B, F) each frame; float64, so that small shares stay apart."""
        b, frames, each = there.shape
        real = there.flatten(1).unsqueeze(2)
        tokens = accumulate(features).masked_fill(~real, 0)
        first = tokens.gather(1, real.byte().argmax(1, keepdim=True).expand(-1, -1, tokens.shape[2]))
        spread = (tokens - first) * real  # 0 where all tokens are equal, without rounding
        number = real.sum(1, keepdim=True).clamp(min=1)
        variance = ((spread - spread.sum(1, keepdim=True) / number) * real).square().sum(1)
        steady = variance.sort(dim=1, stable=True).indices[:, : self._count(tokens.shape[2])].sort(1).values
        compared = tokens.gather(2, steady.unsqueeze(1).expand(-1, tokens.shape[1], -1))
        compared = torch.nn.functional.normalize(compared, dim=-1, eps=TINY).view(b, frames, each, steady.shape[1])
        sums, numbers = compared.sum(2, keepdim=True), there.sum(2)[:, :, None, None].clamp(min=1)
        to_video = _alike(compared, sums.sum(1, keepdim=True) / number.unsqueeze(1))
        to_frame = _alike(compared, sums / numbers)
        return to_video + to_frame, (to_video * there).sum(2) / numbers[:, :, 0, 0]

    def _order(self, usual: Tensor, of_frames: Tensor, there: Tensor, count: int) -> Tensor:
        """(B, F, n) float64: the tokens with the lowest numbers stay; see :func:`ficoco_ext.stages.frames.dealt`."""
        each = there.sum(2)
        number, filled = each.sum(1, keepdim=True).double(), each > 0
        unusual = (-of_frames).masked_fill(~filled, -math.inf)
        share = (unusual / self.temperature).softmax(1) - 1 / filled.sum(1, keepdim=True).double()
        claim = each * (count / number * (1 + share)).clamp(max=1)
        return dealt(rank(usual.masked_fill(~there, math.inf)), claim, rank(-unusual), there)


def _alike(vectors: Tensor, centre: Tensor) -> Tensor:
    """(B, F, n) float64: Gaussians of the distances of ``vectors`` (B, F, n, K) to ``centre``, added up."""
    distance = (vectors - centre).square().sum(-1).double()
    total = torch.zeros_like(distance)
    for width in WIDTHS:  # in one order everywhere, so that equal tokens are equal: a sum over a dimension has several
        total = total + (distance / (-2 * width)).exp()
    return total
