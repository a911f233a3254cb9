"""MustDrop: alike windows merge in the tower, two filters by attention in the language model (arXiv 2411.10803)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..ops import checks
from ..ops.attention import accumulate
from ..reduction import Reduction
from ..stages import Compress, DualFilter, WindowFilter
from ..stages.dual_attention import above_thresholds, first_in_rank, read_by_text, require_thresholds
from ..stages.frozen import require_number, require_one_of, value
from .base import AnyMethod
from .combined import Combined
from .decoder_method import DecoderMethod
from .method import Method
from .registry import register

_LAYERS, _LEFT = 32, 440  # of LLaVA-1.5-7B; what the tower leaves of 576
_BLOCKS = (2, 6, 10, 14)
# Side of windows, share of keys, share of the windows that merge: of 24 x 24 patches 17 of 64, 45 of 144.
_VARIANTS = {"released": (3, 0.08, 17 / 64), "paper": (2, 0.05, 45 / 144)}
# By the mean over layers that they are called by: what each block leaves, of _LEFT; and the released gamma and alpha.
_KEPT = {192: (324, 238, 175, 129), 128: (268, 163, 100, 61), 64: (39, 39, 39, 39)}
_THRESHOLDS = {192: (0.001, 0.001), 128: (0.0012, 0.001), 64: (0.011, 0.01)}
_SOURCE = "MustDrop, arXiv 2411.10803"


def _first(used: int) -> tuple[int, ...]:
    """The first layer."""
    return (0,)


def _in_proportion(layers: int) -> tuple[int, ...]:
    """Blocks 2, 6, 10 and 14 of 32; of another number at the same shares of the depth, from 1 on and one apart."""
    chosen: list[int] = []
    for block in _BLOCKS:
        chosen.append(max(block * layers // _LAYERS, chosen[-1] + 1 if chosen else 1))
    return tuple(layer for layer in chosen if layer < layers)


@value
class ShareOfWindows:
    """How many patches leave where no amount is given: those of a share of the windows of a square grid.

    Args:
        filter: whose windows. share: of them that merge, rounded half up.

    Example:
        >>> from ficoco_ext.methods.mustdrop import ShareOfWindows
        >>> from ficoco_ext.stages import WindowFilter
        >>> ShareOfWindows(WindowFilter(), 17 / 64)(576)
        136
    """

    filter: WindowFilter
    share: float

    def __call__(self, patches: int) -> int:
        """Patches that leave of so many."""
        windows = self.filter.largest(patches, class_token=False) // self.filter.unit
        return math.floor(self.share * windows + 0.5) * self.filter.unit

    def __str__(self) -> str:
        return f"{self.filter.unit} of each of {100 * self.share:.1f} % of the windows"


@register("mustdrop", rank=145)
def mustdrop(
    *,
    variant: str = "released",
    average_tokens: int = 192,
    gamma: float | None = None,
    alpha: float | None = None,
    window: int | None = None,
    keys: float | None = None,
    receiver: str = "last",
    thresholds: bool = False,
    part: str = "both",
) -> AnyMethod:
    """MustDrop: the most alike windows of patches merge after the tower's first layer; what words read least leaves.

    In the tower each of the most alike windows becomes its mean. In the block that reads the features the class token
    names a key set, which stays to the end. In four blocks of the language model the tokens leave that the text after
    the picture reads least, by their share of all attention to the picture and by the most that one text token gives.
    Counts come from the host: the release lets them follow from thresholds (0.8 for windows, gamma and alpha for
    tokens), of which only the ratio gamma : alpha is left here, unless ``thresholds=True`` brings its rule back for the
    tokens. :func:`ficoco_ext.stages.windows_above` helps to choose how many windows merge.

    Once the prompt is read, every layer from the first such block on keeps in its cache what is left in the end, unless
    attach is given another one (``cache="staircase"``). Positions stay the original ones, where the release counts anew
    after every block. Tokens leave between attention and MLP of a block, where the release cuts its output: the same
    tokens stay with the same values.

    Args:
        variant: ``"released"`` or ``"paper"``: defaults of ``window`` and ``keys``, 3 and 0.08, or 2 and 0.05 as the
            paper's figure has them.
        average_tokens: 192, 128 or 64: what attach takes if it is given no amount, and the ratio of the released gamma
            and alpha. Of 576 patches the tower leaves 440, or 441 in windows of 2; then the blocks leave a mean over
            the 32 layers of this many. Which numbers of tokens do so is our choice: a geometric fall, or flat for 64.
        gamma, alpha: of :class:`ficoco_ext.stages.DualFilter`; None: the released ones of ``average_tokens``.
        window: side of the windows, at least 2.
        keys: share of the tokens of each picture that are its key set; 0 does without, and reads nothing in the tower.
        receiver: which patch of a window holds its mean, ``"last"`` or ``"centre"``.
        thresholds: the tokens that leave a block are those below gamma and alpha, as in the release. Then the language
            model takes no amount, its layers cost one device read each, and ``static_counts`` is refused.
        part: ``"both"``, or ``"tower"`` or ``"language_model"`` for one of them alone.

    Raises:
        ValueError: a value out of range, or an average that was not published.
    """
    require_one_of("mustdrop", "variant", variant, tuple(_VARIANTS))
    require_one_of("mustdrop", "average_tokens", average_tokens, tuple(_KEPT))
    require_one_of("mustdrop", "part", part, ("both", "tower", "language_model"))
    own_window, own_keys, share = _VARIANTS[variant]
    windows = WindowFilter(own_window if window is None else window, receiver)
    own_gamma, own_alpha = _THRESHOLDS[average_tokens]
    dual = DualFilter(
        own_gamma if gamma is None else gamma,
        own_alpha if alpha is None else alpha,
        own_keys if keys is None else keys,
        thresholds,
    )
    counts = tuple(count / _LEFT for count in _KEPT[average_tokens])
    tower = Method(
        name="mustdrop",
        filter=windows,
        correlate=None,
        compress=Compress(size_weighted=True),
        source=_SOURCE,
        layers=_first,
        amount=(("r", ShareOfWindows(windows, share)),),
        after_mlp=True,
    )
    language = DecoderMethod(
        name="mustdrop",
        filter=dual,
        correlate=None,
        compress=Compress(),
        layers=_in_proportion,
        amount=() if thresholds else (("keep_ratio", counts),),
        cache="output-aware",
        source=_SOURCE,
    )
    if part == "both":
        return Combined(tower_method=tower, language_method=language)
    return tower if part == "tower" else language


def merge_windows(
    tokens: Tensor, grid: tuple[int, int], count: int, window: int = 3, receiver: str = "last"
) -> Reduction:
    """Merge the ``count`` most alike windows of each picture into one token each.

    Args:
        tokens: (B, P, C) the patches of the whole grid, without a class token. Any strides.
        grid: (height, width) in patches. count: windows that merge, of equally alike ones the first.
        window: side of a window, at least 2. Rows and columns that fill no window never merge.
        receiver: which patch of a window holds its mean, ``"last"`` or ``"centre"``.

    Returns:
        The :class:`Reduction`, of P - count (window^2 - 1) survivors.

    Raises:
        ValueError, TypeError: tokens that are not those of the grid, or a count that there are no windows for.

    Cost: 6 B P C FLOPs and the merging; no pairs are formed. Deterministic. Gradients flow to ``tokens``.

    Example:
        >>> import torch
        >>> from ficoco_ext.methods.mustdrop import merge_windows
        >>> merge_windows(torch.ones(1, 36, 4), (6, 6), 1).size.flatten().max()
        tensor(9.)
    """
    op, filter = "merge_windows", WindowFilter(window, receiver)
    _require_tokens(op, tokens, grid)
    if isinstance(count, bool) or not isinstance(count, int):
        checks.fail(op, "count", "an integer", count, "pass how many windows merge", TypeError)
    windows = (grid[0] // window) * (grid[1] // window)
    if not 0 <= count <= windows:
        wanted = f"in [0, {windows}], the whole windows of {window} x {window} in {grid[0]} x {grid[1]} patches"
        checks.fail(op, "count", wanted, str(count), "merge fewer, or choose a smaller window")
    merged = Method("mustdrop", filter, None, Compress(size_weighted=True))
    return merged(tokens, tokens, count * filter.unit, class_token=False, grid=(grid[0], grid[1]))


def _require_tokens(op: str, tokens: Tensor, grid: tuple[int, int]) -> None:
    if not isinstance(tokens, Tensor):
        checks.fail(op, "tokens", "a tensor (B, P, C)", tokens, "pass hidden states", TypeError)
    checks.floating(op, "tokens", tokens)
    checks.shape(op, "tokens", tokens, "(B, P, C)", tokens.dim() == 3, "pass the patches without a class token")
    ok = isinstance(grid, (tuple, list)) and len(grid) == 2 and all(type(one) is int and one > 0 for one in grid)
    if not ok or grid[0] * grid[1] != tokens.shape[1]:
        wanted = f"(height, width) of {tokens.shape[1]} patches"
        checks.fail(op, "grid", wanted, grid, "windows need the whole grid, without a class token")


def dual_filter(attention: Tensor, key_set: Tensor, count: int, *, gamma: float, alpha: float) -> Tensor:
    """The ``count`` visual tokens that stay: the key set first, then those that the text reads most.

    Args:
        attention: (B, T, n) what each of T text tokens gives to each visual token, heads averaged.
        key_set: (B, n) bool; where ``count`` is less than it holds, those of its members that are read most stay.
        count: in [1, n]. gamma, alpha: thresholds of share and peak, see :class:`ficoco_ext.stages.DualFilter`.

    Returns:
        (B, ``count``) int64, ascending; of equal tokens the first stays.

    Raises:
        ValueError, TypeError: shapes, a count or thresholds that do not fit.

    Example:
        >>> import torch
        >>> from ficoco_ext.methods.mustdrop import dual_filter
        >>> attention, keys = torch.tensor([[[0.1, 0.2, 0.4]]]), torch.tensor([[True, False, False]])
        >>> dual_filter(attention, keys, 2, gamma=0.001, alpha=0.001)
        tensor([[0, 2]])
    """
    op = "dual_filter"
    _require_attention(op, attention, key_set, gamma, alpha)
    n = attention.shape[2]
    if isinstance(count, bool) or not isinstance(count, int):
        checks.fail(op, "count", "an integer", count, "pass how many tokens stay", TypeError)
    if not 1 <= count <= n:
        checks.fail(op, "count", f"in [1, {n}]", str(count), "at least one of the visual tokens stays")
    require_thresholds(op, gamma, alpha)
    total, peak = _statistics(attention)
    return first_in_rank(read_by_text(total, peak, gamma, alpha), key_set, count)


def dual_thresholds(attention: Tensor, key_set: Tensor, *, gamma: float, alpha: float) -> Tensor:
    """(B, n) bool: which visual tokens stay by the published rule, whose number the attention decides.

    A token leaves if its share is below ``gamma``, its peak is below ``alpha``, and it is not in the key set. With one
    of the two 0 all stay.

    Args:
        attention, key_set, gamma, alpha: as of :func:`dual_filter`; both thresholds may be 0.

    Raises:
        ValueError, TypeError: shapes or thresholds that do not fit.

    Example:
        >>> import torch
        >>> from ficoco_ext.methods.mustdrop import dual_thresholds
        >>> attention, keys = torch.tensor([[[0.1, 0.2, 0.4]]]), torch.tensor([[True, False, False]])
        >>> dual_thresholds(attention, keys, gamma=0.5, alpha=0.3)
        tensor([[ True, False,  True]])
    """
    _require_attention("dual_thresholds", attention, key_set, gamma, alpha)
    total, peak = _statistics(attention)
    return above_thresholds(total, peak, gamma, alpha) | key_set


def _statistics(attention: Tensor) -> tuple[Tensor, Tensor]:
    """(B, n) sum and maximum over the text; 0 without text."""
    given = accumulate(attention)
    return given.sum(1), given.amax(1) if given.shape[1] else given.new_zeros(given.shape[0], given.shape[2])


def _require_attention(op: str, attention: Tensor, key_set: Tensor, gamma: float, alpha: float) -> None:
    if not isinstance(attention, Tensor):
        checks.fail(op, "attention", "a tensor (B, T, n)", attention, "average it over heads", TypeError)
    checks.floating(op, "attention", attention)
    checks.shape(op, "attention", attention, "(B, T, n)", attention.dim() == 3, "average it over heads")
    shape = attention.shape[0], attention.shape[2]
    if not isinstance(key_set, Tensor) or key_set.dtype != torch.bool or tuple(key_set.shape) != shape:
        checks.fail(op, "key_set", f"{shape} bool", key_set, "say which visual tokens always stay", TypeError)
    checks.same_device(op, "attention", attention, key_set=key_set)
    for name, given in (("gamma", gamma), ("alpha", alpha)):
        require_number(op, name, given, 0, math.inf)
