"""Text of others is text: no markup, no formula, and nothing that steers a terminal."""

import ast
import io
import json
import os
import shutil
import subprocess
import sys
import unicodedata

import pytest
from helpers.paths import PACKAGE

from ficoco_ext.apps.checkpoint import SCENES
from ficoco_ext.io.printable import printable

pytest.importorskip("typer")
from typer.testing import CliRunner

from ficoco_ext.cli import common
from ficoco_ext.cli.app import app

EVIL = "\x1b]0;owned\x07\x1b[31m[/x][bold]:smile:\u202e\x9b$\\frac{1}$\r\x08"


def steers(text):
    return [one for one in text if one != "\n" and printable(one) != one]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, Ünïcode, 漢字, עברית, می‌شود, 👩‍👧", None),
        ("\x1b[2J", "\\x1b[2J"),
        ("\r\t\x07\x7f\x9b", "\\r\\t\\x07\\x7f\\x9b"),
        ("a\u202eb\u2066", "a\\u202eb\\u2066"),
        ("\u2028\u2029", "\\u2028\\u2029"),
        (os.fsdecode(b"name\xff"), "name\\udcff"),
        ("two\nlines", "two\\nlines"),
    ],
)
def test_what_steers_is_shown_instead(text, shown):
    assert printable(text) == (text if shown is None else shown)
    assert printable("two\nlines", keep="\n") == "two\nlines"
    printable(text).encode()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_console_takes_text_as_it_is(monkeypatch, terminal):
    out = io.StringIO()
    console = common._Console(file=out, force_terminal=terminal, color_system=None, width=200)
    made = common.table("column " + EVIL, title="title " + EVIL)
    made.add_row("cell " + EVIL)
    made.add_row(common.text("piece " + EVIL, style="bold"))
    for one in (made, "line " + EVIL, common.text("alone " + EVIL)):
        console.print(one, soft_wrap=True)
    said = out.getvalue()
    assert not steers(said.replace("\x1b[1m", "").replace("\x1b[0m", "")) if terminal else not steers(said)
    for name in ("column", "title", "cell", "piece", "line", "alone"):
        assert f"{name} {printable(EVIL)}" in said


FAKE = "yes\nficoco: error: all is lost\r\n\x0b\x0c\x1c\x85"


def test_nobody_fakes_a_line(monkeypatch):
    out = io.StringIO()
    console = common._Console(file=out, width=300)
    made = common.table("column " + FAKE, title="title " + FAKE)
    made.add_row("cell " + FAKE)
    made.add_row(common.text("piece " + FAKE))
    for one in ("line " + FAKE, common.text("alone " + FAKE), made):
        console.print(one)
    lines = out.getvalue().splitlines()
    assert len(lines) == 2 + 1 + 6  # of the table: its title, three rules, its head and two rows, less one
    assert not [line for line in lines if line.strip(" \u2502").startswith("ficoco: error")]


def test_commands_let_nobody_fake_a_line(tmp_path):
    picture = tmp_path / "p\nficoco: error: all is lost.png"
    shutil.copy(SCENES / "scene_4.png", picture)
    row = {"image": picture.name, "question": f"is there a star {FAKE} ?", "answer": "no", "kind": f"k {FAKE}"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    asked = f"is there a star {FAKE} ?"
    for line in (
        ["demo", str(picture), "--question", asked, "--repeats", "1", "-o", str(tmp_path / "out.png")],
        ["show", str(picture), "--question", asked, "-o", str(tmp_path / "a\nficoco: error: all is lost.svg")],
        ["eval", "--data", str(tmp_path / "rows.jsonl"), "--methods", f"a{FAKE}=topk", "--keep-ratios", "0.5"],
        ["demo", str(tmp_path / FAKE)],
    ):
        told = CliRunner().invoke(app, line)
        said = [line for line in told.output.splitlines() if line.startswith("ficoco: error")]  # causes are indented
        assert "all is lost" in told.output and all(one.startswith("ficoco: error: image not") for one in said), line
        assert told.exit_code == (2 if said else 0), told.output


def test_there_is_one_way_to_the_terminal():
    """Nothing in the command line makes text, a console or a line of its own."""
    for path in sorted((PACKAGE / "cli").glob("*.py")):
        tree = ast.parse(path.read_text())
        imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names}
        called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        if path.name != "common.py":
            assert not imported & {"Console", "Text", "Markdown", "Panel"}, path.name
            assert not called & {"print", "typer.echo", "typer.secho", "sys.stdout.write"}, path.name
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "typer.echo":
                assert ast.unparse(node.args[0]).startswith(("printable(", "json.dumps(")), path.name
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "TextColumn":
                assert "markup=False" in ast.unparse(node), path.name


