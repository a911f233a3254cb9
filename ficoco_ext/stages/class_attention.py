"""Stages that weigh by class attention: the fused token of EViT, the neighbourhoods of LLaVA-PruMerge.

Nothing here reads a device; how many tokens stay never depends on data.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import ops
from ..ops import Attention, QueryKey, checks, costs
from ..ops.costs import Operation
from . import needs
from .base import CompressStage, CorrelateStage, FilterStage, Links, Selection
from .correlate import into_the_most_redundant
from .frozen import reject, require_number, value
from .shape import Priced, Shape

_LEAST = 1e-30  # attention that underflowed to 0 still has a mean
# By class attention sizes are merged beside the tokens, as one channel more. Neighbours: products of torch's own.
_FUSE = Operation("compress", "2*b*r*g*(h+1)", loads="b*l*h", stores="b*(l-r)*h")
_NEIGHBOURS = Operation("neighbours", "2*b*(u-r)*u*a*d", loads="b*u*a*d", stores="b*(u-r)*u")
_BORROW = Operation("borrow", "2*b*(u-r)*u*h", loads="b*(u-r)*u+b*u*h", stores="b*(u-r)*h")


def single_head_attention(attn: Attention) -> Tensor:
    """(B, P) what the class token gives each patch if all heads were one: softmax over tokens of q . k / sqrt(H d).

    The sum over heads of their inner products is the inner product of full width, so these logits are sqrt(H) times the
    mean over heads of the model's own logits. The class token takes its share of the softmax; the rest is returned.

    Args:
        attn: a :class:`ficoco_ext.QueryKey` whose token 0 is a class token.

    Raises:
        ValueError: a map, which does not hold the logits of all heads together.

    Cost: 2 B H N d FLOPs, no N x N map. Source: LLaVA-PruMerge, arXiv 2403.15388.

    Example:
        >>> import torch
        >>> from ficoco_ext import QueryKey
        >>> from ficoco_ext.stages import single_head_attention
        >>> q, k = torch.zeros(2, 1, 4, 5, 8)
        >>> single_head_attention(QueryKey(q, k))
        tensor([[0.2000, 0.2000, 0.2000, 0.2000]])
    """
    query_key = _query_key("single-head attention", attn)
    query, key = query_key.query, query_key.key
    heads = query.shape[1]
    to_patches, _ = ops.attention_stats(attn, class_token=True, probs=False, column=False, patches=False)
    own = key[:, :, 0].repeat_interleave(heads // key.shape[1], dim=1).to(to_patches.dtype)
    scale = query_key.logit_scale
    to_itself = (query[:, :, 0].to(to_patches.dtype) * own).sum(-1).mean(1, keepdim=True) * scale
    return (torch.cat([to_itself, to_patches], dim=1) * math.sqrt(heads)).softmax(-1)[:, 1:]


def _query_key(what: str, attn: Attention) -> QueryKey:
    if not isinstance(attn, QueryKey):
        raise ValueError(f"{what} reads query and key, and a map holds none; pass attn=QueryKey(query, key)")
    return attn


def outlier_count(class_attention: Tensor) -> Tensor:
    """(B,) int64 how many patches of each image the class token attends to beyond Q3 + 1.5 (Q3 - Q1).

    This is the published adaptive number of LLaVA-PruMerge, per image (the released code pools a batch). It is for
    choosing a budget, such as the mean of ``outlier_count(a) / a.shape[1]`` over some images as ``keep_ratio``: counts
    that differ inside a batch would make it ragged, so no method uses it itself.

    Args:
        class_attention: (B, P), for instance of :func:`single_head_attention`. Quartiles interpolate linearly.

    Example:
        >>> import torch
        >>> from ficoco_ext.stages import outlier_count
        >>> outlier_count(torch.tensor([[1., 2, 3, 4, 5, 6, 7, 100, 90], [1., 2, 3, 4, 5, 6, 7, 8, 9]]))
        tensor([2, 0])
    """
    if not isinstance(class_attention, Tensor) or class_attention.dim() != 2 or not class_attention.shape[1]:
        wanted, remedy = "(B, P) with P >= 1", "pass one row of class attention for each image"
        checks.fail("outlier_count", "class_attention", wanted, class_attention, remedy)
    values = class_attention.to(ops.result_dtype(class_attention))
    low, high = (torch.quantile(values, share, dim=1, keepdim=True) for share in (0.25, 0.75))
    return (values > high + 1.5 * (high - low)).sum(1)


@value
class SingleHeadFilter(FilterStage):
    """Keeps what the class token attends to most in :func:`single_head_attention`, and samples of the rest.

    One of the patches that stay is the host of a token made of all that leave: the most attended of those that are
    neither kept for their attention nor sampled.

    Args:
        spatial: share in [0, 1] of the other slots that goes to samples, evenly spaced in raster order among the
            patches that are not kept for their attention (PruMerge+); 0 is PruMerge.
    """

    spatial: float = 0.0

    def __post_init__(self) -> None:
        require_number("SingleHeadFilter", "spatial", self.spatial, 0, 1)

    @property
    def needs(self) -> tuple[str, ...]:
        """The class token's query, and keys."""
        return needs.CLASS_TOKEN, needs.QUERY_AND_KEY

    def describe(self) -> str:
        """Which attention it ranks by."""
        samples = f", {self.spatial:.0%} of the slots to even samples" if self.spatial else ""
        return f"least class attention of one head of full width{samples}"

    def operations(self, shape: Shape) -> list[Priced]:
        """The class token's row."""
        return [shape.price(costs.attention_stats(probs=False, patches=False))]

    def __call__(
        self, attn: Attention, r: int, *, class_token: bool, ids: Tensor | None, grid: tuple[int, int] | None
    ) -> Selection:
        """Select r sources; raster order is the order of the present patches."""
        if not class_token:
            raise ValueError(
                "SingleHeadFilter: it ranks patches by the class token's attention, and there is no class token; use a "
                "method that does without, such as 'tome'"
            )
        attention = single_head_attention(attn)
        slots = attention.shape[1] - r - 1
        sampled = math.floor(slots * self.spatial + 0.5)
        score = attention
        if sampled:
            ascending = attention.sort(dim=1, stable=True).indices
            rest = ascending[:, : r + 1 + sampled].sort(1).values
            evenly = torch.arange(1, 2 * sampled, 2, device=rest.device) * rest.shape[1] // (2 * sampled)
            picks = rest[:, evenly]
            score = score.scatter(1, picks, attention.gather(1, picks) + 2)  # above all that is not sampled
        chosen = ops.filter(torch.zeros_like(score), score, r, lam=0.0, class_token=True)
        return Selection(*chosen, class_attention=attention)


