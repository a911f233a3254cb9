"""``ficoco::to_sequence``: a selection among the visual tokens of a sequence, as one among all its tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import checks
from .library import define, fake


def check(visual: Tensor, sources: Tensor, kept: Tensor, targets: Tensor, tokens: int) -> None:
    """The arguments of ``ficoco::to_sequence`` fit together (shapes and types only)."""
    op = "to_sequence"
    checks.indices(op, "visual", visual, "(B, n)", visual.dim() == 2)
    b, n = visual.shape
    checks.selection(op, b, n, sources, kept)
    r = sources.shape[1]
    checks.indices(op, "targets", targets, lambda: f"({b}, {r}, k)", targets.dim() == 3 and targets.shape[:2] == (b, r))
    checks.same_device(op, "visual", visual, sources=sources, kept=kept, targets=targets)
    if tokens < n:
        checks.fail(
            op, "tokens", f"at least {n}, the number of visual tokens", tokens, "pass the length of the sequence"
        )
    if tokens > checks.MAX_SEQUENCE:
        checks.fail(op, "tokens", f"at most {checks.MAX_SEQUENCE}", tokens, "pass the length of the sequence")


def _check_values(visual: Tensor, sources: Tensor, kept: Tensor, targets: Tensor, tokens: int) -> None:
    """What :func:`specification` expects of its values; only called where reading them does not wait for a device."""
    op, (b, n) = "to_sequence", visual.shape
    inside = (visual >= 0) & (visual < tokens)
    if not (inside.all() and (visual.diff(dim=1) > 0).all()):
        checks.fail(op, "visual", "ascending positions in [0, tokens)", "others", "pass where the image tokens are")
    everyone = torch.cat([sources, kept], dim=1).sort(1).values
    ascending = (sources.diff(dim=1) > 0).all() and (kept.diff(dim=1) > 0).all()
    if not (ascending and torch.equal(everyone, torch.arange(n).expand(b, n))):
        wanted = "ascending and together every index of visual once"
        checks.fail(op, "sources and kept", wanted, "other indices", "pass what filter returned")
    if not ((targets >= 0) & (targets < kept.shape[1])).all():
        checks.fail(op, "targets", f"in [0, {kept.shape[1]})", "others", "pass what correlate returned")


def specification(
    visual: Tensor, sources: Tensor, kept: Tensor, targets: Tensor, tokens: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A selection among the visual tokens of a sequence, as positions in the sequence.

    ``visual`` (B, n) are their positions among ``tokens``, ascending; ``sources`` (B, r) and ``kept`` (B, n - r)
    are indices into it and partition it, ``targets`` (B, r, k) are indices into ``kept``. Returns the sources'
    positions (B, r); every position but those, ascending (B, tokens - r); the targets as indices into these (B, r, k);
    and the positions of the surviving visual tokens in the sequence that is left (B, n - r).
    """
    check(visual, sources, kept, targets, tokens)
    if visual.device.type == "cpu":  # free here, a sync elsewhere
        _check_values(visual, sources, kept, targets, tokens)
    positions = visual.gather(1, sources)
    leaves = torch.zeros(visual.shape[0], tokens, dtype=torch.bool, device=visual.device).scatter(1, positions, True)
    survivors = leaves.sort(dim=1, stable=True).indices[:, : tokens - sources.shape[1]].contiguous()
    left = ((~leaves).cumsum(1) - 1).gather(1, visual.gather(1, kept))
    return positions, survivors, left.gather(1, targets.flatten(1)).view(targets.shape), left


define(
    "to_sequence",
    "(Tensor visual, Tensor sources, Tensor kept, Tensor targets, SymInt tokens) -> (Tensor, Tensor, Tensor, Tensor)",
    specification,
)


@fake("to_sequence")
def _(visual, sources, kept, targets, tokens):
    check(visual, sources, kept, targets, tokens)
    b, r = sources.shape
    positions = visual.new_empty(b, tokens - r)
    return visual.new_empty(b, r), positions, visual.new_empty(targets.shape), visual.new_empty(kept.shape)


class Placed(NamedTuple):
    """What :func:`to_sequence` returns."""

    sources: Tensor
    kept: Tensor
    targets: Tensor
    visual: Tensor


def to_sequence(visual: Tensor, sources: Tensor, kept: Tensor, targets: Tensor, tokens: int) -> Placed:
    """A selection among the visual tokens of a sequence, as positions in the whole sequence.

    A method chooses among the visual tokens; hidden states, mask and positions are those of all tokens. The result is
    what :func:`ficoco_ext.ops.compress` takes with the tokens of the whole sequence.

    Args:
        visual: (B, n) int64, positions of the visual tokens in the sequence, ascending; they need not be neighbours.
        sources: (B, r) int64 and kept: (B, n - r) int64, ascending indices into ``visual``, together each of them once,
            as :func:`ficoco_ext.ops.filter` returns them without a class token.
        targets: (B, r, k) int64, indices into ``kept``, as :func:`correlate_tokens` returns them when its candidates
            are the positions of ``kept``; k may be 0.
        tokens: length of the sequence, at least n.

    Returns:
        sources (B, r), their positions; kept (B, tokens - r), all other positions, ascending; targets (B, r, k),
        indices into the returned ``kept``; visual (B, n - r), the positions that the surviving visual tokens have in
        the shorter sequence. All int64.

    Raises:
        ValueError, TypeError: wrong rank, shape, dtype or device; on the CPU also values that are not as said above.

    Deterministic. Cost: no FLOPs; O(B tokens) memory read and written.

    Example:
        >>> import torch
        >>> from ficoco_ext.ops import to_sequence
        >>> visual, sources, kept = torch.tensor([[2, 3, 4]]), torch.tensor([[1]]), torch.tensor([[0, 2]])
        >>> placed = to_sequence(visual, sources, kept, torch.tensor([[[1]]]), 6)
        >>> placed.sources, placed.kept
        (tensor([[3]]), tensor([[0, 1, 2, 4, 5]]))
        >>> placed.targets, placed.visual
        (tensor([[[3]]]), tensor([[2, 3]]))
    """
    return Placed(*torch.ops.ficoco.to_sequence.default(visual, sources, kept, targets, tokens))
