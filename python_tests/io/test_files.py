"""Outputs are whole or not there, and never replace what was read, whatever name it goes by."""

import json
import os
import shutil
import stat
import subprocess
import sys

import pytest
from helpers.paths import PACKAGE, RESULTS

from ficoco_ext.apps.checkpoint import EMBEDDED, SCENES
from ficoco_ext.io import files

pytest.importorskip("typer")
from typer.testing import CliRunner

from ficoco_ext.cli.app import app


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_gets_its_name_when_it_is_whole(tmp_path):
    place = tmp_path / "out.txt"
    files.write_text(place, "old")
    with pytest.raises(RuntimeError), files.replacing(place) as file:
        file.write(b"half")
        raise RuntimeError
    assert place.read_text() == "old" and names(tmp_path) == ["out.txt"]
    with files.replacing(place) as file:
        file.write(b"new")
        assert place.read_text() == "old"
    assert place.read_text() == "new" and names(tmp_path) == ["out.txt"]


def test_neighbours_and_permissions_stay(tmp_path):
    for name in ("out.json.part", ".out.json", f".out.{os.getpid()}.json"):
        (tmp_path / name).write_text("not ours")
    place = tmp_path / "out.json"
    files.write_text(place, "first")
    usual = tmp_path / "usual"
    usual.write_text("")
    assert stat.S_IMODE(place.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)
    place.chmod(0o600)
    files.write_text(place, "second")
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    for name in ("out.json.part", ".out.json", f".out.{os.getpid()}.json"):
        assert (tmp_path / name).read_text() == "not ours"


