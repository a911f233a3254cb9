"""Match: pairs of neighbours by similarity of keys (ToMe, arXiv 2210.09461)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import ops
from ..ops import Attention, QueryKey, checks, costs
from . import needs
from .base import FilterStage, Links, Selection
from .frozen import require_number, require_one_of, value
from .shape import Priced, Shape


@value
class Match(FilterStage):
    """Filter and Correlate in one: ToMe's bipartite matching of neighbours by cosine of the head-mean keys.

    Every even token is paired with the odd one most like it, and the even halves of the r best pairs leave. With a
    Correlate after it only the choice of sources is taken.

    Args:
        distill_token: token 1 is a distillation token, as protected as the class token.
        weigh: keeps back what the class token attends to: an edge counts its cosine less ``weigh`` times
            the rank of its even half among the patches by class attention, 0 for the least attended, 1 for the most.
            0 is ToMe. Partners stay those of highest cosine.
    """

    distill_token: bool = False
    weigh: float = 0.0

    def __post_init__(self) -> None:
        require_one_of("Match", "distill_token", self.distill_token, (True, False))
        require_number("Match", "weigh", self.weigh, 0, math.inf)

    @property
    def needs(self) -> tuple[str, ...]:
        """Keys to compare, a class token to weigh by, and one before a distillation token."""
        weighing = (needs.CLASS_TOKEN_OR_KEYS,) if self.weigh else ()
        return (needs.QUERY_AND_KEY, *weighing, *((needs.CLASS_TOKEN,) if self.distill_token else ()))

    @property
    def inheritor(self) -> str:
        """The token that a source is paired with."""
        return "its pair"

    @property
    def limit(self) -> str:
        """One of each pair."""
        return "half"

    def describe(self) -> str:
        """What makes a pair good."""
        weighed = f", less {self.weigh:g} of the rank by class attention" if self.weigh else ""
        return f"best pairs of neighbours by cosine of keys{weighed}"

    def count(self, candidates: int) -> int:
        """One target for each source."""
        return 1

    def operations(self, shape: Shape) -> list[Priced]:
        """The matching, and the class attention that it is weighed by."""
        compared = costs.pairs(shape.tokens, class_token=shape.class_token, distill_token=self.distill_token)
        pairing = shape.price(costs.MATCH, **compared)
        if not self.weigh:
            return [pairing]
        return [shape.price(costs.attention_stats(probs=True, patches=False)), pairing]

    def largest(self, tokens: int, *, class_token: bool) -> int:
        """The most of ``tokens`` tokens that can leave at once: half of those that are not protected."""
        return max((tokens - class_token - self.distill_token) // 2, 0)

    def _keys(self, attn: Attention) -> QueryKey:
        if not isinstance(attn, QueryKey):
            raise ValueError("Match: matching compares keys, and a map holds none; pass attn=QueryKey(query, key)")
        return attn

    def __call__(
        self, attn: Attention, r: int, *, class_token: bool, ids: Tensor | None, grid: tuple[int, int] | None
    ) -> Selection:
        """Select r sources and their targets. Even and odd count the present tokens, whatever their ids."""
        seen = self._keys(attn)
        if self.weigh:
            return self._weighed(seen, r, class_token)
        found = ops.match(seen.key, r, class_token=class_token, distill_token=self.distill_token)
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
