"""A scene: coloured shapes, handwritten digits and printed words over a photograph, and what stands where."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .drawing import PATCH, SIDE, Rng, background, digit_mask, shape_mask, word_mask
from .vocabulary import COLORS, SHAPES, WORDS

SPLITS = ("train", "dev", "test")
_SHAPE_SIDES = (28, 34, 40)
_TRIES, _GAP = 25, 2


@dataclass(frozen=True)
class Thing:
    """One object: what it shows, and its box (left, top, right, bottom) in pixels.

    ``kind`` is "shape", "digit" or "word"; of the other fields those are set that belong to it.
    """

    kind: str
    box: tuple[int, int, int, int]
    shape: str | None = None
    color: str | None = None
    digit: int | None = None
    word: str | None = None

    @property
    def center(self) -> tuple[float, float]:
        """(x, y) in pixels."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True)
class Scene:
    """A picture, (SIDE, SIDE, 3) uint8, its things, and ``owner`` (SIDE, SIDE): which thing a pixel shows, -1 none."""

    pixels: NDArray[np.uint8]
    things: tuple[Thing, ...]
    owner: NDArray[np.int8]

    def patches(self, least: float = 0.08) -> NDArray[np.int64]:
        """(P,) for each patch the thing that covers most of it, -1 if none covers ``least`` of it."""
        grid = SIDE // PATCH
        blocks = self.owner.reshape(grid, PATCH, grid, PATCH).transpose(0, 2, 1, 3).reshape(grid * grid, -1)
        cover = np.stack([(blocks == index).mean(1) for index in range(len(self.things))], 1)
        return np.where(cover.max(1) > least, cover.argmax(1), -1)


def generator(seed: int, split: str, index: int) -> Rng:
    """The source of all chance in scene ``index``: no scene depends on those before it.

    ``dev`` and ``test`` draw different scenes from the same held-out digits, fonts and backgrounds.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    return np.random.default_rng([seed, SPLITS.index(split), index])


def draw(rng: Rng, split: str, *, crowded: bool = False) -> Scene:
    """A new scene. ``crowded`` ones hold more of everything, for training the tower."""
    source = "train" if split == "train" else "test"
    if crowded:
        words, digits, shapes = rng.integers(1, 3), rng.integers(2, 5), rng.integers(4, 8)
    else:
        words, digits, shapes = np.int64(rng.random() < 0.8), rng.integers(1, 3), rng.integers(2, 6)
    canvas = background(rng, source)
    owner = np.full((SIDE, SIDE), -1, np.int8)
    things: list[Thing] = []
    for kind in ["word"] * int(words) + ["digit"] * int(digits) + ["shape"] * int(shapes):
        thing = _add(rng, source, kind, canvas, owner, things)
        if thing is not None:
            things.append(thing)
    return Scene(np.clip(canvas, 0, 255).astype(np.uint8), tuple(things), owner)


def _add(
    rng: Rng, split: str, kind: str, canvas: NDArray[np.float32], owner: NDArray[np.int8], things: list[Thing]
) -> Thing | None:
    """Paint one more thing where there is room, or give up."""
    shape = color = word = None
    digit: int | None = None
    ink = np.full(3, 250 if rng.random() < 0.5 else 10, np.float32)
    if kind == "word":
        word = WORDS[int(rng.integers(len(WORDS)))]
        mask = word_mask(rng, word, split)
    elif kind == "digit":
        mask, digit = digit_mask(rng, split)
    else:
        shape, color = SHAPES[int(rng.integers(len(SHAPES)))], list(COLORS)[int(rng.integers(len(COLORS)))]
        mask = shape_mask(shape, _SHAPE_SIDES[int(rng.integers(len(_SHAPE_SIDES)))])
        ink = np.clip(np.array(COLORS[color]) + rng.normal(0, 14, 3), 0, 255).astype(np.float32)
    height, width = mask.shape
    corner = _free_corner(rng, height, width, things)
    if corner is None:
        return None
    x, y = corner
    if kind != "shape":  # a plate behind glyphs, for contrast
        plate = canvas[y - 1 : y + height + 1, x - 1 : x + width + 1]
        plate *= 0.45
        plate += 0.55 * (255 - ink)
    where, alpha = (slice(y, y + height), slice(x, x + width)), mask[..., None]
    canvas[where] = canvas[where] * (1 - alpha) + ink * alpha
    if kind == "shape":
        owner[where][mask > 0.4] = len(things)
    else:
        owner[where] = len(things)
    return Thing(kind, (x, y, x + width, y + height), shape, color, digit, word)


def _free_corner(rng: Rng, height: int, width: int, things: list[Thing]) -> tuple[int, int] | None:
    """Upper left corner (x, y) right of and below a corner of the patch grid, a gap away from all others."""
    cells = SIDE // PATCH
    for x, y, dx, dy in np.concatenate([rng.integers(0, cells, (_TRIES, 2)), rng.integers(0, 3, (_TRIES, 2))], 1):
        left = min(SIDE - width - 1, max(1, PATCH * int(x) + int(dx)))
        top = min(SIDE - height - 1, max(1, PATCH * int(y) + int(dy)))
        apart = (
            left + width + _GAP < a or c + _GAP < left or top + height + _GAP < b or d + _GAP < top
            for a, b, c, d in (thing.box for thing in things)
        )
        if all(apart):
            return left, top
    return None
