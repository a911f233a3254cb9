"""What all commands have in common: how they name themselves, say ratios, fit a terminal and end."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import subprocess
import sys
import threading

import pytest
import typer.testing
from helpers.paths import PACKAGE
from rich.console import Console

import ficoco_ext
from ficoco_ext.cli import common
from ficoco_ext.cli.app import app
from ficoco_ext.io.suggest import did_you_mean
from ficoco_ext.ops import library

COMMANDS = [one.name for one in app.registered_commands]
PROGRAM = "import sys; sys.argv[0] = 'ficoco'; from ficoco_ext.cli import main; main()"
DOCUMENTS = {
    "cost": "cost llava-1.5-7b --method tome --keep-ratio 0.5 --json",
    "plan": "plan llava-1.5-7b --tflops 3 --json",
    "methods": "methods --json",
    "env": "env --json",
    "bench": "bench --methods topk --batch 1 --seconds 0 --json",
    "doctor": "doctor --json",
    "reduce": "reduce --shape 1,17,8 --heads 2 --r 4 --json",
    "data": "data --json -o sheet.png",
    "demo": "demo --repeats 1 -o demo.png --json",
    "show": "show scene_4 --methods topk -o show.png --json",
    "fit": "fit --samples 2 --ratio 0.3 -o recipe.json --json",
    "eval": "eval --methods topk --keep-ratios 0.5 --scenes 1 --per-scene 2 --json",
}


def _run(line):
    return typer.testing.CliRunner().invoke(app, line.split())


def test_version():
    found = _run("--version")
    assert found.exit_code == 0 and found.stdout == f"ficoco_ext {ficoco_ext.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_json_says_first_what_it_is(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = _run(DOCUMENTS[name])
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    assert next(iter(document.items())) == ("schema", f"ficoco-{name}/1")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_json_as_a_flag(name):
    help_text = _run(f"{name} --help").stdout
    assert "--json" in help_text and "one JSON document" in " ".join(help_text.replace("│", " ").split())


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("dmo", "Did you mean 'demo'?"),
        ("cost llava-1.5-7", "did you mean 'llava-1.5-7b'"),
        ("cost llava-1.5-7b --gpu h20", "did you mean 'h200'"),
        ("demo --geometry llava-1.5-7", "did you mean 'llava-1.5-7b'"),
        ("show scene_99", "did you mean 'scene_"),
    ],
)
def test_misspelt_names_get_a_suggestion(line, wanted):
    found = _run(line)
    assert found.exit_code == 2 and wanted in found.output


def test_what_is_like_nothing_gets_no_suggestion():
    assert did_you_mean("qqqq", ["tome", "topk"]) == ""
    assert did_you_mean("TOMES", ["tome"]) == "; did you mean 'tome'?"
    assert did_you_mean("llava", ["LLaVA"]) == "; did you mean 'LLaVA'?"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("ficoco::attach: layers must be in 0 ... 5", "--layers must be in 0 ... 5"),
        ("plan: kv_mb=3.5 is out of reach", "--kv-mb 3.5 is out of reach"),
        ('pass vision={"kv_mb": 3}', 'pass vision={"kv_mb": 3}'),
        ("the layers of the model", "the layers of the model"),
    ],
)
def test_errors_name_options(text, wanted):
    assert common.in_options(text, {"layers": "--layers", "kv_mb": "--kv-mb"}) == wanted


@pytest.mark.parametrize("line", ["cost llava-1.5-7b --explain", "cost --reproduce", "methods", "env", "--help"])
def test_a_closed_pipe_is_no_error(line):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *line.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=PACKAGE.parent,  # the package that is tested, not the clone around this test
    )
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait() == 0 and said == ""


@pytest.mark.parametrize(
    "line",
    [
        "cost llava-1.5-7b --method ficoco-vl --keep-ratio 0.25 --gpu h200",
        "cost llava-next-13b --method fastv --gpu a100-80g",
        "cost --reproduce",
        "plan llava-1.5-7b --method ficoco-l --tflops 3.3 --gpu h200",
        "methods",
        "methods ficoco-l",
        "env",
        "doctor",
        "bench --methods topk --batch 1 --seconds 0",
    ],
)
def test_tables_fit_80_columns_and_cut_no_number(line):
    lines = _run(line).stdout.splitlines()
    tables = [one for one in lines if one[:1] in "┏┃┡│└├"]
    assert tables and max(map(len, tables)) <= 80
    assert not any("…" in one for one in tables)


def test_a_wide_table_is_split_with_its_first_column_in_every_part():
    made = common.table("name", *(f">number {i}" for i in range(12)))
    made.add_row("one", *(str(10**i) for i in range(12)))
    console = Console(width=60)
    parts = common.fitted(console, made)
    assert len(parts) > 1 and all(part.columns[0].header == "name" for part in parts)
    found = [next(iter(column.cells)) for part in parts for column in part.columns[1:]]
    assert found == [str(10**i) for i in range(12)]
    assert common.fitted(Console(width=400), made) == [made]


def test_cost_says_its_verdict_first_and_ratios_as_times_less():
    lines = _run("cost llava-1.5-7b --method ficoco-v --keep-ratio 0.25 --gpu h200").stdout.splitlines()
    assert lines[0].startswith("By the roofline the first token comes")
    text = "\n".join(lines)
    assert "3.17x less" in text and "2.69x faster" in text and "ratio" not in text


@pytest.mark.parametrize(
    ("full", "few", "words", "wanted"),
    [
        (8, 2, (), "4.00x less"),
        (2, 3, (), "1.50x more"),
        (3, 2, ("faster", "slower"), "1.50x faster"),
        (2, 3, ("faster", "slower"), "1.50x slower"),
        (1, 1, (), "the same"),
        (0, 1, (), ""),
        (1, 0, (), ""),
    ],
)
def test_times(full, few, words, wanted):
    assert common.times(full, few, *words) == wanted


@pytest.mark.parametrize(
    ("name", "preset"),
    [("llava-hf/llava-1.5-7b-hf", "llava-1.5-7b"), ("Qwen/Qwen2-VL-7B-Instruct", "qwen2-vl-7b")],
)
def test_cost_takes_hub_names(name, preset):
    known, given = (json.loads(_run(f"cost {one} --json").stdout) for one in (preset, name))
    assert known == given


def test_a_hub_name_that_cannot_be_had_is_an_error(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = _run("cost nobody/no-such-model")
    assert found.exit_code == 2 and "neither from the hub nor from its cache" in found.stderr


def _on_a_terminal(monkeypatch):
    shown = io.StringIO()
    console = common._Console(file=shown, force_terminal=True, width=80)
    monkeypatch.setattr(common, "console", lambda *_, **__: console)
    return shown


def test_progress_on_a_terminal_says_what_is_done_and_counts(monkeypatch):
    shown = _on_a_terminal(monkeypatch)
    with common.progress() as progress:
        progress("loading")
        progress._bar.refresh()
        assert "loading" in shown.getvalue() and "/" not in shown.getvalue().partition("loading")[2]
        progress("timing \x1b[31m", 3, 8)
        progress._bar.refresh()
        progress("drawing")
        progress._bar.refresh()
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown.getvalue())
    assert "timing \\x1b[31m" in text
    assert re.search(r"3/8 -?[\d-]+:[\d-]+:[\d-]+", text), "no count with time left"
    assert "/" not in text.rpartition("drawing")[2]


def test_progress_is_silent_where_stderr_is_no_terminal(capfd):
    with common.progress() as progress:
        progress("timing", 3, 8)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_with_json_in_a_pipe_a_terminal_still_shows_progress():
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "doctor", "--json"],
        cwd=PACKAGE.parent,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(theirs)
    shown = []

    def read():
        with contextlib.suppress(OSError):  # the end of a terminal
            while piece := os.read(ours, 4096):
                shown.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    document = json.loads(process.stdout.read())
    assert process.wait() == 0
    reader.join()
    os.close(ours)
    assert document["schema"] == "ficoco-doctor/1"
    assert f"/{len(library.SCHEMAS)}".encode() in b"".join(shown)  # operators that it tries


def test_parts_of_a_split_table_say_what_each_row_is_about():
    made = common.table("method", "keep", *(f">number {i}" for i in range(9)), "answer")
    made.add_row("tome", "0.5", *(str(10**i) for i in range(9)), "yes")
    parts = common.fitted(Console(width=60), made)
    assert len(parts) > 1 and all(
        [column.header for column in part.columns[:2]] == ["method", "keep"] for part in parts
    )
    assert parts[-1].columns[-1].header == "answer"
