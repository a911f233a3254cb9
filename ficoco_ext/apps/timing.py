"""What one prefill costs, measured; and LLaVA-1.5 in its true shapes with random weights, to measure it on."""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..cost import flop_counter
from ..cost.flop_counter import Flops
from ..io.suggest import did_you_mean
from ..models.transformers_api import output_cache, rotary_embedding

IMAGE_TOKEN = 32000
FASTER = 1.05  # a ratio of medians below this is not called faster
_GIB = 2**30

Step = Callable[[int, int], None]


@dataclass(frozen=True)
class TextShape:
    """The shape of a language model, such as Vicuna."""

    layers: int
    hidden: int
    heads: int
    mlp: int
    vocabulary: int = 32064


GEOMETRIES = {
    "llava-1.5-7b": TextShape(layers=32, hidden=4096, heads=32, mlp=11008),
    "llava-1.5-13b": TextShape(layers=40, hidden=5120, heads=40, mlp=13824),
}
VISION_LAYERS = 24  # CLIP ViT-L/14 at 336 pixels, the tower of both


@dataclass(frozen=True)
class MeasuredPrefill:
    """One prefill: everything from pixels and prompt to the first answer token's logits.

    Attributes:
        tokens: positions that the language model gets, text and image: what its first layer caches.
        kv_bytes: keys and values that all layers cache, measured on the cache.
        kv_bytes_of_layer: the same for each layer.
        flops: counted on the real forward, see :data:`ficoco_ext.cost.flop_counter.HOW`.
        seconds: median of ``runs``.
        runs: seconds of every timed run, in order.
    """

    tokens: int
    kv_bytes: int
    kv_bytes_of_layer: tuple[int, ...]
    flops: Flops
    seconds: float
    runs: tuple[float, ...]


def forward(model: Any, inputs: dict[str, Any]) -> Any:
    """The prefill as ``generate`` runs it: with a cache, logits of the last position only."""
    with torch.inference_mode():
        return model(**inputs, use_cache=True, logits_to_keep=1)


def _timed(model: Any, inputs: dict[str, Any]) -> float:
    cuda = model.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(model.device)
    start = time.perf_counter()
    forward(model, inputs)
    if cuda:
        torch.cuda.synchronize(model.device)
    return time.perf_counter() - start


def measure(
    model: Any, inputs: dict[str, Any], attached: Callable[[], Any], repeats: int, step: Step = lambda done, total: None
) -> tuple[MeasuredPrefill, MeasuredPrefill]:
    """The prefill without and with reduction: :func:`compare` of the two, ``repeats`` timed runs of each.

    Returns:
        Without, with. The medians of :attr:`MeasuredPrefill.runs` are to be compared, not single runs.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    without, reduced = compare(
        model, inputs, (contextlib.nullcontext, attached), least=repeats, most=repeats, step=step
    )
    return without, reduced


def compare(
    model: Any,
    inputs: dict[str, Any],
    ways: Sequence[Callable[[], Any]],
    *,
    least: int,
    most: int,
    seconds: float = 0.0,
    step: Step = lambda done, total: None,
) -> tuple[MeasuredPrefill, ...]:
    """The prefill in each of several ways, measured in turns so that a drift of the machine hits all alike.

    Args:
        model: a LLaVA without reduction.
        inputs: keyword arguments of one forward.
        ways: each attaches a reduction to ``model`` and returns the handle, a context manager;
            ``contextlib.nullcontext`` leaves the model as it is. Outside the timing.
        least, most, seconds: timed runs of each way: as many as fit into ``seconds``, at least and at most so many,
            after the counted run of each, which warms up.
        step: gets the runs that are done and all that there will be as far as is known; 0 while counting.
    """
    facts: list[tuple[int, int, tuple[int, ...], Flops]] = []
    runs: list[list[float]] = [[] for _ in ways]
    for way in ways:
        step(len(facts), 0)
        with way():
            facts.append(_facts(model, inputs))
    turn, expected, start = 0, least, time.perf_counter()
    while turn < least or (turn < most and time.perf_counter() < start + seconds):
        order = range(len(ways))
        for index, which in enumerate(order if turn % 2 == 0 else reversed(order)):  # none always runs on warm caches
            step(turn * len(ways) + index, expected * len(ways))
            with ways[which]():
                runs[which].append(_timed(model, inputs))
        turn += 1
        fitting = math.ceil(turn * seconds / (time.perf_counter() - start))
        expected = max(least, turn, min(most, fitting))
    return tuple(
        MeasuredPrefill(*fact, statistics.median(each), tuple(each)) for fact, each in zip(facts, runs, strict=True)
    )


def _facts(model: Any, inputs: dict[str, Any]) -> tuple[int, int, tuple[int, ...], Flops]:
    """Columns, bytes and FLOPs of one prefill."""
    counted, output = flop_counter.count(model, lambda: forward(model, inputs))
    layers = output_cache(output).layers
    each = tuple(sum(t.numel() * t.element_size() for t in (layer.keys, layer.values)) for layer in layers)
    return int(layers[0].keys.shape[-2]), sum(each), each, counted


def judged(full: MeasuredPrefill, few: MeasuredPrefill) -> str:
    """``"faster"``, ``"slower"`` or ``"noise"``: what pairs of runs of the same turn prove about ``few``.

    Proven is what at least 5 % of the median and more pairs show than two standard deviations of a fair coin.
    """
    pairs = list(zip(full.runs, few.runs, strict=True))
    wins = sum(after < before for before, after in pairs)
    sure = abs(wins - len(pairs) / 2) >= len(pairs) ** 0.5
    speedup = full.seconds / few.seconds
    if sure and speedup >= FASTER and wins > len(pairs) / 2:
        return "faster"
    return "slower" if sure and speedup <= 1 / FASTER and wins < len(pairs) / 2 else "noise"


def available_bytes(device: torch.device) -> int | None:
    """Memory that can still be had: of the GPU, or of the machine and this process's control group. None: unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = []
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        if hasattr(os, "sysconf") and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(os.sysconf_names):
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    try:  # a container may be allowed less than the machine has
        group = Path("/sys/fs/cgroup")
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return min(found, default=None)


