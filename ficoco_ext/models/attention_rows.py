"""Rows of attention over an image: of the class token in the tower, of words in the language model.

Query and key of a layer are read while its own kernel runs and become one row of attention at once: no map of all
tokens is made, and no layer's query and key outlive it. The model must not be attached.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..ops import QueryKey, checks
from . import qk_capture
from .families import tower_of
from .model_changes import ModelChanges
from .tower_saliency import class_logits


def class_attention(model: Any, pixel_values: Tensor, layer: int, *, logits: bool = False) -> Tensor:
    """(B, P) the attention of class tokens to the patches of their images in a layer of the tower, float32.

    Heads are averaged.

    Args:
        model: a LLaVA-1.5 or LLaVA-NeXT. pixel_values: (B, 3, height, width) of images, or of a picture's crops.
        layer: of the tower. logits: before the softmax.

    Raises:
        NotImplementedError: a tower without a class token. ValueError: no such layer.
    """
    tower = model.model.vision_tower
    if not has_class_token(tower):
        remedy = "ask for a word of the question"
        got = type(tower).__name__
        checks.fail("attention", "class", "a CLIP tower, which has a class token", got, remedy, NotImplementedError)
    modules = _chosen("attention", tower.encoder.layers, (layer,), "the vision tower")

    def row(captured: QueryKey) -> Tensor:
        if logits:
            return class_logits(captured)
        return ops.attention_stats(captured, class_token=True, probs=True, column=False, patches=False)[0]

    with torch.inference_mode(), _rows(modules, row) as found:
        tower(pixel_values)
    return found[layer]


def word_attention(
    model: Any, inputs: Mapping[str, Any], visual: Sequence[int], words: Sequence[int], layers: Sequence[int]
) -> dict[int, Tensor]:
    """(n,) the attention of text tokens to each visual token, for each layer, heads and tokens averaged, float32.

    Args:
        model: a model with a language model that is served.
        inputs: of one row, as the processor made them. visual: positions of its n visual tokens. words: positions of
            the text tokens, after the visual ones: those before attend to none. layers: of the language model.

    Raises:
        ValueError: no such layer.
    """
    decoder = model.model.language_model
    modules = _chosen("attention", decoder.layers, layers, "the language model")
    rows, others = torch.tensor([list(visual)]), torch.tensor([list(words)])

    def row(captured: QueryKey) -> Tensor:
        device = captured.query.device
        share = torch.full((1, 1, len(words)), 1 / len(words), device=device, dtype=ops.result_dtype(captured.query))
        positions = rows.to(device), others.to(device)
        return ops.token_attention(captured, *positions, share, probs=True, column=True, causal=True)[0, 0]

    with torch.inference_mode(), _rows(modules, row) as found:
        model(**inputs, logits_to_keep=1)
    return found


def has_class_token(tower: nn.Module) -> bool:
    """Whether the first token of this tower is a class token."""
    known = tower_of(tower)
    return known is not None and known.class_token


def sharpest(maps: Mapping[int, Tensor]) -> int:
    """The layer with the sharpest map: where the most attention goes to the fewest tokens.

    Its map a has the largest sum of a log(a / mean(a)): the attention on all tokens together times the divergence of
    its spread from an even one. The first of equals.

    Example:
        >>> import torch
        >>> from ficoco_ext.models.attention_rows import sharpest
        >>> sharpest({0: torch.tensor([0.4, 0.4]), 1: torch.tensor([0.5, 0.1]), 2: torch.tensor([0.01, 0.0])})
        1
    """

    def sharpness(values: Tensor) -> float:
        exact = values.double()
        even = exact.mean()
        return float(torch.special.xlogy(exact, exact / even).sum()) if even > 0 else 0.0

    return max(maps, key=lambda layer: (sharpness(maps[layer]), -layer))


def _chosen(op: str, all_layers: Any, layers: Sequence[int], where: str) -> dict[int, nn.Module]:
    for layer in layers:
        if not 0 <= layer < len(all_layers):
            wanted = f"in 0 ... {len(all_layers) - 1}"
            checks.fail(op, "layer", wanted, str(layer), f"name a layer of {where}")
    return {layer: all_layers[layer].self_attn for layer in layers}


@contextlib.contextmanager
def _rows(modules: Mapping[int, nn.Module], row: Callable[[QueryKey], Tensor]) -> Iterator[dict[int, Tensor]]:
    """Inside, calls of these attention modules fill the dictionary with what ``row`` makes of query and key."""
    changes, found = ModelChanges(), {}

    def reader(layer: int, capture: qk_capture.QueryKeyCapture) -> Callable[..., None]:
        def read(*_: Any) -> None:
            found[layer] = row(capture.take()).cpu()

        return read

    try:
        for layer, module in modules.items():
            capture = qk_capture.install(module, changes)
            changes.hook(module.register_forward_hook(reader(layer, capture)))
        yield found
    finally:
        changes.undo()
