"""Methods side by side in time: what is measured, what is concluded, and what is not."""

import dataclasses
import json

import pytest
import typer.testing
from helpers.embedded import one_thread  # noqa: F401

from ficoco_ext.apps import bench, machine, timing
from ficoco_ext.cli.app import app
from ficoco_ext.cost import flop_counter
from ficoco_ext.methods import get_method

KERNELS = machine.Platform("cpu", "float32", 2, "2", "kernels", None)


@pytest.fixture(scope="module")
def found():
    return bench.run(bench.Request(methods=("topk", "fast", "fastv"), batches=(1, 3), seconds=0))


def test_every_method_is_timed_as_often_as_all_tokens(found):
    assert [one.batch for one in found.batches] == [1, 3]
    for batch in found.batches:
        assert [one.name for one in batch.timed] == ["all tokens", "topk", "fast", "fastv"]
        assert {len(one.prefill.runs) for one in batch.timed} == {bench.LEAST_TURNS}
        assert all(min(one.prefill.runs) > 0 for one in batch.timed)


def test_amounts_tokens_and_operations_are_those_of_the_methods(found):
    one, three = (batch.timed for batch in found.batches)
    amounts = {timed.name: timed.amount for timed in one}
    assert amounts == {
        "all tokens": {},
        "topk": {"keep_ratio": 0.25},
        "fast": dict(get_method("fast").amount),
        "fastv": dict(get_method("fastv").amount),
    }
    full, topk, fast, fastv = (timed.prefill for timed in one)
    text = full.tokens - 144
    assert (topk.tokens - text, fast.tokens - text, fastv.tokens - text) == (36, 14, 144)
    assert fastv.kv_bytes < full.kv_bytes
    for alone, together in zip(one, three, strict=True):
        assert together.prefill.flops.total == 3 * alone.prefill.flops.total
        assert together.prefill.kv_bytes == 3 * alone.prefill.kv_bytes
        assert together.prefill.tokens == alone.prefill.tokens


def test_what_the_method_itself_takes_stands_beside_the_time(found):
    for batch in found.batches:
        full, *methods = batch.timed
        assert full.selection is None
        for one in methods:
            assert 0 < one.selection < one.prefill.seconds


def test_ratios_are_of_what_is_shown(found):
    for batch in found.batches:
        full = batch.timed[0].prefill
        for one in batch.timed:
            assert one.speedup == full.seconds / one.prefill.seconds
            assert one.flops_ratio == full.flops.total / one.prefill.flops.total
            assert one.reached == one.speedup / one.flops_ratio
            assert one.judged in ("faster", "slower", "noise")


def test_the_reduction_is_part_of_the_operations(found):
    full, topk, *_ = (one.prefill.flops for one in found.batches[0].timed)
    assert full.reduction == 0 < topk.reduction


def test_the_embedded_model_proves_nothing(found):
    assert found.verdict.startswith("The model is too small to prove anything")
    assert "--geometry llava-1.5-7b" in found.verdict


def _prefill(runs, flops=100):
    counted = flop_counter.Flops(flops, flops, 0, 0, 0, 0)
    return timing.MeasuredPrefill(1, 1, (1,), counted, sorted(runs)[len(runs) // 2], tuple(runs))


@pytest.mark.parametrize(
    ("full", "few", "wanted"),
    [
        ([2.0] * 5, [1.0] * 5, "faster"),
        ([1.0] * 5, [2.0] * 5, "slower"),
        ([1.0] * 5, [1.0] * 5, "noise"),
        ([1.0] * 5, [0.97] * 5, "noise"),
        ([2.0, 2.0, 2.0, 1.0, 1.0], [1.0, 1.0, 1.0, 3.0, 3.0], "noise"),
        ([2.0] * 3, [1.0] * 3, "noise"),
        ([2.0] * 20, [1.0] * 14 + [3.0] * 6, "noise"),
        ([2.0] * 20, [1.0] * 15 + [3.0] * 5, "faster"),
    ],
)
def test_only_what_runs_prove_is_called_faster(full, few, wanted):
    assert timing.judged(_prefill(full), _prefill(few)) == wanted


def _batch(count, full, **methods):
    timed = [bench.Timed.of("all tokens", {}, _prefill(full), _prefill(full))]
    timed += [bench.Timed.of(name, {}, _prefill(full), _prefill(runs, 40)) for name, runs in methods.items()]
    return bench.Batch(count, tuple(timed))


def test_the_verdict_names_the_fastest_of_each_batch_size():
    batches = (
        _batch(1, [2.0] * 5, topk=[1.9, 2.1, 2.0, 1.9, 2.1], tome=[2.0, 1.9, 2.1, 2.0, 2.0]),
        _batch(8, [2.0] * 5, topk=[1.0] * 5, tome=[0.8] * 5),
        _batch(9, [2.0] * 5, topk=[3.0] * 5),
    )
    assert bench._verdict(batches, KERNELS, tiny=False) == (
        "Batch 1: no method is proven faster than all tokens; the best, topk, is within the noise. "
        "Batch 8: tome is the fastest, 2.50x faster than all tokens to the first token. "
        "Batch 9: no method is faster than all tokens; the best, topk, is 1.50x slower."
    )


def test_the_verdict_names_methods_that_are_as_fast_within_the_noise():
    batch = _batch(1, [2.0] * 5, topk=[1.0] * 5, tome=[1.01] * 5, fastv=[1.5] * 5)
    assert bench._verdict((batch,), KERNELS, tiny=False) == (
        "Batch 1: topk is the fastest, 2.00x faster than all tokens to the first token; tome not proven slower than it."
    )


def test_the_specification_is_not_passed_off_as_kernels():
    reference = dataclasses.replace(KERNELS, operators="reference", reason="not compiled")
    said = bench._verdict((_batch(1, [2.0] * 5, topk=[1.0] * 5),), reference, tiny=False)
    assert said.startswith("These are NOT the times of ficoco_ext: the selection ran as plain PyTorch")
    assert "(not compiled)" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ()}, "at least one method"),
        ({"methods": ("topk", "topk")}, "'topk' twice"),
        ({"batches": (0,)}, "batch must be in 1"),
        ({"batches": ()}, "batch must be in 1"),
        ({"seconds": -1.0}, "seconds must be"),
        ({"seconds": float("nan")}, "seconds must be"),
        ({"model": "x", "geometry": "llava-1.5-7b"}, "not both"),
        ({"text_layers": 2}, "shape a geometry"),
        ({"geometry": "llava-9"}, "geometry must be one of"),
        ({"methods": ("nope",)}, "method must be"),
        ({"model": "llava-1.5-7b", "amount": {"keep_ratio": 2.0}}, "keep_ratio"),
        ({"dtype": "int8"}, "dtype must be one of"),
    ],
)
def test_errors_name_what_is_wrong_before_anything_is_built(change, message, monkeypatch):
    monkeypatch.setattr(timing, "materialize", lambda *_: pytest.fail("weights were made"))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        bench.run(bench.Request(**change))


