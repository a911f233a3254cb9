"""The marks of the tests: what is quick covers every folder, and what needs a device says so."""

import os
import subprocess
import sys

import pytest
from helpers import marks
from helpers.paths import PACKAGE, ROOT, TESTS

FOLDERS = {file.parent.name for file in TESTS.glob("*/test_*.py")}


def test_every_folder_has_quick_files():
    assert set(marks.QUICK) == FOLDERS


def test_what_is_listed_is_there():
    assert [file for file in sorted(marks.FILES) if not file.exists()] == []
    text = "".join(file.read_text() for file in marks.FILES)
    assert [name for name in sorted(marks.EXCEPT) if f"def {name}(" not in text] == []


@pytest.mark.parametrize(("name", "wanted"), [("cuda", "gpu"), ("emulated", "emulated")])
def test_a_parameter_that_names_a_device_marks_the_test(request, name, wanted):
    assert request.node.get_closest_marker(wanted), name


def test_a_test_of_the_cpu_is_marked_for_no_device(request):
    assert not any(map(request.node.get_closest_marker, ("gpu", "emulated", "slow", "browser")))


@pytest.mark.slow
def test_quick_selects_from_every_folder():
    """What is listed may be skipped as a whole, or be slow: what pytest selects counts."""
    paths = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-m", "quick"]
    command += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-p", "no:cacheprovider", str(TESTS)]
    environment = {**os.environ, "PYTHONPATH": paths}
    options = {"cwd": PACKAGE.parent, "capture_output": True, "text": True, "check": False}  # not the clone's package
    done = subprocess.run(command, env=environment, **options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    ids = [line for line in done.stdout.splitlines() if "::" in line]
    assert {line.split("::")[0].split("/")[-2] for line in ids} == FOLDERS
