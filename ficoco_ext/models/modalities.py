"""What the vision side of a model hands to its language model: features, one tensor for each picture or video.

Every family gives them in the ``pooler_output`` of ``get_image_features`` and ``get_video_features``, as a list of
(n, D) or as one (I, n, D), and further tensors of the same tokens (planes) beside it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Modality(NamedTuple):
    """One kind of visual input of a family.

    Attributes:
        name: its key in ``mm_encoder_outputs``.
        method: of the inner model, which encodes it.
        pixels: the argument that holds its pixels.
        placeholder: the attribute of the config with the id of its tokens in a prompt.
        planes: attributes of the output with further features of the same tokens, each a list of planes.
        other_pixels: another name of ``pixels``, which the whole model alone takes.
    """

    name: str
    method: str
    pixels: str
    placeholder: str
    planes: tuple[str, ...] = ()
    other_pixels: str | None = None

    def pixels_of(self, options: Mapping[str, Any]) -> Any:
        """The pixels among the arguments of a call; None: it has none."""
        found = options.get(self.pixels)
        return options.get(self.other_pixels) if found is None and self.other_pixels else found


IMAGES = Modality("image", "get_image_features", "pixel_values", "image_token_id")
VIDEOS = Modality("video", "get_video_features", "pixel_values_videos", "video_token_id")


class Encoded(NamedTuple):
    """Features of pictures, and their planes in the same order.

    Attributes:
        features: one (n, D) for each picture. planes: for each plane one (n, E) for each picture.
        entries: how many pictures each entry of the encoder's output holds. Host values, as all numbers here.
    """

    features: tuple[Tensor, ...]
    planes: tuple[tuple[Tensor, ...], ...]
    entries: tuple[int, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens of each picture."""
        return tuple(int(one.shape[0]) for one in self.features)


def read(output: Any, modality: Modality, unit: int | None = None) -> Encoded:
    """The features in what an encoder returned.

    Args:
        output: of the encoder. modality: which it is.
        unit: tokens of a picture, where an entry of the output may hold several; None: an entry is a picture.
    """
    held = output.pooler_output
    each = (
        tuple(held) if isinstance(held, Tensor) and held.dim() == 3 else (held,) if isinstance(held, Tensor) else held
    )
    flat = [one.reshape(-1, one.shape[-1]) for one in each]
    sizes = [[unit] * (len(one) // unit) if unit and len(one) % unit == 0 else [len(one)] for one in flat]
    counts = [count for entry in sizes for count in entry]
    found = [plane for name in modality.planes for plane in getattr(output, name, None) or ()]
    planes = [plane if isinstance(plane, Tensor) else torch.cat(list(plane)) for plane in found]
    features = torch.cat(flat).split(counts) if unit else flat
    split = (plane.reshape(-1, plane.shape[-1]).split(counts) for plane in planes)
    return Encoded(tuple(features), tuple(split), tuple(len(entry) for entry in sizes))


def written(output: Any, modality: Modality, encoded: Encoded) -> Any:
    """A copy of ``output`` with other features, in the form that it had; the output itself is not changed.

    One tensor for all pictures stays one if they have equally many tokens, and becomes (tokens, D) otherwise.
    """
    output = copy.copy(output)
    _put(output, "pooler_output", _like(output.pooler_output, _joined(encoded.features, encoded.entries)))
    planes = iter(encoded.planes)
    for name in modality.planes:
        held = getattr(output, name, None)
        if held:
            _put(output, name, [_like(plane, _joined(next(planes), encoded.entries)) for plane in held])
    return output


def _put(output: Any, name: str, value: Any) -> None:
    if isinstance(output, dict):
        output[name] = value  # a ModelOutput keeps its attributes as items
    else:
        setattr(output, name, value)


def _joined(features: Sequence[Tensor], entries: Sequence[int]) -> list[Tensor]:
    """One tensor for each entry, which holds as many pictures."""
    if all(number == 1 for number in entries):
        return list(features)
    rest = iter(features)
    return [torch.cat([features[0][:0], *(next(rest) for _ in range(number))]) for number in entries]


def _like(held: Any, features: list[Tensor]) -> Any:
    if not isinstance(held, Tensor):
        return tuple(features) if isinstance(held, tuple) else features
    if held.dim() == 3 and len({one.shape[0] for one in features}) == 1:
        return torch.stack(features)
    return torch.cat(features)
