"""The draw itself: reproducible, wide, rarely refused; and a fault of the product is found, shrunk and written down."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter

import pytest
from helpers.paths import PACKAGE

pytest.importorskip("transformers")
from property.build import attached, model_of, part_of
from property.cases import CACHES, FAMILIES, LLAVA, USES, Case
from property.checks import check
from property.draw import draw, ours
from property.outcomes import Record, complaints, coverage, error_of, read_records, record_of, summary
from property.script import script_of

from ficoco_ext import METHODS, get_method

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # transformers renames caches
DRAWN = [draw(number) for number in range(600)]
PICTURE = (3, 3)
SMALL = Case(
    1, LLAVA, method="ficoco-l", amount={"r": 4, "layers": (0, 1)}, rows=((11, PICTURE, 12), (13, PICTURE, 14, 15))
)


def test_a_number_is_a_case():
    assert draw(7) == DRAWN[7] and DRAWN[7] != DRAWN[8]
    assert eval(repr(DRAWN[7])) == DRAWN[7]
    assert DRAWN[3].rows == draw(3).rows and len({repr(case) for case in DRAWN}) == len(DRAWN)


def test_the_draws_cover_everything():
    parts = Counter(map(part_of, DRAWN))
    assert min(parts.values()) > 60 and set(parts) == {"tower", "decoder", "both"}
    names = {name for case in DRAWN for name in ([case.method] if isinstance(case.method, str) else case.method)}
    own = {name for name, factory in METHODS.items() if factory.__module__.startswith("ficoco_ext.")}
    assert names == {name for name in own if get_method(name).projector is None}
    for field, values in (
        ("family", FAMILIES),
        ("use", USES),
        ("cache", CACHES),
        ("padding", ("left", "right", "none")),
    ):
        assert {getattr(case, field) for case in DRAWN} == set(values), field
    assert {len(case.rows) for case in DRAWN} == {1, 2, 3, 4}
    assert {name for case in DRAWN for name in case.amount} == {
        "r", "keep_ratio", "tokens", "layers", "vision", "decoder", "static_counts", "cache"
    }  # fmt: skip
    for family in FAMILIES[1:]:
        assert {case.method for case in DRAWN if case.family == family} >= set(ours("decoder"))


def test_few_draws_are_refused():
    """At attach; long.py counts the others too."""
    refused = []
    for case in DRAWN[:25]:
        try:
            attached(case, model_of(case))
        except (ValueError, TypeError, NotImplementedError) as error:
            refused.append(str(error))
    assert len(refused) <= 3 and all(message.startswith("ficoco::") for message in refused)


def test_a_case_that_is_refused_says_why():
    outcome = check(Case(1, FAMILIES[2], method="tome", amount={"r": 1}, rows=((11, (4, 4), 12),)))
    assert outcome.kind == "refused" and "ficoco::attach: method must be one for another part" in outcome.reason


def test_a_fault_is_found_shrunk_and_written_down(monkeypatch, tmp_path):
    from ficoco_ext.models import positions

    plain = positions.embeddings

    def shifted(held, at):
        return plain(held, (at - 1).clamp(min=0))

    assert check(SMALL).kind == "held"
    monkeypatch.setattr(positions, "embeddings", shifted)
    number = next(n for n in range(200) if DRAWN[n].family == LLAVA and error_of(DRAWN[n]) is not None)
    record = record_of(number, tmp_path)
    assert record.kind == "failed" and record.reason.startswith("AssertionError")
    text = (tmp_path / f"draw_{number}.py").read_text()
    assert "helpers" not in text and "import property" not in text
    small = eval(re.search(r"^CASE = (.*)", text, re.MULTILINE)[1])
    assert len(small.rows) == 1 and len(small.pictures) == 1 and small.hyperparameters == {}
    assert isinstance(error_of(small), AssertionError)
    monkeypatch.undo()
    assert error_of(small) is None


def test_the_script_runs_alone(tmp_path):
    """Without the tests' folder; it holds, and once the package is broken it fails."""
    path = tmp_path / "repeat.py"
    path.write_text(script_of(SMALL, "nothing"))
    lines = (
        "import runpy",
        "from ficoco_ext.models import positions",
        f"runpy.run_path({str(path)!r}, run_name='__main__')",
        "plain = positions.embeddings",
        "positions.embeddings = lambda held, at: plain(held, at * 0)",
        f"runpy.run_path({str(path)!r}, run_name='__main__')",
    )
    options = {"capture_output": True, "text": True, "check": False, "cwd": tmp_path}
    environment = {"PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", "\n".join(lines)], env=environment, **options)
    assert done.stdout.count("kind='held'") == 1, done.stderr
    assert done.returncode == 1 and "AssertionError: " in done.stderr.splitlines()[-1]


def test_results_are_read_again_and_summed_up(tmp_path):
    records = [
        Record(0, "held", family=LLAVA, method="tome", part="tower", cache="static", use="forward", compared=500),
        Record(1, "refused", "ficoco::attach: no", family=LLAVA),
        Record(2, "held", family=LLAVA, method="tome + fastv", part="both", cache="none", use="beams", ties=2),
    ]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(f"{one.line()}\n" for one in records) + '{"number": 3, "ki')
    assert read_records(path) == records and read_records(tmp_path / "none") == []
    assert "3 draws: 2 held, 1 refused" in summary(records) and "(tower) + fastv" in coverage(records)
    assert complaints(records) == ["33% of the draws were refused, more than 10%: they show little"]
    assert complaints([*records, Record(3, "failed", "x")])[0] == "1 draws failed"
    assert "7 of 500 selections" in complaints([*records, Record(4, "held", ties=5)])[-1]
