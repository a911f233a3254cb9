"""The studies behind the accuracy figures of the docs can be run, and what is committed of them is what they are."""

from __future__ import annotations

import importlib
import sys

import pytest
from helpers.paths import ROOT

pytest.importorskip("transformers")
pytest.importorskip("sklearn")

from helpers.embedded import embedded, grid, one_thread  # noqa: F401

from ficoco_ext.evaluation import JUDGES, Results, evaluate
from ficoco_ext.evaluation.runner import weights_digest
from ficoco_ext.methods import METHODS, distinct, hyperparameters

RESULTS = sorted((ROOT / "benchmarks" / "results").glob("accuracy_*.json"))


@pytest.fixture(scope="module")
def studies():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return importlib.import_module("accuracy").STUDIES


@pytest.fixture(scope="module")
def by_name(studies):
    return sys.modules["accuracy_by_name"]


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
BUDGETS["projector"] = BUDGETS["methods-by-name"] = {"tokens 36", "tokens 18"}


@pytest.mark.parametrize("name", BUDGETS)
def test_every_setting_of_a_study_can_be_attached(studies, name):
    settings = studies[name]()
    assert len({(one.name, one.budget) for one in settings}) == len(settings)
    assert {one.budget for one in settings} >= BUDGETS[name]
    for one in settings:
        with one.attach(embedded(), seed=0) as handle:
            plan = handle.attach_plan
            assert plan.removed or plan.changes_features or plan.changes_language_model


def test_every_method_by_name_takes_part_or_is_refused_with_a_reason(studies, by_name, monkeypatch):
    def names():
        return {one.name for one in studies["methods-by-name"]()}

    assert set(distinct()) - {"random"} <= names() | {name for name, _ in by_name.refused()}
    assert {"random-0", "random-1", "random-2", "random, tower", "stride", "downsample"} <= names()
    assert ("tome", "tokens 18") in by_name.refused() and ("tome", "tokens 36") not in by_name.refused()
    monkeypatch.setitem(METHODS, "added", METHODS["divprune"])
    assert "added" in names()
    for label, (name, given) in by_name.VARIANTS.items():
        assert name not in METHODS or given.keys() <= hyperparameters(name).keys(), label


def test_the_page_has_what_every_method_by_name_gave(by_name, tmp_path):
    """As it was written by the study; nothing before it was run."""
    page = ROOT / "docs" / "accuracy.md"
    results = ROOT / "benchmarks" / "results" / "accuracy_methods_by_name.json"
    written = by_name.between_marks(page.read_text())[1]
    assert written == (by_name.part_of_page(Results.load(results)) if results.exists() else "")


def test_the_table_of_methods_by_name_is_made_of_the_answers(by_name, tmp_path):
    settings = [one for one in by_name.methods_by_name() if one.name in ("divprune", "fastv")]
    found = evaluate(embedded(), grid(2, 7), settings)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{by_name.BEGIN}\nold\n{by_name.END}\nafter\n")
    for _ in range(2):  # writing it again changes nothing
        by_name.write_part(page, found)
        text = page.read_text()
        assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    part = by_name.between_marks(text)[1]
    assert part.startswith("14 questions about 2 scenes of the split `test`:") and "- `tome`, tokens 18: " in part
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("| ")
    ]
    assert [row[0] for row in rows] == ["method", "---", "all tokens", "`fastv`", "`divprune`"]
    line = next(one for one in found.summary(by_name.KINDS).lines if (one.name, one.budget) == ("fastv", "tokens 18"))
    assert rows[3][4].startswith(f"{100 * line.mean.value:.1f} ({100 * line.mean.low:.1f} to ")
    kinds = [f"{100 * line.kinds[kind].value:.0f}" for kind in ("text", "digit", "position")]
    assert rows[3][6] == ", ".join(kinds) and rows[3][7] == "72, 60" and rows[4][7] == "36, 18"
    with pytest.raises(ValueError, match="must have the marks"):
        by_name.between_marks(text + by_name.END)


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
