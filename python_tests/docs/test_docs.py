"""Every example in a docstring runs and prints what it says; every public name has a docstring.

Pages of the site: test_pages.py.
"""

import doctest
import importlib
import inspect
import pkgutil
import re

import pytest
import torch
from helpers.paths import DOCS

import ficoco_ext

MODULES = ["ficoco_ext"]
MODULES += [
    module.name for module in pkgutil.walk_packages(ficoco_ext.__path__, "ficoco_ext.") if "._C_" not in module.name
]


CHOOSE = (DOCS / "choose.md").read_text()


def load(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if error.name and error.name.split(".")[0] == "ficoco_ext":
            raise
        pytest.skip(f"needs {error.name}")  # an optional dependency


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    torch.manual_seed(0)
    failed, _ = doctest.testmod(load(name))
    assert failed == 0


def test_the_page_on_choosing_attaches():
    pytest.importorskip("transformers")
    from ficoco_ext.apps import checkpoint

    names = {"ficoco_ext": ficoco_ext, "model": checkpoint.load(None, torch.float32, torch.device("cpu")).model}
    lines = re.findall(r'^ficoco_ext\.attach\(model, ".*$', CHOOSE, re.MULTILINE)
    assert len(lines) == 4
    for line in lines:
        with eval(line, names) as handle:
            assert handle.plan.removes


def test_the_table_of_methods_is_complete():
    table = set(re.findall(r'^\| `"(\S+)"` \| (?:tower|projector|language)', CHOOSE, re.MULTILINE))
    assert table == set(ficoco_ext.METHODS)


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("ficoco_ext.api", 1),
        ("ficoco_ext.ops._correlate", 2),
        ("ficoco_ext.stages.correlate", 2),
        ("ficoco_ext.schedule", 1),
    ],
)
def test_examples_are_found(name, least):
    module = load(name)
    found = [test for test in doctest.DocTestFinder().find(module, name) if test.examples]
    assert len(found) >= least


@pytest.mark.parametrize("name", ficoco_ext.__all__)
def test_public_names_have_a_docstring(name):
    thing = getattr(ficoco_ext, name)
    if inspect.isclass(thing) or inspect.isfunction(thing):
        text = inspect.getdoc(thing) or ""
        assert len(text) > 20
        assert not text.startswith(f"{name}("), "the docstring that a dataclass makes itself"


@pytest.mark.parametrize("name", MODULES)
def test_public_functions_have_a_docstring(name):
    module = load(name)
    for attribute, thing in vars(module).items():
        ours = getattr(thing, "__module__", None) == name and not attribute.startswith("_")
        if ours and (inspect.isfunction(thing) or inspect.isclass(thing)):
            assert inspect.getdoc(thing), f"{name}.{attribute}"
