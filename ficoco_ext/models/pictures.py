"""What happened to one image in tower, after the projector, and in the language model, patch by patch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from ..ops import checks
from ..reduction import Reduction
from .facts import tower_facts
from .handle import Handle
from .projections import Projection


def watched(model: Any, attached: Callable[[], Handle], inputs: Mapping[str, Any]) -> list[Reduction]:
    """Run a prompt with one image; what the method does to its patches, in the order in which its parts act.

    Args:
        model: a LLaVA-1.5. attached: attaches the method to it. inputs: of one row with one image, as the processor
            made them.
    """
    with attached() as handle, torch.inference_mode():
        model(**inputs, logits_to_keep=1)
        tower, projections, rows = handle.reductions, handle.projections, handle.decoder_reductions
    shape = tower_facts(model)
    projection = projections[0] if projections else None
    if projection is None:
        left = shape.extra + (tower[-1].patch_ids.shape[1] if tower else shape.patches)
        kept = torch.arange(left)
    else:
        kept = projection.kept.cpu()
    # The image begins at the same position of the short prompt, as the text before it is the same; a class token, if
    # the language model gets one, is the image's first token and no patch.
    first = int((inputs["input_ids"][0] == model.config.image_token_id).int().argmax())
    positions = first + (kept >= shape.extra).nonzero()[:, 0]
    return picture_reductions(tower, rows[0] if rows else (), positions, shape.grid, projection=projection)


def picture_reductions(
    tower: Sequence[Reduction],
    decoder: Sequence[Reduction],
    positions: Tensor,
    grid: tuple[int, int],
    *,
    item: int = 0,
    projection: Projection | None = None,
) -> list[Reduction]:
    """Every reduction of one image in indices of its patches: in the tower, after the projector, then those of the row.

    Args:
        tower: ``handle.reductions``; empty if the tower was left alone.
        decoder: of the image's row, ``handle.decoder_reductions[row]``; empty if the language model was left alone.
        positions: (P,) positions in the row of the image's P patches, in order: those that tower and projector left.
        grid: (height, width) of the image's patches.
        item: which image of the tower's batch it is.
        projection: the image's of ``handle.projections``; None if there is none.

    Returns:
        One :class:`Reduction` for each part or layer that removed something, batch of 1, without a class token, on the
        CPU. ``size`` counts patches of this image. A token that went into another image's, or into a class token,
        counts as dropped here (-1), for no patch of this image holds it; so does a target of another image.

    Raises:
        ValueError: positions are not as many as the patches that tower and projector left, or not of the row.

    Example:
        >>> import torch, ficoco_ext
        >>> from ficoco_ext.models.pictures import picture_reductions
        >>> tokens, (q, k) = torch.randn(1, 9, 8), torch.randn(2, 1, 2, 9, 4)
        >>> in_prompt = ficoco_ext.reduce(
        ...     tokens, ficoco_ext.QueryKey(q, k), 3, method="fastv", visual=(2, 4), return_reduction=True
        ... )
        >>> picture_reductions((), (in_prompt,), torch.arange(2, 6), (2, 2))[0].kept.shape
        torch.Size([1, 1])
    """
    found = [without_class_token(one_of(step, item)) for step in tower]
    start = found[-1] if found else untouched(grid[0] * grid[1], grid)
    if projection is not None and projection.reduction is not None:
        step, left = one_of(projection.reduction, projection.item), start.kept.shape[1]
        tokens = step.source_map.shape[1]  # with a class token, if the projector gets one, before the patches
        found += in_patches([step], torch.arange(tokens - left, tokens), start)
        start = found[-1]
    positions = positions.cpu()
    left, given = start.kept.shape[1], int(positions.numel())
    if left != given:
        wanted = f"({left},), one for each patch that is left before the language model"
        checks.fail("picture_reductions", "positions", wanted, f"{given}", "pass those of one image")
    if not decoder:
        return found
    length = decoder[0].source_map.shape[1]
    if int(positions.min()) < 0 or int(positions.max()) >= length:
        wanted = f"in [0, {length})"
        checks.fail("picture_reductions", "positions", wanted, f"{positions.tolist()}", "pass positions of the prompt")
    return found + in_patches([one_of(step, 0) for step in decoder], positions, start)


def in_patches(steps: Sequence[Reduction], positions: Tensor, start: Reduction) -> list[Reduction]:
    """Reductions of a sequence that holds the image's tokens at ``positions`` (P,), each including those before it.

    Args:
        start: what was done to the image's patches before; its survivors are those tokens.
    """
    length = steps[0].source_map.shape[1]
    own_index = torch.full((length,), -1)  # of each position: which of the image's tokens it is
    own_index[positions] = torch.arange(positions.numel())
    mass = torch.zeros(length, dtype=torch.float64)
    mass[positions] = start.size[0, :, 0].double()
    found = []
    for step in steps:
        mass = _moved(mass, step)
        found.append(_of_image(step, positions, own_index, mass).after(start))
    return found


def one_of(reduction: Reduction, item: int) -> Reduction:
    """One item of the batch, without its tokens, on the CPU."""
    held = {field.name: getattr(reduction, field.name) for field in fields(reduction)}
    one: dict[str, Any] = {name: t[item : item + 1].cpu() for name, t in held.items() if isinstance(t, Tensor)}
    return replace(reduction.without_tokens(), **{name: t for name, t in one.items() if name != "tokens"})


def without_class_token(step: Reduction) -> Reduction:
    """The reduction in indices of the patches alone."""
    first = int(step.class_token)
    return replace(
        step,
        size=step.size[:, first:],
        kept=step.kept[:, first:] - first,
        sources=step.sources - first,
        source_map=(step.source_map[:, first:] - first).clamp(min=-1),
        targets=step.targets - first,
        class_token=False,
    )


def untouched(patches: int, grid: tuple[int, int] | None = None) -> Reduction:
    """Every patch holds itself."""
    all_patches = torch.arange(patches)[None]
    nothing = all_patches[:, :0]
    return Reduction(
        tokens=None,
        size=torch.ones(1, patches, 1),
        kept=all_patches,
        sources=nothing,
        source_map=all_patches,
        targets=nothing.unsqueeze(-1),
        weights=torch.empty(1, 0, 1),
        class_token=False,
        grid=grid,
    )


def _moved(mass: Tensor, step: Reduction) -> Tensor:
    """Patches of the image that each position stands for after ``step``."""
    sources = step.sources[0]
    arriving = torch.zeros_like(mass)
    targets = step.kept[0][step.targets[0]]
    arriving.index_add_(0, targets.flatten(), (step.weights[0] * mass[sources][:, None]).flatten())
    after = mass + arriving
    after[sources] = 0
    return after


def _of_image(step: Reduction, positions: Tensor, own_index: Tensor, mass: Tensor) -> Reduction:
    """A reduction of a sequence, in indices of the image's tokens in it.

    Args:
        positions: (P,) of the image's tokens. own_index: (L,) the inverse, -1 for other positions.
        mass: (L,) patches of the image that each position stands for after it.
    """
    held = own_index[step.kept[0]]  # which of the image's tokens each survivor is, -1 for all others
    mine = held >= 0
    rank = torch.where(mine, mine.cumsum(0) - 1, -1)
    rank_or_gone = torch.cat([rank.new_tensor([-1]), rank])
    gone = own_index[step.sources[0]]
    own = gone >= 0
    return Reduction(
        tokens=None,
        size=mass[step.kept[0]][mine].to(step.size.dtype)[None, :, None],
        kept=held[mine][None],
        sources=gone[own][None],
        source_map=rank_or_gone[step.source_map[0][positions] + 1][None],
        targets=rank[step.targets[0][own]][None],
        weights=step.weights[0][own][None],
        class_token=False,
        grid=None,
    )
