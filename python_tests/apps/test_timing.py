"""Times and memory without a model: who takes turns, what is proven, what there is room for."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch

from ficoco_ext.apps import bench, timing
from ficoco_ext.cost.flop_counter import Flops

NO_FLOPS = Flops(1, 1, 0, 0, 0, 0)


def _prefill(runs):
    return timing.MeasuredPrefill(1, 1, (1,), NO_FLOPS, sorted(runs)[len(runs) // 2], tuple(runs))


def test_a_little_slower_is_noise():
    assert timing.judged(_prefill([1.0] * 5), _prefill([1.02] * 5)) == "noise"
    assert timing.judged(_prefill([1.0] * 5), _prefill([1.06] * 5)) == "slower"
    assert timing.judged(_prefill([1.06] * 5), _prefill([1.0] * 5)) == "faster"


def test_ways_take_turns_in_both_orders(monkeypatch):
    active, seen, steps = [], [], []

    @contextlib.contextmanager
    def way(name):
        active.append(name)
        yield
        active.pop()

    def timed(model, inputs):
        seen.append(active[-1])
        assert len(seen) < 20, "it goes on and on"
        return float(len(seen))

    monkeypatch.setattr(timing, "_timed", timed)
    monkeypatch.setattr(timing, "_facts", lambda model, inputs: (ord(active[-1]), 2, (2,), NO_FLOPS))
    ways = [lambda: way("a"), lambda: way("b")]
    one, other = timing.compare(None, {}, ways, least=1, most=3, seconds=1e9, step=lambda *at: steps.append(at))
    assert seen == ["a", "b", "b", "a", "a", "b"]
    assert (one.runs, other.runs) == ((1.0, 4.0, 5.0), (2.0, 3.0, 6.0))
    assert (one.seconds, other.seconds) == (4.0, 3.0) and (one.tokens, other.tokens) == (ord("a"), ord("b"))
    assert steps[:3] == [(0, 0), (1, 0), (0, 2)] and steps[-1] == (5, 6)
    seen.clear()
    timing.compare(None, {}, ways, least=2, most=9)
    assert len(seen) == 4  # no seconds: the least


def test_a_container_has_less_memory_than_its_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "Path", lambda path: tmp_path / path.lstrip("/"))
    group = tmp_path / "sys" / "fs" / "cgroup"
    for folder in (tmp_path / "proc", group):
        folder.mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal:  9000000 kB\nMemAvailable:  8000000 kB\n")
    assert timing.available_bytes(torch.device("cpu")) == 8_192_000_000
    (group / "memory.max").write_text("4000000000\n")
    (group / "memory.current").write_text("1000000000\n")
    assert timing.available_bytes(torch.device("cpu")) == 3_000_000_000
    (group / "memory.max").write_text("max\n")
    assert timing.available_bytes(torch.device("cpu")) == 8_192_000_000


def test_random_inputs_have_text_on_both_sides():
    config = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=28, patch_size=14),
        text_config=SimpleNamespace(max_position_embeddings=10),
        image_token_id=timing.IMAGE_TOKEN,
    )
    model = SimpleNamespace(config=config, device=torch.device("cpu"), dtype=torch.float16)
    found = timing.random_inputs(model, 5)
    assert (found["input_ids"][0] == timing.IMAGE_TOKEN).tolist() == [False] * 3 + [True] * 4 + [False] * 2
    assert found["attention_mask"].tolist() == [[1] * 9]
    assert (found["pixel_values"].shape, found["pixel_values"].dtype) == ((1, 3, 28, 28), torch.float16)
    with pytest.raises(ValueError, match=r"text_tokens must be in 1 \.\.\. 6, .* got 7"):
        timing.random_inputs(model, 7)


def test_who_has_no_room_is_told_what_helps(monkeypatch):
    monkeypatch.setattr(timing, "available_bytes", lambda device: 2**30)
    for dtype, halves in ((torch.float32, True), (torch.bfloat16, False), (torch.float16, False)):
        with pytest.raises(MemoryError, match=r"this geometry needs 1,[\d,]{11} bytes") as raised:
            timing._require_memory(torch.nn.Linear(64, 64, dtype=dtype), torch.device("cpu"))
        assert ("--dtype bfloat16" in str(raised.value)) == halves
    monkeypatch.setattr(timing, "available_bytes", lambda device: None)
    timing._require_memory(torch.nn.Linear(64, 64), torch.device("cpu"))


def test_what_is_reached_of_what_the_operations_promise():
    full, few = (
        timing.MeasuredPrefill(1, 1, (1,), Flops(flops, flops, 0, 0, 0, 0), seconds, (seconds,) * 5)
        for flops, seconds in ((8, 2.0), (2, 1.0))
    )
    found = bench.Timed.of("topk", {}, full, few)
    assert (found.speedup, found.flops_ratio, found.reached, found.judged) == (2.0, 4.0, 0.5, "faster")
    assert bench.Timed.of("all tokens", {}, full, full).judged == "noise"


def test_a_batch_is_the_one_prompt_many_times(monkeypatch):
    given = []

    def compare(model, inputs, ways, **how):
        given.append((inputs, len(ways), how["seconds"]))
        return tuple(_prefill([1.0] * 5) for _ in ways)

    monkeypatch.setattr(timing, "compare", compare)
    monkeypatch.setattr(bench.selection_time, "measure", lambda model, inputs, attached, runs: 0.5)
    inputs = {"input_ids": torch.tensor([[1, 2]]), "pixel_values": torch.zeros(1, 3, 4, 4)}
    found = bench._batch(None, inputs, 3, {"topk": {"r": 1}, "tome": {"r": 2}}, 7.0, lambda *words: None)
    assert (found.batch, [(one.name, one.amount) for one in found.timed]) == (
        3,
        [("all tokens", {}), ("topk", {"r": 1}), ("tome", {"r": 2})],
    )
    ((repeated, ways, seconds),) = given
    assert repeated["input_ids"].tolist() == [[1, 2]] * 3 and repeated["pixel_values"].shape == (3, 3, 4, 4)
    assert (ways, seconds) == (3, 7.0)


@pytest.mark.parametrize(
    ("layers", "said"), [((4, None), "built with 4 of 24 vision and 32 of 32"), ((None, None), "")]
)
def test_a_part_of_a_model_is_called_one(monkeypatch, layers, said):
    for name in ("shapes", "require_room", "materialize", "random_inputs"):
        monkeypatch.setattr(timing, name, lambda *given: None)
    request = bench.Request(geometry="llava-1.5-7b", vision_layers=layers[0], text_layers=layers[1])
    notes = []
    where = (torch.float32, torch.device("cpu"))
    bench._random(request, "llava-1.5-7b", *where, {}, notes.append, lambda *words: None)
    assert len(notes) == 1 + bool(said) and "random weights" in notes[0] and notes[-1].startswith(said)
