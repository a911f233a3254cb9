"""A select of projected features: what it is given, what it hands on, and what has to be true of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor

from ..ops import checks
from ..ops.values import free_to_read
from . import needs as named
from .base import CorrelateStage, Links, Selection, Stage, _Plain
from .crops import Crops


class VisualFeatures(NamedTuple):
    """What the vision tower and the projector made of B pictures.

    Attributes:
        features: (B, N, D) projected features, in the order in which the language model reads them.
        mask: (B, N) bool, False for a token that is not there, such as padding, or that may never be picked. None: all
            are real. What a hidden token holds has no influence on what is picked.
        grid: (rows, columns) of the tokens of every picture; None: unknown, or not a whole grid.
        saliency: (B, N), finite and at least 0: how much the vision tower looks at each token.
        text: (B, L, D) embeddings of the words of each picture's prompt.
        text_mask: (B, L) bool, False for a word that is not there. None: all are. A picture without any word is one
            without text.
        keys: (B, N, K) keys of the vision tower, heads averaged, of the layer whose attention is the saliency.
        tower_features: (B, N, C) what the vision tower gave for each token, before the projector.
        early_saliency: (B, N), like ``saliency``, of an early layer of the vision tower.
        frames: of a video: the N tokens are those of so many frames, one frame after the other, N / frames each.
        crops: where the tokens of every picture are, if it is a thumbnail and a grid of crops: the thumbnail's patches,
            then those of the valid rectangle, line by line, without line ends.
        class_logits: (B, N), finite: attention of the class token to each token, before the softmax, heads averaged, in
            the layer of the vision tower that reads what is selected for the projector.
    """

    features: Tensor
    mask: Tensor | None = None
    grid: tuple[int, int] | None = None
    saliency: Tensor | None = None
    text: Tensor | None = None
    text_mask: Tensor | None = None
    keys: Tensor | None = None
    tower_features: Tensor | None = None
    early_saliency: Tensor | None = None
    frames: int = 1
    crops: Crops | None = None
    class_logits: Tensor | None = None


class SelectStage(Stage):
    """Chooses which of the projected features stay.

    It is called as ``select(visual, count)`` and returns (B, ``count``) int64: ascending, distinct indices of tokens
    that ``visual.mask`` does not hide. Each picture is on its own: what another one of the batch holds, or how it is
    padded, changes nothing. 1 <= ``count`` <= N, a number of the host.
    """

    role: ClassVar[str] = "select"

    def noted(self, visual: VisualFeatures, count: int) -> tuple[Tensor, Any]:
        """The tokens that stay, and what it found on the way that a correlate of its method may use; None: nothing.

        The correlate finds it as ``selection.notes``, and can do without.
        """
        return cast(Callable[..., Tensor], self)(visual, count), None

    @property
    def data_decides(self) -> bool:
        """Whether what the tokens hold decides how many of them stay; see :meth:`counts`."""
        return False

    def number(self, before: int, crops: Crops | None, share: float) -> int | None:
        """Of ``before`` tokens how many stay at the ``share`` that is asked for; None: as many as rounding gives."""
        return None

    def asked(self, share: float) -> SelectStage:
        """This stage, for the ``share`` of the tokens that is asked for, where their number alone does not say it."""
        return self

    def counts(self, visual: VisualFeatures) -> Tensor:
        """(B,) int64: how many stay of each picture, where :attr:`data_decides`."""
        raise ValueError(f"{self.title}: the caller says how many stay")

    def scores(self, visual: VisualFeatures) -> Tensor | None:
        """(B, N) by which it ranks the tokens of each crop, the best highest; None: it has no such scores."""
        return None


class _PlainSelect(_Plain, SelectStage):
    pass


SelectStage.plain = _PlainSelect


class VisualCorrelateStage(CorrelateStage):
    """Finds who inherits each token that leaves by more than the projected features.

    It is called as ``correlate(visual, selection)`` and returns :class:`ficoco_ext.stages.Links`. Only a method after
    the projector can have it.
    """

    def of_features(self, visual: VisualFeatures, selection: Selection) -> Links:
        """What it gives when it is called."""
        return cast(Callable[..., Links], self)(visual, selection)


_ASKED = {
    named.SALIENCY: "saliency",
    named.EARLY_SALIENCY: "early_saliency",
    named.TEXT: "text",
    named.TOWER_KEYS: "keys",
    named.TOWER_FEATURES: "tower_features",
    named.GRID: "grid",
    named.WHOLE_GRID: "grid",
    named.CROPS: "crops",
    named.CLASS_LOGITS: "class_logits",
}
_NUMBERS = ("saliency", "early_saliency")  # one for each token
_OF_TOKENS = (*_NUMBERS, "class_logits")  # so too, of any sign
_VECTORS = ("keys", "tower_features")


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
    n = features.shape[1]
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
    for name in ("mask", "text", "text_mask", *_OF_TOKENS, *_VECTORS):
        given = getattr(visual, name)
        if not isinstance(given, (Tensor, type(None))):
            checks.fail(op, name, "a tensor or None", given, "pass one for all pictures", TypeError)
    _check_words(op, visual)
    _check_of_tokens(op, visual)
    if visual.grid is not None:
        check_grid(op, visual.grid, n)
    if visual.crops is not None:
        _check_crops(op, visual.crops, n)
    if isinstance(visual.frames, bool) or not isinstance(visual.frames, int):
        checks.fail(op, "frames", "an integer", visual.frames, "pass the number of frames, 1 for a picture", TypeError)
    if visual.frames < 1 or n % visual.frames:
        remedy = "pass videos whose frames have equally many tokens, without line ends"
        checks.fail(op, "frames", f"a divisor of the {n} tokens", str(visual.frames), remedy)


def _check_words(op: str, visual: VisualFeatures) -> None:
    """Raise unless text and its mask fit the features."""
    b = visual.features.shape[0]
    words = None if visual.text is None else visual.text.shape[:2]
    if visual.text is not None:
        checks.floating(op, "text", visual.text)
        ok = visual.text.dim() == 3 and visual.text.shape[0] == b
        checks.shape(op, "text", visual.text, lambda: f"({b}, L, D)", ok, "pass one vector a word")
    checks.same_device(op, "features", visual.features, text=visual.text, text_mask=visual.text_mask)
    mask = visual.text_mask
    if mask is not None and mask.dtype != torch.bool:
        checks.fail(op, "text_mask", "bool", mask, "True for what is there", TypeError)
    if mask is not None and mask.shape != words:
        checks.fail(op, "text_mask", "(B, L) like text", mask, "pass one flag for each word")


def _check_of_tokens(op: str, visual: VisualFeatures) -> None:
    """Raise unless what there is for each token fits the features."""
    b, n, _ = visual.features.shape
    numbers = {name: getattr(visual, name) for name in ("mask", *_OF_TOKENS)}
    vectors = {name: getattr(visual, name) for name in _VECTORS}
    checks.same_device(op, "features", visual.features, **numbers, **vectors)
    for name, given in numbers.items():
        if given is not None:
            checks.shape(op, name, given, lambda: f"({b}, {n})", tuple(given.shape) == (b, n), "pass one a token")
    for name, given in vectors.items():
        if given is not None:
            ok = given.dim() == 3 and tuple(given.shape[:2]) == (b, n)
            checks.shape(op, name, given, lambda: f"({b}, {n}, C)", ok, "pass one vector a token")
            checks.floating(op, name, given)
    for name in _OF_TOKENS:
        if numbers[name] is not None:
            checks.floating(op, name, numbers[name])
    if visual.mask is not None and visual.mask.dtype != torch.bool:
        checks.fail(op, "mask", "bool", visual.mask, "True for what is there", TypeError)


def check_grid(op: str, grid: tuple[int, int], tokens: int) -> None:
    """Raise unless ``grid`` is one of ``tokens`` cells."""
    sides = isinstance(grid, (tuple, list)) and len(grid) == 2 and all(isinstance(x, int) and x > 0 for x in grid)
    if not sides or grid[0] * grid[1] != tokens:
        checks.fail(
            op, "grid", f"(rows, columns) of {tokens} cells", grid, "pass that of the projected tokens, or None"
        )


def _check_crops(op: str, crops: Crops, tokens: int) -> None:
    """Raise unless ``crops`` are those of a picture of ``tokens`` tokens."""
    if not isinstance(crops, Crops):
        checks.fail(op, "crops", "a Crops or None", crops, "pass ficoco_ext.stages.Crops.of(...)", TypeError)
    if crops.tokens != tokens:
        wanted = f"of {tokens} tokens without line ends, as the features are"
        checks.fail(op, "crops", wanted, f"{crops}, of {crops.tokens}", "leave out line ends and padding")


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


def check_values(op: str, visual: VisualFeatures, count: int, *, needs: Sequence[str] = ()) -> None:
    """Raise for values that no method can work with, where reading them costs nothing: on the CPU.

    Raises:
        ValueError: features, or what else there is for each token, that are not finite, saliency below 0, a mask that
            leaves fewer than ``count``, no word for a picture where words are needed.
    """
    mask = visual.mask
    if not free_to_read(visual.features):
        return
    if mask is not None and mask.shape[0] and (fewest := int(mask.sum(1).min())) < count:
        wanted = f"True for at least {count} tokens of every picture, as many as are to stay"
        checks.fail(op, "mask", wanted, f"one with {fewest}", "keep fewer, or pass that picture alone")
    for name in ("features", *_VECTORS, "class_logits"):
        given = getattr(visual, name)
        finite = True if given is None else _where_real(_finite_tokens(given), mask)
        if not finite:
            checks.fail(op, name, "finite", "NaN or infinity among them", "check the layer they come from")
    for name in _NUMBERS:
        given = getattr(visual, name)
        if given is not None and not _where_real((given >= 0) & given.isfinite(), mask):
            checks.fail(op, name, "finite and at least 0", "others", "shift it, or take its exponential")
    if named.TEXT in needs and visual.text is not None:
        _check_word_values(op, visual.text, visual.text_mask)


def _finite_tokens(given: Tensor) -> Tensor:
    """(B, N) where a number (B, N), or all of a vector (B, N, C), is finite."""
    return given.isfinite() if given.dim() == 2 else given.isfinite().all(-1)


def _where_real(legal: Tensor, mask: Tensor | None) -> bool:
    return bool((legal if mask is None else legal | ~mask).all())


def _check_word_values(op: str, text: Tensor, mask: Tensor | None) -> None:
    """Raise for words that are not finite, and for a picture without any."""
    there = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device) if mask is None else mask
    silent = (~there.any(1)).nonzero().flatten().tolist()
    if silent:
        remedy = "ask something, or use a method that reads no words, such as 'divprune'"
        checks.fail(op, "text", "at least one word for every picture", f"none for picture {silent[0]}", remedy)
    if not _where_real(text.isfinite().all(-1), there):
        checks.fail(op, "text", "finite", "NaN or infinity among it", "check the embeddings")


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
