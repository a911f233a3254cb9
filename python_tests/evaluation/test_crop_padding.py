"""The study of padding in crops: its arithmetic, that it asks as ``generate`` does, and what the page says of it."""

from __future__ import annotations

import json
import statistics
import sys

import pytest
import torch
from helpers.embedded import one_thread  # noqa: F401
from helpers.paths import ROOT

from ficoco_ext.apps import next_dress

pytest.importorskip("transformers")
pytest.importorskip("sklearn")

sys.path.insert(0, str(ROOT))
try:
    from benchmarks import crop_padding as study
finally:
    sys.path.remove(str(ROOT))

RESULTS = ROOT / "benchmarks" / "results" / "crop_padding.json"


@pytest.fixture(scope="module")
def committed():
    return json.loads(RESULTS.read_text())


def test_the_page_says_what_was_measured(committed):
    page = (ROOT / "docs" / "accuracy.md").read_text()
    between = page.partition(study.BEGIN)[2].partition(study.END)[0].strip()
    assert between == study.part_of_page(committed)


def test_all_settings_were_asked_the_same_questions(committed):
    asked = len(committed["scenes"])
    assert asked == len(committed["grounds"]) == len(committed["kinds"]) > 300
    assert all(len(one["right"]) == asked and set(one["right"]) <= {"0", "1"} for one in committed["settings"])
    assert len(committed["settings"]) == 1 + 3 * sum(map(len, study.RUNS.values()))
    for method, budgets in study.RUNS.items():
        for patches in budgets:
            after, first, equal = (study.setting(committed, method, patches, rule) for rule in study.RULES)
            assert study.reached(equal, after) == ((method, patches) != ("tome", 36))
            for ground in study.GROUNDS:
                assert first["tokens"][ground] >= after["tokens"][ground]
    assert committed["cpu_seconds"] < 900


def test_a_difference_and_its_error_by_hand():
    # Scene 0: +1, 0; scene 1: -1; scene 2: +1, +1, 0. The mean of six is 2 / 6.
    document = {"scenes": [0, 0, 1, 2, 2, 2]}
    one, other = {"right": "110111"}, {"right": "011001"}
    found = study.difference(document, one, other)
    sums, counts = [1, -1, 2], [2, 1, 3]
    assert found.mean == pytest.approx(100 * 2 / 6)
    rest = [total - 2 / 6 * count for total, count in zip(sums, counts, strict=True)]
    assert statistics.fmean(rest) == pytest.approx(0)
    assert found.error == pytest.approx(100 * statistics.stdev(rest) * 3**0.5 / 6)
    assert study.difference(document, one, one) == (0, 0)


def test_questions_in_one_batch_are_answered_as_each_alone():
    torch.set_num_threads(1)
    dressed = next_dress.load_family(None, "llava-next", torch.float32, torch.device("cpu"))
    (square, wide, tall) = study.pictures(1, "dev", study.KINDS)
    assert [one.image.size for one in (square, wide, tall)] == [(168, 168), (252, 168), (168, 252)]
    for one in (square, tall):
        study._require_same(dressed, one)
    assert study.as_many(dressed, "topk", "square", 144) == 44  # 44 of the thumbnail and of each crop, and 12 line ends


def test_a_page_without_marks_is_refused(tmp_path):
    (tmp_path / "page.md").write_text("no marks")
    with pytest.raises(ValueError, match="page must have the marks <!-- crop-padding -->"):
        study.write_part(tmp_path / "page.md", {})
