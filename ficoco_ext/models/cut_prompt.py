"""What a KV cache holds of a prompt that was cut before the language model, stored on the cache itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops import checks
from . import cache_rows
from . import transformers_api as api
from .attach_plan import AttachPlan
from .prompt_cut import Cut

_RECORD = "prompt"


class CutPrompt:
    """A prompt that was cut, and how new tokens go on after it.

    Args:
        plan: what cut it; the cache can only be continued under the same one.
        cut: the columns that are left.
        mask: (B, W) of them; None: all are real.
        positions: (..., B, W) their position ids; None: contiguous ones.
    """

    def __init__(self, plan: AttachPlan, cut: Cut, mask: Tensor | None, positions: Tensor | None) -> None:
        self.plan, self.cut, self.mask, self.positions = plan, cut, mask, positions
        self.next = None if positions is None else after_all(positions)

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return int(self.cut.order.shape[0])

    @property
    def width(self) -> int:
        """Columns that are left."""
        return int(self.cut.order.shape[1])

    def select(self, rows: Tensor) -> None:
        """Keep these rows, indices that may repeat."""

        def of(tensor: Tensor | None, dim: int = 0) -> Tensor | None:
            return None if tensor is None else tensor.index_select(dim, rows.to(tensor.device))

        order, valid, length = self.cut
        self.cut = Cut(order.index_select(0, rows.to(order.device)), of(valid), length)
        self.mask, self.positions, self.next = of(self.mask), of(self.positions, -2), of(self.next, -2)

    def repeated(self, rows: int) -> CutPrompt:
        """This for ``rows`` rows, of which as many come one after the other from each row here.

        Raises:
            ValueError: another number than a multiple.
        """
        if rows == self.rows:
            return self
        if rows % self.rows:
            remedy = "change rows by the cache's own methods"
            checks.fail("forward", "input_ids", f"{self.rows} rows, as the cache has", str(rows), remedy)
        made = CutPrompt(self.plan, self.cut, self.mask, self.positions)
        made.select(torch.arange(self.rows).repeat_interleave(rows // self.rows))
        return made

    def continued(self, past: Any, count: int) -> Tensor:
        """(..., B, count) positions of new tokens where ``past`` are in the cache."""
        assert self.next is not None
        return self.next + torch.arange(count, device=self.next.device) + (past - self.width)

    def put_on(self, cache: Any) -> None:
        """Store this on ``cache``."""
        cache_rows.store(cache, _RECORD, self)


def after_all(positions: Tensor) -> Tensor:
    """(..., B, 1) the position after all of ``positions`` (..., B, W).

    Of time, row and column (3, B, W) it is the same; a row of text positions may stand before these.
    """
    last = positions.amax(-1, keepdim=True) + 1
    if last.dim() == 2:
        return last
    return torch.cat([last[:-3], last[-3:].amax(0, keepdim=True).expand(3, -1, -1)])


def prompt_on(cache: Any, plan: AttachPlan | None) -> CutPrompt | None:
    """The prompt stored on ``cache``; None if there is none.

    Args:
        cache: of a call. plan: of the reduction that the model has now; None: one that cuts no prompts.

    Raises:
        ValueError: another reduction made it.
    """
    found: CutPrompt | None = cache_rows.stored(cache, _RECORD)
    if found is not None and found.plan != plan:
        remedy = "continue with the reduction that made it, or pass the whole conversation again"
        checks.fail("forward", api.CACHE, "a cache of this reduction", "one of another", remedy)
    return found


def forget(cache: Any) -> None:
    """Remove the prompt stored on ``cache``."""
    cache_rows.forget(cache, _RECORD)
