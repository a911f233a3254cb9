"""State of one call: every thread has its own, so that several may run one attached model at once."""

from __future__ import annotations

import threading
from typing import Any


class PerThread(threading.local):
    """Attributes that have a value of their own in each thread.

    ``__init__`` runs once in every thread that uses the object, always with the arguments of its construction. A copy
    starts without state, with copies of these arguments.
    """

    def __init__(self, *args: Any) -> None:
        self._made_with = args

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._made_with