@value
class Neighbours(CorrelateStage):
    """All sources go into one token, and every other patch that stays borrows from those most like it.

    Args:
        nearest: neighbours of each patch that stays, by cosine of the keys of all heads side by side, among all other
            patches whether they stay or leave; all of them where there are fewer.
    """

    nearest: int = 32

    def __post_init__(self) -> None:
        if isinstance(self.nearest, bool) or not isinstance(self.nearest, int) or self.nearest < 0:
            reject("Neighbours", "nearest", "an integer >= 0", self.nearest)

    @property
    def needs(self) -> tuple[str, ...]:
        """Keys to compare."""
        return (needs.QUERY_AND_KEY,)

    def describe(self) -> str:
        """Who inherits, and who borrows."""
        borrow = f"; the others borrow from their {self.nearest} nearest by keys" if self.nearest else ""
        return f"one token for all{borrow}"

    def count(self, candidates: int) -> int:
        """One target for each source."""
        return 1

    def neighbours(self, visual: int) -> int:
        """All other patches where there are fewer than ``nearest``."""
        return max(min(self.nearest, visual - 1), 0)

    def operations(self, shape: Shape) -> list[Priced]:
        """Cosines of what stays with all patches."""
        return [shape.price(_NEIGHBOURS)] if self.neighbours(shape.visual) else []

    def __call__(self, attn: Attention, selection: Selection, *, class_token: bool) -> Links:
        """Links into the host, and neighbours (B, M patches, n). 2 B M P H d FLOPs, memory O(M P) and unit keys."""
        key = _query_key("Neighbours: it", attn).key
        links, first = into_the_most_redundant(selection, class_token), int(class_token)
        patches = key.shape[2] - first
        count = min(self.nearest, patches - 1)
        kept = selection.kept[:, first:, None] - first
        if not count:
            return links
        features = key[:, :, first:].transpose(1, 2).flatten(2).to(selection.redundancy.dtype)
        features = torch.nn.functional.normalize(features, dim=-1, eps=1e-12)
        own = features.gather(1, kept.expand(-1, -1, features.shape[-1]))
        cosine = (own @ features.mT).scatter(2, kept, float("-inf"))  # no patch is its own neighbour
        nearest = cosine.sort(dim=-1, descending=True, stable=True).indices[..., :count]
        return links._replace(neighbours=nearest.contiguous())


