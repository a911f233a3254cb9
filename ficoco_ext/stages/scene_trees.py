"""Trees of alike tokens through the frames of a scene, and diverse tokens beside them (FlashVID, arXiv 2602.08024)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..ops import costs
from ..ops._greedy_select import ALIKE
from ..ops.attention import TINY, accumulate
from ..ops.costs import Operation
from . import needs
from .base import Links, Selection
from .density import computed, distances, peak_scores
from .features import SelectStage, VisualCorrelateStage, VisualFeatures
from .frames import dealt, lowest, rank, tokens_there
from .frozen import reject, require_number, value
from .select import relative, required_saliency
from .shape import Priced, Shape

_TO_KEPT = Operation("to_kept", "3*b*r*m*h", loads="b*(r+m)*h", stores="b*r")
_BLOCK = 512  # rows of distances that are held at once
_ROUNDING = 1e-9  # of a share in float64, which is not rounded up


class Trees(NamedTuple):
    """What :class:`SceneTrees` makes of B videos of F frames of n tokens, N = F n in all.

    Attributes:
        kept: (B, T) tokens that stay, ascending.
        diverse: (B, N) which of them were picked by diversity; the others are centres of clusters.
        root: (B, N) index of the root of each token's tree; diverse tokens are their own.
        means: (B, N, D) at each root the mean of its tree, elsewhere the token itself.
        distance: (B, F, n, n) distances of these in each frame.
        settings: what made them.
    """

    kept: Tensor
    diverse: Tensor
    root: Tensor
    means: Tensor
    distance: Tensor
    settings: SceneTrees


@value
class SceneTrees(SelectStage):
    """Keeps diverse tokens of each frame, and of what runs through the frames of a scene the densest.

    Of N tokens T stay, in four steps:

    1. Scenes: a new one begins where the cosine of a frame's mean token and that of the frame before is below ``cut``;
       where that makes fewer than ``scenes``, also at the lowest of the other cosines.
    2. Of its share of T, spread evenly, ceil(``diverse`` x share) tokens of each frame are picked by max-min diversity
       times saliency (:class:`ficoco_ext.stages.GreedySelect`).
    3. Every other token is linked to the other token of the frame before in its scene that is most like it, if their
       cosine is above ``link``. At most N - T links are made, the strongest, so that enough roots are left. A tree is
       a root, which is linked to none before, with all that is linked to it; its value is their mean.
    4. The centres are roots of their frame, ranked by :func:`ficoco_ext.stages.density.density_peaks` of these means.
       Frames get a share of centres like their share of roots, dealt as :class:`ficoco_ext.stages.Outliers` deals.

    Equal ones: the lowest index. Exactly T stay, which the release does not promise: it rounds up in each frame.

    Args:
        diverse: share of the tokens that stay, in [0, 1]: those picked by diversity.
        cut: cosine of frames below which a scene ends, in [-1, 1].
        scenes: at least so many, if there are the frames.
        link: cosine of tokens above which they are linked, in [-1, 1].
        neighbours: of density peaks, at least 1.
        weigh: power of saliency; 0: all tokens count alike.
    """

    diverse: float = 0.7
    cut: float = 0.9
    scenes: int = 8
    link: float = 0.8
    neighbours: int = 7
    weigh: float = 1.0

    def __post_init__(self) -> None:
        require_number("SceneTrees", "diverse", self.diverse, 0, 1)
        require_number("SceneTrees", "cut", self.cut, -1, 1)
        require_number("SceneTrees", "link", self.link, -1, 1)
        require_number("SceneTrees", "weigh", self.weigh, 0, math.inf)
        for name, number in (("scenes", self.scenes), ("neighbours", self.neighbours)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                reject("SceneTrees", name, "an integer >= 1", number)

    @property
    def needs(self) -> tuple[str, ...]:
        """Saliency, to weigh by."""
        return (needs.SALIENCY,) if self.weigh else ()

    def describe(self) -> str:
        """What leaves."""
        return "features like others of their frame or of the frame before in their scene"

    def operations(self, shape: Shape) -> list[Priced]:
        """The picks in each frame, the links to the frame before, and the densities."""
        each = shape.visual // shape.frames
        of_frames = {"b": shape.batch * shape.frames, "n": each, "h": shape.channels}
        most = _most(self.diverse, shape.kept, shape.frames, each)
        picks = shape.price(costs.greedy_select("max-min"), **of_frames, m=most)
        links = [shape.price(costs.COSINES, **of_frames, c=each)] if shape.frames > 1 else []
        return [picks, *links, shape.price(costs.DENSITY_PEAKS, **of_frames, c=computed(each))]

    def __call__(self, visual: VisualFeatures, count: int) -> Tensor:
        """(B, ``count``) indices of the tokens that stay, ascending.

        Raises:
            ValueError: no saliency where it is needed, or tokens that are not equally many in each frame.
        """
        return self.trees(visual, count).kept

    def noted(self, visual: VisualFeatures, count: int) -> tuple[Tensor, Trees]:
        """With the trees."""
        made = self.trees(visual, count)
        return made.kept, made

    def trees(self, visual: VisualFeatures, count: int) -> Trees:
        """All that is decided when ``count`` tokens stay; errors as of a call."""
        there = tokens_there(self.title, visual)
        tokens = accumulate(visual.features.detach()).masked_fill(~there.flatten(1).unsqueeze(2), 0)
        diverse = self._diverse(visual, tokens, there, count)
        rest = there & ~diverse
        root = self._roots(tokens, there, rest, count)
        means = _means(tokens, root, rest)
        is_root = rest & (root.view_as(rest) == _index(rest))
        b, frames, each = there.shape
        distance = distances(means.view(b * frames, each, means.shape[2]))
        centres = self._centres(distance, is_root, count - diverse.flatten(1).sum(1))
        kept = lowest(centres.masked_fill(diverse, -math.inf), count)
        return Trees(kept, diverse.flatten(1), root, means, distance.view(b, frames, each, each), self)

    def _diverse(self, visual: VisualFeatures, tokens: Tensor, there: Tensor, count: int) -> Tensor:
        """(B, F, n) which tokens of each frame are picked by diversity."""
        b, frames, each = there.shape
        before = there.sum(2).cumsum(1)
        ends = count * before // before[:, -1:]  # of the T tokens, those of this frame and all before it
        shares = ends.diff(dim=1, prepend=torch.zeros_like(ends[:, :1]))
        wanted = (shares.double() * self.diverse - _ROUNDING).ceil().long().view(-1, 1)
        weight = torch.ones(b * frames, each, dtype=tokens.dtype, device=tokens.device)
        if self.weigh:
            saliency = required_saliency(self.title, visual).view(b * frames, each)
            weight = relative(saliency, there.view(b * frames, each)) ** self.weigh
        rows = tokens.view(b * frames, each, tokens.shape[2])
        # Where frames have their own numbers of tokens, one of them may get all.
        most = _most(self.diverse, count, frames if visual.mask is None else 1, each)
        there = there.view(b * frames, each)
        order = _picks(rows, weight, None if visual.mask is None else there, most)
        early = torch.arange(most, device=order.device) < wanted
        return torch.zeros_like(there).scatter(1, order, early).view(b, frames, each)

    def _roots(self, tokens: Tensor, there: Tensor, rest: Tensor, count: int) -> Tensor:
        """(B, N) the root of each token's tree."""
        b, frames, each = there.shape
        index = _index(rest)
        if frames == 1:
            return index.flatten(1)
        rows = tokens.view(b, frames, each, tokens.shape[2])
        before = self._before(rows, there)
        held = before.clamp(min=0)
        earlier = rows.gather(1, held[:, :, None, None].expand_as(rows))
        possible = rest.gather(1, held[:, :, None].expand_as(rest)) & (before >= 0).unsqueeze(2)
        alike = ops.cosines(rows.flatten(0, 1), earlier.flatten(0, 1)).view(b, frames, each, each)
        alike = alike.masked_fill(~possible.unsqueeze(2), -math.inf)
        strength, parent = alike.amax(3), alike.argmax(3) + held.unsqueeze(2) * each
        links = rest & (strength > self.link)
        strongest = rank(-strength.masked_fill(~links, -math.inf).flatten(1)).view_as(links)
        links &= strongest < there.sum((1, 2), keepdim=True) - count
        root = torch.where(links, parent, index).flatten(1)
        for _ in range((frames - 1).bit_length()):
            root = root.gather(1, root)
        return root

    def _before(self, tokens: Tensor, there: Tensor) -> Tensor:
        """(B, F) the frame before each one in its scene; -1 where a scene begins. Of frames without tokens any."""
        filled = there.any(2)
        frame = torch.arange(there.shape[1], device=there.device).masked_fill(~filled, -1)
        before = F.pad(frame, (1, -1), value=-1).cummax(1).values  # frames without tokens are not there
        means = tokens.sum(2) / there.sum(2, keepdim=True).clamp(min=1)
        earlier = means.gather(1, before.clamp(min=0).unsqueeze(2).expand_as(means))
        alike = torch.cosine_similarity(means, earlier, dim=2, eps=TINY)
        alike = alike.masked_fill(~filled | (before < 0), math.inf)
        begins = (alike < self.cut) | (rank(alike) < self.scenes - 1)
        return before.masked_fill(begins, -1)

    def _centres(self, distance: Tensor, is_root: Tensor, count: Tensor) -> Tensor:
        """(B, F, n) numbers of roots, of which the ``count`` (B,) lowest become centres."""
        score = peak_scores(distance, self.neighbours, is_root.flatten(0, 1)).view_as(is_root)
        roots = is_root.sum(2)
        claim = roots * (count.double() / roots.sum(1).clamp(min=1)).unsqueeze(1)
        return dealt(rank(-score), claim, rank(-roots), is_root)


