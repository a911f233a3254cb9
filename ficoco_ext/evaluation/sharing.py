"""Many questions about one picture: the tower sees it once, and every question's row gets its features."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..models import AttachPlan
from ..models.model_changes import ModelChanges
from ..models.projections import Projection, Reduced
from ..models.projector_reduction import EncoderCall
from ..stages.needs import KEY_SET, TEXT

_TOWER_BATCH = 16  # pictures that go through the tower together


def can_share(model: Any) -> bool:
    """Whether the model asks for the features of its pictures in the one way that is known here."""
    from transformers import LlavaForConditionalGeneration

    return type(model) is LlavaForConditionalGeneration


def reads_text(model: Any) -> bool:
    """Whether what is attached to ``model`` reads the words of a prompt before it chooses among a picture's tokens."""
    handle = getattr(model, "ficoco_handle", None)
    return handle is not None and chooses_by_text(handle.attach_plan)


def needs_pixels(model: Any) -> bool:
    """Whether what is attached to ``model`` reads its vision tower in each call, for a key set."""
    handle = getattr(model, "ficoco_handle", None)
    return handle is not None and any(KEY_SET in method.needs for method in handle.attach_plan.decoder_methods)


def chooses_by_text(plan: AttachPlan) -> bool:
    """Whether what reaches the language model of a picture depends on the words of the prompt."""
    before = [*plan.methods, *([] if plan.projector is None else [plan.projector.method])]
    return any(TEXT in method.needs for method in before)


class SharedPictures:
    """Inside, ``model`` takes the features of pictures seen at the beginning, and ignores the pixels of a call.

    Use it after ``attach``: the features are those that the reduction leaves, and prompts are cut by what it kept of
    each row's own picture. The exit restores the model.

    Args:
        model: one that :func:`can_share`.
        pixels: (P, 3, height, width) the pictures.

    Attributes:
        rows: for every row of the next call the index of its picture.

    Raises:
        ValueError: at the entry, a method is attached whose choice depends on the question, or that reads the tower
            in each call.
    """

    def __init__(self, model: Any, pixels: Tensor) -> None:
        self.rows: Sequence[int] = ()
        self._model, self._pixels = model, pixels
        self._changes = ModelChanges()

    def __enter__(self) -> SharedPictures:
        if reads_text(self._model):
            name = self._model.ficoco_handle.attach_plan.summary
            raise ValueError(
                f"SharedPictures: a picture must be encoded again for each question, as {name} chooses by its "
                "words; what it leaves for one question is not what another one needs"
            )
        if needs_pixels(self._model):
            name = self._model.ficoco_handle.attach_plan.summary
            raise ValueError(
                f"SharedPictures: a picture must be encoded again for each question, as {name} reads the vision tower "
                "in each call; features alone do not say what it looks at"
            )
        encoder = self._model.model.get_image_features
        with torch.inference_mode():
            if isinstance(encoder, EncoderCall):
                self._share_reduced(encoder)
            else:
                self._share_features(encoder)
        return self

    def _parts(self) -> Iterator[Tensor]:
        """Some pictures at a time, where the model is."""
        for part in self._pixels.split(_TOWER_BATCH):
            yield part.to(self._model.device, self._model.dtype)

    def _share_features(self, original: Callable[..., Any]) -> None:
        held: list[Tensor] = []
        for part in self._parts():
            outputs = original(pixel_values=part, return_dict=True)
            held += list(outputs.pooler_output)

        @functools.wraps(original)  # generate chooses its arguments by the signature
        def features(*args: Any, **kwargs: Any) -> Any:
            return type(outputs)(pooler_output=[held[row] for row in self.rows])

        self._changes.set(self._model.model, "get_image_features", features)

    def _share_reduced(self, encoder: EncoderCall) -> None:
        """What was kept of each picture is held too, because its rows' prompts are cut by it."""
        held: list[tuple[Tensor, Projection]] = []
        for part in self._parts():
            found = encoder.run(part, {})
            held += zip(found.output.pooler_output, found.projections, strict=True)

        def run(pixels: Any, options: Mapping[str, Any]) -> Reduced:
            features, projections = zip(*(held[row] for row in self.rows), strict=True)
            return Reduced(pixels, type(found.output)(pooler_output=list(features)), projections)

        self._changes.set(encoder, "run", run)

    def __exit__(self, *_: object) -> None:
        self._changes.undo()

    def pixel_values(self) -> Tensor:
        """As many pictures as there are rows, for the counting that models do: a view whose values are not read."""
        first = self._pixels[:1].to(self._model.device, self._model.dtype)
        return first.expand(len(self.rows), -1, -1, -1)
