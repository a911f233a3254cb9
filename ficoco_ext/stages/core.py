"""The stages as values: a Filter, a Correlate, a Compress. A method is a declaration made of them.

:class:`Match` is a filter that correlates first: which tokens leave follows from where they would go.

Each stage is a frozen dataclass that is called once per reduction. Anything with the same call signature can take its
place. Nothing here reads a device: how many tokens leave and how many targets each gets are host integers.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .. import ops
from ..ops import Attention, QueryKey, checks
from .frozen import reject, require_number, require_one_of, value


class Links(NamedTuple):
    """What Correlate decided: targets (B, r, k), places in ``kept``, and weights (B, r, k) that sum to 1 over k.

    ``neighbours`` (B, kept patches, n), if there are any: patches that each kept patch borrows from besides, whether
    they stay or leave; see :class:`ficoco_ext.stages.Neighbours`.
    """

    targets: Tensor
    weights: Tensor
    neighbours: Tensor | None = None


class Selection(NamedTuple):
    """What Filter decided: redundancy (B, P), sources (B, r) and kept (B, M), ascending token indices.

    ``links`` are there if choosing the sources has settled where they go; a method without Correlate follows them.
    ``class_attention`` (B, P) is there if the filter read it as probabilities: a Compress may weigh by it.
    """

    redundancy: Tensor
    sources: Tensor
    kept: Tensor
    links: Links | None = None
    class_attention: Tensor | None = None


class FilterStage(Protocol):
    """What can take a Filter's place."""

    def __call__(
        self, attn: Attention, r: int, *, class_token: bool, ids: Tensor | None, grid: tuple[int, int] | None
    ) -> Selection:
        """Select r sources."""


class CorrelateStage(Protocol):
    """What can take a Correlate's place."""

    def __call__(self, attn: Attention, selection: Selection, *, class_token: bool) -> Links:
        """Targets and weights of the selected sources."""


