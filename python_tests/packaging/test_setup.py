"""What setup.py asks setuptools for, and what the pages of the site escape. Nothing is built."""

from __future__ import annotations

import importlib.util
import runpy
import sys

import pytest
import torch
from helpers.paths import ROOT

setuptools = pytest.importorskip("setuptools")
pytest.importorskip("torch.utils.cpp_extension")


@pytest.fixture
def asked(monkeypatch):
    """Runs setup.py with these values in the environment; returns what it passes to setuptools."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("cuda_toolkit", "index_readme", "prerequisites"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in ("FICOCO_EXT_CPU", "FICOCO_CUDA", "FICOCO_LINEINFO"):
        monkeypatch.delenv(name, raising=False)
    given = {}
    monkeypatch.setattr(setuptools, "setup", lambda **options: given.update(options))

    def run(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        runpy.run_path(str(ROOT / "setup.py"))
        return given

    yield run
    for name in ("cuda_toolkit", "index_readme", "prerequisites"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("knob", "values"),
    [("FICOCO_EXT_CPU", "auto, 0 or 1"), ("FICOCO_CUDA", "auto, 0 or 1"), ("FICOCO_LINEINFO", "0 or 1")],
)
def test_a_knob_with_a_wrong_value_is_named(asked, knob, values):
    with pytest.raises(SystemExit, match=f"{knob} must be {values}, got 'yes'"):
        asked(**{knob: "yes"})


def test_sources_are_those_of_the_cpu(asked):
    (kernels,) = asked()["ext_modules"]
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.cpp") if "testing" not in path.parts}
    assert there - set(kernels.sources) == {"csrc/ops/device_cuda.cpp"} and set(kernels.sources) <= there
    assert kernels.extra_compile_args[-1] == "-g0"
    assert asked(FICOCO_LINEINFO="1")["ext_modules"][0].extra_compile_args[-1] == "-g1"


def test_a_build_needs_the_torch_it_was_built_for(asked):
    major, minor = (int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    found = asked()
    assert found["install_requires"] == [f"torch>={major}.{minor},<{major}.{minor + 1}"]
    assert found["ext_modules"][0].name == f"ficoco_ext._C_torch{major}_{minor}"
    plain = asked(FICOCO_EXT_CPU="0")
    assert (plain["install_requires"], plain["ext_modules"], plain["options"]) == (["torch>=2.8"], [], {})


def test_cells_of_a_page_are_text():
    spec = importlib.util.spec_from_file_location("markup", ROOT / "_build" / "pages" / "markup.py")
    markup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(markup)
    assert markup.code("a|b") == "`a\\|b`"
    assert markup.cell("a|b  <c>\n*d* `e`") == "a\\|b &lt;c&gt; \\*d\\* \\`e\\`"
    assert markup.table_of(("x", "y"), [("1", "2")]) == "| x | y |\n| --- | --- |\n| 1 | 2 |"


def test_a_page_of_the_api_names_functions_and_classes_alone():
    spec = importlib.util.spec_from_file_location("api_lists", ROOT / "_build" / "pages" / "api_lists.py")
    api_lists = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(api_lists)
    found = api_lists.public_names("ficoco_ext.viz").split("\n\n")
    assert "::: ficoco_ext.viz.Heat" in found and "::: ficoco_ext.viz.overview" in found
    assert "::: ficoco_ext.viz.page" not in found  # a module
    assert found == sorted(found, key=str.lower) and len(found) == len(set(found))
