"""A build finds torch wherever the interpreter does, and says in one line what it misses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import ROOT

pytest.importorskip("setuptools")
BUILD = ROOT / "_build"


@pytest.fixture
def backend(monkeypatch):
    """The backend, imported as pip does; its finder is put in place by the hooks only."""
    monkeypatch.syspath_prepend(str(BUILD))
    for name in ("backend", "prerequisites"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import backend

    yield backend
    for name in ("backend", "prerequisites"):
        sys.modules.pop(name, None)


def fake_torch(folder):
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "__init__.py").write_text("")
    return folder


def environment(tmp_path):
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    return python, next((tmp_path / "venv" / "lib").glob("python*/site-packages"))


def test_it_looks_where_pth_files_and_pythonpath_say(backend, tmp_path):
    python, site = environment(tmp_path)
    there = {name: str(fake_torch(tmp_path / name)) for name in ("by pth", "by PYTHONPATH")}
    (site / "more.pth").write_text(there["by pth"] + "\n")
    found = backend._probed(str(python), {"PYTHONPATH": there["by PYTHONPATH"]})
    assert {str(site), *there.values()} <= set(found)


def test_it_asks_the_finders_that_pth_files_install(backend, tmp_path):
    python, site = environment(tmp_path)
    folder = fake_torch(tmp_path / "developed")
    finder = (
        "import sys, importlib.util\n"
        "class Finder:\n"
        "    @staticmethod\n"
        "    def find_spec(name, path=None, target=None):\n"
        f"        return importlib.util.spec_from_file_location(name, {str(folder / 'torch' / '__init__.py')!r}) "
        "if name == 'torch' else None\n"
        "sys.meta_path.append(Finder)\n"
    )
    (site / "developed_finder.py").write_text(finder)
    (site / "developed.pth").write_text("import developed_finder\n")
    assert str(folder) in backend._probed(str(python), {})


def test_what_pip_hides_comes_from_the_environment_of_pip(backend, tmp_path):
    """As in a build: a child whose PYTHONPATH was replaced, of a parent that had one."""
    if not Path("/proc/self/environ").exists():
        pytest.skip("the system does not tell the environment of another process")
    folder = str(fake_torch(tmp_path / "hidden"))
    build = f"import sys; sys.path.insert(0, {str(BUILD)!r}); import backend; print(backend._outer_paths())"
    call = (
        "import subprocess, sys, os; os.environ['PYTHONPATH'] = ''; "
        f"print(subprocess.run([sys.executable, '-c', {build!r}], capture_output=True, text=True).stdout)"
    )
    found = subprocess.run(
        [sys.executable, "-c", call], env=os.environ | {"PYTHONPATH": folder}, capture_output=True, text=True
    )
    assert repr(folder) in found.stdout, found.stderr


def test_another_python_and_a_broken_one_are_no_help(backend, tmp_path, monkeypatch):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho nothing\n")
    broken.chmod(0o755)
    assert backend._probed(str(broken), {}) == []
    assert backend._probed(str(tmp_path / "none"), {}) == []
    broken.write_text('#!/bin/sh\necho "[[2, 7], [\\"/usr\\"]]"\n')
    assert backend._probed(str(broken), {}) == []


def test_without_torch_it_says_how_to_let_it_see_one(backend, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    with pytest.raises(SystemExit, match="Install PyTorch first") as told:
        backend._need_torch()
    assert "\n    pip install --no-build-isolation .\n" in str(told.value)


@pytest.mark.parametrize("version", ["65.5.0", "76.1"])
def test_setuptools_that_is_too_old_is_named_in_one_line(backend, monkeypatch, version):
    import prerequisites
    import setuptools

    prerequisites.need_setuptools()
    monkeypatch.setattr(setuptools, "__version__", version)
    with pytest.raises(SystemExit) as told:
        backend.build_wheel("nowhere")
    line = f'ficoco_ext: needs setuptools >= 77, found {version}: pip install -U "setuptools>=77"'
    assert str(told.value) == line


@pytest.mark.parametrize("version", ["77.0.1", "80.9", "100.0.0"])
def test_a_newer_setuptools_is_fine(backend, monkeypatch, version):
    import prerequisites
    import setuptools

    monkeypatch.setattr(setuptools, "__version__", version)
    prerequisites.need_setuptools()
