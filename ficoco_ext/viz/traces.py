"""Where the patches of a picture went: computed from the records of its reductions, without a model or a drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..reduction import Reduction

Label = int | str  # what a layer is called in a legend
NO_PATCH = -2  # in ``source_map``, and as its holder: a cell of the grid in which there is no patch of the picture

# A token holds its mass exactly; what float32 weights leave over or add is not a part that was dropped.
_NOTHING = 1e-12


@dataclass(frozen=True)
class Move:
    """A part of the traced patch that went from one token to another.

    Attributes:
        source, target: patches, as positions on the original grid.
        weight: share of the source that this target got; over the source's targets they sum to 1 less what of it was
            dropped in the same layer.
        share: share of the traced patch that moved: ``weight`` times what the source held of it.
    """

    source: int
    target: int
    weight: float
    share: float


@dataclass(frozen=True)
class TraceStep:
    """What one layer did with the traced patch.

    Attributes:
        layer: where.
        moves: largest first; empty if nothing that holds a part of the patch left in this layer.
        dropped: share of the patch that was dropped here.
        shares: share of the patch that each survivor of this layer holds, largest first, without those that hold none.
    """

    layer: Label
    moves: tuple[Move, ...]
    dropped: float
    shares: dict[int, float]


@dataclass(frozen=True)
class Trace:
    """Where one patch went.

    Attributes:
        patch: its position on the original grid.
        steps: layer by layer.
        shares: share of the patch that each final survivor holds, largest first. They sum to 1 - ``dropped``.
        dropped: share of the patch that no survivor holds.
    """

    patch: int
    steps: tuple[TraceStep, ...]
    shares: dict[int, float]
    dropped: float


def trace(
    reductions: Reduction | Sequence[Reduction],
    patch: int,
    *,
    layers: Sequence[Label] | None = None,
    item: int = 0,
) -> Trace:
    """Follow one patch through the layers that reduce.

    The patch begins as one token's worth of mass at its own position. A source gives each of its targets its weight
    times all that it holds, its own patch and what was merged into it before, and drops the rest: all of it if it has
    no targets, and in a :class:`ficoco_ext.methods.Split` what it gave to a token that was dropped in the same layer.
    So a share says which part of the patch is in a survivor, apart from what else that holds: added up over all
    patches, the shares of a survivor are its ``size``. It does not say which part of the survivor is the patch: a
    larger survivor holds more of other patches.

    Args:
        reductions: one, or those of the layers in order, in indices of the original tokens: ``handle.reductions``,
            or for a method in the language model what :func:`ficoco_ext.models.pictures.picture_reductions` makes of
            them.
        patch: position on the original grid, row * width + column; a class token is not counted.
        layers: index or name of the layer of each of them; None counts from 0.
        item: which of the batch.

    Raises:
        ValueError: no reduction, no such patch or item, layers of another number.

    Cost: O(N) a layer and the targets of the r sources. Deterministic.

    Example:
        >>> import torch, ficoco_ext
        >>> from ficoco_ext.viz.traces import trace
        >>> tokens, (q, k) = torch.randn(1, 10, 8), torch.randn(2, 1, 2, 10, 4)
        >>> r = ficoco_ext.reduce(tokens, ficoco_ext.QueryKey(q, k), 4, targets=2, return_reduction=True)
        >>> left = trace(r, int(r.sources[0, 0]) - 1)
        >>> len(left.shares), round(sum(left.shares.values()), 6), left.dropped
        (2, 1.0, 0.0)
    """
    records = checked("trace", reductions, item)
    names = named("trace", records, layers)
    count = patches_of(records[-1])
    if not 0 <= patch < count:
        raise ValueError(f"trace: patch must be in [0, {count - 1}], got {patch}")
    if int(records[-1].source_map[item, int(records[-1].class_token) + patch]) == NO_PATCH:
        raise ValueError(f"trace: patch must be one of the picture, got {patch}, where the grid has none")
    mass = torch.zeros(count, dtype=torch.float64)
    mass[patch] = 1
    steps = [_step(reduction, name, mass, item) for reduction, name in zip(records, names, strict=True)]
    return Trace(patch, tuple(steps), steps[-1].shares, sum(step.dropped for step in steps))


def _step(reduction: Reduction, layer: Label, mass: Tensor, item: int) -> TraceStep:
    """Move ``mass`` (P,), which is written, through one reduction."""
    moves, dropped = [], 0.0
    for source, parts in transfers(reduction, item):
        held = gone = float(mass[source])
        if held == 0:
            continue
        mass[source] = 0
        for target, weight in parts:
            share = weight * held
            mass[target] += share
            gone -= share
            moves.append(Move(source, target, weight, share))
        dropped += gone if gone > _NOTHING else 0.0
    shares = {patch: float(mass[patch]) for patch in mass.nonzero()[:, 0].tolist()}
    return TraceStep(
        layer,
        tuple(sorted(moves, key=lambda move: (-move.share, move.source, move.target))),
        dropped,
        dict(sorted(shares.items(), key=lambda one: (-one[1], one[0]))),
    )


def transfers(reduction: Reduction, item: int = 0) -> list[tuple[int, list[tuple[int, float]]]]:
    """For each patch that one reduction removed who got how much of it.

    Returns:
        ``(source, [(target, weight), ...])`` for each source, ascending; patches of the original grid, weights above 0
        in the order of the record. What is missing from 1 was dropped, or went to a token that is no patch of this
        picture.

    Example:
        >>> import torch, ficoco_ext
        >>> from ficoco_ext.viz.traces import transfers
        >>> tokens, (q, k) = torch.randn(1, 5, 8), torch.randn(2, 1, 2, 5, 4)
        >>> r = ficoco_ext.reduce(tokens, ficoco_ext.QueryKey(q, k), 2, return_reduction=True)
        >>> [(len(parts), parts[0][1]) for source, parts in transfers(r)]
        [(1, 1.0), (1, 1.0)]
    """
    first = int(reduction.class_token)
    kept = (reduction.kept[item].cpu() - first).tolist()
    sources = (reduction.sources[item].cpu() - first).tolist()
    targets, weights = reduction.targets[item].tolist(), _weights(reduction.weights[item]).tolist()
    return [
        (source, [(kept[target], weight) for target, weight in zip(at, parts, strict=True) if target >= 0 and weight])
        for source, at, parts in zip(sources, targets, weights, strict=True)
    ]


def _weights(weights: Tensor) -> Tensor:
    """(r, k) in float64. A sum that is 1 but for rounding becomes 1; what else is missing was dropped, and stays so."""
    exact = weights.cpu().double()
    total = exact.sum(-1, keepdim=True)
    rounding = 4 * max(weights.shape[-1], 1) * max(torch.finfo(dtype).eps for dtype in (weights.dtype, torch.float32))
    return torch.where((total - 1).abs() <= rounding, exact / total, exact)


def checked(op: str, reductions: Reduction | Sequence[Reduction], item: int) -> tuple[Reduction, ...]:
    """The reductions as a tuple; ValueError if there is none, or no such item."""
    records = (reductions,) if isinstance(reductions, Reduction) else tuple(reductions)
    if not records:
        raise ValueError(f"{op}: reductions is empty; run the model once, or nothing was removed")
    if not 0 <= item < records[-1].kept.shape[0]:
        raise ValueError(f"{op}: item must be in [0, {records[-1].kept.shape[0] - 1}], got {item}")
    return records


def named(op: str, reductions: Sequence[Reduction], layers: Sequence[Label] | None) -> list[Label]:
    """A name for the layer of each reduction, all different; None counts from 0."""
    names: list[Label] = list(range(len(reductions))) if layers is None else list(layers)
    if len(names) != len(reductions):
        raise ValueError(f"{op}: layers must name one layer a reduction, got {len(names)} for {len(reductions)}")
    if len(set(names)) != len(names):
        raise ValueError(f"{op}: layers must all be different, got {names}")
    return names


def patches_of(reduction: Reduction) -> int:
    """How many patches the picture had."""
    return reduction.source_map.shape[1] - int(reduction.class_token)


def grid_of(op: str, reduction: Reduction) -> tuple[int, int]:
    """(height, width) of the original patches; ValueError if that is unknown."""
    if reduction.grid is None:
        raise ValueError(f"{op}: the reduction has no grid; pass grid=(height, width) to ficoco_ext.reduce")
    return reduction.grid


def holders(reduction: Reduction, item: int = 0) -> list[int]:
    """For each patch of the original grid the patch that holds it now: itself if it is left, -1 if it was dropped.

    A patch that went to several targets is held by that of largest weight; :func:`trace` gives the shares of all. Where
    the grid has no patch it is :data:`NO_PATCH`.

    Example:
        >>> import torch, ficoco_ext
        >>> from ficoco_ext import viz
        >>> tokens, (q, k) = torch.randn(1, 5, 8), torch.randn(2, 1, 2, 5, 4)
        >>> r = ficoco_ext.reduce(tokens, ficoco_ext.QueryKey(q, k), 2, return_reduction=True)
        >>> len(viz.holders(r))
        4
    """
    first = int(reduction.class_token)
    kept = reduction.kept[item].tolist()
    positions = reduction.source_map[item].tolist()[first:]
    return [position if position < 0 else kept[position] - first for position in positions]


def count_patches(held: Sequence[int]) -> int:
    """How many patches there are, of what :func:`holders` says."""
    return len(held) - held.count(NO_PATCH)


def groups(reduction: Reduction, item: int = 0) -> dict[int, list[int]]:
    """For each survivor that holds others the patches that it holds, itself included, all ascending.

    Example:
        >>> import torch, ficoco_ext
        >>> from ficoco_ext.viz.traces import groups
        >>> tokens, (q, k) = torch.randn(1, 5, 8), torch.randn(2, 1, 2, 5, 4)
        >>> r = ficoco_ext.reduce(tokens, ficoco_ext.QueryKey(q, k), 3, return_reduction=True)
        >>> [len(members) for members in groups(r).values()]  # one patch is left, and holds all four
        [4]
    """
    members: dict[int, list[int]] = {}
    for patch, holder in enumerate(holders(reduction, item)):
        if holder >= 0:
            members.setdefault(holder, []).append(patch)
    return {holder: members[holder] for holder in sorted(members) if len(members[holder]) > 1}


def removal_layers(reductions: Sequence[Reduction], layers: Sequence[Label], item: int = 0) -> list[Label | None]:
    """For each patch of the original grid the layer that removed it, None if it is left."""
    first = int(reductions[-1].class_token)
    gone: list[Label | None] = [None] * patches_of(reductions[-1])
    for reduction, layer in zip(reductions, layers, strict=True):
        for token in reduction.sources[item].tolist():
            gone[token - first] = layer
    return gone
