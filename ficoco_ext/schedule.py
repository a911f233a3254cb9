"""How many tokens each layer removes: known as plain integers before anything runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .io import notebook


@dataclass(frozen=True)
class Step:
    """One reduction: ``r`` of ``before`` patches leave in layer ``layer``, ``after`` stay."""

    layer: int
    before: int
    r: int
    after: int


@dataclass(frozen=True)
class Schedule:
    """r for every reducing layer of a stack that starts with ``patches`` tokens (class token not counted).

    Build one with :meth:`build`, or from a budget with :func:`ficoco_ext.cost.plan`. Printing it shows the staircase.
    A layer reduces between its attention and its MLP, or with ``before_attention`` before both; the layers of
    ``after_mlp`` reduce after both.

    Example:
        >>> from ficoco_ext import Schedule
        >>> schedule = Schedule.build(576, layers=range(12, 23), tokens=192)
        >>> schedule.r, schedule.final
        ((35, 35, 35, 35, 35, 35, 35, 35, 35, 35, 34), 192)
    """

    patches: int
    layers: tuple[int, ...]
    r: tuple[int, ...]
    before_attention: bool = False
    after_mlp: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not set(self.after_mlp) <= set(self.layers):
            raise ValueError(f"Schedule: after_mlp must be among the layers {self.layers}, got {self.after_mlp}")
        for name in ("patches", "layers", "r"):
            values = getattr(self, name)
            for value in (values,) if name == "patches" else values:
                if isinstance(value, bool) or not isinstance(value, int):
                    raise TypeError(f"Schedule: {name} must be made of integers, got {value!r}")
                if value < 0:
                    raise ValueError(f"Schedule: {name} must not be negative, got {value}")
        if len(self.layers) != len(self.r):
            raise ValueError(f"Schedule: r has {len(self.r)} entries for {len(self.layers)} layers; give one r a layer")
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"Schedule: layers must be ascending and distinct, got {self.layers}")
        if self.patches < 1:
            raise ValueError(f"Schedule: patches must be at least 1, got {self.patches}")
        if sum(self.r) > self.patches - 1:
            raise ValueError(
                f"Schedule: r removes {sum(self.r)} of {self.patches} patches; at least one must stay, so "
                f"remove at most {self.patches - 1} in all"
            )

    @classmethod
    def build(
        cls,
        patches: int,
        *,
        layers: Iterable[int],
        r: int | Sequence[int] | None = None,
        keep_ratio: float | Sequence[float] | None = None,
        tokens: int | None = None,
        rounding: str = "half_up",
        before_attention: bool = False,
    ) -> Schedule:
        """A schedule from exactly one of ``r``, ``keep_ratio`` and ``tokens``.

        Args:
            patches: tokens that enter the first layer, class token not counted.
            layers: indices of the layers that reduce, ascending.
            r: tokens removed by each layer, or a list with one r per layer.
            keep_ratio: in (0, 1], survivors / ``patches``, at least 1 survivor; or a list with the ratio after each
                layer, which must not rise.
            rounding: of survivors, ``"half_up"`` or ``"floor"``.
            before_attention: the layers reduce before their attention.
            tokens: survivors after the last layer. Every layer removes ceil(all / layers), the last the remainder.

        Raises:
            ValueError: none or several of the three, or a value out of range (the message says what is possible).
            TypeError: not integers.
        """
        if isinstance(patches, bool) or not isinstance(patches, int):
            raise TypeError(f"Schedule: patches must be an integer, got {patches!r}")
        if patches < 1:
            raise ValueError(f"Schedule: patches must be at least 1, got {patches}")
        if not isinstance(layers, Iterable):
            raise TypeError(f"Schedule: layers must be a sequence of layer indices, got {layers!r}")
        layers = tuple(layers)
        given = [
            name for name, value in (("r", r), ("keep_ratio", keep_ratio), ("tokens", tokens)) if value is not None
        ]
        if len(given) != 1:
            raise ValueError(
                f"Schedule: give exactly one of r, keep_ratio and tokens, got {', '.join(given) or 'none'}"
            )
        if not layers:
            raise ValueError("Schedule: layers must name at least one layer")
        if r is not None:
            if not isinstance(r, (int, Sequence)):
                raise TypeError(f"Schedule: r must be an integer or a list with one integer a layer, got {r!r}")
            each = (r,) * len(layers) if isinstance(r, int) else tuple(r)
            return cls(patches, layers, each, before_attention)
        if isinstance(keep_ratio, (tuple, list)):
            if len(keep_ratio) != len(layers):
                raise ValueError(
                    f"Schedule: keep_ratio has {len(keep_ratio)} entries for {len(layers)} layers; give one ratio, or "
                    "one a layer"
                )
            counts = [patches, *(_survivors(patches, ratio, rounding) for ratio in keep_ratio)]
            staged = tuple(before - after for before, after in itertools.pairwise(counts))
            if min(staged) < 0:
                raise ValueError(f"Schedule: keep_ratio must not rise from layer to layer, got {tuple(keep_ratio)}")
            return cls(patches, layers, staged, before_attention)
        if keep_ratio is not None:
            tokens = _survivors(patches, keep_ratio, rounding)
        if isinstance(tokens, bool) or not isinstance(tokens, int):
            raise TypeError(f"Schedule: tokens must be an integer, got {tokens!r}")
        if not 1 <= tokens <= patches:
            raise ValueError(f"Schedule: tokens must be in [1, {patches}], got {tokens}")
        left, each = patches - tokens, ()
        step = math.ceil(left / len(layers))
        for _ in layers:
            each, left = (*each, min(step, left)), left - min(step, left)
        return cls(patches, layers, each, before_attention)

    @property
    def steps(self) -> tuple[Step, ...]:
        """The staircase, one step per reducing layer."""
        steps, before = [], self.patches
        for layer, r in zip(self.layers, self.r, strict=True):
            steps.append(Step(layer, before, r, before - r))
            before -= r
        return tuple(steps)

    @property
    def final(self) -> int:
        """Patches left after the last layer."""
        return self.patches - sum(self.r)

    @property
    def keep_ratio(self) -> float:
        """``final / patches``."""
        return self.final / self.patches

    def tokens_entering(self, num_layers: int) -> tuple[int, ...]:
        """Patches that enter the attention of each of ``num_layers`` layers."""
        left = self._tokens_leaving(num_layers)
        return left if self.before_attention else (self.patches, *left[:-1])

    def tokens_in_mlp(self, num_layers: int) -> tuple[int, ...]:
        """Patches that enter the MLP of each of ``num_layers`` layers.

        These are also those that leave the layer, but for the layers that reduce after their MLP.
        """
        left = self._tokens_leaving(num_layers)
        before = (self.patches, *left)
        return tuple(before[layer + (layer not in self.after_mlp)] for layer in range(num_layers))

    def _tokens_leaving(self, num_layers: int) -> tuple[int, ...]:
        removed = dict(zip(self.layers, self.r, strict=True))
        gone = itertools.accumulate(removed.get(layer, 0) for layer in range(num_layers))
        return tuple(self.patches - count for count in gone)

    def average_tokens(self, num_layers: int) -> float:
        """Mean over ``num_layers`` layers of the patches that enter their attention."""
        return sum(self.tokens_entering(num_layers)) / num_layers

    def __str__(self) -> str:
        lines = [f"{self.patches} patches"]
        lines += [f"  layer {s.layer:>3}: {s.before:>5} - {s.r:>4} = {s.after:>5}" for s in self.steps]
        return "\n".join([*lines, f"{self.final} left (keep ratio {self.keep_ratio:.3f})"])

    def _repr_html_(self) -> str:
        """What a notebook shows: the staircase, drawn and in numbers."""
        return notebook.schedule(self)


def geometric(keep_ratio: float, layers: int) -> tuple[float, ...]:
    """Ratios for ``layers`` layers that each keep the same share of what they get, ``keep_ratio`` in the end.

    A single ``keep_ratio`` removes the same number in every layer instead: mild at first, severe for the last ones,
    where :class:`ficoco_ext.stages.Match`, which removes half at most, may refuse.

    Raises:
        ValueError: a ratio that is not in (0, 1], or no layer.

    Example:
        >>> from ficoco_ext.schedule import Schedule, geometric
        >>> Schedule.build(144, layers=range(3, 7), keep_ratio=geometric(0.1, 4)).r
        (63, 35, 20, 12)
    """
    if isinstance(keep_ratio, bool) or not isinstance(keep_ratio, (int, float)) or not 0 < keep_ratio <= 1:
        raise ValueError(f"geometric: keep_ratio must be a number in (0, 1], got {keep_ratio!r}")
    if isinstance(layers, bool) or not isinstance(layers, int) or layers < 1:
        raise ValueError(f"geometric: layers must be an integer >= 1, got {layers!r}")
    return (*(keep_ratio ** ((index + 1) / layers) for index in range(layers - 1)), keep_ratio)


def _survivors(patches: int, keep_ratio: object, rounding: str) -> int:
    if isinstance(keep_ratio, bool) or not isinstance(keep_ratio, (int, float)) or not 0 < keep_ratio <= 1:
        raise ValueError(f"Schedule: keep_ratio must be in (0, 1], got {keep_ratio!r}")
    if rounding not in ("half_up", "floor"):
        raise ValueError(f"Schedule: rounding must be 'half_up' or 'floor', got {rounding!r}")
    return max(1, math.floor(patches * keep_ratio + (0.5 if rounding == "half_up" else 1e-9)))


@dataclass(frozen=True)
class Plan:
    """What every layer of a language model removes, for any number of visual tokens: prompts differ in their images.

    The arguments are those of :meth:`Schedule.build`, without ``patches``. A prompt that has less than is to be removed
    or kept loses what it has: with ``r`` at least one visual token stays, with ``tokens`` one that has no more is left
    alone. With ``by_data`` instead of an amount the method decides while it reads a prompt, for each row by itself, so
    there is no schedule.

    Example:
        >>> from ficoco_ext import Plan
        >>> Plan(layers=(2, 4), r=14).schedule(576).r, Plan(layers=(2, 4), r=14).schedule(20).r
        ((14, 14), (14, 5))
    """

    layers: tuple[int, ...]
    r: int | tuple[int, ...] | None = None
    keep_ratio: float | tuple[float, ...] | None = None
    tokens: int | None = None
    rounding: str = "half_up"
    before_attention: bool = False
    by_data: bool = False

    def __post_init__(self) -> None:
        if self.by_data:
            given = [name for name in ("r", "keep_ratio", "tokens") if getattr(self, name) is not None]
            if given:
                raise ValueError(f"Plan: the data decide how many tokens leave, so leave out {given[0]}")
            Schedule.build(1, layers=self.layers, r=0)  # says what is wrong
            return
        enough = self.tokens if isinstance(self.tokens, int) else 2**20  # so many that ratios which rise show
        if self.r is not None:
            each = (self.r,) * len(self.layers) if isinstance(self.r, int) else self.r
            enough = 1 + sum(count for count in each if isinstance(count, int))
        self._build(max(enough, 1), self.r, self.tokens)  # says what is wrong

    def _build(self, patches: int, r: int | tuple[int, ...] | None, tokens: int | None) -> Schedule:
        return Schedule.build(
            patches,
            layers=self.layers,
            r=r,
            keep_ratio=self.keep_ratio,
            tokens=tokens,
            rounding=self.rounding,
            before_attention=self.before_attention,
        )

    @property
    def removes(self) -> bool:
        """False if no prompt would lose anything."""
        if self.by_data:
            return True
        if self.r is not None:
            return any((self.r,) if isinstance(self.r, int) else self.r)
        ratios = self.keep_ratio if isinstance(self.keep_ratio, tuple) else (self.keep_ratio,)
        return self.tokens is not None or any(ratio != 1 for ratio in ratios)

    def schedule(self, tokens: int) -> Schedule:
        """The schedule of a prompt with ``tokens`` visual tokens.

        Raises:
            ValueError: the data decide what leaves.
        """
        if self.by_data:
            raise ValueError(
                "Plan: how many tokens leave is decided while a prompt is read; there is no schedule before. After it "
                "handle.decoder_reductions says what left"
            )
        if self.tokens is not None:
            return self._build(tokens, None, min(self.tokens, tokens))
        if self.r is None:
            return self._build(tokens, None, None)
        wanted = (self.r,) * len(self.layers) if isinstance(self.r, int) else self.r
        gone = [min(count, tokens - 1) for count in (0, *itertools.accumulate(wanted))]
        return self._build(tokens, tuple(after - before for before, after in itertools.pairwise(gone)), None)
