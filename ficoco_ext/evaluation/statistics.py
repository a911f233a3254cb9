"""Accuracy with its uncertainty: questions about one scene hang together, so scenes are drawn, not questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

RESAMPLES, CONFIDENCE = 2000, 0.95
_NORMAL = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % confidence interval, and its standard error, from bootstrap over scenes."""

    value: float
    low: float
    high: float
    error: float

    @classmethod
    def of(cls, value: float, samples: Floats) -> Estimate:
        """Percentiles and spread of the resampled values; a resample in which nothing was asked has none."""
        there = samples[np.isfinite(samples)]
        if not there.size:
            return cls(float(value), float("nan"), float("nan"), float("nan"))
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(there, [tail, 1 - tail])
        return cls(float(value), float(low), float(high), float(there.std()))

    def at_least(self, error: float) -> Estimate:
        """With no smaller error than this, and an interval no narrower than a normal distribution's with it.

        Example:
            >>> from ficoco_ext.evaluation import Estimate
            >>> Estimate(0.5, 0.4, 0.6, 0.05).at_least(0.01).error
            0.05
        """
        if not error > self.error:  # also where nothing is known
            return self
        half = _NORMAL * error
        return Estimate(self.value, min(self.low, self.value - half), max(self.high, self.value + half), error)


@dataclass(frozen=True)
class Tally:
    """Right answers and questions of each scene and kind: (scenes, kinds) each."""

    right: Floats
    asked: Floats

    @classmethod
    def of(cls, right: Sequence[bool], scene: Sequence[int], kind: Sequence[int], shape: tuple[int, int]) -> Tally:
        """Count answers.

        Args:
            right: of each question whether it was answered right.
            scene, kind: of each question its number.
            shape: numbers of scenes and kinds.
        """
        hits, asked = np.zeros(shape), np.zeros(shape)
        cells = (np.asarray(scene, np.int64), np.asarray(kind, np.int64))
        np.add.at(hits, cells, np.asarray(right, np.float64))
        np.add.at(asked, cells, 1.0)
        return cls(hits, asked)

    def accuracy(self, weights: Floats | None = None) -> Floats:
        """(..., kinds) share of right answers, with ``weights`` (..., scenes); nan where nothing was asked."""
        drawn = np.ones(self.right.shape[0]) if weights is None else weights
        asked = drawn @ self.asked
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(asked > 0, (drawn @ self.right) / asked, np.nan)


class Bootstrap:
    """The same resamples of scenes for everything that is compared, so that differences are paired.

    Args:
        scenes: how many there are.
        resamples: how often as many are drawn, with replacement.
        seed: of the draws.

    Raises:
        ValueError: a number below 1.

    Example:
        >>> from ficoco_ext.evaluation import Bootstrap, Tally
        >>> tally = Tally.of([True, True, False, False], [0, 0, 1, 1], [0, 0, 0, 0], (2, 1))
        >>> found = Bootstrap(2).mean(tally)  # one scene all right, one all wrong: little is known
        >>> found.value, found.low, found.high
        (0.5, 0.0, 1.0)
    """

    def __init__(self, scenes: int, resamples: int = RESAMPLES, seed: int = 0) -> None:
        for name, value in (("scenes", scenes), ("resamples", resamples)):
            if value < 1:
                raise ValueError(f"Bootstrap: {name} must be at least 1, got {value}")
        rng = np.random.default_rng(seed)
        self.weights: Floats = rng.multinomial(scenes, np.full(scenes, 1 / scenes), size=resamples).astype(np.float64)

    def kinds(self, tally: Tally) -> list[Estimate]:
        """Accuracy of each kind."""
        value, samples = tally.accuracy(), tally.accuracy(self.weights)
        return [Estimate.of(value[kind], samples[:, kind]) for kind in range(value.size)]

    def mean(self, tally: Tally, kinds: Sequence[int] | None = None) -> Estimate:
        """Mean of the accuracies of ``kinds``, all of them if None: each kind counts the same."""
        return Estimate.of(self.mean_value(tally, kinds), _mean(tally.accuracy(self.weights), kinds))

    @staticmethod
    def mean_value(tally: Tally, kinds: Sequence[int] | None = None) -> float:
        """The value of :meth:`mean` alone, which needs no resamples."""
        return float(_mean(tally.accuracy(), kinds))

    def difference(self, a: Tally, b: Tally, kinds: Sequence[int] | None = None) -> Estimate:
        """Mean accuracy of ``a`` less that of ``b``, drawn together."""
        value = _mean(a.accuracy(), kinds) - _mean(b.accuracy(), kinds)
        samples = _mean(a.accuracy(self.weights), kinds) - _mean(b.accuracy(self.weights), kinds)
        return Estimate.of(float(value), samples)


def _mean(accuracy: Floats, kinds: Sequence[int] | None) -> Floats:
    """Over the last dimension, of what was asked at all."""
    chosen = accuracy if kinds is None else accuracy[..., list(kinds)]
    there = np.isfinite(chosen)
    number = there.sum(-1)
    total = np.where(there, chosen, 0.0).sum(-1)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


@dataclass(frozen=True)
class Spread:
    """Values of the seeds, and their standard deviation (n - 1); None with one seed."""

    values: tuple[float, ...]
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one value a seed."""
        return cls(tuple(values), float(np.std(values, ddof=1)) if len(values) > 1 else None)

    @property
    def error(self) -> float:
        """Standard error of the mean of the seeds; 0 with one seed, which does not show it."""
        return 0.0 if self.deviation is None else self.deviation / math.sqrt(len(self.values))
