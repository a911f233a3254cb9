"""The demonstration: right answers, a FLOP count that agrees with one by hand, honest sentences about time."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from helpers.embedded import (
    LAYERS,
    MLP,
    PATCHES,
    PIXELS,
    TEXT_LAYERS,
    TEXT_MLP,
    VOCABULARY,
    WIDTH,
    one_thread,  # noqa: F401
)
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import ficoco_ext
from ficoco_ext import ops
from ficoco_ext.apps import checkpoint, demo, questions, timing
from ficoco_ext.cost import flop_counter
from ficoco_ext.stages import adaptive_targets


@pytest.fixture(scope="module")
def result():
    torch.set_num_threads(1)
    return demo.run(demo.Request(repeats=2))


def test_default_scene_is_answered_right_with_a_quarter_of_the_patches(result):
    assert (result.patches, result.kept) == (144, 36)
    assert len(result.answers) == 6
    assert all(answer.all_tokens_right and answer.reduced_right for answer in result.answers)
    assert all(answer.reduced == answer.truth for answer in result.answers)
    assert (result.all_tokens.tokens, result.reduced.tokens) == (155, 155 - 108)
    assert result.reduced.kv_bytes == 2 * TEXT_LAYERS * 47 * WIDTH * 4
    assert result.reduced.kv_bytes_of_layer == (2 * 47 * WIDTH * 4,) * TEXT_LAYERS
    assert (result.left, result.amount) == (36, {"keep_ratio": 0.25})
    assert not result.notices


def test_result_is_plain_json(result):
    document = json.loads(json.dumps(dataclasses.asdict(result), allow_nan=False))
    assert document["layers"][4] == {"layer": 4, "entering": 144, "removed": 36, "left": 108}
    assert document["speedup"] == pytest.approx(document["all_tokens"]["seconds"] / document["reduced"]["seconds"])
    assert len(document["reduced"]["runs"]) == 2


def test_all_samples_counts_every_question():
    samples = demo.run(demo.Request(repeats=1, all_samples=True, question="what word is written ?")).samples
    assert samples.asked == 48
    assert samples.all_tokens_right == 46  # what this checkpoint gets right; a change of the prompt would show here
    assert 36 <= samples.reduced_right <= samples.all_tokens_right


def _tower_by_hand(removed: dict[int, int]) -> int:
    total, n = 2 * PATCHES * PIXELS * WIDTH, PATCHES + 1
    for layer in range(LAYERS):
        total += 8 * n * WIDTH * WIDTH + 4 * n * n * WIDTH  # four projections, two products of attention
        n -= removed.get(layer, 0)
        total += 4 * n * WIDTH * MLP
    return total


def _rest_by_hand(patches: int, words: int) -> tuple[int, int, int]:
    t = patches + words
    decoder = TEXT_LAYERS * (8 * t * WIDTH * WIDTH + 4 * t * t * WIDTH + 6 * t * WIDTH * TEXT_MLP)
    return 4 * patches * WIDTH * WIDTH, decoder, 2 * WIDTH * VOCABULARY


def _reduction_by_hand(removed: dict[int, int], probs: bool) -> int:
    total, n = 0, PATCHES + 1
    for r in removed.values():
        left = n - r
        total += 2 * n * n * WIDTH if probs else 4 * n * WIDTH
        total += 2 * r * (n if probs else left) * WIDTH + 2 * r * adaptive_targets(left - 1, 0.998) * WIDTH
        n = left
    return total


@pytest.mark.parametrize("variant", ["released", "paper"])
@pytest.mark.parametrize("layers", [None, (1, 2, 3)])
def test_flops_agree_with_a_count_by_hand(variant, layers):
    request = demo.Request(repeats=1, layers=layers, hyperparameters={"variant": variant})
    found = demo.run(request)
    removed = {layer.layer: layer.removed for layer in found.layers if layer.removed}
    assert sum(removed.values()) == 108
    words = found.all_tokens.tokens - PATCHES
    for cost, leaving, patches in ((found.all_tokens, {}, 144), (found.reduced, removed, 36)):
        projector, decoder, head = _rest_by_hand(patches, words)
        own = _reduction_by_hand(leaving, probs=variant == "paper")
        assert cost.flops.tower == _tower_by_hand(leaving)
        assert cost.flops.reduction == own
        assert (cost.flops.projector, cost.flops.decoder, cost.flops.head) == (projector, decoder, head)
        assert cost.flops.total == cost.flops.tower + own + projector + decoder + head


def test_any_flop_counter_knows_our_operators():
    q, k = torch.randn(2, 2, 4, 17, 8)
    attn = torch.rand(2, 4, 17, 17)
    sources, kept = (
        torch.arange(1, 6).repeat(2, 1),
        torch.cat([torch.zeros(1), torch.arange(6, 17)]).long().repeat(2, 1),
    )
    flags = {"class_token": True}
    calls = {
        "stats, logits": (lambda a: ops.attention_stats(a, **flags, probs=False, column=False), 4 * 2 * 4 * 17 * 8, 0),
        "stats, probs": (
            lambda a: ops.attention_stats(a, **flags, probs=True, column=True),
            2 * 2 * 4 * 17 * 17 * 8,
            0,
        ),
        "correlate, logits": (
            lambda a: ops.correlate(a, sources, kept, 2, alpha="softmax", **flags),
            2 * 2 * 5 * 12 * 4 * 8,
            0,
        ),
        "correlate, probs": (
            lambda a: ops.correlate(a, sources, kept, 2, alpha="ratio", **flags, probs=True),
            2 * 2 * 5 * 17 * 4 * 8,
            0,
        ),
    }
    for name, (call, from_query_key, from_map) in calls.items():
        for attention, wanted in ((ops.QueryKey(q, k), from_query_key), (attn, from_map), (attn.mean(1), from_map)):
            with FlopCounterMode(display=False) as mode:
                call(attention)
            assert mode.get_total_flops() == wanted, name
    with FlopCounterMode(display=False) as mode:
        targets, weights = ops.correlate_key(k, sources, kept, 2, alpha="softmax", **flags)
    assert mode.get_total_flops() == 2 * 2 * 5 * 12 * 8
    with FlopCounterMode(display=False) as mode:
        ops.compress(torch.randn(2, 17, 32), sources, kept, targets, weights)
    assert mode.get_total_flops() == 2 * 2 * 5 * 2 * 32


def test_counting_attention_on_the_cpu_is_right_and_leaves_the_counter_alone():
    q, k = torch.randn(1, 4, 9, 8), torch.randn(1, 4, 13, 8)
    with flop_counter.counter() as mode:
        torch.nn.functional.scaled_dot_product_attention(q, k, k)
    assert mode.get_total_flops() == 2 * 4 * 9 * 13 * (8 + 8)


def test_own_photograph_is_upright_and_unknown_words_are_named(tmp_path, embedded):
    photo = Image.open(checkpoint.SCENES / "scene_2.png").convert("RGB").resize((64, 40))
    exif = photo.getexif()
    exif[0x112] = 6  # the camera was held sideways
    photo.rotate(90, expand=True).save(tmp_path / "photo.jpg", exif=exif)
    assert checkpoint.open_image(tmp_path / "photo.jpg").size == (64, 40)
    heard: list[str] = []
    request = demo.Request(image=str(tmp_path / "photo.jpg"), question="What color is the dog?", repeats=1)
    found = demo.run(request, notice=heard.append)
    assert found.answers[0].question == "what color is the dog ?"
    assert found.answers[0].truth is None
    assert found.answers[0].reduced_right is None
    assert len(heard) == 2
    assert "synthetic" in heard[0]
    assert "'dog'" in heard[1]
    assert "'color'" not in heard[1]
    assert list(found.notices) == heard


def test_known_question_on_an_embedded_scene_has_its_truth():
    found = demo.run(demo.Request(image="scene_3", question="What word is written?", repeats=1))
    assert [(a.truth, a.all_tokens_right) for a in found.answers] == [("zoo", True)]


def test_another_checkpoint_is_asked_its_own_way(tmp_path):
    (tmp_path / "copy").mkdir()
    for file in checkpoint.EMBEDDED.iterdir():
        if file.is_file() and file.name != "chat_template.jinja":
            (tmp_path / "copy" / file.name).symlink_to(file)
    other = checkpoint.load(str(tmp_path / "copy"), torch.float32, torch.device("cpu"))
    assert not other.embedded
    assert other.prompt("Why?") == "USER: <image>\nWhy? ASSISTANT:"
    other.processor.chat_template = "{% for turn in messages %}<{{ turn['role'] }}><image>{% endfor %}"
    assert other.prompt("Why?") == "<user><image>"


def test_loading_is_silent(capfd):
    checkpoint.load(None, torch.float32, torch.device("cpu"))
    assert capfd.readouterr() == ("", "")


def test_what_the_model_sees_is_the_scene(embedded):
    image = checkpoint.open_image(checkpoint.SCENES / "scene_0.png")
    assert checkpoint.seen_by_model(embedded, image).tobytes() == image.tobytes()  # 168 pixels: nothing to resize


@pytest.mark.parametrize(
    ("answer", "truth", "exact", "wanted"),
    [
        ("red", "red", True, True),
        ("The circle is red.", "red", False, True),
        ("reddish", "red", False, False),
        ("It is at the bottom left.", "bottom_left", False, True),
        ("Yes, there is.", "yes", False, True),
        ("There is no circle, yes.", "yes", False, None),
        ("The circle is red.", "red", True, False),
        ("anything", None, False, None),
    ],
)
def test_right(answer, truth, exact, wanted):
    assert questions.right(answer, truth, exact) is wanted


def _prefill(runs: list[float]) -> timing.MeasuredPrefill:
    return timing.MeasuredPrefill(
        1, 1, (1,), flop_counter.Flops(1, 1, 0, 0, 0, 0), sorted(runs)[len(runs) // 2], tuple(runs)
    )


@pytest.mark.parametrize(
    ("full", "reduced", "wanted"),
    [
        ([2.0] * 5, [1.0] * 5, "is 2.00x faster"),
        ([2.0, 2.0, 2.0, 1.0, 1.0], [1.0, 1.0, 1.0, 3.0, 3.0], "do not prove it"),
        ([1.0] * 5, [1.0] * 5, "not faster"),
        ([2.0], [1.0], "do not prove it"),
    ],
)
def test_verdict_says_what_the_runs_show(full, reduced, wanted):
    kernels = demo.Platform("cpu", "float32", 2, "2", "kernels", None)
    assert wanted in demo._verdict((_prefill(full), _prefill(reduced)), kernels, tiny=False)
    tiny = demo._verdict((_prefill(full), _prefill(reduced)), kernels, tiny=True)
    assert "--geometry" in tiny
    reference = dataclasses.replace(kernels, operators="reference")
    assert "reference" in demo._verdict((_prefill(full), _prefill(reduced)), reference, tiny=False)


@pytest.fixture
def narrow(monkeypatch):
    """A geometry that is built in a moment."""
    monkeypatch.setitem(timing.GEOMETRIES, "llava-1.5-7b", timing.TextShape(32, hidden=64, heads=2, mlp=96))
    original = timing._config

    def thin(name, vision_layers, text_layers):
        config = original(name, vision_layers, text_layers)
        config.vision_config.hidden_size, config.vision_config.intermediate_size = 64, 96
        return config

    monkeypatch.setattr(timing, "_config", thin)


def test_geometry_is_timed_and_says_that_it_knows_nothing(narrow):
    request = demo.Request(geometry="llava-1.5-7b", vision_layers=4, text_layers=2, text_tokens=7, repeats=1)
    found = demo.run(request)
    assert found.random_weights
    assert found.answers == ()
    assert (found.patches, found.kept, found.all_tokens.tokens, found.reduced.tokens) == (576, 144, 583, 151)
    assert any("answers mean nothing" in note for note in found.notices)
    assert any("4 of 24 vision and 2 of 32 text layers" in note for note in found.notices)


def test_geometry_has_finite_activations_and_true_positions(narrow):
    model = timing.shapes("llava-1.5-7b", 3, 2, torch.float32)
    assert model.device.type == "meta"
    timing.materialize(model, torch.device("cpu"))
    with torch.inference_mode():
        assert torch.isfinite(model(**timing.random_inputs(model, 5)).logits).all()
    assert model.model.language_model.rotary_emb.inv_freq[0] == 1
    assert model.model.vision_tower.embeddings.position_ids.flatten().tolist() == list(range(577))
    assert all(not tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


@pytest.mark.parametrize(("name", "layers", "c", "mlp"), [("7b", 32, 4096, 11008), ("13b", 40, 5120, 13824)])
def test_geometry_has_the_true_number_of_parameters(name, layers, c, mlp):
    model = timing.shapes(f"llava-1.5-{name}", 24, layers, torch.bfloat16)
    tower = 1024 * (1 + 577 + 3 * 14 * 14) + 4 * 1024  # embeddings, two norms
    tower += 24 * (4 * (1024 * 1024 + 1024) + 2 * 1024 * 4096 + 4096 + 1024 + 4 * 1024)
    text = 2 * 32064 * c + c + layers * (4 * c * c + 3 * c * mlp + 2 * c)
    assert sum(p.numel() for p in model.parameters()) == tower + (1024 + 1) * c + (c + 1) * c + text


def test_geometry_that_does_not_fit_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(timing, "available_bytes", lambda device: 2**30)
    with pytest.raises(MemoryError, match=r"needs [\d,]{13,} bytes .*--vision-layers and --text-layers.*bfloat16"):
        demo.run(demo.Request(geometry="llava-1.5-7b"))


def test_available_memory_is_known_here():
    found = timing.available_bytes(torch.device("cpu"))
    assert found is None or found > 2**20


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"image": "/nowhere/x.png"}, FileNotFoundError, "image not found"),
        ({"model": "/nowhere/model"}, FileNotFoundError, "model directory not found"),
        ({"question": "  "}, ValueError, "empty"),
        ({"amount": {"keep_ratio": 2.0}}, ValueError, "keep_ratio"),
        ({"method": "nope"}, ValueError, "method"),
        ({"repeats": 0}, ValueError, "repeats"),
        ({"device": "tpu"}, ValueError, "device"),
        ({"dtype": "int8"}, ValueError, "dtype"),
        ({"geometry": "llava-9"}, ValueError, "geometry must be one of"),
        ({"geometry": "llava-1.5-7b", "image": "scene_1"}, ValueError, "does not go with geometry"),
    ],
)
def test_errors_name_what_is_wrong(change, error, message):
    with pytest.raises(error, match=message):
        demo.run(demo.Request(**change))


def test_model_is_as_before_when_drawing_and_timing_are_done(embedded):
    before = set(vars(embedded.model))
    timing.measure(
        embedded.model,
        embedded.inputs(checkpoint.open_image(checkpoint.SCENES / "scene_0.png"), "how many shapes ?"),
        lambda: ficoco_ext.attach(embedded.model, keep_ratio=0.5),
        1,
    )
    assert set(vars(embedded.model)) == before
