"""Every example in a docstring runs and prints what it says; every public name has a docstring."""

import doctest
import importlib
import inspect
import pkgutil
import re

import pytest
import torch
from helpers.paths import DOCS, ROOT

import ficoco_ext

MODULES = ["ficoco_ext"]
MODULES += [
    module.name for module in pkgutil.walk_packages(ficoco_ext.__path__, "ficoco_ext.") if "._C_" not in module.name
]


PAGES = sorted(DOCS.glob("*.md"))
CHOOSE = (DOCS / "choose.md").read_text()
SESSIONS = ("choose.md", "cost_model.md", "faq.md", "how_answers_are_judged.md", "positions_masks_caches.md")


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


def examples(page):
    """The interactive sessions of a page as one, at the lines where they stand."""
    text = page.read_text()
    lines = [""] * text.count("\n")
    for block in re.finditer(r"^```pycon\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        first = text[: block.start(1)].count("\n")
        inside = block[1].splitlines()
        lines[first : first + len(inside)] = inside
    return doctest.DocTestParser().get_doctest("\n".join(lines), {}, page.name, str(page), 0)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_say_what_happens(page):
    pytest.importorskip("transformers")
    test = examples(page)
    assert len(test.examples) == page.read_text().count("\n>>> ")
    assert len(test.examples) > 5 or page.name not in SESSIONS
    torch.set_num_threads(1)  # the model is small
    failed, _ = doctest.DocTestRunner().run(test)
    assert failed == 0


def test_there_are_pages():
    expected = {"accuracy.md", "command_line.md", "peers.md", "performance_cpu.md", "performance_gpu.md", *SESSIONS}
    assert expected <= {page.name for page in PAGES}


def headings(page):
    """The anchors of a page, as GitHub and mkdocs make them of its headings."""
    found = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if target.startswith("http"):
            continue
        there = page.parent / path if path else page
        assert there.exists(), target
        assert not anchor or anchor in headings(there), target


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
    table = set(re.findall(r'^\| `"(\S+)"` \| (?:tower|language)', CHOOSE, re.MULTILINE))
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