def _config(name: str, vision_layers: int, text_layers: int) -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    shape = GEOMETRIES[name]
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=vision_layers,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    text = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=text_layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=4096,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        image_seq_length=(336 // 14) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def require_geometry(name: str) -> TextShape:
    """The shape of the geometry of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in GEOMETRIES:
        raise ValueError(
            f"geometry must be one of {', '.join(GEOMETRIES)}, got {name!r}{did_you_mean(name, GEOMETRIES)}"
        )
    return GEOMETRIES[name]


def shapes(name: str, vision_layers: int, text_layers: int, dtype: torch.dtype) -> Any:
    """LLaVA-1.5 in its true shapes, without weights yet: :func:`materialize` makes them.

    Args:
        name: a key of :data:`GEOMETRIES`.
        vision_layers, text_layers: how many layers; the layers' own shapes are always the true ones.
        dtype: of weights and activations.

    Raises:
        ValueError: unknown name, or not 2 ... 24 vision layers or 1 ... as many text layers as the true model has.
    """
    from transformers import LlavaForConditionalGeneration

    true = require_geometry(name).layers
    for what, count, least, most in (("vision", vision_layers, 2, VISION_LAYERS), ("text", text_layers, 1, true)):
        if not least <= count <= most:
            raise ValueError(f"{what}_layers must be in {least} ... {most}, what {name} has, got {count}")
    with torch.device("meta"):  # torch's own initialisation of billions of weights takes minutes
        return LlavaForConditionalGeneration._from_config(_config(name, vision_layers, text_layers), dtype=dtype).eval()


def materialize(model: Any, device: torch.device) -> None:
    """Give a model of :func:`shapes` random weights: right for time and memory, meaningless as a model.

    Raises:
        MemoryError: it would not fit; the message says what it needs and how to ask for less. Nothing was allocated.
    """
    _require_memory(model, device)
    model.to_empty(device=device)
    _fill(model)
    # Buffers are not in any checkpoint either: they are computed where the model is built.
    model.model.language_model.rotary_emb = rotary_embedding()(model.config.text_config).to(device)
    positions = model.model.vision_tower.embeddings.position_ids
    positions.copy_(torch.arange(positions.numel(), device=device).view_as(positions))


def _require_memory(model: nn.Module, device: torch.device) -> None:
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    needed = int(weights * 1.02) + _GIB  # activations and cache of one prompt, and room for the allocator
    available = available_bytes(device)
    if available is not None and needed > available:
        halve = ", or halve it with --dtype bfloat16" if next(model.parameters()).element_size() > 2 else ""
        raise MemoryError(
            f"this geometry needs {needed:,} bytes ({needed / _GIB:.1f} GiB) of memory, {available:,} "
            f"({available / _GIB:.1f} GiB) are available; build less of it with --vision-layers and --text-layers"
            f"{halve}"
        )


@torch.no_grad()
def _fill(model: nn.Module) -> None:
    """Noise of the usual width, one block repeated: the time of a product does not depend on what it multiplies."""
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(2**22, generator=generator) * 0.02
    for parameter in model.parameters():
        flat = parameter.view(-1)
        source = block.to(parameter.device, parameter.dtype)
        if parameter.dim() == 1:
            flat.fill_(1.0)  # norm scales; biases of 1 change no time and keep activations finite
            continue
        for start in range(0, flat.numel(), source.numel()):
            piece = flat[start : start + source.numel()]
            piece.copy_(source[: piece.numel()])


def require_room(model: Any, text_tokens: int) -> None:
    """Raise a ValueError if a prompt of one picture and ``text_tokens`` has no room in the model's positions."""
    vision = model.config.vision_config
    room = model.config.text_config.max_position_embeddings - (vision.image_size // vision.patch_size) ** 2
    if not 1 <= text_tokens <= room:
        raise ValueError(
            f"text_tokens must be in 1 ... {room}, the positions that the picture leaves, got {text_tokens}"
        )


def random_inputs(model: Any, text_tokens: int) -> dict[str, Any]:
    """One noise picture between two halves of ``text_tokens`` random words, as a processor would give them."""
    require_room(model, text_tokens)
    config = model.config
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(3, IMAGE_TOKEN, (text_tokens,), generator=generator)
    before = math.ceil(text_tokens / 2)
    picture = words.new_full(((side // patch) ** 2,), config.image_token_id)
    ids = torch.cat([words[:before], picture, words[before:]])[None]
    return {
        "input_ids": ids.to(model.device),
        "attention_mask": torch.ones_like(ids).to(model.device),
        "pixel_values": torch.randn(1, 3, side, side, generator=generator).to(model.device, model.dtype),
    }
