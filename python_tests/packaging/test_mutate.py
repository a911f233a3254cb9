"""``python_tests/mutate.py`` on a small checkout: what each kind of mutation comes to, and that nothing is left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import mutate
import pytest
from helpers import mutants
from mutations import Mutation, room_of

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
FILES = {
    "pyproject.toml": '[tool.pytest.ini_options]\naddopts = ["--import-mode=importlib"]\n',
    ".gitignore": "ignored\n",
    "ignored": "not copied\n",
    "toy/__init__.py": "",
    "toy/sums.py": "def total(n):\n    i = s = 0\n    while i < n:\n        i += 1\n        s += i\n    return s + 0\n",
    "csrc/value.h": "7\n",
    # A compiler that keeps its output, as ours does, and refuses what is no number.
    "setup.py": "from pathlib import Path\nvalue = int(Path('csrc/value.h').read_text())\n"
    "Path('toy/built.txt').write_text(str(value))\nprint('built', value)\n",
    "test_toy.py": """
import os
from pathlib import Path
import pytest

def test_total():
    from toy.sums import total
    assert total(3) == 6

def test_nothing():
    assert not Path("ignored").exists()

def test_built():
    assert Path("toy/built.txt").read_text() == "7"

def test_built_loosely():
    assert int(Path("toy/built.txt").read_text()) > 5

def test_crash():
    from toy.sums import total
    if total(3) != 6:
        os.abort()

@pytest.fixture
def six():
    from toy.sums import total
    assert total(3) == 6

def test_setup(six):
    pass

@pytest.mark.skip
def test_skipped():
    pass

def test_broken():
    assert False
""",
    "test_imports.py": "from toy.sums import total\nassert total(3) == 6\ndef test_six():\n    assert total(3) == 6\n",
}
OFF = ("toy/sums.py", "while i < n", "while i <= n")
SAME = ("toy/sums.py", "s + 0", "s - 0")
FOREVER = ("toy/sums.py", "i += 1", "i += 0")
ABSENT = ("toy/sums.py", "no such text", "x")
TWICE = ("toy/sums.py", "i", "j")


@pytest.fixture
def checkout(tmp_path):
    """A small checkout, with files that git does not know yet."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    subprocess.run(["git", "-C", str(tmp_path), "add", "toy", "csrc"], check=True)
    return tmp_path


def tried(checkout, *cases, timeout=None, workers=1):
    listed = [Mutation(*change, tests, "why") for change, tests in cases]
    options = {"workers": workers, "timeout": timeout, "preload": ("pytest",)}
    return [verdict for _, verdict in mutate.try_all(checkout, {"core": listed}, lambda *_: None, **options)]


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.parametrize(
    ("change", "tests", "status", "note"),
    [
        (OFF, ("test_toy.py::test_nothing", "test_toy.py::test_total"), "killed", "test_toy.py::test_total"),
        (OFF, ("test_toy.py::test_setup",), "killed", "test_toy.py::test_setup"),
        (OFF, ("test_toy.py::test_crash",), "killed", "test_toy.py::test_crash (ended by signal 6)"),
        (SAME, ("test_toy.py::test_total",), "SURVIVED", "test_toy.py::test_total"),
        (OFF, ("test_toy.py::test_nothing",), "SURVIVED", "test_toy.py::test_nothing"),
        (ABSENT, ("test_toy.py::test_total",), "unusable", "`old` occurs 0 times"),
        (TWICE, ("test_toy.py::test_total",), "unusable", "`old` occurs 5 times"),
        (OFF, ("test_toy.py::test_broken",), "unusable", "without the mutation: test_toy.py::test_broken fails"),
        (OFF, ("test_toy.py::test_skipped",), "unusable", "without the mutation: no test ran"),
        (OFF, ("test_toy.py::test_absent",), "unusable", "without the mutation: pytest ends with status 4"),
        (OFF, ("test_imports.py",), "unusable", "test_imports.py cannot be collected"),
    ],
)
def test_status(checkout, change, tests, status, note):
    before = contents(checkout)
    (verdict,) = tried(checkout, (change, tests))
    assert verdict.status == status, verdict
    assert verdict.note.startswith(note)
    assert contents(checkout) == before


def test_tests_that_do_not_end(checkout):
    endless, after = tried(
        checkout, (FOREVER, ("test_toy.py::test_total",)), (SAME, ("test_toy.py::test_total",)), timeout=5
    )
    assert (endless.status, endless.note) == ("timeout", "test_toy.py::test_total")
    assert after.status == "SURVIVED"
    assert mutate.all_killed([("core", endless)]) and not mutate.all_killed([("core", endless), ("core", after)])


def test_changes_of_one_file_do_not_mix(checkout):
    """Python keeps compiled modules by time and size: these changes have the same of both."""
    cases = [(change, ("test_toy.py::test_total",)) for change in (SAME, ("toy/sums.py", "s + 0", "s + 1"), SAME)]
    assert [verdict.status for verdict in tried(checkout, *cases)] == ["SURVIVED", "killed", "SURVIVED"]


