"""The pages of the site: what they show happens, what they link to is there, what is generated is complete.

``.ci/docs`` builds the site itself, strictly; here its parts run without mkdocs.
"""

from __future__ import annotations

import dataclasses
import doctest
import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from helpers.paths import ROOT

import ficoco_ext

pytest.importorskip("transformers")

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NOT_RUN = re.compile(r"^<!-- not run: \S.* -->\n\Z", re.MULTILINE)  # on the line before a block, with the reason
ON_GITHUB = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
GENERATED = {"quickstart_notebook.md", "contributing.md", "changelog.md"}


def name_of(page):
    return page.relative_to(DOCS).as_posix()


@pytest.fixture
def pages(monkeypatch):
    """The modules that generate pages."""
    monkeypatch.syspath_prepend(str(ROOT / "_build" / "pages"))
    before = set(sys.modules)
    import command_pages
    import method_pages
    import model_table
    import repository

    yield command_pages, method_pages, model_table, repository
    for name in set(sys.modules) - before:
        if (ROOT / "_build" / "pages" / f"{name}.py").exists():
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to run code in; methods that it registers are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    known, loaded = dict(ficoco_ext.METHODS), set(sys.modules)
    torch.set_num_threads(1)  # the model is small
    yield tmp_path
    ficoco_ext.METHODS.clear()
    ficoco_ext.METHODS.update(known)
    for name in set(sys.modules) - loaded:
        if (tmp_path / f"{name}.py").exists():
            del sys.modules[name]


