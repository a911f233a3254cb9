"""Which reference belongs to which method that acts after the projector, by name and hyperparameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from oracles import greedy
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
    """

    method: str
    reference: Callable[[One, int, Sequence[int]], Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = True
    even: bool = False
    placed: bool = False

    @property
    def title(self) -> str:
        """The name of its tests."""
        return " ".join([self.method, *(f"{key}={value}" for key, value in self.options.items())])

    def expected(
        self, visual: VisualFeatures, index: int, count: int, either: Sequence[int] = ()
    ) -> tuple[list[int], Tensor | None]:
        """Which tokens of one picture stay, and their features where the method changes them."""
        picture = One(visual, index)
        found = self.reference(picture, count, either if self.placed else picture.among_real(either))
        kept, features = found if isinstance(found, tuple) else (found, None)
        return (kept if self.placed else [picture.real[i] for i in kept]), features


def _scope(alpha: float) -> Callable[..., list[int]]:
    return lambda one, count, either: greedy.scope(one.features, one.saliency, count, alpha, either)


def _topk(one: One, count: int, either: Sequence[int]) -> list[int]:
    return sorted(descending(one.saliency, range(len(one.saliency)))[:count])


CASES = [
    Case("divprune", lambda one, count, either: greedy.divprune(one.features, count, either)),
    Case("scope", _scope(1.0)),
    Case("scope", _scope(0.0), {"alpha": 0.0}, even=True),
    Case("scope", _scope(2.0), {"alpha": 2.0}),
    Case("topk", _topk, {"part": "projector"}),
]