def test_a_change_of_csrc_is_compiled_and_undone(checkout):
    exact, loose, python = (
        ("test_toy.py::test_built",),
        ("test_toy.py::test_built_loosely",),
        ("test_toy.py::test_total",),
    )
    cases = [
        (("csrc/value.h", "7", "8"), exact),
        (("csrc/value.h", "7", "8"), loose),
        (("csrc/value.h", "7", "seven"), exact),
        (("csrc/value.h", "7", "6"), exact),
        (SAME, (*exact, *python)),
    ]
    verdicts = tried(checkout, *cases[:4])
    assert [verdict.status for verdict in verdicts] == ["killed", "SURVIVED", "unusable", "killed"], verdicts
    assert "does not compile" in verdicts[2].note and "ValueError: invalid literal" in verdicts[2].note
    with tempfile.TemporaryDirectory() as folder, mutants.Scratch(checkout, Path(folder), ("pytest",), None) as scratch:
        baselines = mutants.Baselines()
        for change, tests in (*cases[3:1:-1], cases[4]):  # in one copy, a mutation of Python after two of csrc
            verdict = scratch.try_one(Mutation(*change, tests, "why"), baselines)
        assert verdict.status == "SURVIVED", verdict  # so test_built passed: 7 was compiled again
    assert not (checkout / "toy" / "built.txt").exists()


def test_the_checkout_may_change_meanwhile(checkout):
    """What was copied is what is tried, and what comes back after a mutation."""
    exact = ("test_toy.py::test_total",)
    with tempfile.TemporaryDirectory() as folder, mutants.Scratch(checkout, Path(folder), ("pytest",), None) as scratch:
        baselines, statuses = mutants.Baselines(), []
        for change in (OFF, SAME, OFF):
            statuses.append(scratch.try_one(Mutation(*change, exact, "why"), baselines).status)
            (checkout / "toy" / "sums.py").write_text("def total(n):\n    return 7\n")
    assert statuses == ["killed", "SURVIVED", "killed"]


def test_tests_that_import_the_checkout_itself(checkout):
    (checkout / "test_toy.py").write_text(
        f"import sys\nsys.path.insert(0, {str(checkout)!r})\nfrom toy.sums import total\n"
        "def test_total():\n    assert total(3) == 6\n"
    )
    (verdict,) = tried(checkout, (OFF, ("test_toy.py::test_total",)))
    assert verdict.status == "unusable"
    assert "the tests import" in verdict.note and str(checkout / "toy") in verdict.note


def test_workers_have_copies_of_their_own_and_leave_none(checkout, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("copies")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    cases = [(change, ("test_toy.py::test_total",)) for change in (OFF, SAME, OFF, SAME, OFF)]
    verdicts = tried(checkout, *cases, workers=2)
    assert sorted(verdict.status for verdict in verdicts) == ["SURVIVED"] * 2 + ["killed"] * 3
    assert os.listdir(folder) == []


def test_report(checkout, capsys):
    (checkout / "toy" / "sums.py").write_text(FILES["toy/sums.py"])
    done = [("core", verdict) for verdict in tried(checkout, (OFF, ("test_toy.py",)), (SAME, ("test_imports.py",)))]
    for room, verdict in done:
        mutate.say(checkout, room, verdict)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[:3] == ["unusable", "core", "toy/sums.py:3"]  # test_broken fails anyway
    assert printed[1].split()[:3] == ["SURVIVED", "core", "toy/sums.py:6"]
    assert printed[2:] == ["    - s + 0", "    + s - 0", "    why"]
    assert [line.split()[:6] for line in mutate.table(done).splitlines()[1:]] == [
        [name, "2", "0", "0", "1", "1"] for name in ("core", "all")
    ]
    found = json.loads(json.dumps(mutate.document(checkout, done)))
    assert found["killed"] is False
    assert [row["line"] for row in found["mutations"]] == [3, 6]
    assert found["mutations"][1]["new"] == "s - 0"


def test_choice(capsys):
    one, two = (Mutation(*change, ("test_toy.py",), why) for change, why in ((OFF, "sums"), (SAME, "nothing")))
    lists = {"core": [one], "ops": [two]}
    assert mutate.choose(lists, [], "") == lists
    assert mutate.choose(lists, ["ops"], "") == {"ops": [two]}
    assert mutate.choose(lists, [], "i <= n") == {"core": [one]}
    assert mutate.choose(lists, ["core"], "nothing") == {}
    with pytest.raises(SystemExit) as ended:
        mutate.main(["attics"])
    assert ended.value.code == 2 and "ROOM must be one of ops, stages," in capsys.readouterr().err
    assert mutate.main(["core", "-k", "no such text anywhere"]) == 2


def test_rooms():
    assert [room_of(name) for name in ("core", "models_labels", "cpu_kernels", "csrc_ops")] == [
        "core",
        "models",
        "cpu_kernels",
        "csrc_ops",
    ]
    with pytest.raises(ValueError, match=r"python_tests/mutations/modelling.py is named after no room; rooms are ops,"):
        room_of("modelling")