@pytest.mark.parametrize(
    "line",
    [
        [EVIL],
        ["--" + EVIL],
        ["cost", EVIL],
        ["cost", EVIL, EVIL],
        ["cost", "llava-1.5-7b", "--gpu", EVIL],
        ["cost", "llava-1.5-7b", "--method", EVIL],
        ["cost", "llava-1.5-7b", "--images", EVIL],
        ["demo", EVIL],
        ["demo", "--model", EVIL],
        ["demo", "--set", EVIL],
        ["demo", "--layers", EVIL],
        ["show", "scene_4", "--methods", EVIL],
        ["show", "scene_4", "--trace", EVIL],
        ["eval", "--from", EVIL],
        ["eval", "--kinds", EVIL],
        ["eval", "--methods", EVIL],
        ["reduce", "--input", EVIL],
        ["data", "--split", EVIL],
        ["methods", EVIL],
    ],
    ids=lambda line: " ".join(line[:-1]),
)
def test_errors_quote_it_harmlessly(line):
    told = CliRunner().invoke(app, line)
    assert told.exit_code == 2 and not steers(told.output)
    assert "should not happen" not in told.output


@pytest.fixture
def folder(tmp_path):
    """A folder and a picture with names that are markup, and a name that is no text."""
    made = tmp_path / "d[/x]"
    made.mkdir(parents=True)
    shutil.copy(SCENES / "scene_4.png", made / f"p{EVIL.replace('/', '')}.png")
    shutil.copy(SCENES / "scene_4.png", made / os.fsdecode(b"\xff.png"))
    return made


def run(*arguments):
    """As a user does: names that are no text only pass a real process."""
    call = [sys.executable, "-P", "-c", "from ficoco_ext.cli import main; main()", *map(os.fsencode, arguments)]
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(call, capture_output=True, env={**os.environ, "PYTHONPATH": path}, check=False)
    assert done.returncode == 0, done.stderr
    text = (done.stdout + done.stderr).decode("utf-8")  # and nothing else
    assert not steers(text)
    return text


@pytest.mark.slow
def test_demo_says_and_draws_it(folder):
    question = f"is there a star {EVIL}\n ?"
    picture, shown = folder / f"p{EVIL.replace('/', '')}.png", folder / os.fsdecode(b"out\xff.png")
    text = run("demo", str(picture), "--question", question, "--repeats", "1", "-o", str(shown))
    assert "[bold]:smile:" in text and shown.stat().st_size > 10_000


@pytest.mark.slow
def test_show_says_and_draws_it(folder):
    shown = folder / "out.svg"
    text = run("show", str(folder / os.fsdecode(b"\xff.png")), "--question", f"is a star {EVIL}", "-o", str(shown))
    assert "\\udcff.png" in text and "[/x]" in text
    assert "frac{1}$" in shown.read_text() or shown.stat().st_size > 10_000


@pytest.mark.slow
def test_eval_says_draws_and_writes_it(folder):
    kinds, label = f"kind|<img src=x>{EVIL}", "a[/x]|" + EVIL.replace("=", "")
    row = {"image": f"p{EVIL.replace('/', '')}.png", "answer": f"no {EVIL}", "kind": kinds}
    rows = [{**row, "question": f"is there a star {number} {EVIL}"} for number in range(2)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    page, plot = folder / "page.md", folder / "plot.png"
    options = ["--keep-ratios", "0.5", "--markdown", str(page), "--plot", str(plot)]
    text = run("eval", "--data", str(folder / "rows.jsonl"), "--methods", f"{label}=topk", *options)
    assert "a[/x]|" in text and plot.stat().st_size > 1000
    written = page.read_text(encoding="utf-8")
    assert not steers(written) and "kind\\|\\<img src=x\\>" in written
    for block in written.split("\n\n"):  # answers, and what they cost
        table = [line for line in block.split("\n") if line.startswith("|")]
        assert len({line.replace("\\\\", "").replace("\\|", "").count("|") for line in table}) <= 1


def test_every_sign_that_turns_text_is_shown():
    """Those of Unicode that open, override, isolate or close a direction."""
    turning = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    signs = [one for one in map(chr, range(sys.maxunicode + 1)) if unicodedata.bidirectional(one) in turning]
    assert len(signs) == 9
    for one in signs:
        assert printable(f"a{one}b") == f"a\\u{ord(one):04x}b"


def test_what_may_stay_is_all_that_stays():
    assert printable("a\n\tb\x1b", keep="\n") == "a\n\\tb\\x1b"
