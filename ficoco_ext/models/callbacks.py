"""Callbacks of ``generate`` while the inner prompt is shorter than the caller's: they all get the caller's prompt.

Lengths that a stopping criterion or a logits processor was made with count the caller's prompt, and so does everything
that it computes from the ids that it gets.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor

from . import transformers_api as api
from .placeholders import restore


class Callbacks:
    """Callbacks of one ``generate``.

    Args:
        prompt: (B, L) the caller's ids. short: L', the length of the inner prompt.
    """

    def __init__(self, prompt: Tensor, short: int) -> None:
        self.prompt, self.short = prompt, short
        self.removed = prompt.shape[1] - short

    def ids(self, ids: Tensor) -> Tensor:
        """(B * n, L + new) the caller's ids for (B * n, L' + new) ids of the loop."""
        return restore(self.prompt, self.short, ids)

    def wrapped(self, options: dict[str, Any], sequences: int) -> dict[str, Any]:
        """The callbacks among the options of ``generate``, wrapped so that they get the caller's prompt.

        Args:
            options: of ``generate``. sequences: rows of the loop for each row of the prompt, where it is not beams.
        """
        found: dict[str, Any] = {}
        for name, kind in (("stopping_criteria", _Criterion), ("logits_processor", _Processor)):
            given = options.get(name)
            if isinstance(given, (list, tuple)):
                found[name] = copy.copy(given) if isinstance(given, list) else []
                found[name][:] = [self._one(each, kind, sequences) for each in given]
        if options.get("prefix_allowed_tokens_fn") is not None:
            found["prefix_allowed_tokens_fn"] = _Prefix(self, options["prefix_allowed_tokens_fn"], sequences)
        if options.get("streamer") is not None:
            found["streamer"] = _Streamer(self, options["streamer"])
        return found

    def _one(self, given: Any, kind: Callable[[Callbacks, Any], Any], sequences: int) -> Any:
        """One of them, wrapped. transformers' own ones keep their type, by which ``generate`` finds duplicates: their
        lengths are reduced instead, and the caller's function in one of them is wrapped."""
        if not api.is_from_transformers(given):
            return kind(self, given)
        lengths = {name: getattr(given, name, None) for name in api.PROMPT_LENGTHS}
        moved: dict[str, Any] = {
            name: max(value - self.removed, 0) for name, value in lengths.items() if isinstance(value, int)
        }
        if (function := getattr(given, api.PREFIX_FUNCTION, None)) is not None:
            moved[api.PREFIX_FUNCTION] = _Prefix(self, function, sequences)
        if moved:
            given = copy.copy(given)
            vars(given).update(moved)
        return given


class _Criterion:
    def __init__(self, owner: Callbacks, given: Any) -> None:
        self.owner, self.given = owner, given

    def __getattr__(self, name: str) -> Any:  # generate looks for an eos_token_id
        if name in ("owner", "given"):
            raise AttributeError(name)
        return getattr(self.given, name)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        return self.given(self.owner.ids(input_ids), scores, **kwargs)


class _Processor:
    def __init__(self, owner: Callbacks, given: Any) -> None:
        self.owner, self.given = owner, given

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # two arguments: more would be asked for
        result: Tensor = self.given(self.owner.ids(input_ids), scores)
        return result


class _Prefix:
    def __init__(self, owner: Callbacks, given: Any, sequences: int) -> None:
        self.owner, self.given, self.sequences = owner, given, sequences

    def __call__(self, batch_id: int, ids: Tensor) -> Any:
        row = self.owner.prompt[batch_id // self.sequences]
        return self.given(batch_id, restore(row[None], self.owner.short, ids[None])[0])


class _Streamer:
    """Passes on what it gets; the prompt comes first."""

    def __init__(self, owner: Callbacks, given: Any) -> None:
        self.owner, self.given = owner, given
        self.first = True

    def put(self, value: Tensor) -> None:
        first, self.first = self.first, False
        if first and value.dim() == 2:
            value = self.owner.ids(value)
        self.given.put(value)

    def end(self) -> None:
        self.given.end()
