"""State of one call: every thread has its own, so that several may run one attached model at once."""

from __future__ import annotations

import threading
from typing import Any


class PerThread(threading.local):
    """Attributes that each thread sees its own values of.

    ``__init__`` runs once in every thread that touches the object, always with the arguments it was made with. A copy
    starts afresh, with copies of these arguments.
    """

    def __init__(self, *args: Any) -> None:
        self._made_with = args

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._made_with
