"""CI's scripts and workflows agree with each other and with pyproject.toml; what checks a distribution finds faults."""

import importlib.util
import os
import re

import pytest
from helpers.paths import ROOT

CI = ROOT / ".ci"
PROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
WORKFLOWS = ROOT / ".github" / "workflows"

spec = importlib.util.spec_from_file_location("contents", CI / "contents.py")
contents = importlib.util.module_from_spec(spec)
spec.loader.exec_module(contents)

COMMIT = [*contents.NEEDED, "ficoco_ext/api.py", "setup.py", ".github/workflows/lint.yml", "python_tests/test_api.py"]
INFO = "ficoco_ext-1.0.dist-info"


def wheel(**more):
    files = dict.fromkeys([name for name in COMMIT if name.startswith("ficoco_ext/")], b"")
    files |= dict.fromkeys([f"{INFO}/METADATA", f"{INFO}/licenses/LICENSE", f"{INFO}/licenses/NOTICE"], b"")
    return files | {"ficoco_ext/_C_torch2_13.abi3.so": b"\x7fELF .nv_fatbin"} | more


def test_a_whole_wheel_has_no_faults():
    assert contents.wheel_faults(wheel(), COMMIT) == []


@pytest.mark.parametrize("name", [*contents.NEEDED, "ficoco_ext/api.py", f"{INFO}/licenses/NOTICE"])
def test_what_a_wheel_lacks_is_named(name):
    files = wheel()
    del files[name]
    assert contents.wheel_faults(files, COMMIT) == [f"is missing: {name}"]


@pytest.mark.parametrize(
    "name",
    [
        "ficoco_ext/csrc/reduce.o",
        "ficoco_ext/csrc/reduce.cu",
        "ficoco_ext/launch.h",
        "ficoco_ext/__pycache__/api.cpython-311.pyc",
        "ficoco_ext/tests/helpers.py",
        "ficoco_ext/test_api.py",
        "ficoco_ext/conftest.py",
    ],
)
def test_what_does_not_belong_in_a_wheel_is_named(name):
    assert contents.wheel_faults(wheel(**{name: b""}), [*COMMIT, name]) == [f"does not belong here: {name}"]
    assert contents.wheel_faults(wheel(**{name: b""}), COMMIT) == [f"is not in the commit: {name}"]


def test_a_wheel_is_one_package_with_one_stripped_module():
    assert contents.wheel_faults(wheel(**{"_build/backend.py": b""}), COMMIT) == [
        "is not in the commit: _build/backend.py"
    ]
    module = "ficoco_ext/_C_torch2_13.abi3.so"
    found = contents.wheel_faults(wheel(**{module: b"\0.symtab\0.debug_info\0"}), COMMIT)
    assert found == [f"{module} has debug data (see setup.py)"]
    [found] = contents.wheel_faults(wheel(**{"ficoco_ext/_C.cpython-311.so": b""}), COMMIT)
    assert "must hold one *.abi3.so" in found and "_C.cpython-311.so" in found
    without = wheel()
    del without[module]
    assert "must hold one *.abi3.so" in contents.wheel_faults(without, COMMIT)[0]


def test_a_source_distribution_is_the_commit():
    whole = [name for name in COMMIT if not name.startswith(".github/")] + [
        "PKG-INFO",
        "ficoco_ext.egg-info/SOURCES.txt",
    ]
    assert contents.sdist_faults(whole, COMMIT) == []
    assert contents.sdist_faults([name for name in whole if name != "setup.py"], COMMIT) == [
        "is missing: setup.py (see MANIFEST.in)"
    ]
    assert contents.sdist_faults([*whole, "build/lib/x.py"], COMMIT) == ["is not in the commit: build/lib/x.py"]


@pytest.mark.parametrize("kind", ["cpu", "cuda", "sdist", "module"])
def test_what_has_grown_is_named(kind):
    assert contents.size_fault(contents.LARGEST[kind], kind) == []
    [fault] = contents.size_fault(contents.LARGEST[kind] + 1, kind)
    assert "is too large" in fault and f"({kind})" in fault


