"""A model with and without reduction: what the prompt, each new token and a whole answer cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..methods import AnyMethod
from ..schedule import Schedule
from . import caches, scope
from .architecture import MOST_TOKENS, Architecture
from .bill import Cost, Sum
from .hardware import Hardware
from .model import decode
from .precision import FP16, Precision
from .schedules import Schedules

TIME = "time: the roofline of everything from pixels to the first token, attention fused; a lower bound, not measured"


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
        counted: the prefill in the convention asked for. running: everything that runs, for times. token: one new
            token in the middle of the answer.
        new_tokens: length of the answer.
    """

    counted: Cost
    running: Cost
    token: Cost
    new_tokens: int

    @property
    def ttft_ms(self) -> float | None:
        """Milliseconds to the first token."""
        return self.running.ttft_ms

    @property
    def tpot_ms(self) -> float | None:
        """Milliseconds for each further token."""
        return self.token.tpot_ms

    @property
    def answer_ms(self) -> float | None:
        """Milliseconds to the last token of the answer."""
        if self.ttft_ms is None or self.tpot_ms is None:
            return None
        return self.ttft_ms + (self.new_tokens - 1) * self.tpot_ms

    def totals(self) -> dict[str, Any]:
        """The numbers that stand for the whole."""
        cost = self.counted
        return {
            "tflops": cost.tflops,
            "bit_scaled_tflops": cost.bit_scaled_tflops,
            "kv_mb": cost.kv_mb,
            "memory_access_gb": cost.memory_access_gb,
            "resident_gb": cost.resident_gb,
            "ttft_ms": self.ttft_ms,
            "tpot_ms": self.tpot_ms,
            "answer_ms": self.answer_ms,
            "visual_tokens": cost.tokens._asdict(),
        }

    def layers(self) -> list[dict[str, Any]]:
        """Each layer: counts in the convention asked for, time of what runs."""
        timed = {(one.part, one.layer): one.total for one in self.running.layers}
        found = []
        for one in self.counted.to_dict()["layers"]:
            of: Sum = timed[one["part"], one["layer"]]
            found.append(one | {"seconds": of.seconds, "bound": of.bound})
        return found


@dataclass(frozen=True)
class Comparison:
    """Two sides; ``reduced`` is None where nothing is reduced. ``schedules``: what leaves each part.

    ``cache``: what layers of the language model keep once the prompt is read, ``"staircase"`` or ``"output-aware"``.
    """

    shape: Architecture
    method: AnyMethod | None
    schedules: Schedules
    convention: str
    precision: Precision
    hardware: Hardware | None
    text_tokens: int
    images: int
    full: Side
    reduced: Side | None
    cache: str = "staircase"

    @property
    def shown(self) -> Side:
        """The side that the question was about."""
        return self.full if self.reduced is None else self.reduced

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: the numbers of the reduced side on top, of the other under ``all_tokens``."""
        vision, _, decoder = self.schedules
        at = self.hardware
        return {
            "model": self.shape.name,
            "method": None if self.method is None else self.method.name,
            **self.shown.totals(),
            "crops": _crops(self.shape),
            "layers": self.shown.layers(),
            "parts": _parts(self.shown.running),
            "after_projector": self.shown.running.to_dict()["after_projector"],
            "selection_share": self.shown.running.reduction_share,
            "all_tokens": {**self.full.totals(), "parts": _parts(self.full.running)},
            "schedule": {"vision": _plain(vision), "projector": self._projector(), "decoder": _plain(decoder)},
            "cache": self.cache,
            "text_tokens": self.text_tokens,
            "images": self.images,
            "new_tokens": self.shown.new_tokens,
            "precision": self.precision.name,
            "convention": self.convention,
            "counts": scope.SCOPES[self.convention],
            "time": TIME,
            "hardware": None if at is None else {"name": at.name, "source": at.source},
        }

    def _projector(self) -> dict[str, int] | None:
        found = self.shown.running.after_projector
        if found is None:
            return None
        return {"pictures": found.pictures, "tokens": found.before, "final": found.after}


def _crops(shape: Architecture) -> dict[str, Any] | None:
    """Where an image's patches are, if its size is known."""
    found = shape.picture
    if found is None:
        return None
    valid = list(found.valid)
    return {"grid": list(found.grid), "valid": valid, "line_ends": found.lines, "visual_tokens": found.before}


def _plain(schedule: Schedule | None) -> dict[str, Any] | None:
    if schedule is None:
        return None
    return {
        "patches": schedule.patches,
        "layers": list(schedule.layers),
        "r": list(schedule.r),
        "final": schedule.final,
        "before_attention": schedule.before_attention,
    }


def _parts(cost: Cost) -> dict[str, Any]:
    return {
        name: {"operations": one.operations, "bytes": one.bytes, "seconds": one.seconds, "bound": one.bound}
        for name, one in cost.parts.items()
    }


def compare(
    shape: Architecture,
    method: AnyMethod | None = None,
    schedules: Schedules = Schedules(),
    *,
    text_tokens: int = 60,
    images: int = 1,
    new_tokens: int = 100,
    convention: str = "llmviewer",
    precision: Precision = FP16,
    hardware: Hardware | None = None,
    cache: str | None = None,
) -> Comparison:
    """Count a prompt and its answer with and without ``schedules``.

    Args:
        shape: of the model.
        method: whose own cost is counted with what runs.
        schedules: what leaves each part, see :func:`ficoco_ext.cost.schedules.build`.
        text_tokens, images: of the prompt.
        new_tokens: length of the answer.
        convention: of the counts, see :data:`ficoco_ext.cost.scope.SCOPES`. Time is always that of what runs.
        precision, hardware: without hardware there are no times.
        cache: what layers of the language model keep once the prompt is read; None: what ``method`` says.

    Raises:
        ValueError: a schedule or a cache that does not fit the model.

    Example:
        >>> from ficoco_ext import cost, get_method
        >>> from ficoco_ext.cost import schedules
        >>> from ficoco_ext.cost.compare import compare
        >>> shape, method = cost.architecture("llava-1.5-7b"), get_method("ficoco-v")
        >>> found = compare(shape, method, schedules.build(shape, method, tokens=192))
        >>> round(found.full.counted.tflops, 2), round(found.shown.counted.tflops, 2)
        (8.45, 3.3)
    """
    if not 1 <= new_tokens <= MOST_TOKENS:
        raise ValueError(f"new_tokens must be in 1 ... {MOST_TOKENS}, got {new_tokens}")
    given: dict[str, Any] = {
        "text_tokens": text_tokens,
        "images": images,
        "precision": precision,
        "hardware": hardware,
    }

    keeps = caches.chosen(cache, method)

    def side(left: Schedules) -> Side:
        leaves = left._asdict() | {"cache": keeps}
        counted, running = (scope.bill(shape, one, method=method, **leaves, **given) for one in (convention, "matmul"))
        return Side(counted, running, decode(shape, generated=new_tokens // 2, **leaves, **given), new_tokens)

    reduces = any(one is not None for one in schedules)
    return Comparison(
        shape=shape,
        method=method,
        schedules=schedules,
        convention=convention,
        precision=precision,
        hardware=hardware,
        text_tokens=text_tokens,
        images=images,
        full=side(Schedules()),
        reduced=side(schedules) if reduces else None,
        cache=keeps,
    )
