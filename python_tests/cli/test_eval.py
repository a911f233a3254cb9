"""``ficoco eval`` and ``ficoco data``: files that hold what was shown, and one clear line for every mistake."""

from __future__ import annotations

import json

import pytest
from helpers.cli import run

pytest.importorskip("transformers")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from helpers.embedded import embedded, grid, one_thread  # noqa: F401
from PIL import Image

from ficoco_ext.cli import evaluate_settings
from ficoco_ext.evaluation import Results
from ficoco_ext.evaluation.plot import draw
from ficoco_ext.methods import hyperparameters

FEW = ["--scenes", 2, "--per-scene", 4, "--methods", "ficoco-v,tome,fastv", "--keep-ratios", "0.6,0.03", "--threads", 1]


@pytest.fixture(autouse=True)
def _loaded_once(monkeypatch):
    from ficoco_ext.apps import checkpoint

    load, loaded = checkpoint.load, embedded()
    monkeypatch.setattr(checkpoint, "load", lambda model, *more: load(model, *more) if model else loaded)


def _fine(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The files of one run, and what it printed."""
    folder = tmp_path_factory.mktemp("eval")
    files = ("--results", folder / "out.json", "--plot", folder / "out.png", "--markdown", folder / "out.md")
    loaded = embedded()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ficoco_ext.apps.checkpoint.load", lambda *_: loaded)
        return folder, _fine("eval", *FEW, "--seeds", "0,1", "--set", "ficoco-v.variant=paper", *files)


def test_tables_say_what_the_file_holds(written):
    folder, shown = written
    results = Results.load(folder / "out.json")
    lines = results.summary().lines
    assert [(line.name, line.budget) for line in lines] == [
        ("unreduced", "all tokens"),
        *((name, f"keep_ratio {ratio}") for ratio in (0.6, 0.03) for name in ("ficoco-v", "tome", "fastv")),
    ]
    assert results.document["settings"][1]["hyperparameters"] == hyperparameters("ficoco-v") | {"variant": "paper"}
    page = (folder / "out.md").read_text()
    for text in (shown, page):
        for line in lines:
            if line.mean is not None:
                assert f"{100 * line.mean.value:.1f} [{100 * line.mean.low:.1f}, " in text
        assert "tome, keep_ratio 0.03: ficoco::attach" in text
        assert "16 questions about 4 scenes" in text
        assert "standard deviation" in text
    assert page.count("### keep_ratio") == 2 and "### Not done" in page
    columns = [row.count("|") - 1 for row in page.splitlines() if row.startswith("|")]
    assert set(columns) == {4 + len(results.kinds), 11} and columns.count(11) == columns.count(4 + len(results.kinds))
    assert Image.open(folder / "out.png").size[0] > 800
    assert json.loads((folder / "out.json").read_text())["summary"]["lines"][0]["name"] == "unreduced"


def test_a_finished_run_is_shown_again_without_a_model(written, monkeypatch, tmp_path):
    folder, shown = written
    monkeypatch.setattr("ficoco_ext.evaluation.evaluate", lambda *_, **__: pytest.fail("it ran"))
    again = _fine("eval", "--from", folder / "out.json", "--plot", tmp_path / "a.svg", "--markdown", tmp_path / "a.md")
    assert [line for line in shown.splitlines() if "│" in line] == [line for line in again.splitlines() if "│" in line]
    assert (tmp_path / "a.md").read_text() == (folder / "out.md").read_text()
    assert (tmp_path / "a.svg").stat().st_size > 1000
    assert "mean: of count," in _fine("eval", "--from", folder / "out.json", "--mean-of", "count")


def test_the_same_command_goes_on_from_its_file(written):
    folder, _ = written
    before = (folder / "out.json").read_text()
    _fine("eval", *FEW, "--seeds", "0,1", "--set", "ficoco-v.variant=paper", "--results", folder / "out.json")
    assert (folder / "out.json").read_text() == before
    refused = run("eval", *FEW, "--results", folder / "out.json")
    assert refused.exit_code == 2 and "is of another run: 'seeds' in it differs" in refused.stderr


def test_picture_has_a_line_a_method_and_the_unreduced_model_across(written):
    results = Results.load(written[0] / "out.json")
    figure = draw(results, results.summary())
    (axes,) = figure.axes
    labels = axes.get_legend_handles_labels()[1]
    assert set(labels) >= {"ficoco-v", "tome", "fastv"} and any(label.startswith("unreduced") for label in labels)
    lines = {container.get_label(): container for container in axes.containers}
    points = lines["fastv"].lines[0].get_xydata()
    wanted = [line for line in results.summary().lines if line.name == "fastv"]
    assert len(points) == 2
    for (x, y), line in zip(points, sorted(wanted, key=lambda line: line.cost["flops_ratio"]), strict=True):
        assert (x, y) == pytest.approx((100 * line.cost["flops_ratio"], 100 * line.mean.value))
    assert len(lines["tome"].lines[0].get_xydata()) == 1


def test_two_amounts_that_cost_the_same_are_drawn(tmp_path):
    given = ["--scenes", 1, "--per-scene", 2, "--methods", "topk", "--keep-ratios", "0.5", "--tokens", "72"]
    assert "picture" in _fine("eval", *given, "--plot", tmp_path / "out.png")


def test_own_questions_of_a_file(tmp_path):
    rows = list(grid(1, 3))
    rows[0].image.save(tmp_path / "a.png")
    asked = [{"image": "a.png", "question": row.question, "answer": row.answer} for row in rows]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, [*asked, {"image": "a.png", "question": "why ?"}])))
    given = ["eval", "--data", tmp_path / "q.jsonl", "--methods", "topk", "--tokens", "40", "--layers", "3-4"]
    refused = run(*given)
    assert refused.exit_code == 2 and "row 4, field 'answer'" in refused.stderr
    shown = _fine(*given, "--bad-rows", "count", "--judge", "contained", "--results", tmp_path / "out.json")
    assert "1 rows could not be asked" in shown and "judged contained" in shown
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["settings"][1]["layers"] == [3, 4] and document["tables"][0]["kinds"] == ["all"]


def test_geometric_schedule(tmp_path):
    given = ["--scenes", 1, "--per-scene", 2, "--methods", "topk,fastv", "--keep-ratios", "0.25", "--threads", 1]
    given += ["--schedule", "geometric", "--layers", "topk=3-4", "--results", tmp_path / "out.json"]
    _fine("eval", *given)
    settings = json.loads((tmp_path / "out.json").read_text())["settings"]
    assert [one["amount"].get("keep_ratio") for one in settings] == [None, [0.5, 0.25], 0.25]


def test_baselines_at_the_same_amounts(tmp_path):
    """Layers that are named for all do not go to methods after the projector."""
    path = tmp_path / "out.json"
    given = ["--scenes", 1, "--per-scene", 2, "--threads", 1, "--results", path]
    shown = _fine("eval", *given, "--methods", "topk,scope", "--tokens", "20", "--layers", "2-4", "--baselines")
    results = Results.load(path)
    names = ["topk", "scope", "random-0", "random-1", "random-2", "stride", "downsample"]
    assert results.names[1:] == tuple((name, "tokens 20") for name in names)
    assert [one["layers"] for one in results.document["settings"][1:]] == [[2, 3, 4], *[None] * 6]
    assert not any(one["impossible"] for one in results.document["settings"])
    assert all(name in shown for name in names)
    ratios = _fine("eval", *given[:-1], tmp_path / "own.json", "--methods", "balanced", "--baselines")
    assert "keep_ratio 0.25" in ratios  # a preset alone has its own amount, and then needs none


def test_the_protocol_in_one_flag(tmp_path):
    """Equal means and equal FLOPs, random three times and as one row, both batch sizes, and the kinds that suffer."""
    path, page = tmp_path / "out.json", tmp_path / "out.md"
    given = ["eval", "--scenes", 1, "--per-scene", 2, "--threads", 1, "--methods", "divprune,fastv", "--tokens", "90"]
    given += ["--protocol", "--first-token-seconds", 0, "--kinds", "exist,text", "--markdown", page]
    found = json.loads(_fine(*given, "--results", path, "--json"))
    names = ["divprune", "fastv", "random-0", "random-1", "random-2", "random, 3 seeds", "stride", "downsample"]
    wanted = [(name, budget) for budget in ("mean tokens 90", "FLOPs of 90 tokens") for name in names]
    assert [(line["name"], line["budget"]) for line in found["lines"][1:]] == wanted
    assert found["where_reduction_hurts"] == {"words": ["text"], "digits": [], "positions": []}
    for line in found["lines"][1:]:
        if line["mean"] is not None and "members" not in line:
            assert list(line["first_token"]) == ["1", "8"]
            assert set(line["kinds"]) <= {"exist", "text"} and line["cost"]["flops_parts"]["language_model"] > 0
    shown = _fine("eval", "--from", path)
    for text in (shown, page.read_text()):
        assert "of it selection, batch 8" in text or "batch 8" in text
        said = " ".join(text.split())
        assert "called after digits or positions" in said and "mean tokens T:" in said and "FLOPs of T tokens:" in said


def test_json_points_at_kinds_outside_of_the_mean(written):
    found = json.loads(_fine("eval", "--from", written[0] / "out.json", "--mean-of", "exist", "--json"))
    assert found["mean_of"] == ["exist"]
    asked = set(found["kinds"])
    assert found["where_reduction_hurts"] == {
        "words": ["text"] if "text" in asked else [],
        "digits": ["digit"] if "digit" in asked else [],
        "positions": ["position"] if "position" in asked else [],
    }
    assert any(found["where_reduction_hurts"].values())


def test_parts_of_the_protocol_can_be_changed():
    def settings(methods=None, ratios=None, tokens=None, **given):
        plain = {"baselines": False, "protocol": False, "equal": None, **given}
        return evaluate_settings.settings(methods, ratios, tokens, None, "even", None, **plain)

    found = settings("topk", protocol=True)
    count = len({one.name for one in found})
    assert len(found) == 6 * count and count >= 5
    assert [one.budget for one in found[:: 3 * count]] == ["mean tokens keep_ratio 0.333", "FLOPs of keep_ratio 0.333"]
    assert [one.goal.of(576).tokens for one in found[: 3 * count : count]] == [192, 128, 64]
    found = settings("topk", protocol=True, equal="final", tokens="9,5")
    assert {one.budget for one in found} == {"tokens 9", "tokens 5"} and len(found) == 2 * count
    assert [one.budget for one in settings("topk", equal="flops")] == [
        f"FLOPs of keep_ratio {ratio}" for ratio in (0.5, 0.25, 0.15, 0.1)
    ]
    assert evaluate_settings.batches(None, True) == (1, 8) and evaluate_settings.batches(None, False) == ()
    assert evaluate_settings.batches("4", True) == (4,)


def test_help_says_what_is_so():
    assert "1 for models of grid scenes" in " ".join(_fine("eval", "--help").replace("│", " ").split())
    assert "see ficoco methods" in " ".join(_fine("show", "--help").replace("│", " ").split())


def test_narrow_terminals_get_two_tables(written, monkeypatch):
    from ficoco_ext.cli import common

    monkeypatch.setattr(common, "console", lambda *_, **__: common._Console(width=130))
    shown = _fine("eval", "--from", written[0] / "out.json")
    assert max(map(len, shown.splitlines()[:12])) <= 130 and shown.count("unreduced │") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "nope"], "methods must be among"),
        (["--schedule", "steep"], "schedule must be one of"),
        (["--schedule", "geometric"], "needs the layers of topk; give them, as --layers topk=1-4"),
        (["--keep-ratios", "0"], "--keep-ratios must be in (0, 1], got 0.0"),
        (["--keep-ratios", "1.5"], "--keep-ratios must be in (0, 1]"),
        (["--keep-ratios", "half"], "--keep-ratios must be numbers"),
        (["--tokens", "0"], "tokens must be integers >= 1"),
        (["--layers", "a"], "--layers must be integers"),
        (["--layers", "nope=3"], "layers must be of one of"),
        (["--set", "variant=paper"], "--set must be METHOD.KEY=VALUE"),
        (["--set", "nope.lam=1"], "hyperparameters must be of one of"),
        (["--set", "topk.x=1"], "no hyperparameter 'x'"),
        (["--set", "topk.x=1", "--set", "topk.x=2"], "--set topk.x is given twice"),
        (["--seeds", "a"], "--seeds must be integers"),
        (["--kinds", "colour"], "kinds must be among"),
        (["--split", "val"], "split must be one of"),
        (["--scenes", "0"], "scenes must be an integer >= 1"),
        (["--mean-of", "colour"], "--mean-of must be among"),
        (["--judge", "close"], "judge must be one of"),
        (["--batch", "0"], "batch must be an integer >= 1"),
        (["--equal", "flop"], "equal must be among final, average, flops, got 'flop'"),
        (["--equal", "average", "--tokens", "144"], "must be below the 144 visual ones of a picture, got 144"),
        (["--first-token", "0"], "--first-token must be batch sizes in 1 ... 1024, got 0"),
        (["--first-token", "a"], "--first-token must be integers"),
        (["--max-new-tokens", "0"], "--max-new-tokens must be"),
        (["--threads", "0"], "--threads must be in 1 ... 1024"),
        (["--device", "tpu"], "device must be"),
        (["--dtype", "int8"], "dtype must be"),
        (["--model", "/nowhere/model"], "model directory not found"),
        (["--data", "/nowhere/q.jsonl"], "data file not found"),
        (["--data", "q.jsonl", "--scenes", "3"], "--scenes shape grid scenes; they do not go with --data"),
        (["--bad-rows", "skip", "--data", "q.jsonl"], "--bad-rows must be"),
        (["--plot", "out.txt"], "picture must end in"),
        (["--results", "/nowhere/out.json"], "--results: no folder /nowhere"),
        (["--markdown", "/nowhere/out.md"], "--markdown: no folder /nowhere"),
        (["--from", "/nowhere/out.json"], "results file not found"),
        (["--from", "out.json", "--methods", "topk"], "--from shows a finished run"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q.jsonl").write_text("")
    small = [] if "--data" in arguments or "--from" in arguments else ["--scenes", "1"]
    methods = [] if "--methods" in arguments or "--from" in arguments else ["--methods", "topk"]
    result = run("eval", *small, *methods, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "out.png").exists()


def test_data_counts_and_draws(tmp_path):
    given = ["data", "--scenes", 3, "--per-scene", 5, "--kinds", "exist,attr", "--split", "dev", "--seed", 2]
    found = json.loads(_fine(*given, "--json", "-o", tmp_path / "sheet.png", "--shown", 2))
    assert set(found["kinds"]) == {"exist", "attr"}
    assert found["questions"] == sum(one["questions"] for one in found["kinds"].values())
    for one in found["kinds"].values():
        assert one["questions"] == sum(one["answers"].values())
        assert one["guess"] == max(one["answers"].values()) / one["questions"]
    assert Image.open(tmp_path / "sheet.png").size[0] > 500
    shown = _fine(*given)
    assert "split dev, seed 2" in shown and "exist" in shown
    for bad, message in ((["--shown", 0], "--shown"), (["--split", "x"], "split"), (["-o", "a.txt"], "picture must")):
        result = run("data", "--scenes", 1, *bad)
        assert result.exit_code == 2 and message in result.stderr