def session(page):
    """The interactive sessions of a page as one, at the lines where they stand."""
    text = page.read_text()
    lines = [""] * text.count("\n")
    for block in re.finditer(r"^```pycon\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        first = text[: block.start(1)].count("\n")
        inside = block[1].splitlines()
        lines[first : first + len(inside)] = inside
    return doctest.DocTestParser().get_doctest("\n".join(lines), {}, page.name, str(page), 0)


def blocks(text):
    """Each block of Python: (line, title of the file that it is, or None, code, whether it is to run)."""
    for block in re.finditer(r'^```python(?: title="([\w.]+)")?\n(.*?)^```$', text, re.DOTALL | re.MULTILINE):
        run = NOT_RUN.search(text, 0, block.start()) is None
        yield text[: block.start(2)].count("\n") + 1, block[1], block[2], run


def run_blocks(text, where, folder):
    """Run each block by itself; one with a title is saved first, and runs when another one imports it."""
    ran = 0
    for line, title, code, run in blocks(text):
        if title is not None:
            (folder / title).write_text(code)
        elif run:
            exec(compile("\n" * (line - 1) + code, where, "exec"), {"__name__": "__main__"})
            ran += 1
    return ran


@pytest.mark.parametrize("page", [p for p in PAGES if ">>> " in p.read_text()], ids=name_of)
def test_sessions_say_what_happens(page, folder):
    test = session(page)
    assert len(test.examples) == page.read_text().count("\n>>> ") > 0
    failed, _ = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
    assert failed == 0


@pytest.mark.parametrize("page", [p for p in PAGES if "```python" in p.read_text()], ids=name_of)
def test_python_on_pages_runs(page, folder):
    run_blocks(page.read_text(), str(page), folder)


def test_every_block_of_python_was_found():
    """None of them is written in another way and so left out."""
    for page in PAGES:
        text = page.read_text()
        assert len(list(blocks(text))) == len(re.findall(r"^ *```+ ?\{? ?\.?(?:python|py)\b", text, re.MULTILINE)), page


def test_the_runner_of_blocks_can_fail(folder):
    good, bad = "```python\nassert True\n```\n", "```python\n1 / 0\n```\n"
    assert run_blocks(good, "page", folder) == 1
    with pytest.raises(ZeroDivisionError):
        run_blocks(good + bad, "page", folder)
    assert run_blocks(f"<!-- not run: it needs a GPU -->\n{bad}", "page", folder) == 0
    with pytest.raises(ZeroDivisionError):
        run_blocks(f"<!-- not run: -->\n{bad}", "page", folder)  # without a reason


def test_there_are_pages():
    expected = {"index.md", "quickstart.md", "choose.md", "accuracy.md", "faq.md", "peers.md", "performance_cpu.md"}
    assert expected | {"concepts/positions_masks_caches.md", "performance_gpu.md"} <= set(map(name_of, PAGES))


def headings(page):
    """The anchors of a page, as GitHub and mkdocs make them of its headings."""
    found = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", [*(ROOT / name for name in ON_GITHUB), *PAGES], ids=lambda page: page.name)
def test_links_lead_somewhere(page, pages):
    generated = GENERATED | {pages[1].uri(name) for name in pages[1].names()}
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        there = Path(os.path.normpath(page.parent / path)) if path else page
        if not (there.is_relative_to(DOCS) and name_of(there) in generated):
            assert there.exists(), target
            assert not anchor or anchor in headings(there), target


@pytest.mark.parametrize("page", ["docs/design.md", "CONTRIBUTING.md", "docs/howto/add_a_model.md"])
def test_files_that_are_named_are_there(page):
    rooms = "|".join((r"\.ci", "_build", "benchmarks", "csrc", "docs", "ficoco_ext", "python_tests"))
    named = re.findall(rf"`(?:python )?((?:{rooms})/[\w./]*)", (ROOT / page).read_text())
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", ficoco_ext.METHODS)
def test_method_pages(name, pages, folder):
    one, text = ficoco_ext.describe(name), pages[1].page(name)
    assert run_blocks(text, f"page of {name}", folder) == 1
    for key, value in one.hyperparameters.items():
        assert f"| `{key}` | `{value!r}` |" in text
        assert one.meanings.get(key), f"{name}: {key} has no meaning; say it under Args: in its docstring"
    for what in ("Filter", "Correlate", "Compress", "Needs", "Source"):
        assert re.search(rf"^\| {what}[^|]*\| [^|\s]", text, re.MULTILINE)


def test_a_new_method_gets_its_page(pages, monkeypatch):
    def mine(*, share: float = 0.5) -> ficoco_ext.Method:
        """What it does.

        Args:
            share: how much | of it.
        """
        return dataclasses.replace(ficoco_ext.get_method("tome"), name="mine", source="")

    monkeypatch.setitem(ficoco_ext.METHODS, "mine+", mine)
    _, methods, _, _ = pages
    assert methods.names()[-1] == "mine+" and methods.uri("mine+") == "methods/mine-plus.md"
    assert "| `share` | `0.5` | how much \\| of it. |" in methods.page("mine+")
    assert "[`mine+`](mine-plus.md)" in methods.table()


def test_the_table_of_models_is_complete(pages):
    from ficoco_ext.models.families import FAMILIES, LANGUAGE_MODELS, TOWERS

    text = pages[2].table() + pages[2].language_models()
    for family in FAMILIES:
        tower = ", ".join(f"`{TOWERS[key].model}`" for key in family.towers) or "no: "
        assert f"| {family.name} | `{family.model}` | {tower}" in text
    for model in LANGUAGE_MODELS.values():
        assert f"`{model.model}` | `{model.layer}`" in text


def test_every_command_and_option_has_its_line(pages):
    import typer.main

    from ficoco_ext.cli.app import app

    text = pages[0].commands()
    for name, command in typer.main.get_command(app).commands.items():
        section = re.search(rf"^## {name}$(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)[1]
        for option in command.params:
            assert option.help, f"{name} {option.name} has no help"
            if option.param_type_name == "option":
                assert f"| `{option.opts[0]}`" in section


def test_links_out_of_docs_lead_to_copies(pages):
    repository = pages[3]
    assert repository.relinked("![a](../benchmarks/results/a.png)", "gallery.md") == "![a](../benchmarks/results/a.png)"
    picture = "benchmarks/results/accuracy_late.png"
    assert repository.relinked(f"![a](../{picture})", "gallery.md") == f"![a](repository/{picture})"
    assert repository.relinked(f"[a](../../{picture})", "howto/x.md") == f"[a](../repository/{picture})"
    assert repository.relinked("[a](docs/cost_model.md#x)", "changelog.md") == "[a](cost_model.md#x)"
    assert repository.relinked("[a](../CONTRIBUTING.md)", "design.md") == "[a](contributing.md)"
    code = f"```sh\n[a](../{picture})\n```"
    assert repository.relinked(code, "gallery.md") == code


def test_the_notebook(folder):
    """Without outputs, which would drift, and it runs from top to bottom; the site shows what it gives."""
    cells = json.loads((DOCS / "quickstart.ipynb").read_text())["cells"]
    names = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert names["with_few"] == names["with_all"] == ["taxi", "circle", "1"]
    assert (folder / "kept.png").stat().st_size > 10_000