@value
class IntoTrees(VisualCorrelateStage):
    """Sends each token that leaves along its tree, and on to the centre nearest to the mean of that tree.

    That is a centre of the root's frame; in a frame without one, the nearest of all tokens that stay in the video.
    Elsewhere diverse tokens inherit nothing. Equally near ones: the lowest index. With a Compress that weighs by size a
    centre becomes the mean of all tokens of the trees that end in it, where the release has the mean of trees' means.

    Args:
        trees: the select of the method.
    """

    trees: SceneTrees = SceneTrees()

    @property
    def needs(self) -> tuple[str, ...]:
        """What the select needs."""
        return self.trees.needs

    def describe(self) -> str:
        """Who inherits a source."""
        return "the nearest centre of its tree's first frame"

    def count(self, candidates: int) -> int:
        """One target for each source."""
        return 1

    def operations(self, shape: Shape) -> list[Priced]:
        """The distances of what leaves to what stays, where a frame may be without a centre; else those at hand."""
        return [shape.price(_TO_KEPT)] if self._any_alone(shape.kept, shape.frames) else []

    def _any_alone(self, count: int, frames: int) -> bool:
        """Whether a frame with roots may be without a centre, as each gets one while there are any."""
        least = math.floor(count * (1 - self.trees.diverse)) - frames  # centres: in each frame one share is rounded up
        return least < frames

    def __call__(self, visual: VisualFeatures, selection: Selection) -> Links:
        """Targets and weights of the selected sources."""
        made, count = selection.notes, selection.kept.shape[1]
        if not isinstance(made, Trees) or made.settings != self.trees:
            made = self.trees.trees(visual, count)
        kept, roots = made.kept, made.root.gather(1, selection.sources)
        slot = torch.full_like(made.root, -1).scatter(1, kept, _slots(kept))
        centre = ((slot >= 0) & ~made.diverse).view(made.distance.shape[:3])
        nearest = made.distance.masked_fill(~centre.unsqueeze(2), math.inf).argmin(3) + _index(centre)[:, :, :1]
        nearest = torch.where(slot < 0, slot.gather(1, nearest.flatten(1)), slot)  # a root that stays is its own centre
        targets = nearest.gather(1, roots)
        if self._any_alone(count, visual.frames):
            alone = ~centre.any(2, keepdim=True).expand_as(centre).flatten(1) & (slot < 0)  # of frames without one
            targets = torch.where(alone.gather(1, roots), _nearest_kept(made.means, roots, kept), targets)
        targets = targets.clamp(min=0).unsqueeze(2)  # what is not there has any
        return Links(targets, torch.ones_like(targets, dtype=made.means.dtype))


