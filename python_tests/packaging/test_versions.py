"""The tested set stands in constraints.txt, and what else names a version agrees with it; CI reports on newer ones."""

import importlib.util
import os
import re
import subprocess

import pytest
from helpers.paths import ROOT

from ficoco_ext import version

README = (ROOT / "README.md").read_text()
PROJECT = (ROOT / "pyproject.toml").read_text()
CI = (ROOT / ".ci" / "run").read_text()
CALL = {  # what a step of CI is given, instead of the network and the tests
    "pip": 'echo "pip $*" >>"$CALLS"; exit "${PIP_EXIT:-0}"',
    "python": 'echo "${NEWEST}"',
    "tests": 'echo "tests" >>"$CALLS"; printf "%b" "${SAYS:-}"; exit "${TESTS_EXIT:-0}"',
}


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = {}
    for line in lines:
        if line and not line.startswith("#"):
            pin = r"([a-z0-9-]+)==([0-9.]+(?:post[0-9]+)?)(?:; python_version >= \"3\.11\")?"
            name, version = re.fullmatch(pin, line).groups()
            assert name not in found
            found[name] = version
    return found


def api():
    """The module that holds the range of transformers, read without importing torch's part of the package."""
    spec = importlib.util.find_spec("ficoco_ext.models.transformers_release")
    if spec is None:
        pytest.skip("there is no ficoco_ext.models.transformers_release")
    return importlib.import_module("ficoco_ext.models.transformers_release")


def test_everybody_names_the_version_of_the_package():
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1]
    newest = re.search(r"^## ([0-9.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    assert cited == newest == version.__version__


def test_everything_that_is_tested_with_is_pinned():
    wanted = set()
    for extra in re.findall(r"^(?:hf|viz|eval|test|clients) = \[(.*)\]", PROJECT, re.MULTILINE):
        wanted |= {re.match(r"[A-Za-z0-9_-]+", one)[0] for one in re.findall(r'"(.*?)"', extra)} - {"ficoco_ext"}
    wanted |= {"torch", "numpy", "tokenizers", "huggingface-hub", "ruff", "mypy", "clang-format"}
    assert len(wanted) >= 18 and wanted <= set(pins())


def test_what_builds_the_package_is_not_pinned():
    assert not {"setuptools", "ninja", "wheel", "pip"} & set(pins())


def test_the_commands_install_the_tested_set():
    torch = f"python -m pip install torch=={pins()['torch']} && python -m pip install -c constraints.txt "
    for page, extra in (
        (README, '".[hf,viz]"'),
        (README, '".[test]"'),
        (ROOT.joinpath("CONTRIBUTING.md").read_text(), '-e ".[dev]"'),
    ):
        assert f"    {torch}{extra} && " in page


def test_everybody_names_the_same_transformers():
    tested = pins()["transformers"]
    oldest = re.search(r"pip install 'transformers==(\S+)'", CI)[1]
    assert f"torch {pins()['torch']} (CPU), transformers {oldest} and {tested}," in README
    assert re.search(rf'"transformers>={re.escape(oldest.removesuffix(".0"))},<6"', PROJECT)
    declared = api()
    assert (oldest, tested) == (declared.TESTED_OLDEST, declared.TESTED_NEWEST)


def run(tmp_path, tested, **given):
    for name, body in CALL.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    calls = tmp_path / "calls"
    calls.write_text("")
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(calls), "NEWEST": "5.25.0", **given}
    found = subprocess.run(
        [ROOT / ".ci" / "newest", tested, "tests"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert found.returncode == 0, found.stderr
    return found.stdout, calls.read_text().split("\n")


def test_ci_runs_the_newest_only_if_it_is_another(tmp_path):
    said, calls = run(tmp_path, "5.25.0")
    assert "5.25.0, is the tested one" in said and "tests" not in calls
    said, calls = run(tmp_path, "5.24.0")
    assert (
        "5.25.0, passes" in said
        and "tested one is 5.24.0" in said
        and calls[:2] == ["pip install -U transformers<6", "tests"]
    )


def test_ci_names_what_fails_with_the_newest(tmp_path):
    says = "....F\\nFAILED python_tests/test_a.py::test_b - Error\\nERROR python_tests/test_c.py\\n1 failed\\n"
    said, _ = run(tmp_path, "5.24.0", TESTS_EXIT="1", SAYS=says)
    assert "DOES NOT WORK WITH THE NEWEST TRANSFORMERS, 5.25.0 (exit code 1" in said
    assert "!!! FAILED python_tests/test_a.py::test_b" in said and "!!! ERROR python_tests/test_c.py" in said
    said, _ = run(tmp_path, "5.24.0", TESTS_EXIT="3", SAYS="Segmentation fault\\n")
    assert "!!! Segmentation fault" in said
    said, calls = run(tmp_path, "5.24.0", PIP_EXIT="1")
    assert "COULD NOT BE INSTALLED" in said and "tests" not in calls


def test_it_stands_in_the_last_lines_of_ci():
    assert CI.rstrip().endswith('step "done"\nprintf \'\\n%s\\n\' "$newest"')