def test_a_link_stays_a_link_and_a_pipe_a_pipe(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    files.write_text(link, "new")
    assert link.is_symlink() and target.read_text() == "new"
    files.write_text("/dev/null", "gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def _writes(place, **options):
    call = [sys.executable, "-c", f"from ficoco_ext.io import files; files.write_text({place!r}, 'whole')"]
    return subprocess.run(call, cwd=PACKAGE.parent, check=True, **options)


@pytest.mark.parametrize("place", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_a_pipe_that_a_process_holds_is_written(place):
    assert _writes(place, stdout=subprocess.PIPE).stdout == b"whole"


def test_a_pipe_that_another_name_leads_to_is_written(tmp_path):
    (tmp_path / "out").symlink_to("/dev/stdout")
    assert _writes(str(tmp_path / "out"), stdout=subprocess.PIPE).stdout == b"whole"
    assert (tmp_path / "out").is_symlink()


@pytest.mark.parametrize("place", ["/dev/stderr", "/dev/fd/2", "/proc/self/fd/2"])
def test_a_file_that_a_process_holds_is_not_replaced(tmp_path, place):
    with (tmp_path / "log").open("wb") as log:
        inode = os.fstat(log.fileno()).st_ino
        _writes(place, stderr=log)
    assert names(tmp_path) == ["log"] and (tmp_path / "log").stat().st_ino == inode
    assert (tmp_path / "log").read_bytes() == b"whole"


def test_what_is_printed_before_and_after_stays(tmp_path):
    text = "print('before'); files.write_text('/dev/stdout', 'whole '); print('after')"
    with (tmp_path / "log").open("wb") as log:
        call = [sys.executable, "-c", f"from ficoco_ext.io import files; {text}"]
        subprocess.run(call, cwd=PACKAGE.parent, check=True, stdout=log)
    assert (tmp_path / "log").read_text() == "before\nwhole after\n"
    assert subprocess.run(call, cwd=PACKAGE.parent, stdout=subprocess.PIPE, check=True).stdout == (
        b"before\nwhole after\n"
    )


def test_a_named_pipe_is_written(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE)
    files.write_text(tmp_path / "pipe", "whole")
    assert reader.communicate(timeout=10)[0] == b"whole" and names(tmp_path) == ["pipe"]


def test_links_in_a_circle_are_named(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(ValueError, match=r"/a is a link that leads back to itself; give another name"):
        files.write_text(tmp_path / "a", "x")
    files.require_apart([tmp_path / "c"], output=tmp_path / "a")
    assert names(tmp_path) == ["a", "b"]


def test_a_link_to_what_is_not_there_makes_it(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "new")
    files.write_text(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "new").read_text() == "x"


def test_the_mode_is_that_of_the_older_file_whatever_the_umask(tmp_path):
    place = tmp_path / "out"
    place.write_text("old")
    place.chmod(0o666)
    before = os.umask(0o077)
    try:
        files.write_text(place, "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE(place.stat().st_mode) == 0o666 and place.read_text() == "new"


def test_a_read_only_file_stays(tmp_path):
    place = tmp_path / "out"
    place.write_text("old")
    place.chmod(0o444)
    with pytest.raises(PermissionError, match="the file is read-only; make it writable or give another name"):
        files.write_text(place, "new")
    assert place.read_text() == "old" and names(tmp_path) == ["out"]


def test_what_cannot_be_written_is_named(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder; name a file in it"):
        files.write_text(tmp_path, "x")
    with pytest.raises(FileNotFoundError, match="none/out"):
        files.write_text(tmp_path / "none" / "out", "x")
    files.write_text(tmp_path / "name", "no text: \udc80")
    assert (tmp_path / "name").read_text() == "no text: \\udc80"


@pytest.mark.parametrize("how", ["itself", "spelling", "symlink", "hard link", "link of a folder"])
def test_an_input_is_known_by_what_it_is(tmp_path, how):
    (tmp_path / "in").mkdir()
    read = tmp_path / "in" / "x.png"
    read.write_text("")
    other = {
        "itself": read,
        "spelling": tmp_path / "in" / ".." / "in" / "x.png",
        "symlink": tmp_path / "link.png",
        "hard link": tmp_path / "hard.png",
        "link of a folder": tmp_path / "folder" / "x.png",
    }[how]
    if how == "symlink":
        other.symlink_to(read)
    if how == "hard link":
        os.link(read, other)
    if how == "link of a folder":
        other.parent.symlink_to(tmp_path / "in")
    with pytest.raises(ValueError, match=r"output must not be what is read, .*x\.png: it would be overwritten"):
        files.require_apart([None, read], output=other)
    files.require_apart([read], output=tmp_path / "in" / "y.png", plot=None)


def test_two_outputs_are_two_files(tmp_path):
    with pytest.raises(ValueError, match=r"plot must not be the file of output, .*new\.png: give another name"):
        files.require_apart([], output=tmp_path / "new.png", plot=tmp_path / "." / "new.png")


@pytest.fixture
def inputs(tmp_path):
    """Files of a user, one of each kind that a command reads."""
    safetensors = pytest.importorskip("safetensors.torch")
    torch = pytest.importorskip("torch")
    shutil.copy(SCENES / "scene_4.png", tmp_path / "in.png")
    shutil.copytree(EMBEDDED, tmp_path / "model", ignore=shutil.ignore_patterns("samples"))
    (tmp_path / "config.png").symlink_to(tmp_path / "model" / "config.json")
    safetensors.save_file({"tokens": torch.randn(1, 17, 8), "attn": torch.rand(1, 17, 17)}, tmp_path / "in.safetensors")
    row = {"image": "in.png", "question": "is there a star ?", "answer": "no"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    results = RESULTS / "accuracy_late.json"
    (tmp_path / "results.json").write_text(results.read_text() if results.exists() else "{}")
    (tmp_path / "link.png").symlink_to(tmp_path / "in.png")
    return tmp_path


def test_results_in_a_checkpoint_are_continued_and_its_config_is_not(inputs, monkeypatch):
    monkeypatch.chdir(inputs)
    line = "eval --data rows.jsonl --model model --methods topk --keep-ratios 0.5 --results model/"
    for _ in range(2):
        assert CliRunner().invoke(app, [*f"{line}out.json".split()]).exit_code == 0
    told = CliRunner().invoke(app, f"{line}config.json".split())
    assert told.exit_code == 2 and "must be written by ficoco eval" in told.output
    assert json.loads((inputs / "model" / "config.json").read_text())["model_type"] == "llava"


@pytest.mark.parametrize(
    "line",
    [
        "demo in.png -o in.png",
        "demo in.png -o link.png",
        "demo link.png -o in.png",
        "demo in.png --model model -o config.png",
        "show in.png -o in.png",
        "show in.png -o link.png",
        "show in.png --model model -o config.png",
        "cost model --plot config.png",
        "plan model --tflops 0.001 --plot config.png",
        "reduce --input in.safetensors -o in.safetensors",
        "eval --data rows.jsonl --markdown rows.jsonl",
        "eval --data rows.jsonl --results rows.jsonl",
        "eval --data rows.jsonl --plot in.png",
        "eval --data rows.jsonl --results in.png",
        "eval --data rows.jsonl --model model --markdown model/tokenizer.json",
        "eval --scenes 1 --results new.json --markdown new.json",
        "eval --scenes 1 --plot new.png --markdown new.png",
        "eval --from results.json --markdown results.json",
        "eval --from results.json --markdown new.png --plot new.png",
    ],
)
def test_no_command_overwrites_what_it_was_given(inputs, monkeypatch, line):
    monkeypatch.chdir(inputs)
    before = {path: path.read_bytes() for path in inputs.rglob("*") if path.is_file()}
    told = CliRunner().invoke(app, line.split())
    assert told.exit_code == 2, told.output
    assert " must not be " in told.output and "give another name" in told.output
    assert {path: path.read_bytes() for path in inputs.rglob("*") if path.is_file()} == before


def test_of_three_outputs_each_is_a_file_of_its_own(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    files.require_apart([], a=one, b=other, c=tmp_path / "third")
    with pytest.raises(ValueError, match=r"c must not be the file of a, "):
        files.require_apart([], a=one, b=other, c=one)
