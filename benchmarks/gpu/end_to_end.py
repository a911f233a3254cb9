"""Reduction inside models on a GPU: CLIP-L images a second, and the prefill of a LLaVA-1.5-7B, random bf16 weights.

    python benchmarks/gpu/end_to_end.py --json gpu_results/results.json

Every method of ``ficoco_ext.METHODS`` is attached at the same keep ratio and timed in turns with the model as it is. A
prefill goes from pixels and prompt to the first answer token's logits, reduction included. Weights are random: right
for time and memory, meaningless as a model.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from contained import Program, Task, options, said
from measure import Stopwatch, hardware, need_kernels
from rows import Recorder

import ficoco_ext
from ficoco_ext.apps import timing
from ficoco_ext.cost import flop_counter
from ficoco_ext.models.transformers_api import output_cache

GEOMETRY = "llava-1.5-7b"
PLAIN = "without"


def build(rehearse: bool, device: torch.device) -> Any:
    """The model, with SDPA; a rehearsal takes the small one that the package holds."""
    if rehearse:
        from ficoco_ext.apps import checkpoint

        return checkpoint.load(None, torch.float32, device).model
    layers = timing.GEOMETRIES[GEOMETRY].layers
    model = timing.shapes(GEOMETRY, timing.VISION_LAYERS, layers, torch.bfloat16)
    timing.materialize(model, device)
    return model


def prompts(model: Any, batch: int, images: int, text_tokens: int) -> dict[str, Any]:
    """``batch`` rows of ``images`` noise pictures amid ``text_tokens`` random words, as a processor gives them."""
    generator = torch.Generator().manual_seed(0)
    config = model.config
    side = config.vision_config.image_size
    patches = (side // config.vision_config.patch_size) ** 2
    words = torch.randint(4, config.text_config.vocab_size - 4, (batch, text_tokens), generator=generator)
    words[words == config.image_token_id] += 1
    picture = words.new_full((batch, images * patches), config.image_token_id)
    ids = torch.cat([words[:, : text_tokens // 2], picture, words[:, text_tokens // 2 :]], dim=1).to(model.device)
    pixels = torch.randn(batch * images, 3, side, side, generator=generator).to(model.device, model.dtype)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


class EndToEnd:
    """Times one model with every method."""

    def __init__(self, watch: Stopwatch, recorder: Recorder, model: Any, keep_ratio: float, seconds: float) -> None:
        self.watch, self.recorder, self.model, self.seconds = watch, recorder, model, seconds
        self.schedules: dict[str, Any] = {}
        self.skipped: dict[str, str] = {}
        self.methods: dict[str, Callable[[], Any]] = {PLAIN: nullcontext}
        self.in_tower = [PLAIN]
        for name in ficoco_ext.METHODS:
            try:
                with self._attached(name, keep_ratio) as handle:
                    self.schedules[name] = _schedule(handle)
                    if handle.schedule is not None:
                        self.in_tower.append(name)
                self.methods[name] = partial(self._attached, name, keep_ratio)
            except Exception as error:  # a method may be for another part of the model
                self.skipped[name] = said(error)

    def _attached(self, name: str, keep_ratio: float) -> Any:
        return ficoco_ext.attach(self.model, name, keep_ratio=keep_ratio)

    def _turns(self, run: Callable[[], Any], methods: list[str] | None = None) -> dict[str, Any]:
        """Median seconds of ``run`` with every method, in turns; attaching is not timed. Failing ones say why."""
        chosen = {name: self.methods[name] for name in methods or self.methods}
        times: dict[str, list[float]] = {name: [] for name in chosen}
        failed: dict[str, str] = {}
        stop, least = time.perf_counter() + self.seconds * len(times), 2 if self.watch.rehearse else 7
        for turn in range(-2, 100):  # two turns warm up
            if turn >= least and time.perf_counter() > stop:
                break
            for name, attached in chosen.items():
                if name in failed:
                    continue
                try:
                    with attached():
                        self.watch.synchronize()
                        start = time.perf_counter()
                        run()
                        self.watch.synchronize()
                        if turn >= 0:
                            times[name].append(time.perf_counter() - start)
                except Exception as error:
                    failed[name] = said(error)
        done = {name: values for name, values in times.items() if values and name not in failed}
        return {"seconds": done, "failed": failed}

    def tower(self, batch: int) -> None:
        """Images a second through the vision tower."""
        tower, side = self.model.model.vision_tower, self.model.config.vision_config.image_size
        pixels = torch.randn(batch, 3, side, side, device=self.model.device, dtype=self.model.dtype)
        found = self._turns(lambda: tower(pixels), self.in_tower)
        plain = _median(found["seconds"][PLAIN])
        for name, seconds in found["seconds"].items():
            median = _median(seconds)
            row = {"batch": batch, "method": name, "images_per_second": round(batch / median, 1)}
            row |= {"speedup": round(plain / median, 3), **_spread(seconds)}
            self.recorder.add("tower", row)
        for name, why in found["failed"].items():
            self.recorder.add("tower", {"batch": batch, "method": name, "failed": why})

    def flash(self, batch: int, images: int, text_tokens: int) -> None:
        """A prefill with the flash-attn package, where that is installed."""
        try:
            self.model.set_attn_implementation("flash_attention_2")
        except ImportError as error:
            self.recorder.facts(flash_attention=said(error))
            return
        try:
            self.prefill(batch, images, text_tokens)
        finally:
            self.model.set_attn_implementation("sdpa")

    def prefill(self, batch: int, images: int, text_tokens: int) -> None:
        """Time to the first token, cache, memory, FLOPs."""
        inputs = prompts(self.model, batch, images, text_tokens)
        what = {"batch": batch, "images": images, "text_tokens": text_tokens}
        what["attention"] = self.model.config.text_config._attn_implementation

        def forward() -> Any:
            return self.model(**inputs, use_cache=True, logits_to_keep=1)

        facts: dict[str, dict[str, Any]] = {}
        for name, attached in list(self.methods.items()):
            try:
                with attached():
                    facts[name] = self._facts(forward)
            except Exception as error:
                self.recorder.add("prefill", {**what, "method": name, "failed": said(error)})
        found = self._turns(forward)
        plain, plain_flops = _median(found["seconds"][PLAIN]), facts[PLAIN]["flops"]["total"]
        for name, seconds in found["seconds"].items():
            if name not in facts:
                continue
            row = {**what, "method": name, **facts[name]}
            row["ttft_ms"] = round(_median(seconds) * 1e3, 3)
            row["time_ratio"] = round(_median(seconds) / plain, 4)
            row["flops_ratio"] = round(facts[name]["flops"]["total"] / plain_flops, 4)
            self.recorder.add("prefill", row | _spread(seconds))
        for name, why in found["failed"].items():
            if name in facts:
                self.recorder.add("prefill", {**what, "method": name, "failed": why})

    def _facts(self, forward: Callable[[], Any]) -> dict[str, Any]:
        """What one counted forward says, and its peak memory beyond the weights."""
        counted, output = flop_counter.count(self.model, forward)
        layers = output_cache(output).layers
        size = sum(t.numel() * t.element_size() for layer in layers for t in (layer.keys, layer.values))
        rows = int(layers[0].keys.shape[-2])
        held = [int(layer.keys.shape[-2]) for layer in layers]
        del output, layers
        gc.collect()
        return {
            "tokens": rows,
            "tokens_of_layers": held,
            "kv_bytes": size,
            "peak_extra_bytes": self.watch.extra_memory(forward),
            "flops": vars(counted).copy(),
        }


def _schedule(handle: Any) -> dict[str, Any]:
    """What is removed where."""
    found: dict[str, Any] = {}
    if handle.schedule is not None:
        found["tower"] = dict(zip(handle.schedule.layers, handle.schedule.r, strict=True))
    if handle.plan is not None:
        plan = handle.plan
        found["language model"] = {"layers": plan.layers, "r": plan.r, "keep_ratio": plan.keep_ratio}
    return found


def _median(seconds: list[float]) -> float:
    return statistics.median(seconds)


def _spread(seconds: list[float]) -> dict[str, Any]:
    ordered = sorted(seconds)
    tenth = len(ordered) // 10
    return {
        "low_ms": round(ordered[tenth] * 1e3, 3),
        "high_ms": round(ordered[-1 - tenth] * 1e3, 3),
        "rounds": len(ordered),
    }


def tasks(args: argparse.Namespace, recorder: Recorder) -> Iterator[Task]:
    """One task for each input; all methods take turns within it."""
    need_kernels(args.rehearse)
    torch.set_grad_enabled(False)
    watch = Stopwatch(args.rehearse)
    model = build(args.rehearse, watch.device)
    run = EndToEnd(watch, recorder, model, args.keep_ratio, 0.05 if args.rehearse else args.seconds)
    recorder.facts(
        environment=hardware(),
        model="tiny_llava" if args.rehearse else GEOMETRY,
        weights="trained, tiny" if args.rehearse else "random",
        dtype=str(model.dtype).removeprefix("torch."),
        keep_ratio=args.keep_ratio,
        how_flops=flop_counter.HOW,
        schedules=run.schedules,
        skipped=run.skipped,
    )
    text = args.text_tokens
    prompts_ = ((2, 1, text),) if args.rehearse else ((1, 1, text), (1, 5, 512), (8, 1, text))
    for batch, images, words in prompts_:
        yield f"prefill, B {batch}, {images} images, {words} words", partial(run.prefill, batch, images, words)
    for batch in (2,) if args.rehearse else (1, 8, 64):
        yield f"tower, B {batch}", partial(run.tower, batch)
    if not args.rehearse:
        yield "prefill, flash attention", partial(run.flash, 1, 5, 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options(parser, budget=900.0)
    parser.add_argument("--keep-ratio", type=float, default=0.25, help="visual tokens that reach the language model")
    parser.add_argument("--text-tokens", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=0.7, help="timing of each method in each row")
    args = parser.parse_args()
    raise SystemExit(Program("end_to_end", tasks, 60.0 if args.rehearse else 120.0).main(args))


if __name__ == "__main__":
    main()