def _rows(features: Tensor, index: Tensor) -> Tensor:
    """(B, R, D) the features ``index`` (B, R)."""
    return features.gather(1, index.unsqueeze(2).expand(-1, -1, features.shape[2]))


def _nearest_kept(means: Tensor, roots: Tensor, kept: Tensor) -> Tensor:
    """(B, R) which of the tokens ``kept`` is nearest to each root, by differences, as products cancel."""
    heads, mode = _rows(means, kept), "donot_use_mm_for_euclid_dist"
    blocks = [torch.cdist(_rows(means, some), heads, compute_mode=mode).argmin(2) for some in roots.split(_BLOCK, 1)]
    return torch.cat([roots[:, :0], *blocks], 1)


def _slots(kept: Tensor) -> Tensor:
    """(B, T) 0 ... T - 1."""
    return torch.arange(kept.shape[1], device=kept.device).expand_as(kept)


def _index(like: Tensor) -> Tensor:
    """(B, F, n) the index of each token among all of its video."""
    return torch.arange(like.shape[1] * like.shape[2], device=like.device).expand(len(like), -1).view_as(like)


def _most(diverse: float, count: int, frames: int, each: int) -> int:
    """How many of the ``each`` tokens of a frame are picked by diversity at most."""
    return min(each, math.ceil(-(-count // frames) * diverse - _ROUNDING))


def _picks(rows: Tensor, weight: Tensor, there: Tensor | None, most: int) -> Tensor:
    """(R, ``most``) what max-min diversity picks of each row, in order; rows with fewer tokens end with others."""
    if there is None:
        return ops.greedy_select(rows, most, objective="max-min", saliency=weight).order
    alike = ops.cosines(rows, rows)
    alike = alike.masked_fill(alike > ALIKE, 1.0)  # as the operator has it
    itself = torch.eye(rows.shape[1], dtype=torch.bool, device=rows.device)
    nearest = alike.masked_fill(itself | ~there.unsqueeze(1), -math.inf).amax(2)
    nearest = nearest.masked_fill(nearest == -math.inf, -1.0)
    free, order = torch.ones_like(there), []
    for step in range(most):
        gain = torch.where(there, weight * (1 - nearest), torch.finfo(alike.dtype).min)
        best = gain.masked_fill(~free, -math.inf).argmax(1, keepdim=True)
        order.append(best)
        free = free.scatter(1, best, False)
        row = alike.gather(1, best.unsqueeze(2).expand(-1, -1, alike.shape[2])).squeeze(1)
        nearest = row if step == 0 else torch.maximum(nearest, row)
    return torch.cat(order, 1)


def _means(tokens: Tensor, root: Tensor, rest: Tensor) -> Tensor:
    """(B, N, D) the mean of its tree at each root; elsewhere the token itself. ``rest`` (B, F, n): those in trees."""
    b, n, _ = tokens.shape
    rest, index = rest.view(b, n), torch.arange(n, device=tokens.device).expand(b, -1)
    size = torch.cat([torch.zeros_like(rest), rest], 1).to(tokens.dtype).unsqueeze(2)  # twice all: to sum, and summed
    links = (index + n, index.contiguous(), root.unsqueeze(2), torch.ones_like(root, dtype=tokens.dtype).unsqueeze(2))
    means = ops.compress(torch.cat([tokens, tokens], 1), *links, size=size, size_weighted=True)[0]
    return torch.where(rest.unsqueeze(2), means, tokens)
