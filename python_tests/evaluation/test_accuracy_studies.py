"""The studies behind the accuracy figures of the docs can be run, and what is committed of them is what they are."""

from __future__ import annotations

import importlib.util

import pytest
from helpers.paths import ROOT

pytest.importorskip("transformers")
pytest.importorskip("sklearn")

from helpers.embedded import embedded, one_thread  # noqa: F401

from ficoco_ext.evaluation import JUDGES, Results
from ficoco_ext.evaluation.runner import weights_digest

RESULTS = sorted((ROOT / "benchmarks" / "results").glob("accuracy_*.json"))


@pytest.fixture(scope="module")
def studies():
    spec = importlib.util.spec_from_file_location("accuracy", ROOT / "benchmarks" / "accuracy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.STUDIES


def _flat(value, place=""):
    """Numbers, words and None by their place: floats may differ in the last bit where they are computed again."""
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, (list, tuple)):
        pairs = enumerate(value)
    else:
        return {place: value}
    empty = {place: str(type(value)(()))} if not value else {}
    return {name: leaf for key, one in pairs for name, leaf in _flat(one, f"{place}/{key}").items()} | empty


BUDGETS = {
    name: {"keep_ratio 0.25", "keep_ratio 0.1"} for name in ("methods", "late", "choosing", "ficoco-v", "ficoco-l")
}
BUDGETS["projector"] = {"tokens 36", "tokens 18"}


@pytest.mark.parametrize("name", BUDGETS)
def test_every_setting_of_a_study_can_be_attached(studies, name):
    settings = studies[name]()
    assert len({(one.name, one.budget) for one in settings}) == len(settings)
    assert {one.budget for one in settings} >= BUDGETS[name]
    for one in settings:
        with one.attach(embedded().model, seed=0) as handle:
            plan = handle.attach_plan
            assert plan.removed or plan.changes_features or plan.changes_language_model


@pytest.mark.slow
@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_committed_results_are_whole_and_their_summary_follows_from_their_answers(studies, path):
    results = Results.load(path)
    kinds = tuple(results.document["summary"]["mean_of"])
    assert _flat(results.summary(kinds).to_dict()) == pytest.approx(_flat(results.document["summary"]))
    assert len(results.document["cells"]) == sum(len(one["seeds"]) for one in results.document["settings"])
    study = path.stem.removeprefix("accuracy_").removesuffix("_seed1").replace("_", "-")
    there = {one["budget"] for one in results.document["settings"]}  # another training is tried at fewer budgets
    now = [one.describe() for one in studies[study]() if one.budget in there]
    for asked in (results.document["run"]["settings"], results.document["settings"]):
        same = [{name: one[name] for name in now[0]} for one in asked[1:]]
        assert _flat(same) == pytest.approx(_flat(now)), "a default or the study has changed: run it again"
    if not path.stem.endswith("_seed1"):
        assert results.document["run"]["weights"] == weights_digest(embedded().model), "of another model: run it again"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_committed_answers_are_judged_today_as_they_were(path):
    document = Results.load(path).document
    assert document["run"]["asking"]["judge"] == "exact"
    words, tables = document["words"], {table["seed"]: table for table in document["tables"]}
    for cell in document["cells"]:
        truths = tables[cell["seed"] if cell["seed"] in tables else None]["truth"]
        pairs = [(words[said], words[truth]) for said, truth in zip(cell["answers"], truths, strict=True)]
        verdict = {pair: JUDGES["exact"](*pair) for pair in set(pairs)}
        assert "".join(str(int(verdict[pair])) for pair in pairs) == cell["right"]
