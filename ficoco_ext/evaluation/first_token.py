"""Time to the first token of every setting on the machine at hand, apart from the answers and their accuracy.

One prompt, several times in a batch, goes through the model from pixels to the logits of the first new token: with all
tokens and with every setting in turn, so that a drift of the machine hits all alike. What the method itself takes is in
it. Only times differ from run to run: which prompt, how often and in which order does not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from ..apps import selection_time, timing
from ..apps.checkpoint import Checkpoint
from . import provenance
from .asking import Prompts
from .settings import Setting

LEAST_RUNS, MOST_RUNS = 5, 100
MOST_BATCH = 1024

Progress = Callable[[int, int, str], None]


def checked(batches: Sequence[int]) -> tuple[int, ...]:
    """Batch sizes, each once.

    Raises:
        ValueError: one that is no integer in 1 ... 1024.
    """
    for batch in batches:
        if isinstance(batch, bool) or not isinstance(batch, int) or not 1 <= batch <= MOST_BATCH:
            raise ValueError(f"first_token must be batch sizes in 1 ... {MOST_BATCH}, got {batch!r}")
    return tuple(dict.fromkeys(batches))


def add(
    document: dict[str, Any],
    prompts: Prompts,
    settings: Sequence[Setting],
    seed: int,
    batch: int,
    seconds: float,
    progress: Progress,
) -> bool:
    """Measure what is not in the document yet; whether something was added.

    An entry of ``document["first_token"]`` has the ``batch`` size, the ``platform`` and its ``threads``, the number of
    ``runs``, and for each setting that can be done: ``seconds`` (median), ``least`` and ``most`` of its runs;
    ``judged``, whether it is ``"faster"`` or ``"slower"`` than all tokens or that is ``"noise"``, by pairs of runs of
    one turn; and ``selection``, the seconds within the method, measured in runs of their own.

    Args:
        document: of the run. prompts: whose first question is asked. settings: those of the document.
        seed: of methods that draw. batch: the one prompt, so many times. seconds: for all runs together, beyond the
            fewest. progress: gets runs done, of how many, and a few words.
    """
    entries = document.setdefault("first_token", [])
    if any(one["batch"] == batch for one in entries):
        return False
    model, inputs = prompts.checkpoint.model, prompts.processed([0] * batch)
    numbers = [number for number, one in enumerate(document["settings"]) if not one["impossible"]]
    text = f"time to the first token, batch {batch}"
    prefills = timing.compare(
        model,
        inputs,
        [_way(prompts.checkpoint, settings[number], seed) for number in numbers],
        least=LEAST_RUNS,
        most=MOST_RUNS,
        seconds=seconds,
        step=lambda done, total: progress(done, max(total, 1), text),
    )
    cells = []
    for number, found in zip(numbers, prefills, strict=True):
        attached = partial(settings[number].attach, prompts.checkpoint, seed)
        chosen = selection_time.measure(model, inputs, attached, LEAST_RUNS) if settings[number].method else None
        cells.append(
            {
                "setting": number,
                "seconds": found.seconds,
                "least": min(found.runs),
                "most": max(found.runs),
                "judged": None if number == 0 else timing.judged(prefills[0], found),
                "selection": chosen,
            }
        )
    at = provenance.platform_of(model) | {"threads": torch.get_num_threads()}
    entries.append({"batch": batch, "runs": len(prefills[0].runs), "platform": at, "cells": cells})
    return True


def _way(checkpoint: Checkpoint, setting: Setting, seed: int) -> Callable[[], Any]:
    return contextlib.nullcontext if setting.method is None else lambda: setting.attach(checkpoint, seed)


def of_setting(document: dict[str, Any], setting: int) -> dict[str, dict[str, Any]] | None:
    """The times of one setting by batch size, a text as JSON has keys; None where nothing was measured."""
    found = {
        str(entry["batch"]): {name: value for name, value in cell.items() if name != "setting"}
        for entry in document.get("first_token", [])
        for cell in entry["cells"]
        if cell["setting"] == setting
    }
    return found or None


def machines(document: dict[str, Any]) -> list[str]:
    """Where and how each batch size was measured, a sentence each."""
    return [
        f"Time to the first token at batch {entry['batch']}: {entry['platform']['dtype']} on "
        f"{entry['platform']['device']} ({entry['platform'].get('processor') or 'processor not known'}), "
        f"{entry['platform']['threads']} threads, torch {entry['platform']['torch']}; one prompt {entry['batch']} "
        f"times, {entry['runs']} runs of each setting in turn."
        for entry in document.get("first_token", [])
    ]
