"""How what is read of each patch in a vision tower becomes that of each projected token, in the same order.

Models shuffle, pool, unpad and reorder their features. Wherever one does so in a method of its own, that very method
runs on what was read too, as features of its width W: what it does to the features it does to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Arguments = dict[str, Any]


class TowerPass:
    """One call of a vision tower: what was read in it, and what the model then did.

    Attributes:
        core: the module that owns ``get_image_features``.
        tower: the tower that was called.
        grids: rows and columns of patches of each picture, if it puts all pictures into one sequence.
        mask: (B, ...) bool, which patches of a batch are real, if it was given one; else None.
        class_tokens: how many tokens come before the patches of each picture, 0 or 1.
        parts: what was read, by its name: (B, class_tokens + n, W), one tensor for each time that it was.
        order: merge units in the order in which the tower kept them; None if that is their own.
        placed: what was read after a method of the model that lays features out; None if none ran.
    """

    def __init__(
        self, core: Any, tower: Any, grids: list[tuple[int, int]], mask: Tensor | None, class_tokens: int = 0
    ) -> None:
        self.core, self.tower, self.grids, self.mask, self.class_tokens = core, tower, grids, mask, class_tokens
        self.parts: dict[str, list[Tensor]] = {}
        self.order: Tensor | None = None
        self.placed: dict[str, list[Tensor]] | None = None

    @property
    def lengths(self) -> list[int]:
        """Patches of each picture, if the tower puts all pictures into one sequence; else empty."""
        return [rows * columns for rows, columns in self.grids]

    def add(self, name: str, part: Tensor) -> None:
        """Keep something that was read, (B, class_tokens + n, W)."""
        self.parts[name] = [*self.parts.get(name, []), part]

    def whole(self, name: str) -> Tensor:
        """(B, class_tokens + n, W) of a tower whose pictures are the rows of a batch."""
        return torch.cat(self.parts[name])

    def pictures(self, name: str) -> Tensor:
        """(B, n, W) of the patches of such a tower."""
        return self.whole(name)[:, self.class_tokens :]

    def sequence(self, name: str) -> Tensor:
        """(n, W) of the patches of all pictures, one after the other."""
        return torch.cat([part[:, self.class_tokens :].flatten(0, 1) for part in self.parts[name]])


Layout = Callable[[TowerPass, str, Sequence[int]], Tensor]
Watcher = Callable[[TowerPass, Callable[..., Any], Arguments], None]


# Layouts: what was read of the patches of a pass, by its name, and how many tokens each picture has, to what is so
# known of all tokens (T, W)


def patches(seen: TowerPass, name: str, counts: Sequence[int]) -> Tensor:
    """Each patch is a token; so is a class token that is projected too."""
    found, pictures = seen.sequence(name), sum(len(part) for part in seen.parts[name])
    if seen.class_tokens and sum(counts) == len(found) + pictures:
        found = seen.whole(name).flatten(0, 1)
    return found


def merged(seen: TowerPass, name: str, counts: Sequence[int]) -> Tensor:
    """A token is the mean of a merge unit; its patches are neighbours in the sequence. Units return to their order."""
    size, found = seen.tower.config.spatial_merge_size, seen.sequence(name)
    units = found.view(-1, size * size, found.shape[1]).mean(1)
    return units if seen.order is None else units[seen.order.to(units.device).argsort()]


def merged_grids(seen: TowerPass, name: str, counts: Sequence[int]) -> Tensor:
    """A token is the mean of a square of the picture's grid; a last row or column that fills no square is dropped."""
    size = seen.core.config.spatial_merge_size
    grids = [part.mT.unflatten(2, grid) for part, grid in zip(seen.parts[name], seen.grids, strict=True)]
    return torch.cat([_tokens(nn.functional.avg_pool2d(grid, size).flatten(2)) for grid in grids])


def shuffled(seen: TowerPass, name: str, counts: Sequence[int]) -> Tensor:
    """A token is the mean of the patches that the model's pixel shuffle puts into it."""
    found = seen.pictures(name)
    planes = found.mT.reshape(-1, *_square(found), 1)  # each channel is a picture of width 1
    means = seen.core.pixel_shuffle(planes, scale_factor=seen.core.config.downsample_ratio).mean(-1)
    return _tokens(means.view(len(found), found.shape[2], -1))


