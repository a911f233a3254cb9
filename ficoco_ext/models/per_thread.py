"""State of one call: every thread has its own, so that several may run one attached model at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

State = TypeVar("State")


class _Slot(threading.local):
    """Runs ``__init__`` once in every thread that reads it."""

    def __init__(self, make: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.state = make(*args)


class PerThread(Generic[State]):
    """One object for each thread, made when the thread first asks for it. A copy starts without state.

    The object is not a ``threading.local`` itself: at the end of a graph ``torch.compile`` writes back what the graph
    changed in plain objects, and loses what it wrote to a ``threading.local``.

    Args:
        make, args: ``make(*args)`` is the object of a thread. Copied or pickled together with this.
    """

    def __init__(self, make: Callable[..., State], *args: Any) -> None:
        self._made_with = make, *args
        self._slot = _Slot(make, args)

    @property
    def here(self) -> State:
        """The object of this thread."""
        state: State = self._slot.state
        return state

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._made_with
