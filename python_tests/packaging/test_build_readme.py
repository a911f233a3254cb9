"""What the metadata says of the project: README with absolute links, one address of the repository, its files."""

import importlib.util
import re
from urllib.parse import unquote

import pytest
from helpers.paths import ROOT

PROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
HERE, TAG = "https://example.org/someone/ficoco_ext", "v1.2.3"

spec = importlib.util.spec_from_file_location("index_readme", ROOT / "_build" / "index_readme.py")
index_readme = importlib.util.module_from_spec(spec)
spec.loader.exec_module(index_readme)


def rewritten(text):
    return index_readme.with_absolute_links(text, HERE, TAG)


@pytest.mark.parametrize(
    ("page", "wanted"),
    [
        ("see [it](docs/a.md)", "see [it]({blob}/docs/a.md)"),
        ("[it](docs/a.md#how-fast)", "[it]({blob}/docs/a.md#how-fast)"),
        ("[it](#how-fast)", "[it]({blob}/README.md#how-fast)"),
        ("[it](/LICENSE)", "[it]({blob}/LICENSE)"),
        ("[it](./docs/../LICENSE)", "[it]({blob}/LICENSE)"),
        ('[it](docs/a.md "a title")', '[it]({blob}/docs/a.md "a title")'),
        ("[it](<docs/a b.md>)", "[it](<{blob}/docs/a%20b.md>)"),
        ("[it](docs/a(1).md)", "[it]({blob}/docs/a(1).md)"),
        ("[all](benchmarks/results/)", "[all]({tree}/benchmarks/results)"),
        ("![two](docs/a.png)", "![two]({raw}/docs/a.png)"),
        ("![two](docs/a.SVG?raw=true)", "![two]({raw}/docs/a.SVG?raw=true)"),
        ("[![two](docs/a.png)](docs/a.md)", "[![two]({raw}/docs/a.png)]({blob}/docs/a.md)"),
        ("[`code`](docs/a.md) and [b][b]", "[`code`]({blob}/docs/a.md) and [b][b]"),
        ("see [b][b]\n\n[b]: docs/b.md", "see [b][b]\n\n[b]: {blob}/docs/b.md"),
        ('<img alt="x" src="docs/a.png" width=3>', '<img alt="x" src="{raw}/docs/a.png" width=3>'),
        (
            "<a href='docs/a.md'><img src='docs/a.png'/></a>",
            "<a href='{blob}/docs/a.md'><img src='{raw}/docs/a.png'/></a>",
        ),
        ('<source srcset="a.png 1x, b.png 2x">', '<source srcset="{raw}/a.png 1x, {raw}/b.png 2x">'),
        ("- one\n\n    [it](docs/a.md)\n", "- one\n\n    [it]({blob}/docs/a.md)\n"),
        ("1. one\n   [it](docs/a.md)\n", "1. one\n   [it]({blob}/docs/a.md)\n"),
        ("text\n    [it](docs/a.md)\n", "text\n    [it]({blob}/docs/a.md)\n"),
        ("```\nx\n```\n[it](a.md)", "```\nx\n```\n[it]({blob}/a.md)"),
        ("| a | [it](a.md) |\n", "| a | [it]({blob}/a.md) |\n"),
        ("a ` tick and [it](a.md)\n\nanother `\n", "a ` tick and [it]({blob}/a.md)\n\nanother `\n"),
    ],
)
def test_a_relative_link_becomes_one_of_the_tag(page, wanted):
    addresses = {kind: f"{HERE}/{kind}/{TAG}" for kind in ("blob", "raw", "tree")}
    wanted = re.sub(r"\{(blob|raw|tree)\}", lambda found: addresses[found[1]], wanted)
    assert rewritten(page) == wanted
    assert rewritten(wanted) == wanted  # once is enough


