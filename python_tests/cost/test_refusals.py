"""What the cost model refuses, and that it says what is possible."""

import dataclasses

import pytest

from ficoco_ext import Method, Plan, Schedule, cost
from ficoco_ext.stages import Compress

BASE = cost.architecture("llava-1.5-7b")
LATE = Schedule(576, (40,), (1,))


def shaped(**changes):
    return dataclasses.replace(BASE.language_model, **changes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cost.prefill("llava-2"), "model must be one of llava-1.5-7b, .*video-llava-7b, a directory"),
        (lambda: cost.prefill(3), "vision_config and a text_config, got int"),
        (lambda: cost.prefill(BASE, hardware="tpu"), "hardware must be one of a100-80g, .* mi300x, cpu"),
        (lambda: cost.prefill(BASE, convention="macs"), "convention must be one of 'matmul', 'llmviewer'"),
        (lambda: cost.prefill(BASE, precision="FP8"), "precision must be one of FP32, .* W4A16KV4, got 'FP8'"),
        (lambda: cost.prefill(BASE, precision="W3A16"), "weights must be one of 4, 8, 16, 32, got 3"),
        (lambda: cost.prefill(BASE, text_tokens=-1), r"text_tokens must be in 0 \.\.\. 1000000000, got -1"),
        (lambda: cost.prefill(BASE, images=0), r"images must be in 1 \.\.\. 1000000000, got 0"),
        (lambda: cost.prefill(BASE, text_after=61), r"text_after must be in \[0, 60\]"),
        (lambda: cost.prefill(BASE, visual_tokens=-2), "visual_tokens must not be negative"),
        (lambda: cost.prefill(BASE, causal=True, fused_attention=False), "causal must be False with unfused"),
        (lambda: cost.prefill(BASE, decoder=LATE), r"decoder must reduce in layers 0 ... 31, got layer 40"),
        (lambda: cost.decode(BASE, decoder=LATE), r"decoder must reduce in layers 0 ... 31, got layer 40"),
        (lambda: cost.prefill(BASE, decoder=Plan((40,), r=1)), r"decoder must reduce in layers 0 ... 31, got layer 40"),
        (lambda: cost.prefill(BASE, decoder=Schedule(575, (4,), (1,))), "start with the 576 visual tokens .* got 575"),
        (
            lambda: cost.prefill(BASE, vision=Schedule(575, (4,), (1,))),
            "576 patches of a crop of llava-1.5-7b, got 575",
        ),
        (lambda: cost.prefill(BASE, vision=Schedule(576, (23,), (1,))), "layers 0 ... 22 .* last that is used, got"),
        (lambda: cost.prefill(BASE, vision=Schedule(576, (4,), (1,), True)), "between attention and MLP"),
        (lambda: cost.prefill("qwen2-vl-7b", vision=Schedule(2304, (4,), (1,))), "joins blocks of 4 patches"),
        (lambda: cost.prefill(BASE, vision=Schedule(576, (4,), (1,)), method="fastv"), "vision must be None: fastv"),
        (lambda: cost.prefill(BASE, decoder=Schedule(576, (4,), (1,)), method="tome"), "decoder must be None: tome"),
        (lambda: cost.prefill(BASE, decoder=Schedule(576, (4,), (1,)), method="sparse"), "one of 'ficoco-v'"),
        (
            lambda: cost.prefill(BASE, decoder=Schedule(576, (4,), (1,)), method="pyramiddrop"),
            "must reduce before attention, as pyramiddrop does",
        ),
        (
            lambda: cost.prefill(BASE, decoder=Schedule(576, (4,), (1,)), include_reduction=True),
            "method must be given to count the reduction's own cost",
        ),
        (lambda: cost.architecture(BASE, image_size=3), "image_size must be at least 14, one patch, got 3"),
        (lambda: dataclasses.replace(BASE, visual_tokens=5), "visual_tokens must be at least 576"),
        (lambda: shaped(kv_heads=5), "kv_heads must divide heads, got 5 and 32"),
        (lambda: shaped(layers=10**6), r"layers must be in 1 \.\.\. 1000, got 1000000"),
        (lambda: shaped(layers=0), r"layers must be in 1 \.\.\. 1000, got 0"),
        (lambda: dataclasses.replace(BASE.tower, used=25), "used must be at most layers, got 25 of 24"),
        (lambda: dataclasses.replace(cost.HARDWARE["h200"], bandwidth=0), "bandwidth must be positive"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("bad", [1.5, True, "60"])
def test_counts_are_integers(bad):
    with pytest.raises(TypeError, match="text_tokens must be an integer"):
        cost.prefill(BASE, text_tokens=bad)


def test_a_stage_of_ones_own():
    method = Method("mine", filter=lambda *a, **b: None, correlate=None, compress=Compress())
    vision = Schedule(576, (4,), (1,))
    with pytest.raises(ValueError, match="the cost of the filter function is not known; pass include_reduction=False"):
        cost.prefill(BASE, vision=vision, method=method)
    assert "reduction" not in cost.prefill(BASE, vision=vision, method=method, include_reduction=False).parts


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dataclasses.replace(BASE.tower, heads=15), "Tower: heads must divide hidden, got 15 and 1024"),
        (lambda: dataclasses.replace(BASE.tower, layers=1001), r"Tower: layers must be in 1 \.\.\. 1000, got 1001"),
        (
            lambda: dataclasses.replace(BASE, crops=True),
            r"Architecture: crops must be in 1 \.\.\. 1000000000, got True",
        ),
        (lambda: cost.Projector(0, 1, 1), r"Projector: inputs must be in 1 \.\.\. 1000000000, got 0"),
        (lambda: cost.Precision(True, 16, 16), "Precision: weights must be one of 4, 8, 16, 32, got True"),
        (lambda: cost.Precision(16, 16, 12), "Precision: kv must be one of 4, 8, 16, 32, got 12"),
        (lambda: dataclasses.replace(cost.HARDWARE["h100"], int8=0.0), "Hardware: int8 must be positive, got 0.0"),
    ],
)
def test_shapes_and_devices_that_cannot_be(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_layer_after_the_last_is_refused():
    with pytest.raises(ValueError, match=r"decoder must reduce in layers 0 \.\.\. 31, got layer 32"):
        cost.prefill(BASE, decoder=Schedule(576, (32,), (1,)))
    assert cost.prefill(BASE, decoder=Schedule(576, (31,), (1,))).tokens.final == 575
