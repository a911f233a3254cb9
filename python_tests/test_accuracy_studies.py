"""The studies behind the README's accuracy figures can be run, and what is committed of them is what they are."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("sklearn")

from evaluation_helpers import embedded, one_thread  # noqa: F401

from ficoco_ext.evaluation import Results
from ficoco_ext.evaluation.runner import weights_digest

ROOT = Path(__file__).parent.parent
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("accuracy_*.json"))


@pytest.fixture(scope="module")
def studies():
    spec = importlib.util.spec_from_file_location("accuracy", ROOT / "benchmarks" / "accuracy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.STUDIES


@pytest.mark.parametrize("name", ["methods", "late", "choosing", "ficoco-v", "ficoco-l"])
def test_every_setting_of_a_study_can_be_attached(studies, name):
    settings = studies[name]()
    assert len({(one.name, one.budget) for one in settings}) == len(settings)
    assert {one.budget for one in settings} >= {"keep_ratio 0.25", "keep_ratio 0.1"}
    for one in settings:
        with one.attach(embedded().model, seed=0) as handle:
            assert handle.schedule is not None or handle.plan is not None


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_committed_results_are_whole_and_their_summary_follows_from_their_answers(studies, path):
    results = Results.load(path)
    kinds = tuple(results.document["summary"]["mean_of"])
    assert results.summary(kinds).to_dict() == json.loads(json.dumps(results.document["summary"]))
    assert len(results.document["cells"]) == sum(len(one["seeds"]) for one in results.document["settings"])
    asked = {(one["name"], str(one["layers"]), str(one["amount"])) for one in results.document["settings"][1:]}
    study = path.stem.removeprefix("accuracy_").removesuffix("_seed1").replace("_", "-")
    now = [one.describe() for one in studies[study]()]
    assert asked == {(one["name"], str(one["layers"]), str(one["amount"])) for one in now}
    if not path.stem.endswith("_seed1"):
        assert results.document["run"]["weights"] == weights_digest(embedded().model), "of another model: run it again"