@pytest.mark.parametrize(
    "page",
    [
        "[paper](https://arxiv.org/abs/2411.17686)",
        "[mail](mailto:a@example.org) <https://example.org/a.md> <a@example.org>",
        "[elsewhere](//example.org/a.png)",
        "`[it](docs/a.md)` and ``a ` [it](docs/a.md)``",
        "```python\nx = handlers[name](docs)\n```\n",
        "~~~\n[it](docs/a.md)\n```\n[it](docs/a.md)\n~~~\n",
        "````\n```\n[it](docs/a.md)\n```\n[it](docs/a.md)\n````\n",
        "- one\n\n  ```\n  [it](docs/a.md)\n  ```\n",
        "run\n\n    [it](docs/a.md)\n\n    [it](docs/a.md)\n",
        "- one\n\ntext\n\n    [it](docs/a.md)\n",
        "<!-- [it](docs/a.md)\n\n[it](docs/a.md) -->",
        "a footnote[^1]\n\n[^1]: docs/a.md says so",
        r"\[not a link\](docs/a.md)",
        "array[0] (docs/a.md)",
        "<br> a < b <a name='x'></a>",
        "",
    ],
)
def test_addresses_and_code_stay_as_they_are(page):
    assert rewritten(page) == page


@pytest.mark.parametrize("target", ["../other/a.md", "docs/../../a.md", ".."])
def test_a_link_out_of_the_repository_is_an_error(target):
    with pytest.raises(ValueError, match=re.escape(f"README.md: the link {target!r} leaves the repository")):
        rewritten(f"[it]({target})")


def test_readme_links_to_what_exists_and_keeps_everything_else():
    page, built = (ROOT / "README.md").read_text("utf-8"), index_readme.long_description(ROOT)
    here = index_readme.repository(PROJECT)
    version = re.search(r'__version__ = "(.+)"', (ROOT / "ficoco_ext" / "version.py").read_text())[1]
    links = re.findall(rf"{re.escape(here)}/(?:blob|raw|tree)/v{re.escape(version)}/([^\s)\"'>#?]+)", built)
    assert links, "README has no relative link left: the rewriting is no longer tested on it"
    assert not [link for link in links if not (ROOT / unquote(link)).exists()]
    unlinked = [re.sub(r"\]\([^)\s]*\)|(?:src|href)=\"[^\"]*\"", "", text) for text in (page, built)]
    assert unlinked[0] == unlinked[1]


def test_no_relative_link_is_left_in_the_metadata():
    markdown = pytest.importorskip("markdown_it")
    targets = []
    tokens = markdown.MarkdownIt("commonmark").enable("table").parse(index_readme.long_description(ROOT))
    for token in [one for block in tokens for one in (block, *(block.children or ()))]:
        targets += [token.attrGet("href"), token.attrGet("src")]
        if token.type in ("html_block", "html_inline"):
            targets += re.findall(r"\s(?:src|href)=[\"']([^\"']*)[\"']", token.content)
    targets = [target for target in targets if target]
    assert targets and not [target for target in targets if not target.startswith(("https://", "mailto:"))]


def test_a_project_without_an_address_is_an_error():
    for wrong in ("", 'Repository = "https://example.org/"', 'Repository = "somewhere"'):
        with pytest.raises(SystemExit, match=r"\[project.urls\] must have a line Repository"):
            index_readme.repository(wrong)


def test_the_address_of_the_repository_has_one_source():
    """A project that moves changes [project.urls]; of all other files only mkdocs.yml may repeat the address."""
    here = index_readme.repository(PROJECT)
    urls = re.search(r"^\[project.urls\]\n((?:\w+ = .*\n|#.*\n)+)", PROJECT, re.MULTILINE)[1]
    named = dict(re.findall(r'^(\w+) = "(.+)"', urls, re.MULTILINE))
    assert {"Homepage", "Documentation", "Repository", "Changelog", "Issues"} == set(named)
    assert all(address.startswith(here) for address in named.values())
    suffixes = (".md", ".cff", ".yml", ".yaml", ".py", ".toml", "")
    others = [
        path
        for folder in (ROOT, ROOT / "docs", ROOT / ".github", ROOT / ".ci", ROOT / "_build", ROOT / "ficoco_ext")
        for path in (folder.glob("*") if folder == ROOT else folder.rglob("*"))
        if path.is_file() and path.suffix in suffixes and path.name not in ("pyproject.toml", "mkdocs.yml")
    ]
    assert len(others) > 50
    assert not [path for path in others if here in path.read_text("utf-8", errors="ignore")]
    if (ROOT / "mkdocs.yml").exists():
        repeated = re.findall(r"^repo_url: *(\S+)", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
        assert not repeated or repeated == [here]