def test_a_geometry_is_timed_by_either_name(monkeypatch):
    shape = timing.TextShape(layers=2, hidden=64, heads=2, mlp=96)
    monkeypatch.setitem(timing.GEOMETRIES, "llava-1.5-7b", shape)
    request = bench.Request(model="llava-1.5-7b", vision_layers=4, methods=("topk",), batches=(2,), seconds=0)
    found = bench.run(request)
    assert found.model == "llava-1.5-7b" and found.random_weights
    assert found.batches[0].timed[0].prefill.tokens == 576 + 60
    assert any("4 of 24 vision" in text for text in found.notices)
    again = bench.run(dataclasses.replace(request, model=None, geometry="llava-1.5-7b"))
    assert again.batches[0].timed[1].prefill.flops == found.batches[0].timed[1].prefill.flops


def test_more_seconds_are_more_runs_within_limits(monkeypatch):
    monkeypatch.setattr(bench, "MOST_TURNS", 9)
    steps = []
    request = bench.Request(methods=("topk",), batches=(1,), seconds=1e6)
    found = bench.run(request, progress=lambda words, *counts: steps.append(counts))
    assert {len(one.prefill.runs) for one in found.batches[0].timed} == {9}
    counted = [one for one in steps if one]
    assert [done for done, _ in counted] == list(range(18)) and counted[-1] == (17, 18)


def _run(*arguments):
    return typer.testing.CliRunner().invoke(app, ["bench", *map(str, arguments)])


def test_the_command_prints_verdict_and_tables_in_80_columns(found, monkeypatch):
    monkeypatch.setattr(bench, "run", lambda request, **_: found)
    lines = _run().stdout.splitlines()
    assert lines[0] == found.verdict
    tables = [line for line in lines if line[:1] in "┏┃┡│└├"]
    assert tables and max(map(len, tables)) <= 80 and not any("…" in line for line in tables)
    text = "\n".join(lines)
    assert "batch 1, 5 runs of each" in text and "fast 10%" in text and "x less" in text


def test_the_command_passes_on_what_it_is_given(monkeypatch):
    asked = []

    def run(request, **_):
        asked.append(request)
        raise ValueError("enough")

    monkeypatch.setattr(bench, "run", run)
    options = "--methods topk,tome --keep-ratio 0.5 --batch 1-3,8 --seconds 2 --dtype bfloat16 --text-layers 3"
    assert _run("llava-1.5-7b", *options.split()).exit_code == 2
    assert asked == [
        bench.Request(
            model="llava-1.5-7b",
            text_layers=3,
            methods=("topk", "tome"),
            amount={"keep_ratio": 0.5},
            batches=(1, 2, 3, 8),
            dtype="bfloat16",
            seconds=2.0,
        )
    ]


def test_json_has_every_run(monkeypatch, found):
    monkeypatch.setattr(bench, "run", lambda request, **_: found)
    document = json.loads(_run("--json").stdout)
    assert document["schema"] == "ficoco-bench/1"
    assert len(document["batches"][0]["timed"][1]["prefill"]["runs"]) == bench.LEAST_TURNS