def connected(seen: TowerPass, name: str, counts: Sequence[int]) -> Tensor:
    """A token is the mean of the patches that the connector's pixel shuffle puts into it."""
    connector, found = seen.core.connector, seen.pictures(name)
    planes = found.mT.reshape(-1, found.shape[1], 1)
    means = connector.pixel_shuffle(planes, connector.scale_factor).mean(-1)
    return _tokens(means.view(len(found), found.shape[2], -1))


def pooled(seen: TowerPass, name: str, counts: Sequence[int]) -> Tensor:
    """A token is the mean of the patches that the projector's average pool puts into it."""
    found = seen.pictures(name)
    grids = found.mT.unflatten(2, _square(found))
    return _tokens(seen.core.multi_modal_projector.avg_pool(grids).flatten(2))


def placed(seen: TowerPass, name: str, counts: Sequence[int]) -> Tensor:
    """As the model's own method placed them, see :func:`pack` and :func:`pool_frames`; line ends have 0."""
    if seen.placed is None:
        core = type(seen.core).__name__
        raise RuntimeError(f"ficoco::saliency: {core} did not lay its features out; call its get_image_features")
    found = torch.cat(seen.placed[name])
    if found.dim() == 3:  # frames of videos, each video with one line end where the model adds it to the features
        found = found.reshape(len(counts), -1, found.shape[2])
        ends = int(sum(counts) > found.shape[0] * found.shape[1])
        found = nn.functional.pad(found, (0, 0, 0, ends)).flatten(0, 1)
    return found


def _tokens(channels: Tensor) -> Tensor:
    """(B T, W) from (B, W, T)."""
    return channels.mT.flatten(0, 1)


def _square(found: Tensor) -> tuple[int, int]:
    side = math.isqrt(found.shape[1])
    return side, side


# What leaves a tower without a merger for the projector (B, n, C), from what the tower returns


def selected(core: Any, output: Any) -> Tensor:
    """The layer that the configuration names, or several side by side."""
    layers = core.config.vision_feature_layer
    if isinstance(layers, int):
        return output.hidden_states[layers]
    return torch.cat([output.hidden_states[layer] for layer in layers], dim=-1)


def last(core: Any, output: Any) -> Tensor:
    """What the tower ends with, after its last norm if it has one."""
    return output.last_hidden_state


def last_or_selected(core: Any, output: Any) -> Tensor:
    """What the tower ends with if the configuration names the last layer, else as :func:`selected`."""
    return (last if core.config.vision_feature_layer == -1 else selected)(core, output)


def patch_grids(tower: Any, arguments: Arguments) -> list[tuple[int, int]]:
    """Rows and columns of patches of each picture, from the arguments of a tower that takes sizes."""
    sizes, patch = arguments.get("image_sizes"), tower.config.patch_size
    if sizes is None:
        pixels = arguments["pixel_values"]
        sizes = [pixels.shape[-2:]] * len(pixels)
    elif isinstance(sizes, Tensor):
        sizes = sizes.tolist()
    return [(height // patch, width // patch) for height, width in sizes]


# Watchers: what a method of the model does to features, seen from its arguments


def pack(seen: TowerPass, method: Callable[..., Any], arguments: Arguments) -> None:
    """Tiles laid out as one picture, unpadded, shrunk, given line ends: the same method on what was read."""
    tiles, seen.placed = arguments["image_features"], {}
    for name in seen.parts:
        found = seen.pictures(name).to(tiles[0].device)
        mine = {"image_features": found.split([len(one) for one in tiles])}
        if arguments.get("image_newline") is not None:
            mine["image_newline"] = found.new_zeros(found.shape[2])
        seen.placed[name] = list(method(**arguments | mine)[0])


def pool_frames(seen: TowerPass, method: Callable[..., Any], arguments: Arguments) -> None:
    """Frames made smaller: the same method on what was read."""
    seen.placed = {name: [method(seen.pictures(name))] for name in seen.parts}


def note_order(seen: TowerPass, method: Callable[..., Any], arguments: Arguments) -> None:
    """Merge units are sorted into windows before the first layer, and back after the last."""
    seen.order = arguments["window_index"]
