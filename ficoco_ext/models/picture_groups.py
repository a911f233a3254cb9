"""Pictures that are alike, and so reduced together: what a method after the projector gets of them, and gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..methods import FeatureMethod
from ..reduction import Reduction
from ..resolve import ProjectorPlan
from ..stages import VisualFeatures
from .layouts import Layout


class Alike(NamedTuple):
    """What pictures have in common that are reduced together.

    Attributes:
        before: tokens of each, line ends among them. layout: how they lie.
        left: tokens that stay of each, besides line ends.
    """

    before: int
    layout: Layout
    left: int

    @property
    def free(self) -> int:
        """Tokens that may leave."""
        return self.before - len(self.layout.line_ends)

    def indices(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(N,) and (E,) int64 among all tokens of a picture: those that may leave, and the line ends."""
        ends, crops = self.layout.line_ends, self.layout.crops
        if crops is not None:  # made on the device: a list of the host would have to be copied there, which waits
            line = torch.arange(crops.lines, device=device).unsqueeze(1) * (crops.columns + 1) + crops.patches
            valid = line + torch.arange(crops.columns, device=device)
            return torch.cat([torch.arange(crops.patches, device=device), valid.flatten()]), line[:, 0] + crops.columns
        free = torch.arange(self.before, device=device)
        if ends:
            left_out = set(ends)
            free = torch.tensor([index for index in range(self.before) if index not in left_out], device=device)
        return free, torch.tensor(ends, dtype=torch.int64, device=device)


Groups = dict[Alike, list[int]]  # numbers of the pictures that are alike


class Pictures:
    """Everything there is of the pictures of one call, in lists with one entry for each, changed as they are reduced.

    Args:
        features: (n, D) each. planes: likewise, features of other levels.
        seen: what there is for each token besides, by its name among :class:`VisualFeatures`.

    Attributes:
        kept: (T,) each: indices of the tokens that stayed.
    """

    def __init__(
        self,
        features: Sequence[Tensor],
        planes: Sequence[Sequence[Tensor]],
        seen: Mapping[str, Sequence[Tensor]],
    ) -> None:
        self.features, self.planes, self.seen = list(features), [list(plane) for plane in planes], seen
        self.kept = [torch.arange(len(one), device=one.device) for one in features]

    def visual(self, numbers: Sequence[int], alike: Alike, words: Any = None) -> VisualFeatures:
        """What a method gets of the pictures ``numbers``, which are ``alike``.

        ``words``: of each picture's prompt, embeddings and which are there; None: the method reads none.
        """
        together = torch.stack([self.features[number] for number in numbers])
        layout, device = alike.layout, together.device
        free, _ = alike.indices(device)
        of_tokens: dict[str, Any] = {
            name: torch.stack([values[number] for number in numbers]).to(device).index_select(1, free)
            for name, values in self.seen.items()
        }
        if words is not None:
            of_tokens |= {name: one[numbers].to(device) for name, one in zip(("text", "text_mask"), words, strict=True)}
        given = together.index_select(1, free)
        return VisualFeatures(given, grid=layout.grid, frames=layout.frames, crops=layout.crops, **of_tokens)

    def decided(self, groups: Groups, plan: ProjectorPlan) -> Groups:
        """``groups`` by how many tokens the data say that each picture keeps. Reads the device once."""
        found: Groups = {}
        asked = [
            plan.acting(alike.free, alike.left).counts(self.visual(numbers, alike)) for alike, numbers in groups.items()
        ]
        counts = torch.cat([one.to(asked[0].device) for one in asked]).tolist() if asked else []
        of_pictures = ((alike, number) for alike, numbers in groups.items() for number in numbers)
        for (alike, number), left in zip(of_pictures, counts, strict=True):
            found.setdefault(alike._replace(left=left), []).append(number)
        return found

    def reduce(self, method: FeatureMethod, numbers: Sequence[int], alike: Alike, words: Any = None) -> Reduction:
        """Reduce the pictures ``numbers``, which are ``alike``, in all lists. ``words``: as of :meth:`visual`."""
        visual = self.visual(numbers, alike, words)
        device = visual.features.device
        free, ends = alike.indices(device)
        of_planes = [torch.stack([plane[number] for number in numbers]).to(device) for plane in self.planes]
        result = method(visual, alike.left, [plane.index_select(1, free) for plane in of_planes])
        chosen = free[result.kept]
        if alike.layout.line_ends:
            together = torch.stack([self.features[number] for number in numbers])
            ends_at = ends.expand(len(numbers), -1)
            chosen, order = torch.cat([chosen, ends_at], 1).sort(1)
            parts = [(together, result.features), *zip(of_planes, result.planes, strict=True)]
            made = [_in_order(whole, part, ends_at, order) for whole, part in parts]
        else:
            made = [result.features, *result.planes]
        for row, number in enumerate(numbers):
            self.kept[number], self.features[number] = chosen[row], made[0][row]
            for plane, values in zip(self.planes, made[1:], strict=True):
                plane[number] = values[row].to(plane[number].device)
        return result.reduction


def _in_order(whole: Tensor, part: Tensor, ends: Tensor, order: Tensor) -> Tensor:
    """(B, T + E, D): what is left of the picture, ``part`` (B, T, D), and its line ends, taken from ``whole``."""

    def at(tensor: Tensor, index: Tensor) -> Tensor:
        return tensor.gather(1, index.unsqueeze(-1).expand(-1, -1, tensor.shape[-1]))

    return at(torch.cat([part, at(whole, ends)], 1), order)