class CompressStage(Protocol):
    """What can take a Compress's place."""

    def __call__(
        self, tokens: Tensor, selection: Selection, links: Links, *, size: Tensor | None, size_weighted: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, M, C), size (B, M, 1) and source_map (B, N)."""


def adaptive_targets(candidates: int, eps: float) -> int:
    """How many of ``candidates`` distinct values reach their own ``eps``-quantile (linear interpolation).

    This is FiCoCo's token-adaptive K. Without ties it is the same for every row, so it is known before anything runs:
    ``m - ceil(eps * (m - 1))``, that is 1, 1, 2, 2, 6 for m = 64, 145, 576, 577, 2880 at eps = 0.998. Among equal
    values the lowest indices are taken until the count is reached.

    Example:
        >>> [adaptive_targets(m, 0.998) for m in (64, 145, 576, 577, 2880)]
        [1, 1, 2, 2, 6]
    """
    return candidates - math.ceil(eps * (candidates - 1) - 1e-9)


@value
class Filter:
    """Names the r most redundant patches: lam * patch attention - (1 - lam) * class attention, and a local penalty.

    Args:
        lam: weight of patch attention in [0, 1]; 1 ignores the class token, 0 is pruning by class attention.
        attention: ``"logits"`` or ``"probs"``: what a QueryKey is turned into, and what the values of a map are.
        redundancy: ``"row"`` (what a patch gives) or ``"column"`` (what it receives).
        normalize: scale both terms to unit L2 norm over the patches.
        penalty: factor >= 1 for the highest score of each window; 1 is off.
        window: side of the windows on the original grid.
    """

    lam: float = 0.65
    attention: str = "logits"
    redundancy: str = "row"
    normalize: bool = True
    penalty: float = 2.0
    window: int = 2

    def __post_init__(self) -> None:
        require_number("Filter", "lam", self.lam, 0, 1)
        require_one_of("Filter", "attention", self.attention, ("logits", "probs"))
        require_one_of("Filter", "redundancy", self.redundancy, ("row", "column"))
        require_one_of("Filter", "normalize", self.normalize, (True, False))
        require_number("Filter", "penalty", self.penalty, 1, math.inf)
        if isinstance(self.window, bool) or not isinstance(self.window, int) or self.window < 1:
            reject("Filter", "window", "an integer >= 1", self.window)

    def check(self, attn: Attention, *, class_token: bool, grid: tuple[int, int] | None) -> None:
        """Raise if this attention lacks what the scores need."""
        if not class_token and self.lam < 1 and not isinstance(attn, QueryKey):
            raise ValueError(
                "Filter: without a class token its row is replaced by the keys' cosine to their mean, and a map "
                "holds no keys; pass attn=QueryKey(query, key), or class_attention=False to do without the term"
            )
        if self.penalty != 1 and grid is None:
            raise ValueError(
                "Filter: the local penalty needs the patches' grid, and their number is not a square; pass "
                "grid=(height, width), or penalty=1 to switch it off"
            )

    def __call__(
        self, attn: Attention, r: int, *, class_token: bool, ids: Tensor | None, grid: tuple[int, int] | None
    ) -> Selection:
        """Select r sources. ``ids`` (B, P) and ``grid`` place the patches; ``ids`` None means all of the grid."""
        self.check(attn, class_token=class_token, grid=grid)
        class_attention, patch_attention = ops.attention_stats(
            attn,
            class_token=class_token,
            probs=self.attention == "probs",
            column=self.redundancy == "column",
            patches=self.lam != 0,
        )
        chosen = ops.filter(
            patch_attention,
            class_attention,
            r,
            lam=self.lam,
            normalize=self.normalize,
            penalty=self.penalty,
            window=self.window,
            ids=ids,
            grid=grid,
            class_token=class_token,
        )
        read = class_token and self.lam < 1 and self.attention == "probs"
        return Selection(*chosen, class_attention=class_attention if read else None)


@value
class Match:
    """Filter and Correlate in one: ToMe's bipartite matching of neighbours by cosine of the head-mean keys.

    Every even token is paired with the odd one most like it, and the even halves of the r best pairs leave. With a
    Correlate behind it only the choice of sources is taken.

    Args:
        distill_token: token 1 is a distillation token, as protected as the class token.
        weigh: what the class token attends to shall rather not leave: an edge counts its cosine less ``weigh`` times
            the rank of its even half among the patches by class attention, 0 for the least attended, 1 for the most.
            0 is ToMe. Partners stay those of highest cosine.
    """

    distill_token: bool = False
    weigh: float = 0.0

    def __post_init__(self) -> None:
        require_one_of("Match", "distill_token", self.distill_token, (True, False))
        require_number("Match", "weigh", self.weigh, 0, math.inf)

    def largest(self, tokens: int, *, class_token: bool) -> int:
        """The most of ``tokens`` tokens that can leave at once: half of those that are not protected."""
        return max((tokens - class_token - self.distill_token) // 2, 0)

    def check(self, attn: Attention) -> None:
        """Raise if this attention holds no keys."""
        if not isinstance(attn, QueryKey):
            raise ValueError("Match: matching compares keys, and a map holds none; pass attn=QueryKey(query, key)")

    def __call__(
        self, attn: Attention, r: int, *, class_token: bool, ids: Tensor | None, grid: tuple[int, int] | None
    ) -> Selection:
        """Select r sources and their targets. Even and odd are places among the present tokens, whatever their ids."""
        self.check(attn)
        assert isinstance(attn, QueryKey)
        if self.weigh:
            return self._weighed(attn, r, class_token)
        found = ops.match(attn.key, r, class_token=class_token, distill_token=self.distill_token)
        return Selection(found.redundancy, found.sources, found.kept, Links(found.targets, found.weights))

    def _weighed(self, attn: QueryKey, r: int, class_token: bool) -> Selection:
        """The r best of all edges, by cosine and class attention."""
        b, _, n, _ = attn.key.shape
        checks.matching(n, r, class_token, self.distill_token)
        first, most = int(class_token), self.largest(n, class_token=class_token)
        edges = ops.match(attn.key, most, class_token=class_token, distill_token=self.distill_token)
        class_attention, _ = ops.attention_stats(attn, class_token=class_token, probs=True, column=False, patches=False)
        rank = class_attention.argsort(dim=1, stable=True).argsort(dim=1) / max(n - first - 1, 1)
        redundancy = edges.redundancy - self.weigh * rank
        scores = redundancy.gather(1, edges.sources - first)
        best = scores.sort(dim=1, descending=True, stable=True).indices[:, :r].sort(1).values
        sources = edges.sources.gather(1, best)
        partners = edges.kept.gather(1, edges.targets.squeeze(-1)).gather(1, best)
        leaves = torch.zeros(b, n, dtype=torch.bool, device=sources.device).scatter(1, sources, True)
        kept = leaves.sort(dim=1, stable=True).indices[:, : n - r].contiguous()
        targets = ((~leaves).cumsum(1) - 1).gather(1, partners).unsqueeze(-1)
        return Selection(redundancy, sources, kept, Links(targets, torch.ones_like(targets, dtype=redundancy.dtype)))


@value
class Correlate:
    """Finds who inherits each source: the kept patches it correlates with most.

    Args:
        by: ``"attention"`` (the source's row, as the paper has it), ``"key"`` (cosine of head-mean keys; needs a
            QueryKey) or ``"convergent"`` (all sources go into one token: the most redundant patch that is kept is its
            host, the lowest index of equal ones, and gives its slot for it, so as many tokens stay as ever; the class
            token never is. One target has weight 1, whatever ``eps``, ``alpha`` and ``attention`` say).
        targets: ``"adaptive"`` (the row's ``eps``-quantile) or a fixed number; 0 drops the sources.
        eps: quantile in [0, 1] for adaptive targets.
        alpha: weights of a source's targets: ``"softmax"`` of the correlations, their ``"ratio"`` (probabilities only)
            or ``"average"`` (1 / k each).
        attention: as in :class:`Filter`.
    """

    by: str = "attention"
    targets: str | int = "adaptive"
    eps: float = 0.998
    alpha: str = "softmax"
    attention: str = "logits"

    def __post_init__(self) -> None:
        require_one_of("Correlate", "by", self.by, ("attention", "key", "convergent"))
        require_one_of("Correlate", "alpha", self.alpha, ("softmax", "ratio", "average"))
        require_one_of("Correlate", "attention", self.attention, ("logits", "probs"))
        require_number("Correlate", "eps", self.eps, 0, 1)
        fixed = isinstance(self.targets, int) and not isinstance(self.targets, bool) and self.targets >= 0
        if self.targets != "adaptive" and not fixed:
            reject("Correlate", "targets", "'adaptive' or an integer >= 0", self.targets)
        if self.by == "convergent":
            require_one_of("Correlate", "targets", self.targets, ("adaptive", 1))
            return
        if self.alpha == "ratio" and self.targets != 0 and (self.by == "key" or self.attention == "logits"):
            raise ValueError(
                "Correlate: alpha='ratio' divides correlations by their sum and needs non-negative ones; use "
                "attention='probs' with correlation='attention', or alpha='softmax'"
            )

    def count(self, candidates: int) -> int:
        """Targets per source when ``candidates`` patches are kept."""
        if self.by == "convergent":
            return 1
        return adaptive_targets(candidates, self.eps) if isinstance(self.targets, str) else self.targets

    def check(self, attn: Attention) -> None:
        """Raise if this attention lacks what the correlations need."""
        if self.by == "key" and self.targets != 0 and not isinstance(attn, QueryKey):
            raise ValueError("Correlate: correlation='key' compares keys, and a map holds none; pass a QueryKey")

    def __call__(self, attn: Attention, selection: Selection, *, class_token: bool) -> Links:
        """Targets and weights of the selected sources."""
        self.check(attn)
        sources, kept = selection.sources, selection.kept
        if self.by == "convergent":
            return into_the_most_redundant(selection, class_token)
        k = self.count(kept.shape[1] - int(class_token))
        if k == 0:
            return Links(sources.new_empty(*sources.shape, 0), selection.redundancy.new_empty(*sources.shape, 0))
        if self.by == "key":
            assert isinstance(attn, QueryKey)
            return Links(*ops.correlate_key(attn.key, sources, kept, k, alpha=self.alpha, class_token=class_token))
        probs = self.attention == "probs"
        return Links(*ops.correlate(attn, sources, kept, k, alpha=self.alpha, class_token=class_token, probs=probs))


def into_the_most_redundant(selection: Selection, class_token: bool) -> Links:
    """Every source into the kept patch of highest redundancy, of equal ones that of the lowest index."""
    first, redundancy = int(class_token), selection.redundancy
    host = redundancy.gather(1, selection.kept[:, first:] - first).argmax(1, keepdim=True) + first
    targets = host.unsqueeze(-1).repeat(1, selection.sources.shape[1], 1)
    return Links(targets, torch.ones_like(targets, dtype=redundancy.dtype))


@value
class Compress:
    """Merges sources into targets, all at once, into weighted means.

    Args:
        size_weighted: a token counts as many times as the original tokens it stands for (ToMe). False: every token
            counts once in each reduction (FiCoCo).
    """

    size_weighted: bool = False

    def __call__(
        self, tokens: Tensor, selection: Selection, links: Links, *, size: Tensor | None, size_weighted: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, M, C), size (B, M, 1) and source_map (B, N); ``size_weighted`` adds to the stage's own choice."""
        return ops.compress(
            tokens,
            selection.sources,
            selection.kept,
            links.targets,
            links.weights,
            size=size,
            size_weighted=self.size_weighted or size_weighted,
        )


def runs_at_once(stages: tuple[FilterStage, CorrelateStage | None, CompressStage]) -> bool:
    """Whether :func:`reduce_at_once` knows these stages."""
    correlate = stages[1]
    plain = type(stages[0]) is Filter and type(correlate) is Correlate and type(stages[2]) is Compress
    return plain and isinstance(correlate, Correlate) and correlate.by != "convergent"


def reduce_at_once(
    tokens: Tensor,
    attn: Attention,
    r: int,
    stages: tuple[Filter, Correlate, Compress],
    *,
    class_token: bool,
    ids: Tensor | None,
    grid: tuple[int, int] | None,
    size: Tensor | None,
    size_weighted: bool,
) -> ops.Reduced:
    """What the three stages give one after the other, in one call. Without gradients."""
    filter, correlate, compress = stages
    filter.check(attn, class_token=class_token, grid=grid)
    correlate.check(attn)
    return ops.reduce(
        tokens,
        attn,
        r,
        correlate.count(tokens.shape[1] - r - int(class_token)),
        class_token=class_token,
        lam=filter.lam,
        probs=filter.attention == "probs",
        column=filter.redundancy == "column",
        normalize=filter.normalize,
        penalty=filter.penalty,
        window=filter.window,
        correlation="key" if correlate.by == "key" else correlate.attention,
        alpha=correlate.alpha,
        size_weighted=compress.size_weighted or size_weighted,
        ids=ids,
        grid=grid,
        size=size,
    )
