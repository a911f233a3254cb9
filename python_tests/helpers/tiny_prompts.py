"""Prompts with pictures and videos for the models of :mod:`helpers.tiny_families`, as their processors make them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from helpers.tiny_configs import BOS, IMAGE, PAD, VIDEO, WORD
from helpers.tiny_families import TinyFamily
from helpers.tiny_processors import Encoded, Picture, Video

Row = Sequence[int | Picture | Video]


def words(count: int, first: int = 0) -> list[int]:
    """Ids of ``count`` words, none of them special."""
    return [WORD + (first + index) % 40 for index in range(count)]


@dataclass(frozen=True)
class Visual:
    """A picture or a video of a prompt, or a part of it that the encoder returns alone.

    Attributes:
        kind: "picture" or "video".
        row: of the batch.
        columns: (n,) of the padded prompt, those of its placeholders.
        parts: how many tokens each of its tiles or frames has.
        line_ends: which of its tokens are newlines.
    """

    kind: str
    row: int
    columns: Tensor
    parts: tuple[int, ...]
    line_ends: tuple[int, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """What a model is called with.

    Attributes:
        family: whose it is.
        inputs: all arguments.
        visuals: its pictures, then its videos, in the order of their features.
        encoded: what its processor made of each, row by row.
    """

    family: TinyFamily
    inputs: dict[str, Tensor]
    visuals: tuple[Visual, ...]
    encoded: list[list[Encoded]]

    @property
    def ids(self) -> Tensor:
        """(B, L)."""
        return self.inputs["input_ids"]

    @property
    def mask(self) -> Tensor:
        """(B, L), 1 for a column that is not padding."""
        return self.inputs["attention_mask"]

    @property
    def types(self) -> dict[str, Tensor]:
        """Tensors of the prompt's shape besides ids and mask."""
        return {name: self.inputs[name] for name, _ in self.family.types}

    def parts(self) -> tuple[Visual, ...]:
        """The pictures and videos, tile by tile and frame by frame, as far as the encoder returns them apart."""
        found = []
        for one in self.visuals:
            pieces = one.columns.split(list(one.parts))
            found += [Visual(one.kind, one.row, columns, (len(columns),)) for columns in pieces]
        return tuple(found)

    def positions(self, model: Any) -> Tensor:
        """(B, L), or (3, B, L) as the model counts them: those of the whole prompt."""
        if not self.family.mrope:
            first = 1 if self.family.bidirectional == "prompt" else 0  # PaliGemma counts from 1
            return ((self.mask.cumsum(1) - 1) * self.mask) + first
        names = ("image_grid_thw", "video_grid_thw", "mm_token_type_ids", "attention_mask")
        return model.model.get_rope_index(self.ids, **{name: self.inputs.get(name) for name in names})[0]

    def labels(self) -> Tensor:
        """(B, L) labels: the ids themselves; -100 for padding, placeholders, separators and every fourth word."""
        word = (self.ids >= WORD) & (self.ids % 4 != 0)
        labels = self.ids.masked_fill(~word & (self.ids != BOS), -100)
        return labels.masked_fill(self.mask == 0, -100)


def prompt(family: TinyFamily, rows: Sequence[Row], seed: int = 1) -> Prompt:
    """The arguments of a call with ``rows`` of word ids, pictures and videos, padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    encoded: list[list[Encoded]] = []
    spelt, kinds = [], []
    for row in rows:
        ids, kind, own = [BOS], [0], []
        several = sum(isinstance(one, Picture) for one in row) > 1
        encode = (several and family.encode_beside) or family.encode
        for one in _ordered(family, row):
            if isinstance(one, int):
                ids, kind = [*ids, one], [*kind, 0]
                continue
            made = encode(one, generator)
            mark = 2 if isinstance(one, Video) else 1
            own.append(made)
            ids, kind = [*ids, *made.ids], [*kind, *[mark if _is_placeholder(x) else 0 for x in made.ids]]
        encoded.append(own)
        spelt.append(ids)
        kinds.append(kind)
    ids, kind = _left_padded(spelt, PAD), _left_padded(kinds, 0)
    mask = _left_padded([[1] * len(one) for one in spelt], 0)
    inputs = {"input_ids": ids, "attention_mask": mask}
    for name, (text, picture, video) in family.types:
        inputs[name] = torch.tensor([text, picture, video])[kind]
    if any(encoded):
        inputs |= family.join(encoded)
    return Prompt(family, inputs, _visuals(rows, encoded, kind, family), encoded)


def one_picture(family: TinyFamily, picture: Picture | None = None, seed: int = 1) -> Prompt:
    """One row with one picture between words."""
    return prompt(family, [[*words(3), picture or family.pictures[0], *words(5, 3)]], seed)


def unequal_rows(family: TinyFamily, seed: int = 1) -> Prompt:
    """Three rows of different lengths: a picture, two pictures of other sizes, none."""
    first, *others = [family.pictures[index % len(family.pictures)] for index in range(3)]
    rows = [
        [*words(4), first, *words(9, 4)],
        [*words(1), others[0], *words(2, 7), others[1], *words(3, 11)],
        words(6, 30),
    ]
    return prompt(family, rows, seed)


def one_video(family: TinyFamily, seed: int = 1) -> Prompt:
    """One row with one video between words."""
    return prompt(family, [[*words(3), family.videos[0], *words(5, 3)]], seed)


def pictures_and_videos(family: TinyFamily, seed: int = 1) -> Prompt:
    """Two rows of different lengths; pictures and videos in turn where one call takes both."""
    pictures = [family.pictures[index % len(family.pictures)] for index in range(2)] if family.mixes else [[], []]
    first, second = ([one] if one else [] for one in pictures)
    rows = [
        [*words(2), family.videos[0], *words(2, 2), *first, *words(4, 4)],
        [*words(3, 8), *second, *words(1, 11), family.videos[1], *words(7, 12)],
    ]
    return prompt(family, rows, seed)


def _ordered(family: TinyFamily, row: Row) -> list[int | Picture | Video]:
    if not family.pictures_first:
        return list(row)
    return sorted(row, key=lambda one: isinstance(one, int))  # keeps the order within both


def _is_placeholder(token: int) -> bool:
    return token in (IMAGE, VIDEO)


def _left_padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[value] * (longest - len(row)) + list(row) for row in rows])


def _visuals(rows, encoded: list[list[Encoded]], kind: Tensor, family: TinyFamily) -> tuple[Visual, ...]:
    found = []
    for name, mark in (("picture", 1), ("video", 2)):
        for row, own in enumerate(encoded):
            wanted = Picture if mark == 1 else Video
            asked = [one for one in _ordered(family, rows[row]) if not isinstance(one, int)]
            made = [encoded for encoded, one in zip(own, asked, strict=True) if isinstance(one, wanted)]
            columns = (kind[row] == mark).nonzero()[:, 0].split([sum(one.parts) for one in made])
            found += [Visual(name, row, at, one.parts, one.line_ends) for at, one in zip(columns, made, strict=True)]
    return tuple(found)
