"""Time to the first token of every setting: the method is in it, answers are not, and only times differ."""

from __future__ import annotations

import copy
import time

import pytest

pytest.importorskip("transformers")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from helpers.embedded import embedded, grid, one_thread  # noqa: F401
from helpers.models import snapshot

from ficoco_ext import get_method
from ficoco_ext.evaluation import Results, Setting, evaluate, first_token, markdown, price, settings_of
from ficoco_ext.methods import FeatureMethod

PAUSE = 0.05
TIMES = {"seconds", "least", "most", "judged", "selection"}


class Slow(FeatureMethod):
    """DivPrune after a pause."""

    name = "slow"

    def __init__(self, batches):
        self.batches = batches

    def __call__(self, visual, count, planes=()):
        self.batches.append(visual.features.shape[0])
        time.sleep(PAUSE)
        return get_method("divprune")(visual, count, planes)


@pytest.fixture(scope="module")
def timed():
    batches = []
    settings = [
        Setting("divprune", {"tokens": 36}),
        Setting(Slow(batches), {"tokens": 36}),
        Setting("tome", {"tokens": 3}),
    ]
    evaluate(embedded(), grid(1, 2), [])  # transformers hangs things on a model at its first use
    before = snapshot(embedded().model)
    found = evaluate(embedded(), grid(1, 2), settings, first_token=(1, 8, 1), first_token_seconds=0.0)
    assert snapshot(embedded().model) == before
    return found, batches


def test_the_selection_is_inside_the_clock(timed):
    found, batches = timed
    assert [one["batch"] for one in found.document["first_token"]] == [1, 8]
    assert {1, 8} <= set(batches)
    for entry in found.document["first_token"]:
        assert entry["runs"] == first_token.LEAST_RUNS and [one["setting"] for one in entry["cells"]] == [0, 1, 2]
        full, quick, slow = entry["cells"]
        assert full["judged"] is None and full["selection"] is None
        assert slow["least"] >= PAUSE and slow["selection"] >= PAUSE
        assert 0 < quick["selection"] <= quick["most"]
        for cell in entry["cells"]:
            assert 0 < cell["least"] <= cell["seconds"] <= cell["most"]
        assert {"processor", "threads", "torch", "dtype", "device"} <= set(entry["platform"])


def test_times_stand_in_tables_and_not_in_accuracy(timed):
    found, _ = timed
    summary = found.summary()
    names = price.headings(summary)
    assert names[-4:] == [
        f"{what}, batch {batch}" for batch in (1, 8) for what in ("first token ms", "of it selection")
    ]
    slow = dict(zip(names, price.row(summary, summary.lines[2]), strict=True))
    assert float(slow["first token ms, batch 8"].split()[0]) > 1e3 * PAUSE
    assert float(slow["of it selection, batch 1"]) > 1e3 * PAUSE
    assert (
        price.row(summary, summary.lines[0])[-3:][0] == "-" and price.row(summary, summary.lines[3])[-4:] == ["-"] * 4
    )
    told = markdown.legend(found, summary)
    assert [text.startswith("Time to the first token at batch ") for text in told].count(True) == 2
    assert summary.to_dict()["lines"][2]["first_token"]["8"]["selection"] >= PAUSE
    without = copy.deepcopy(found.document)
    del without["first_token"]
    plain = Results(without).summary()
    assert [line.mean for line in plain.lines] == [line.mean for line in summary.lines]
    assert "first token" not in markdown.page(Results(without), plain)


def test_times_that_prove_nothing_are_called_noise():
    found = {"seconds": 0.0123, "judged": "noise", "selection": 0.004}
    assert price._times(found) == ("12.3 (noise)", "4")
    assert price._times({**found, "judged": "faster", "selection": None}) == ("12.3", "-")
    assert price._times(None) == ("-", "-")


def test_parts_of_flops_are_of_the_unreduced_ones(timed):
    summary = timed[0].summary()
    full, quick = (summary.lines[number].cost for number in (0, 1))
    shown = dict(zip(price.headings(summary), price.row(summary, summary.lines[1]), strict=True))
    assert sum(quick["flops_parts"].values()) == quick["flops"] and sum(full["flops_parts"].values()) == full["flops"]
    for name, heading in price.PARTS.items():
        assert shown[heading] == f"{100 * quick['flops_parts'][name] / full['flops']:.2f}"
    assert float(shown["selection"]) > 0 and quick["flops_parts"]["tower"] == full["flops_parts"]["tower"]


def test_what_is_measured_already_is_not_measured_again(monkeypatch, tmp_path):
    settings, path = settings_of(["divprune"], tokens=[36]), tmp_path / "out.json"
    given = {"results": path, "first_token_seconds": 0.0}
    first = evaluate(embedded(), grid(1, 2), settings, first_token=(1,), **given).document["first_token"]
    compare, asked = first_token.timing.compare, []
    monkeypatch.setattr(
        first_token.timing,
        "compare",
        lambda *args, **how: asked.append(len(args[1]["input_ids"])) or compare(*args, **how),
    )
    more = evaluate(embedded(), grid(1, 2), settings, first_token=(2, 1), **given).document["first_token"]
    assert asked == [2] and more[0] == first[0] and [one["batch"] for one in more] == [1, 2]
    assert Results.load(path).document["first_token"] == more
    evaluate(embedded(), grid(1, 2), settings, **given)
    assert asked == [2]


def test_only_times_differ_from_run_to_run():
    settings = settings_of(["divprune", "random"], tokens=[36])
    given = {"first_token": (1,), "first_token_seconds": 0.0, "seeds": (3,)}
    entries = [evaluate(embedded(), grid(1, 2), settings, **given).document["first_token"] for _ in range(2)]
    for (entry,) in entries:
        entry["cells"] = [{name: value for name, value in cell.items() if name not in TIMES} for cell in entry["cells"]]
    assert entries[0] == entries[1]


@pytest.mark.parametrize("batches", [(0,), (-1,), (1.0,), (True,), (2000,), ("8",)])
def test_batch_sizes_are_checked_before_anything_runs(batches):
    with pytest.raises(ValueError, match=r"first_token must be batch sizes in 1 \.\.\. 1024, got"):
        evaluate(
            embedded(),
            grid(1, 2),
            settings_of(["topk"], tokens=[36]),
            first_token=batches,
            progress=lambda *told: pytest.fail("it ran"),
        )