def test_the_exit_code_says_whether_there_are_faults(tmp_path, capsys, monkeypatch):
    import zipfile

    monkeypatch.setattr(contents, "committed", lambda: COMMIT)
    for files, code in ((wheel(), 0), (wheel(**{"ficoco_ext/a.o": b""}), 1)):
        with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        assert contents.main(["wheel", str(tmp_path / "a.whl")]) == code
    assert "a.whl is not in the commit: ficoco_ext/a.o" in capsys.readouterr().err
    assert contents.main(["egg", "a.egg"]) == 2


def test_an_installed_module_is_small_and_stripped(tmp_path, capsys):
    path = tmp_path / "_C.abi3.so"
    for content, code in ((b"\x7fELF", 0), (b"\x7fELF\0.debug_info\0", 1), (bytes(contents.LARGEST["module"] + 1), 1)):
        path.write_bytes(content)
        assert contents.main(["module", str(path)]) == code
    said = capsys.readouterr().err
    assert "has debug data" in said and "is too large: 8.5 MB" in said


def scripts():
    return {path.name for path in CI.iterdir() if not path.suffix and path.is_file()}


def called(text):
    """The scripts of .ci that are run by a text of shell or YAML, comments left out."""
    return set(re.findall(r"\.ci/([a-z]+)(?!\w|\.)", re.sub(r"^\s*#.*", "", text, flags=re.MULTILINE)))


def test_run_calls_every_script_and_each_says_what_it_does():
    everything = (CI / "run").read_text()
    assert called(everything) == scripts() - {"run", "pythons"}  # on demand: gigabytes for each Python
    for name in scripts():
        text = (CI / name).read_text()
        assert os.access(CI / name, os.X_OK), f".ci/{name} cannot be run: chmod +x"
        assert re.match(r"#!/usr/bin/env bash\n# \S.*\n", text) and re.search(
            r"^set -e?uo pipefail$", text, re.MULTILINE
        )


def test_workflows_call_scripts_that_are_there():
    if not WORKFLOWS.exists():
        pytest.skip("a source distribution has no workflows")
    yaml = pytest.importorskip("yaml")
    files = sorted(WORKFLOWS.glob("*.yml"))
    assert {"docs", "lint", "tests", "wheels"} <= {path.stem for path in files}
    assert {"docs", "lint", "package", "readme"} <= set().union(*(called(path.read_text()) for path in files))
    for path in files:
        workflow = yaml.safe_load(path.read_text())
        assert called(path.read_text()) <= scripts()
        assert workflow["permissions"] == {"contents": "read"}
        assert all("timeout-minutes" in job for job in workflow["jobs"].values())


def test_the_pythons_of_the_classifiers_are_tested():
    declared = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)
    assert len(declared) >= 4 and f'requires-python = ">={declared[0]}"' in PROJECT
    wheels = re.search(r'^build = "(.*)"', PROJECT, re.MULTILINE)[1].split()
    assert wheels == [f"cp{version.replace('.', '')}-*" for version in declared]
    if WORKFLOWS.exists():
        yaml = pytest.importorskip("yaml")
        jobs = yaml.safe_load((WORKFLOWS / "tests.yml").read_text())["jobs"]
        assert jobs["tests"]["strategy"]["matrix"]["python"] == declared


def test_the_citation_has_the_version_and_the_paper():
    yaml = pytest.importorskip("yaml")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    version = re.search(r'__version__ = "(.+)"', (ROOT / "ficoco_ext" / "version.py").read_text())[1]
    assert cited["version"] == version
    [paper] = cited["references"]
    assert paper["identifiers"][0]["value"] == "arXiv:2411.17686"


@pytest.mark.parametrize("part", ["danielbuechele", "vultilion", "Digits"])
def test_notice_names_what_the_model_card_names(part):
    card = (ROOT / "ficoco_ext" / "data" / "tiny_llava" / "README.md").read_text("utf-8")
    assert part in card and part in (ROOT / "NOTICE").read_text("utf-8")
