"""A select of projected features: what it is given, what it hands on, and what has to be true of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..ops import checks
from ..ops.values import free_to_read
from . import needs as named
from .base import Stage, _Plain


class VisualFeatures(NamedTuple):
    """What the vision tower and the projector made of B pictures.

    Attributes:
        features: (B, N, D) projected features, in the order in which the language model reads them.
        mask: (B, N) bool, False for a token that is not there, such as padding, or that may never be picked. None: all
            are real. What a hidden token holds has no influence on what is picked.
        grid: (rows, columns) of the tokens of every picture; None: unknown, or not a whole grid.
        saliency: (B, N), finite and at least 0: how much the vision tower looks at each token.
        text: (B, L, D) embeddings of the words of each picture's prompt.
        text_mask: (B, L) bool, False for a word that is not there. None: all are.
    """

    features: Tensor
    mask: Tensor | None = None
    grid: tuple[int, int] | None = None
    saliency: Tensor | None = None
    text: Tensor | None = None
    text_mask: Tensor | None = None


class SelectStage(Stage):
    """Chooses which of the projected features stay.

    It is called as ``select(visual, count)`` and returns (B, ``count``) int64: ascending, distinct indices of tokens
    that ``visual.mask`` does not hide. Each picture is on its own: what another one of the batch holds, or how it is
    padded, changes nothing. 1 <= ``count`` <= N, a number of the host.
    """

    role: ClassVar[str] = "select"


class _PlainSelect(_Plain, SelectStage):
    pass


SelectStage.plain = _PlainSelect

_ASKED = {named.SALIENCY: "saliency", named.TEXT: "text", named.GRID: "grid", named.WHOLE_GRID: "grid"}


def check_shapes(
    op: str, visual: VisualFeatures, count: int, *, needs: Sequence[str] = (), count_name: str = "count"
) -> None:
    """Raise unless ``count`` and all parts of ``visual`` fit, and what ``needs`` names is there. Nothing is read.

    Args:
        op: who asks, for messages. visual: to be checked. count: tokens that are to stay.
        needs: of :data:`ficoco_ext.stages.needs.NEEDS`.
        count_name: what the caller's caller knows ``count`` as.

    Raises:
        ValueError, TypeError: naming what was wanted, what came and what to do.
    """
    features = visual.features
    if not isinstance(features, Tensor):
        checks.fail(op, "features", "a tensor (B, N, D)", features, "pass what the projector gives", TypeError)
    checks.floating(op, "features", features)
    remedy = "pass features[None] for one picture" if features.dim() == 2 else "pass one vector a token"
    checks.shape(op, "features", features, "(B, N, D)", features.dim() == 3, remedy)
    b, n, _ = features.shape
    checks.shape(op, "features", features, "of at least 1 token", n >= 1, "leave out a picture without tokens")
    if isinstance(count, bool) or not isinstance(count, (int, torch.SymInt)):
        checks.fail(op, count_name, "an integer", count, "pass how many tokens stay", TypeError)
    if not 1 <= count <= n:
        checks.fail(
            op, count_name, f"in [1, {n}], the tokens there are", count, "lower it" if count > n else "raise it"
        )
    for need, argument in _ASKED.items():
        if need in needs and getattr(visual, argument) is None:
            checks.fail(op, argument, "given, as the method needs it", "None", "pass it, or use 'divprune'")
    for name in ("mask", "saliency", "text", "text_mask"):
        given = getattr(visual, name)
        if not isinstance(given, (Tensor, type(None))):
            checks.fail(op, name, "a tensor or None", given, "pass one for all pictures", TypeError)
    per_token = {"saliency": visual.saliency, "mask": visual.mask}
    words = None if visual.text is None else visual.text.shape[:2]
    if visual.text is not None:
        checks.floating(op, "text", visual.text)
        ok = visual.text.dim() == 3 and visual.text.shape[0] == b
        checks.shape(op, "text", visual.text, lambda: f"({b}, L, D)", ok, "pass one vector a word")
    checks.same_device(op, "features", features, text=visual.text, text_mask=visual.text_mask, **per_token)
    for name, given in per_token.items():
        if given is not None:
            checks.shape(op, name, given, lambda: f"({b}, {n})", tuple(given.shape) == (b, n), "pass one a token")
    if visual.saliency is not None:
        checks.floating(op, "saliency", visual.saliency)
    for name, flags in (("mask", visual.mask), ("text_mask", visual.text_mask)):
        if flags is not None and flags.dtype != torch.bool:
            checks.fail(op, name, "bool", flags, "True for what is there", TypeError)
    if visual.text_mask is not None and visual.text_mask.shape != words:
        checks.fail(op, "text_mask", "(B, L) like text", visual.text_mask, "pass one flag for each word")
    if visual.grid is not None:
        check_grid(op, visual.grid, n)


def check_grid(op: str, grid: tuple[int, int], tokens: int) -> None:
    """Raise unless ``grid`` is one of ``tokens`` cells."""
    sides = isinstance(grid, (tuple, list)) and len(grid) == 2 and all(isinstance(x, int) and x > 0 for x in grid)
    if not sides or grid[0] * grid[1] != tokens:
        checks.fail(
            op, "grid", f"(rows, columns) of {tokens} cells", grid, "pass that of the projected tokens, or None"
        )


def check_planes(op: str, visual: VisualFeatures, planes: Sequence[Tensor]) -> None:
    """Raise unless all ``planes`` are features of the same tokens."""
    b, n = visual.features.shape[:2]
    for plane in planes:
        if not isinstance(plane, Tensor):
            checks.fail(op, "each of planes", f"a tensor ({b}, {n}, E)", plane, "pass a tuple of tensors", TypeError)
        checks.floating(op, "each of planes", plane)
        ok = plane.dim() == 3 and tuple(plane.shape[:2]) == (b, n)
        checks.shape(op, "each of planes", plane, lambda: f"({b}, {n}, E)", ok, "pass those of the same tokens")
        checks.same_device(op, "features", visual.features, planes=plane)


def check_values(op: str, visual: VisualFeatures, count: int) -> None:
    """Raise for values that no method can work with, where reading them costs nothing: on the CPU.

    Raises:
        ValueError: features or saliency that are not finite, saliency below 0, a mask that leaves fewer than ``count``.
    """
    features, mask, saliency = visual.features, visual.mask, visual.saliency
    if not free_to_read(features):
        return
    if mask is not None and mask.shape[0] and (fewest := int(mask.sum(1).min())) < count:
        wanted = f"True for at least {count} tokens of every picture, as many as are to stay"
        checks.fail(op, "mask", wanted, f"one with {fewest}", "keep fewer, or pass that picture alone")
    finite = features.isfinite().all(-1)
    if not (finite if mask is None else finite | ~mask).all():
        checks.fail(op, "features", "finite", "NaN or infinity among them", "check the layer they come from")
    if saliency is not None:
        legal = (saliency >= 0) & saliency.isfinite()
        if not (legal if mask is None else legal | ~mask).all():
            checks.fail(op, "saliency", "finite and at least 0", "others", "shift it, or take its exponential")


def check_kept(op: str, kept: Tensor, visual: VisualFeatures, count: int) -> None:
    """Raise unless a select gave ``count`` ascending indices of real tokens; the values are looked at on the CPU alone.

    Raises:
        ValueError, TypeError: another shape, order, range or dtype.
    """
    b, n, _ = visual.features.shape
    wanted = "ascending indices of real tokens"
    if not isinstance(kept, Tensor):
        checks.fail(op, "what its select gives", f"a tensor ({b}, {count})", kept, wanted, TypeError)
    checks.indices(op, "what its select gives", kept, lambda: f"({b}, {count})", tuple(kept.shape) == (b, count))
    if not free_to_read(kept) or not b:
        return
    legal = bool((kept.diff(dim=1) > 0).all()) and int(kept.min()) >= 0 and int(kept.max()) < n
    if not legal or (visual.mask is not None and not visual.mask.gather(1, kept).all()):
        checks.fail(op, "what its select gives", wanted, "others", "sort them, and leave out what the mask hides")
