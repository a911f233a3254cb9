"""Options: grouped in help, what they take listed and offered by a shell, and nothing heavy loaded for any of it."""

import os
import subprocess
import sys

import pytest
import typer.main
from helpers.cli import run
from helpers.paths import PACKAGE

from ficoco_ext import METHODS
from ficoco_ext.apps import checkpoint, next_dress, one_reduction, timing
from ficoco_ext.cli import completion, cost, evaluate, evaluate_settings
from ficoco_ext.cli.app import app
from ficoco_ext.cost import hardware, model, presets
from ficoco_ext.evaluation import EQUAL, asking, data, settings
from ficoco_ext.gridvqa import KINDS
from ficoco_ext.methods.base import CACHES

COMMANDS = typer.main.get_command(app).commands
MOST = 12


@pytest.mark.parametrize("name", COMMANDS)
def test_at_most_twelve_parameters_stand_together(name):
    panels = {}
    for parameter in COMMANDS[name].params:
        panels.setdefault(getattr(parameter, "rich_help_panel", None), []).append(parameter.name)
    assert {panel: len(members) for panel, members in panels.items() if len(members) > MOST} == {}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_help_text_and_few_stand_in_no_panel(name):
    options = [one for one in COMMANDS[name].params if one.param_type_name == "option" and one.name != "help"]
    assert all(one.help for one in options)
    assert {one.name for one in options if one.rich_help_panel is None} <= {"reproduce_"}


CHOICES = [
    ("demo", "dtype", checkpoint.DTYPES),
    ("reduce", "dtype", one_reduction.DTYPES),
    ("demo", "geometry", tuple(timing.GEOMETRIES)),
    ("cost", "convention", tuple(model.CONVENTIONS)),
    ("plan", "convention", tuple(model.CONVENTIONS)),
    ("cost", "cache", CACHES),
    ("plan", "cache", CACHES),
    ("eval", "schedule", tuple(settings.SCHEDULES)),
    ("eval", "judge", tuple(asking.JUDGES)),
    ("eval", "bad-rows", tuple(data.BAD_ROWS)),
    ("eval", "split", ("dev", "test")),
    ("data", "split", ("train", "dev", "test")),
]


@pytest.mark.parametrize(("command", "option", "values"), CHOICES)
def test_help_lists_what_an_option_takes_and_a_shell_offers_it(command, option, values):
    parameter = next(one for one in COMMANDS[command].params if f"--{option}" in one.opts)
    assert parameter.metavar == "|".join(values) or all(value in parameter.help for value in values)
    assert _offered(command, f"--{option}", "") == list(values)
    assert _offered(command, f"--{option}", values[-1][:3])[-1] == values[-1]


def test_what_a_shell_offers_is_what_the_package_knows():
    assert completion.methods() == list(METHODS)
    assert completion.scenes() == sorted(file.stem for file in checkpoint.SCENES.glob("*.png"))
    assert set(completion.GPUS[:-1]) == {one.name for one in sys.modules[hardware.__module__]._ROWS}
    assert completion.GPUS[-1] == "cpu"
    assert set(completion.ARCHITECTURES) == set(presets.PRESETS)
    assert tuple(timing.GEOMETRIES) == completion.GEOMETRIES
    assert completion.DTYPES == checkpoint.DTYPES
    assert completion.KINDS == KINDS and tuple(next_dress.FAMILIES) == completion.FAMILIES
    assert tuple(model.CONVENTIONS) == cost.CONVENTIONS and tuple(asking.JUDGES) == evaluate._JUDGES
    assert evaluate_settings.EQUAL == EQUAL and completion.CACHES == CACHES


def _offered(*words):
    """What bash is offered for the last of ``words`` after ``ficoco``."""
    line = " ".join(("ficoco", *words))
    environment = {"_FICOCO_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words))}
    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment.items():
            patch.setenv(key, value)
        result = typer.testing.CliRunner().invoke(app, [], prog_name="ficoco")
    return result.stdout.split()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("de",), ["demo"]),
        (("demo", "scene_"), completion.scenes()),
        (("demo", "--method", "pru"), ["prune-then-merge", "prumerge", "prumerge+"]),
        (("show", "scene_1", "--methods", "tome,bal"), ["tome,balanced"]),
        (("bench", "--methods", "tome,to"), ["tome,topk"]),
        (("bench", "llava"), ["llava-1.5-7b", "llava-1.5-13b"]),
        (("cost", "llava-next"), ["llava-next-7b", "llava-next-13b"]),
        (("cost", "llava-1.5-7b", "--gpu", "h"), ["h100", "h200"]),
        (("methods", "fa"), ["fastv", "fastervlm", "fast"]),
        (("eval", "--kinds", "exist,co"), ["exist,count"]),
        (("demo", "--device", ""), ["cpu", "cuda"]),
    ],
)
def test_a_shell_completes(words, wanted):
    assert _offered(*words) == wanted


PROGRAM = (
    "import sys; sys.argv[0] = 'ficoco'\n"
    "import atexit\n"
    "def said(): print([one for one in ('torch', 'transformers', 'numpy') if one in sys.modules], file=sys.stderr)\n"
    "atexit.register(said)\n"
    "from ficoco_ext.cli import main; main()"
)


@pytest.mark.parametrize(
    ("line", "environment"),
    [
        ("--version", {}),
        ("--help", {}),
        ("eval --help", {}),
        ("", {"_FICOCO_COMPLETE": "complete_bash", "COMP_WORDS": "ficoco demo --method to", "COMP_CWORD": "3"}),
    ],
)
def test_help_version_and_completion_load_nothing_heavy(line, environment):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *line.split()],
        cwd=PACKAGE.parent,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0 and done.stdout, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("demo --method fastvv", "did you mean 'fastv'"),
        ("cost llava-1.5-7b --method tomee", "did you mean 'tome'"),
        ("methods balancd", "did you mean 'balanced'"),
        ("demo --set penalti=2", "did you mean 'penalty'"),
        ("demo --dtype float23", "did you mean 'float32'"),
        ("cost llava-1.5-7b --convention matmull", "did you mean 'matmul'"),
        ("eval --methods topk --layers 2-4 --schedule geometrik", "did you mean 'geometric'"),
        ("eval --methods topk --scenes 1 --per-scene 1 --judge exakt", "did you mean 'exact'"),
        (f"eval --methods topk --data {checkpoint.SCENES}/questions.json --bad-rows cuont", "did you mean 'count'"),
        ("data --split tets", "did you mean 'test'"),
        ("bench --methods topkk --batch 1", "did you mean 'topk'"),
        ("bench --geometry llava-1.5-7", "did you mean 'llava-1.5-7b'"),
        ("reduce --dtype float46", "did you mean 'float64'"),
    ],
)
def test_a_misspelt_value_gets_one_line_with_a_suggestion(line, wanted):
    found = run(*line.split())
    assert found.exit_code == 2 and wanted in found.stderr, found.output
    assert len(found.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_80_columns(name):
    lines = run(name, "--help").stdout.splitlines()
    assert lines and max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
