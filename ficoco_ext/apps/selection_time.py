"""How long choosing and merging takes inside a prefill: the time within the method alone, measured in runs of its own.

Not within it is what the model measures for it, such as saliency of the vision tower: that, and all else that a
reduction costs, is in the time to the first token.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from ..methods import AnyMethod
from ..methods.combined import PARTS
from .timing import forward

Wrap = Callable[[Any], Any]


class SelectionClock:
    """Adds up the seconds of calls; of a call within another one only the outer counts.

    Args:
        device: where the work is done; a GPU is waited for before and after each call.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        self._cuda = device if device.type == "cuda" else None
        self._running = False

    def run(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What ``call`` returns."""
        if self._running:
            return call(*args, **kwargs)
        self._running = True
        start = self._now()
        try:
            return call(*args, **kwargs)
        finally:
            self.seconds += self._now() - start
            self._running = False

    def _now(self) -> float:
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)
        return time.perf_counter()


def clocked(method: Any, clock: SelectionClock) -> Any:
    """The method, whose calls run on ``clock``; of one method for each layer a tuple of them.

    It is a value like the given one, of a class that is derived from its class, so questions about what it is get
    the same answers. Its parts, and what it gives for each layer, are on the clock too.

    Example:
        >>> import torch
        >>> from ficoco_ext import get_method
        >>> from ficoco_ext.apps.selection_time import SelectionClock, clocked
        >>> clock = SelectionClock(torch.device("cpu"))
        >>> one = clocked(get_method("divprune"), clock)
        >>> one.name, one.projector is one, clock.seconds
        ('divprune', True, 0.0)
    """
    if not isinstance(method, AnyMethod):
        return tuple(clocked(one, clock) for one in method)
    kind: type[Any] = type(method)
    own: dict[str, Any] = {}
    for part in PARTS:
        found = getattr(method, part)
        own[part] = _itself if found is method else None if found is None else clocked(found, clock)
    if callable(method):
        own["__call__"] = lambda self, *args, **kwargs: clock.run(kind.__call__, self, *args, **kwargs)
    if method.language_model is method:
        own["mark"] = lambda self, *args: clock.run(kind.mark, self, *args)
    if method.tower is method:
        own["of_layers"] = lambda self, count: clocked(kind.of_layers(method, count), clock)
    made: Any = object.__new__(type(f"Clocked{kind.__name__}", (kind,), own))
    vars(made).update(vars(method))
    return made


@property  # type: ignore[misc]
def _itself(self: Any) -> Any:
    return self


def measure(model: Any, inputs: dict[str, Any], attached: Callable[[Wrap], Any], runs: int) -> float:
    """Median seconds within the method over ``runs`` prefills, after one that warms up.

    Args:
        model: without reduction. inputs: keyword arguments of one forward.
        attached: attaches what it is given makes of the method, and returns the handle.
        runs: at least 1.
    """
    if runs < 1:
        raise ValueError(f"runs must be at least 1, got {runs}")
    clock, found = SelectionClock(model.device), []
    with attached(lambda method: clocked(method, clock)):
        for _ in range(runs + 1):
            clock.seconds = 0.0
            forward(model, inputs)
            found.append(clock.seconds)
    return statistics.median(found[1:])
