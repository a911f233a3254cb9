"""Many questions about one picture: the tower sees it once, and every question's row gets its features."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..models.model_changes import ModelChanges

_TOWER_BATCH = 16  # pictures that go through the tower together


def can_share(model: Any) -> bool:
    """Whether the model asks for the features of its pictures in the one way that is known here."""
    from transformers import LlavaForConditionalGeneration

    return type(model) is LlavaForConditionalGeneration


class SharedPictures:
    """Inside, ``model`` takes the features of pictures seen at the beginning, and ignores the pixels of a call.

    Use it after ``attach``: the features are those that the reduction leaves. The exit restores the model.

    Args:
        model: one that :func:`can_share`.
        pixels: (P, 3, height, width) the pictures.

    Attributes:
        rows: for every row of the next call the index of its picture.
    """

    def __init__(self, model: Any, pixels: Tensor) -> None:
        self.rows: Sequence[int] = ()
        self._model, self._pixels = model, pixels
        self._features: list[Tensor] = []
        self._changes = ModelChanges()

    def __enter__(self) -> SharedPictures:
        inner = self._model.model
        original = inner.get_image_features
        with torch.inference_mode():
            for part in self._pixels.split(_TOWER_BATCH):
                outputs = original(pixel_values=part.to(self._model.device, self._model.dtype), return_dict=True)
                self._features += list(outputs.pooler_output)

        @functools.wraps(original)  # generate chooses its arguments by the signature
        def features(*args: Any, **kwargs: Any) -> Any:
            return type(outputs)(pooler_output=[self._features[row] for row in self.rows])

        self._changes.set(inner, "get_image_features", features)
        return self

    def __exit__(self, *_: object) -> None:
        self._changes.undo()

    def pixel_values(self) -> Tensor:
        """As many pictures as there are rows, for the counting that models do: a view whose values are not read."""
        first = self._pixels[:1].to(self._model.device, self._model.dtype)
        return first.expand(len(self.rows), -1, -1, -1)