@value
class Fuse(CompressStage):
    """Merges by class attention a: a survivor that inherits becomes sum a_i x_i over itself and what it inherits.

    One with neighbours becomes x + sum a_j x_j over them. All read the tokens as they came. Sizes count original
    tokens as ever, so they still sum to what went in: borrowing moves none. Cost: 2 B r k (C + 1) FLOPs, and with
    neighbours one product of 2 B M P C, memory O(M P + P C).

    Args:
        normalize: divide by the sum of the weights (a neighbour's own weight is 1), so that every survivor is a mean.
            False is as EViT and PruMerge published it: norms depend on attention.
    """

    normalize: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.normalize, bool):
            reject("Fuse", "normalize", "True or False", self.normalize)

    @property
    def needs(self) -> tuple[str, ...]:
        """A class token, by whose attention it weighs."""
        return (needs.CLASS_TOKEN,)

    def describe(self) -> str:
        """How sources are merged."""
        return f"{'mean' if self.normalize else 'sum'} weighted by class attention"

    def operations(self, shape: Shape) -> list[Priced]:
        """Every source goes into its targets, and each kept patch takes its shares of its neighbours."""
        return [shape.price(_FUSE), *[shape.price(_BORROW)] * (shape.neighbours > 0)]

    def __call__(
        self, tokens: Tensor, selection: Selection, links: Links, *, size: Tensor | None, size_weighted: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, M, C), size (B, M, 1) and source_map (B, N); ``size_weighted``: attention counts size times."""
        attention = selection.class_attention
        if attention is None:
            raise ValueError(
                "Fuse: it weighs by class attention, which needs a class token and a filter that reads it as "
                "probabilities, such as Filter(attention='probs') with lam < 1"
            )
        dtype = ops.result_dtype(tokens)
        first = tokens.shape[1] - attention.shape[1]
        weight = attention.to(dtype).clamp(min=_LEAST).unsqueeze(-1)
        weight = torch.cat([weight.new_ones(weight.shape[0], first, 1), weight], dim=1)
        if size is not None and size_weighted:
            weight = weight * size.to(dtype)
        where = (selection.sources, selection.kept, links.targets, links.weights)
        _, counts, source_map = ops.compress(tokens[..., :1], *where, size=size)
        fused, mass, _ = ops.compress(tokens, *where, size=weight, size_weighted=True)
        hosts = torch.zeros_like(mass, dtype=torch.bool).scatter(1, links.targets.flatten(1).unsqueeze(-1), True)
        others = fused.to(dtype)
        if links.neighbours is not None:
            others = self._with_neighbours(tokens, others, weight, links.neighbours, first)
        inherited = fused.to(dtype) if self.normalize else fused.to(dtype) * mass
        return torch.where(hosts, inherited, others).to(tokens.dtype), counts, source_map

    def _with_neighbours(
        self, tokens: Tensor, survivors: Tensor, weight: Tensor, neighbours: Tensor, first: int
    ) -> Tensor:
        """Every patch among ``survivors`` (B, M, C) with its shares of its neighbours: one product, shares (M, P)."""
        weight = weight[:, first:].mT.expand(-1, neighbours.shape[1], -1)
        shares = torch.zeros_like(weight).scatter(2, neighbours, weight.gather(2, neighbours))
        mixed = survivors[:, first:] + shares @ tokens[:, first:].to(shares.dtype)
        if self.normalize:
            mixed = mixed / (1 + shares.sum(-1, keepdim=True))
        return torch.cat([survivors[:, :first], mixed], dim=1)
