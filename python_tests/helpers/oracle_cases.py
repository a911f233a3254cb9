"""Which reference belongs to which method that acts after the projector, by name and hyperparameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from oracles import crops, flashvid, greedy, pivots, tower, video
from oracles.basic import descending
from torch import Tensor

from ficoco_ext.stages import VisualFeatures


@dataclass(frozen=True)
class One:
    """One picture of a batch: its real tokens and words alone. Attributes are those of ``VisualFeatures``."""

    visual: VisualFeatures
    index: int

    @property
    def real(self) -> list[int]:
        """Where its real tokens are."""
        mask = self.visual.mask
        return list(range(self.visual.features.shape[1])) if mask is None else mask[self.index].nonzero()[:, 0].tolist()

    def among_real(self, tokens: Sequence[int]) -> list[int]:
        """Indices among the real tokens instead of among all."""
        return [place for place, token in enumerate(self.real) if token in tokens]

    def __getattr__(self, name: str) -> Any:
        given = getattr(self.visual, name)
        if name == "text":
            return given[self.index][self.visual.text_mask[self.index]]
        return given[self.index][self.real] if isinstance(given, Tensor) else given

    @property
    def flags(self) -> Tensor | None:
        """(N,) which tokens are real; None: all."""
        return None if self.visual.mask is None else self.visual.mask[self.index]

    def whole(self, name: str) -> Tensor:
        """With the hidden tokens, for a reference that depends on where tokens are."""
        return getattr(self.visual, name)[self.index]


@dataclass(frozen=True)
class Case:
    """A method with hyperparameters, and its reference.

    Attributes:
        method: the name.
        reference: function (picture, count, either) -> which of its real tokens stay, ascending; or (those, their
            features). ``either`` is an answer that decides where rounding would.
        options: hyperparameters.
        exact: sums of what the picture "ties" holds are exact, so equal scores are equal in any order of summation.
        even: equal scores are common, see :mod:`oracles.greedy`.
        placed: the reference speaks of all tokens, hidden ones among them.
        frames: that the picture has.
    """

    method: str
    reference: Callable[[One, int, Sequence[int]], Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = True
    even: bool = False
    placed: bool = False
    frames: int = 1

    @property
    def orders(self) -> bool:
        """Whether each token is ranked by what it holds alone, so that of copies the first stay."""
        alone = ("divprune", "topk", "fastervlm", "dart", "vidcom2", "cdpruner")
        return self.method in alone and self.frames == 1 and "blocks" not in self.options

    @property
    def title(self) -> str:
        """The name of its tests."""
        frames = [f"frames={self.frames}"] if self.frames > 1 else []
        return " ".join([self.method, *(f"{key}={value}" for key, value in self.options.items()), *frames])

    def expected(
        self, visual: VisualFeatures, index: int, count: int, either: Sequence[int] = ()
    ) -> tuple[list[int], Tensor | None]:
        """Which tokens of one picture stay, and their features where the method changes them."""
        picture = One(visual, index)
        found = self.reference(picture, count, either if self.placed else picture.among_real(either))
        kept, features = found if isinstance(found, tuple) else (found, None)
        return (kept if self.placed else [picture.real[i] for i in kept]), features


Answer = Callable[[One, int, Sequence[int]], Any]


def _scope(alpha: float) -> Answer:
    return lambda one, count, either: greedy.scope(one.features, one.saliency, count, alpha, either)


def _topk(one: One, count: int, either: Sequence[int]) -> list[int]:
    return sorted(descending(one.saliency, range(len(one.saliency)))[:count])


def _cdpruner(words: bool = True, **options: Any) -> Answer:
    def answer(one: One, count: int, either: Sequence[int]) -> list[int]:
        return greedy.cdpruner(one.features, one.text if words else None, count, either=either, **options)

    return answer


def _mmtok(words: bool = True, tower_features: bool = True, **options: Any) -> Answer:
    def answer(one: One, count: int, either: Sequence[int]) -> list[int]:
        seen = one.tower_features if tower_features else None
        text = one.text if words else None
        return greedy.mmtok(one.features, text, count, tower_features=seen, either=either, **options)

    return answer


def _visionzip(share: float = 10 / 64, merging: str = "centre+mean") -> Answer:
    def answer(one: One, count: int, either: Sequence[int]) -> tuple[list[int], Tensor]:
        contextual = tower.contextual_count(count, share)
        found = tower.visionzip(one.features, one.saliency, one.keys, count, contextual, merging)
        return found.kept, found.features

    return answer


def _vispruner(share: float = 0.5, step: int = 8, seen: str = "tower_features") -> Answer:
    return lambda one, count, either: tower.vispruner(one.saliency, getattr(one, seen), count, share, step)


def _dart(image: int = 4, words: int = 4) -> Answer:
    return lambda one, count, either: pivots.dart_after_projector(one.features, one.text, count, (image, words))


def _hiprune(alpha: float) -> Answer:
    def answer(one: One, count: int, either: Sequence[int]) -> list[int]:
        deep, shallow = one.whole("saliency"), one.whole("early_saliency")
        return tower.hiprune(deep, shallow, one.grid, count, alpha, one.flags)

    return answer


def _vidcom2(**options: Any) -> Answer:
    def answer(one: One, count: int, either: Sequence[int]) -> list[int]:
        return video.vidcom2(one.whole("features"), one.frames, count, real=one.flags, either=either, **options)

    return answer


def _flashvid(**options: Any) -> Answer:
    def answer(one: One, count: int, either: Sequence[int]) -> tuple[list[int], Tensor]:
        each = one.whole("features").shape[0] // one.frames
        frames = [[place for place, i in enumerate(one.real) if i // each == f] for f in range(one.frames)]
        settings = flashvid.Settings(**options)
        return flashvid.flashvid(one.features, one.saliency, [some for some in frames if some], count, settings)

    return answer


def _globalcom2(**options: Any) -> Answer:
    def answer(one: One, count: int, either: Sequence[int]) -> list[int]:
        lies = one.visual.crops
        hidden = frozenset(o for token, o in enumerate(lies.origins) if token not in one.real)
        scores = torch.zeros(1 + lies.count, lies.patches, dtype=torch.float64)
        for origin, logit in zip(lies.origins, one.whole("class_logits").tolist(), strict=True):
            scores[origin] = logit
        picture = crops.Picture(lies.side, lies.grid, lies.rectangle, hidden)
        kept = crops.globalcom2(picture, scores, crops.Settings(tokens=count, **options))
        return [token for token, (crop, patch) in enumerate(lies.origins) if patch in kept[crop]]

    return answer


_SCALE = {"temperature": 0.5, "normalize": False}
CASES = [
    Case("globalcom2", _globalcom2(), exact=False, placed=True),
    Case("globalcom2", _globalcom2(alpha=0.0), {"alpha": 0.0}, exact=False, placed=True),
    Case("globalcom2", _globalcom2(alpha=1.0, cells="crops"), {"alpha": 1, "cells": "crops"}, exact=False, placed=True),
    Case("globalcom2", _globalcom2(**_SCALE), _SCALE, exact=False, placed=True),
    Case("divprune", lambda one, count, either: greedy.divprune(one.features, count, either)),
    Case("scope", _scope(1.0)),
    Case("scope", _scope(0.0), {"alpha": 0.0}, even=True),
    Case("scope", _scope(2.0), {"alpha": 2.0}),
    Case("topk", _topk, {"part": "projector"}),
    Case("cdpruner", _cdpruner(), exact=False),
    Case("cdpruner", _cdpruner(theta=0.9), {"theta": 0.9}, exact=False),
    Case("cdpruner", _cdpruner(theta=0.0), {"theta": 0.0}, exact=False),
    Case("cdpruner", _cdpruner(blend="linear"), {"blend": "linear"}, exact=False),
    Case("cdpruner", _cdpruner(blend="product", sign=-1.0), {"blend": "product", "sign": -1}, exact=False),
    Case("cdpruner", _cdpruner(blocks=2), {"blocks": 2}, exact=False),
    Case("cdpruner", _cdpruner(words=False), {"relevance": "none"}),
    Case("mmtok", _mmtok(), exact=False),
    Case("mmtok", _mmtok(words=False), {"cover_words": False}, exact=False, even=True),
    Case(
        "mmtok",
        _mmtok(tower_features=False, text_temperature=0.1, vision_temperature=0.5, alpha=2.0),
        {"before_projector": False, "tau_text": 0.1, "tau_vision": 0.5, "alpha": 2.0},
        exact=False,
    ),
    Case("visionzip", _visionzip()),
    Case("visionzip", _visionzip(0.5, "mean"), {"contextual": 0.5, "merging": "mean"}),
    Case("visionzip", _visionzip(0.0), {"contextual": 0}),
    Case("vispruner", _vispruner()),
    Case("vispruner", _vispruner(0.0, 1), {"share": 0.0, "step": 1}),
    Case("vispruner", _vispruner(0.75, 3, "features"), {"share": 0.75, "step": 3, "before_projector": False}),
    Case("vispruner", _vispruner(1.0), {"share": 1}),
    Case("fastervlm", _vispruner(1.0)),
    Case("dart", _dart()),
    Case("dart", _dart(2, 0), {"image_pivots": 2, "text_pivots": 0}),
    Case("dart", _dart(1, 6), {"image_pivots": 1, "text_pivots": 6}),
    Case("hiprune", _hiprune(0.1), placed=True),
    Case("hiprune", _hiprune(1.0), {"alpha": 1.0}, placed=True),
    Case("hiprune", _hiprune(4.0), {"alpha": 4.0}, placed=True),
    Case("flashvid", _flashvid(), exact=False),
    Case("flashvid", _flashvid(), exact=False, frames=4),
    Case(
        "flashvid",
        _flashvid(diverse=0.3, cut=0.5, scenes=2, link=0.2, neighbours=3, weigh=0.0),
        {"diverse": 0.3, "cut": 0.5, "scenes": 2, "link": 0.2, "neighbours": 3, "weigh": 0},
        exact=False,
        frames=6,
    ),
    Case("vidcom2", _vidcom2(), exact=False, even=True, placed=True),
    Case("vidcom2", _vidcom2(), exact=False, even=True, placed=True, frames=4),
    Case(
        "vidcom2",
        _vidcom2(channels=1.0, temperature=0.1),
        {"channels": 1.0, "temperature": 0.1},
        exact=False,
        even=True,
        placed=True,
        frames=6,
    ),
]
