"""How many tokens each layer removes: known as plain integers before anything runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


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

    Build one with :meth:`build`. Printing it shows the staircase.

    Example:
        >>> from ficoco_ext import Schedule
        >>> schedule = Schedule.build(576, layers=range(12, 23), tokens=192)
        >>> schedule.r, schedule.final
        ((35, 35, 35, 35, 35, 35, 35, 35, 35, 35, 34), 192)
    """

    patches: int
    layers: tuple[int, ...]
    r: tuple[int, ...]

    def __post_init__(self) -> None:
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
        keep_ratio: float | None = None,
        tokens: int | None = None,
    ) -> Schedule:
        """A schedule from exactly one of ``r``, ``keep_ratio`` and ``tokens``.

        Args:
            patches: tokens that enter the first layer, class token not counted.
            layers: indices of the layers that reduce, ascending.
            r: tokens removed by each layer, or a list with one r per layer.
            keep_ratio: in (0, 1], survivors / ``patches``; survivors are rounded half up, at least 1.
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
            return cls(patches, layers, each)
        if keep_ratio is not None:
            if isinstance(keep_ratio, bool) or not isinstance(keep_ratio, (int, float)) or not 0 < keep_ratio <= 1:
                raise ValueError(f"Schedule: keep_ratio must be in (0, 1], got {keep_ratio!r}")
            tokens = max(1, math.floor(patches * keep_ratio + 0.5))
        if isinstance(tokens, bool) or not isinstance(tokens, int):
            raise TypeError(f"Schedule: tokens must be an integer, got {tokens!r}")
        if not 1 <= tokens <= patches:
            raise ValueError(f"Schedule: tokens must be in [1, {patches}], got {tokens}")
        left, each = patches - tokens, ()
        step = math.ceil(left / len(layers))
        for _ in layers:
            each, left = (*each, min(step, left)), left - min(step, left)
        return cls(patches, layers, each)

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
        """Patches that enter the attention of each of ``num_layers`` layers (a layer reduces after its attention)."""
        removed = dict(zip(self.layers, self.r, strict=True))
        counts, now = [], self.patches
        for layer in range(num_layers):
            counts.append(now)
            now -= removed.get(layer, 0)
        return tuple(counts)

    def average_tokens(self, num_layers: int) -> float:
        """Mean over ``num_layers`` layers of the patches that enter their attention."""
        return sum(self.tokens_entering(num_layers)) / num_layers

    def __str__(self) -> str:
        lines = [f"{self.patches} patches"]
        lines += [f"  layer {s.layer:>3}: {s.before:>5} - {s.r:>4} = {s.after:>5}" for s in self.steps]
        return "\n".join([*lines, f"{self.final} left (keep ratio {self.keep_ratio:.3f})"])
