"""Windows of alike patches become one token each (MustDrop, arXiv 2411.10803, first stage)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .. import ops
from ..ops import checks
from ..ops.costs import Operation
from . import needs
from .base import FilterStage, Links, Selection
from .frozen import reject, require_one_of, value
from .shape import Priced, Shape

RECEIVERS = ("last", "centre")

# Length, quotient, sum and square of every patch. No pairs.
_COST = Operation("window_similarity", "6*b*u*h", loads="b*u*h", stores="b*u")


def window_members(grid: tuple[int, int], window: int, device: torch.device | None = None) -> Tensor:
    """(W, window * window) int64: the patches of each whole window of a grid, both line by line.

    Windows begin at the first row and column and do not overlap. Rows and columns that fill no window are in none.

    Args:
        grid: (height, width) in patches. window: side of a window.

    Example:
        >>> from ficoco_ext.stages.windows import window_members
        >>> window_members((2, 5), 2).tolist()
        [[0, 1, 5, 6], [2, 3, 7, 8]]
    """
    height, width = grid
    down, across, inside = (torch.arange(count, device=device) for count in (height // window, width // window, window))
    corners = (down * window * width).unsqueeze(1) + across * window
    return corners.flatten().unsqueeze(1) + ((inside * width).unsqueeze(1) + inside).flatten()


def windows_above(similarity: Tensor, threshold: float) -> Tensor:
    """(B,) int64: how many windows of each picture are as alike as ``threshold``, or more.

    This is the published rule for how many windows merge, 0.8 in the release, which takes the minimum over a batch. It
    is for choosing ``r``: counts that differ inside a batch would make it ragged, so no method uses it itself.

    Args:
        similarity: (B, W), as ``ficoco_ext.ops.window_similarity`` gives it.

    Example:
        >>> import torch
        >>> from ficoco_ext.stages import windows_above
        >>> windows_above(torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.3, 0.9]]), 0.8)
        tensor([2, 1])
    """
    if not isinstance(similarity, Tensor) or similarity.dim() != 2:
        checks.fail("windows_above", "similarity", "(B, W)", similarity, "pass what ops.window_similarity gave")
    return (similarity >= threshold).sum(1)


@value
class WindowFilter(FilterStage):
    """Filter and Correlate in one: the most alike windows of the grid become one token each.

    The grid is cut into whole windows that do not overlap. A window is as alike as the mean cosine of its patches with
    one another. Of the windows that merge, of equal ones the first, one patch stays and inherits the others; a Compress
    makes it their mean. Patches outside whole windows never leave. It reads tokens, not attention, and needs the whole
    grid, so it is for one layer, and for the first that reduces.

    Args:
        window: side of a window, at least 2.
        receiver: which patch of a window stays: ``"last"``, or ``"centre"`` (of even sides the one after the middle).
    """

    window: int = 3
    receiver: str = "last"

    reads_tokens: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.window, bool) or not isinstance(self.window, int) or self.window < 2:
            reject("WindowFilter", "window", "an integer >= 2", self.window)
        require_one_of("WindowFilter", "receiver", self.receiver, RECEIVERS)

    @property
    def needs(self) -> tuple[str, ...]:
        """The grid, of which no patch has left."""
        return (needs.WHOLE_GRID,)

    @property
    def unit(self) -> int:
        """All patches of a window but one."""
        return self.window * self.window - 1

    @property
    def inheritor(self) -> str:
        """The patch that stays."""
        return f"the {self.receiver} patch of its window"

    @property
    def limit(self) -> str:
        """One patch of every window stays, and what is in no window."""
        return f"{self.unit} of every whole window of {self.window} x {self.window}"

    def describe(self) -> str:
        """What leaves."""
        return f"windows of {self.window} x {self.window} patches that are most alike, by cosine of tokens"

    def count(self, candidates: int) -> int:
        """One target for each source."""
        return 1

    def operations(self, shape: Shape) -> list[Priced]:
        """The mean cosine of every window."""
        return [shape.price(_COST)]

    def largest(self, tokens: int, *, class_token: bool) -> int:
        """All windows of a square; of another grid at most so many."""
        patches = max(tokens - class_token, 0)
        side = int(patches**0.5 + 0.5)
        cells = self.window * self.window
        windows = (side // self.window) ** 2 if side * side == patches else patches // cells
        return windows * self.unit

    def __call__(
        self, tokens: Tensor, r: int, *, class_token: bool, ids: Tensor | None, grid: tuple[int, int] | None
    ) -> Selection:
        """Select r sources and their targets.

        Raises:
            ValueError: no whole grid, or an ``r`` that is not that of whole windows, or of more than there are.
        """
        first = int(class_token)
        patches = tokens[:, first:]
        grid = self._require_grid(patches.shape[1], grid)
        similarity = ops.window_similarity(patches, grid, self.window)
        members = window_members(grid, self.window, tokens.device)
        count = self._windows(r, members.shape[0])
        chosen = members[similarity.sort(dim=1, descending=True, stable=True).indices[:, :count]]  # (B, m, cells)
        at = self._receiver_at
        receivers = chosen[..., at : at + 1].expand(-1, -1, self.unit).flatten(1)
        sources, order = torch.cat([chosen[..., :at], chosen[..., at + 1 :]], -1).flatten(1).sort(1)
        leaves = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        leaves = leaves.scatter(1, sources + first, True)
        kept = leaves.sort(dim=1, stable=True).indices[:, : tokens.shape[1] - r].contiguous()
        targets = ((~leaves).cumsum(1) - 1).gather(1, receivers.gather(1, order) + first).unsqueeze(-1)
        redundancy = similarity.new_full(patches.shape[:2], -1.0)  # in no window
        redundancy[:, members.flatten()] = similarity.repeat_interleave(self.window * self.window, 1)
        links = Links(targets, torch.ones_like(targets, dtype=similarity.dtype))
        return Selection(redundancy, sources + first, kept, links)

    @property
    def _receiver_at(self) -> int:
        """Which patch of a window stays."""
        return self.unit if self.receiver == "last" else (self.window // 2) * (self.window + 1)

    def _require_grid(self, patches: int, grid: tuple[int, int] | None) -> tuple[int, int]:
        if grid is None:
            raise ValueError(
                "WindowFilter: windows need the patches' grid, and their number is not a square; pass "
                "grid=(height, width)"
            )
        if patches != grid[0] * grid[1]:
            raise ValueError(
                f"WindowFilter: windows need the whole grid of {grid[0]} x {grid[1]} patches, and only {patches} are "
                "left of it; merge windows in one layer, before anything else reduces"
            )
        return grid

    def _windows(self, r: int, windows: int) -> int:
        """How many windows merge if ``r`` patches leave, of ``windows``."""
        require_multiple("reduce", r, self.unit)
        if r > windows * self.unit:
            wanted = f"at most {windows * self.unit}: {self.unit} of each of {windows} whole windows"
            checks.fail("reduce", "r", wanted, str(r), "remove less, or choose a smaller window")
        return r // self.unit


def require_multiple(op: str, r: int, unit: int) -> None:
    """Raise unless ``r`` patches that leave are ``unit`` of each of some windows."""
    if r % unit:
        below = r - r % unit
        wanted = f"a multiple of {unit}, the patches that leave a window together"
        checks.fail(op, "r", wanted, str(r), f"pass {below} or {below + unit}, the nearest")
