"""Output-aware caches: once a prompt is read, every layer keeps only what the last reduction has left.

While the prompt is read, each layer from the first reducing one on attends to what reached it, as always. Later steps
attend, in all of these layers, to the positions of the prompt that are left in the end (MustDrop, arXiv 2411.10803).
Positions stay those of the prompt, so no key is rotated again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import transformers_api as api
from .positions import HeldPositions

Held = tuple[list[HeldPositions], tuple[int, ...]]  # the different sets, and the index of its set for each layer


def cut(cache: Any, stages: list[HeldPositions], stage_of_layer: tuple[int, ...], first: int, length: int) -> Held:
    """Keep in each layer of ``cache`` from ``first`` on what the last of ``stages`` holds.

    A layer of a dynamic cache, also an offloaded one, gets shorter. One whose slots are fixed or whose keys are stored
    in another form (static and quantized caches) keeps its columns, and those that left are marked as not real, which
    hides them from new tokens.

    Args:
        cache: of a prefill that has ended; written.
        stages, stage_of_layer: what its layers hold, as of :class:`ficoco_ext.models.kv_cache.CachedPositions`.
        first: the first layer that loses columns, at least 1: all lengths are counted from layer 0.
        length: L, positions of the prompt.

    Returns:
        What its layers hold now. Nothing is read from a device.
    """
    stages, now = list(stages), list(stage_of_layer)
    end, final = len(stages) - 1, stages[-1]
    columns: dict[int, Tensor] = {}
    hidden: dict[int, int] = {}
    for layer in range(first, len(stage_of_layer)):
        stage = stage_of_layer[layer]
        if stages[stage] is final:
            continue
        held = api.growing_layer(cache, layer)
        if held is None:
            if stage not in hidden:
                hidden[stage] = len(stages)
                stages.append(_hidden(stages[stage], final, length))
            now[layer] = hidden[stage]
            continue
        if stage not in columns:
            columns[stage] = _columns(stages[stage], final, length)
        held.keys, held.values = (_gathered(one, columns[stage], held.device) for one in (held.keys, held.values))
        now[layer] = end
    return stages, tuple(now)


def _entries(held: HeldPositions, length: int) -> Tensor:
    """(B, W) positions of the entries that are real; ``length`` for others, so that they stand for no position."""
    return held.indices if held.real is None else held.indices.masked_fill(~held.real, length)


def _columns(held: HeldPositions, final: HeldPositions, length: int) -> Tensor:
    """(B, W') the columns of ``held`` that have the positions of ``final``; 0 for its empty entries."""
    final = final.to(held.indices.device)
    b, w = held.indices.shape
    column = torch.arange(w, device=held.indices.device).expand(b, w)
    found = column.new_zeros(b, length + 1).scatter(1, _entries(held, length), column)
    return found.gather(1, final.indices)


def _hidden(held: HeldPositions, final: HeldPositions, length: int) -> HeldPositions:
    """The entries of ``held``, of which those that ``final`` has not are not real."""
    final = final.to(held.indices.device)
    there = held.indices.new_zeros(held.indices.shape[0], length + 1, dtype=torch.bool)
    there = there.scatter(1, _entries(final, length), True)
    real = there[:, :length].gather(1, held.indices)
    return HeldPositions(held.indices, real if held.real is None else real & held.real, True)


def _gathered(states: Tensor, columns: Tensor, device: torch.device) -> Tensor:
    """(B, H, W', d) columns (B, W') of keys or values (B, H, W, d), which may be offloaded from ``device``."""
    b, h, _, d = states.shape
    index = columns.to(device)[:, None, :, None].expand(b, h, columns.shape[1], d)
    return states.to(device, non_blocking=True).gather(2, index).to(states.device, non_blocking=True)
