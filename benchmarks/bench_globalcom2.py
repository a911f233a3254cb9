"""What GlobalCom2's own work takes beside the vision tower, in LLaVA-NeXT with a CLIP-L/336 of random weights.

    python benchmarks/bench_globalcom2.py --json benchmarks/results/globalcom2_cpu.json

One picture of a thumbnail and four crops goes through `get_image_features` of an attached model. Timed inside that
call, on the same clock: the tower; and all that the method adds: the class logits in one layer, how they are laid out,
the geometry of the picture, the choice, and the cut of the features. The language model is tiny and never runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from harness import Timing, require_kernels, save, timing_dict

import ficoco_ext
from ficoco_ext.models import tower_readings
from ficoco_ext.models.projector_reduction import ProjectorReduction

SIDE, PATCH, PICTURE, KEEP = 336, 14, (672, 672), 0.25
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def next_model() -> Any:
    """LLaVA-NeXT with the tower of its checkpoints."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=SIDE,
        patch_size=PATCH,
    )
    text = LlamaConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1, vocab_size=64)
    config = LlavaNextConfig(
        vision_config=vision, text_config=text, image_token_index=63, image_grid_pinpoints=PINPOINTS
    )
    torch.manual_seed(0)
    return LlavaNextForConditionalGeneration(config).eval()


class Clock:
    """Seconds inside of functions, by a name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, timed as ``name``."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

        return timed


def bench(rounds: int, budget: str) -> list[dict[str, Any]]:
    """One result: the method's share of the tower's time, and its parts."""
    model, clock = next_model(), Clock()
    pixels = torch.randn(1, 5, 3, SIDE, SIDE)
    tower = model.model.vision_tower
    measure = clock.around("class logits", tower_readings._Tower.measure)
    reduced = clock.around("geometry, choice and cut", ProjectorReduction.reduced)
    found: list[dict[str, float]] = []
    with (
        mock.patch.object(tower_readings._Tower, "measure", measure),
        mock.patch.object(ProjectorReduction, "reduced", reduced),
        ficoco_ext.attach(model, "globalcom2", keep_ratio=KEEP, budget=budget),
    ):
        packing = model.model.pack_image_features
        packing.watcher = clock.around("layout of the logits", packing.watcher)
        tower.forward = clock.around("tower", tower.forward)
        try:
            for _ in range(1 + rounds):
                clock.seconds = {}
                with torch.inference_mode():
                    model.model.get_image_features(pixels, image_sizes=[PICTURE])
                found.append(dict(clock.seconds))
        finally:
            del tower.forward
    parts = {name: Timing.of([one[name] for one in found[1:]]) for name in found[0]}
    own = [sum(seconds for name, seconds in one.items() if name != "tower") for one in found[1:]]
    share = Timing.of(own).median_ms / parts["tower"].median_ms
    print(f"{budget}: {Timing.of(own).median_ms:.1f} ms of {parts['tower'].median_ms:.0f} ms, {share:.2%} of the tower")
    for name, one in parts.items():
        print(f"    {name}: {one.median_ms:.2f} ms")
    timed = timing_dict({"own": Timing.of(own), **parts})
    return [{"budget": budget, "crops": 5, "keep_ratio": KEEP, "share_of_tower": round(share, 6), **timed}]


def main() -> None:
    """Print, and write where --json says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    require_kernels()
    results = [one for budget in ("exact", "floor") for one in bench(given.rounds, budget)]
    if given.json:
        save(given.json, results)


if __name__ == "__main__":
    main()
