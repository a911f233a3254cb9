"""The console script: JSON that parses, pictures that exist, one clear line and exit code 2 for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from helpers.cli import document, run
from helpers.embedded import one_thread  # noqa: F401
from helpers.tiny_families import shared_model
from PIL import Image

import ficoco_ext
from ficoco_ext import cli
from ficoco_ext.apps import timing
from ficoco_ext.models import tower_families, tower_saliency
from ficoco_ext.models.families import FAMILIES
from ficoco_ext.models.tower_readings import TowerReadings

TINY = ["--shape", "2,17,16", "--heads", "4", "--repeats", "1"]


def test_env_says_what_is_live_and_why_nothing_faster():
    found = document("env")
    assert found["build"] == json.loads(json.dumps(ficoco_ext.build_info()))
    assert found["versions"]["torch"] == torch.__version__
    assert found["devices"]["cpu"]["threads"] == torch.get_num_threads()
    assert set(found["methods"]) == set(ficoco_ext.METHODS)
    assert found["methods"]["ficoco-v"]["eps"] == 0.998
    text = run("env").stdout
    for word in ("why nothing faster", torch.__version__, "ficoco-v", "LLaVA-1.5"):
        assert word in text


def test_env_tries_what_it_says_of_models(monkeypatch):
    from ficoco_ext.models import transformers_release as api

    found = document("env")
    assert found["transformers"] == {
        "tested": [api.TESTED_OLDEST, api.TESTED_NEWEST],
        "newer_than_tested": api.newer_than_tested(),
        "why_not": None,
    }
    assert {one["name"]: one["why_not"] for one in found["models"]} == {
        name: api.structure_problems().get(name) for name in (family.name for family in FAMILIES)
    }
    monkeypatch.setattr(api, "structure_problems", lambda: {"LLaVA-NeXT": "its forward takes [other] names"})
    monkeypatch.setattr(api, "newer_than_tested", lambda: True)
    by_name = {one["name"]: one["why_not"] for one in document("env")["models"]}
    assert by_name["LLaVA-NeXT"] == "its forward takes [other] names" and by_name["LLaVA-1.5"] is None
    text = " ".join(run("env").stdout.replace("│", " ").split())
    assert "NO: its" in text and "is newer than what was tested" in text and api.TESTED_NEWEST in text


def test_env_says_that_transformers_is_missing_or_broken(monkeypatch):
    from ficoco_ext.models import transformers_release as api

    def broken():
        raise RuntimeError("no libfoo.so\nand much more")

    monkeypatch.setattr(api, "structure_problems", broken)
    found = document("env")
    assert found["transformers"]["why_not"] == "transformers cannot be imported: no libfoo.so"
    assert {one["why_not"] for one in found["models"]} == {"transformers cannot be imported: no libfoo.so"}
    assert run("env").exit_code == 0


def test_env_says_what_is_served_and_how_far():
    found = document("env")
    language = dict.fromkeys(("ficoco-l", "fastv", "pyramiddrop", "sparsevlm", "fitprune"), "language model")
    after = (
        "divprune",
        "scope",
        "stride",
        "visionzip",
        "hiprune",
        "cdpruner",
        "mmtok",
        "globalcom2",
        "fastervlm",
        "vispruner",
        "dart",
    )
    projector = dict.fromkeys((*after, "downsample", "vidcom2", "flashvid"), "projector")
    tower = ("ficoco-v", "topk", "tome", "prune-then-merge", "evit", "prumerge", "prumerge+", "pool", "random")
    presets = ("quality", "balanced", "fast")
    assert found["reduces"] == {
        **dict.fromkeys((*tower, *presets), "tower"),
        **language,
        **projector,
        **dict.fromkeys(("ficoco-vl", "mustdrop"), "tower and language model"),
    }
    served = {model["name"]: model for model in found["models"]}
    assert list(served) == [family.name for family in FAMILIES]
    assert served["LLaVA-1.5"]["tower"] and served["LLaVA-1.5"]["tower_why_not"] is None
    assert served["LLaVA-NeXT"]["tower"] and served["LLaVA-NeXT"]["tower_why_not"] is None
    assert not served["LLaVA-OneVision"]["tower"] and "grids" in served["LLaVA-OneVision"]["tower_why_not"]
    for family in FAMILIES:
        assert served[family.name]["language_models"] == list(family.language_models)
        assert served[family.name]["towers"] == list(family.towers)
    text = run("env").stdout
    for word in (
        "reduces in",
        "tower and language model",
        "Qwen2_5_VLForConditionalGeneration",
        "no: its",
        "after the projector",
    ):
        assert word in text
    words = " ".join(text.replace("│", " ").split())
    assert "yes: images and videos" in words and "no: layers with linear attention" in words


def test_env_says_which_saliency_a_tower_gives():
    """As measuring it would: a kind that is named can be made, one that is not is refused."""
    found = {one["name"]: one["saliency"] for one in document("env")["models"]}
    assert set(found) == set(tower_families.TOWERS)
    for name, tiny in (("LLaVA-1.5", "llava-clip"), ("Qwen2.5-VL", "qwen2.5-vl")):
        model = shared_model(tiny)
        for kind in tower_saliency.KINDS[1:]:
            if kind in found[name]:
                assert TowerReadings(model, name, saliency=kind).kind == kind
            else:
                with pytest.raises(NotImplementedError, match=kind):
                    TowerReadings(model, name, saliency=kind)


def test_demo_takes_a_share_for_each_part(tmp_path):
    shares = ["--projector-keep-ratio", 0.5, "--decoder-keep-ratio", 0.25]
    found = document("demo", "--method", "divprune+fastv", *shares, "--repeats", 1, "-o", tmp_path / "out.png")
    assert (found["patches"], found["projected"], found["kept"], found["left"]) == (144, 144, 72, 18)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("divprune", "acts after the projector: call select or merge"),
        ("divprune+ficoco-l", "must be one reduction, got divprune + ficoco-l"),
    ],
)
def test_reduce_has_no_methods_after_the_projector(method, said):
    result = run("reduce", *TINY, "--method", method)
    assert result.exit_code == 2 and said in " ".join(result.stderr.split())


def test_reduce_random_tensors():
    found = document("reduce", *TINY, "--r", 5, "--set", "variant=paper", "--set", "eps=0.9")
    assert found["shapes"]["out: tokens"] == [2, 12, 16]
    assert found["hyperparameters"] == {"variant": "paper", "eps": 0.9}
    assert found["conservation"] == {"size_sum": pytest.approx(34), "expected": 34.0, "dropped": 0, "ok": True}
    assert found["operators"] == ficoco_ext.build_info()["cpu"]
    assert "conservation" in run("reduce", *TINY).stdout


def test_reduce_counts_dropped_tokens_and_says_who_computed():
    before = torch.get_num_threads()
    found = document("reduce", *TINY, "--method", "topk", "--r", 3, "--dtype", "float64", "--threads", before + 1)
    assert found["conservation"] == {"size_sum": 28.0, "expected": 28.0, "dropped": 6, "ok": True}
    assert (found["operators"], found["threads"], found["dtype"]) == ("reference", before + 1, "float64")
    assert torch.get_num_threads() == before


def test_reduce_without_class_token_on_a_grid():
    options = ["--shape", "1,12,16", "--heads", "4", "--grid", "3,4", "--no-class-token", "--repeats", "1"]
    assert document("reduce", *options)["shapes"]["out: tokens"] == [1, 9, 16]


@pytest.mark.parametrize("method", ["ficoco-l", "fastv"])
def test_reduce_among_text(tmp_path, method):
    found = document("reduce", *TINY, "--method", method, "--visual", "3,9", "--r", 4, "-o", tmp_path / "out")
    assert found["visual"] == [3, 9]
    assert found["shapes"]["out: tokens"] == [2, 13, 16]
    assert found["conservation"]["ok"]
    assert found["conservation"]["dropped"] == (8 if method == "fastv" else 0)
    written = safetensors.torch.load_file(tmp_path / "out")
    assert bool(((written["sources"] >= 3) & (written["sources"] < 12)).all())
    assert bool((written["kept"][:, :3] == torch.arange(3)).all())
    found = document("reduce", *TINY, "--method", method)
    assert (found["visual"], found["r"]) == ([2, 13], 3)  # an eighth of text on either side, a quarter removed
    assert "columns 2 to 14" in run("reduce", *TINY, "--method", method).stdout


def test_reduce_a_file_by_a_method_of_the_language_model(tmp_path):
    tokens, (query, key) = torch.randn(1, 17, 16), torch.randn(2, 1, 4, 17, 4)
    safetensors.torch.save_file({"tokens": tokens, "query": query, "key": key}, tmp_path / "in")
    options = ["--method", "ficoco-l", "--visual", "5,10", "--repeats", 1]
    document("reduce", "--input", tmp_path / "in", *options, "-o", tmp_path / "out")
    attn = ficoco_ext.QueryKey(query, key)
    wanted = ficoco_ext.reduce(tokens, attn, 2, method="ficoco-l", visual=(5, 10), return_reduction=True)
    assert torch.equal(safetensors.torch.load_file(tmp_path / "out")["tokens"], wanted.tokens)
    result = run("reduce", "--input", tmp_path / "in", "--method", "ficoco-l")
    assert result.exit_code == 2
    assert "--visual must say which tokens of the input are visual" in result.stderr


@pytest.mark.parametrize("given", ["query", "attn"])
def test_reduce_reads_and_writes_files(tmp_path, given):
    tokens, (query, key) = torch.randn(1, 17, 16), torch.randn(2, 1, 4, 17, 4)
    attention = {"query": query, "key": key} if given == "query" else {"attn": torch.rand(1, 4, 17, 17)}
    safetensors.torch.save_file({"tokens": tokens, **attention}, tmp_path / "in.safetensors")
    document("reduce", "--input", tmp_path / "in.safetensors", "--r", 6, "-o", tmp_path / "out.safetensors")
    written = safetensors.torch.load_file(tmp_path / "out.safetensors")
    attn = ficoco_ext.QueryKey(query, key) if given == "query" else attention["attn"]
    wanted = ficoco_ext.reduce(tokens, attn, 6, return_reduction=True)
    assert set(written) == {"tokens", "size", "kept", "sources", "source_map", "targets", "weights"}
    for name, tensor in written.items():
        assert torch.equal(tensor, getattr(wanted, name)), name


def test_demo_prints_json_and_draws(tmp_path):
    picture = tmp_path / "out.png"
    found = document("demo", "--repeats", 1, "-o", picture)
    assert [answer["reduced"] for answer in found["answers"]] == [answer["truth"] for answer in found["answers"]]
    assert found["picture"] == str(picture)
    drawn = Image.open(picture).convert("RGB")
    assert drawn.width > 1000
    assert drawn.height > 400
    assert picture.stat().st_size > 50_000
    assert len(drawn.getcolors(maxcolors=2**24)) > 1000


def test_demo_prints_tables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--tokens", "20", "--layers", "1-3", "--set", "variant=paper", "--repeats", "1"]
    result = run("demo", "scene_3", "--question", "what word is written ?", *options)
    assert result.exit_code == 0, result.stderr
    for word in (
        "20 of 144 patches reach the language model",
        "zoo",
        "FLOPs",
        "KV cache",
        "--geometry",
        "ficoco_demo.png",
    ):
        assert word in " ".join(result.stdout.split())
    assert (tmp_path / "ficoco_demo.png").is_file()


@pytest.mark.slow
def test_demo_of_a_method_in_the_language_model(tmp_path):
    options = ["--question", "how many shapes ?", "--repeats", 1, "-o", tmp_path / "x.png"]
    found = document("demo", "--method", "ficoco-l", "--layers", "1,3", "--r", "50,58", *options)
    assert [layer["mlp"] for layer in found["text_layers"]] == [144, 94, 94, 36, 36, 36]
    assert found["reduced"]["kv_bytes"] == sum(layer["kv_bytes"] for layer in found["text_layers"])
    assert [layer["removed"] for layer in found["layers"]] == [0] * 8
    result = run("demo", "--method", "pyramiddrop", "--keep-ratio", "0.5,0.5,0.25", *options)
    text = " ".join(result.stdout.split())
    for word in ("36 visual tokens are left in its last layer", "text layer", "KV cache"):
        assert word in text
    assert "vision layer" not in text
    both = ["--vision-keep-ratio", 0.5, "--decoder-keep-ratio", 0.25, *options]
    found = document("demo", "--method", "ficoco-vl", *both)
    assert (found["kept"], found["left"]) == (72, 18)
    assert found["amount"] == {"vision": {"keep_ratio": 0.5}, "decoder": {"keep_ratio": 0.25}}
    text = run("demo", "--method", "ficoco-vl", *both).stdout
    assert "vision layer" in text and "text layer" in text


def test_demo_without_anything_to_remove_has_no_picture(tmp_path):
    found = document(
        "demo", "--keep-ratio", 1, "--repeats", 1, "--question", "how many shapes ?", "-o", tmp_path / "x.png"
    )
    assert found["picture"] is None
    assert not (tmp_path / "x.png").exists()
    assert any("no picture" in note for note in found["notices"])


def test_notices_go_to_stderr(tmp_path):
    result = run("demo", "--question", "is it a dog ?", "--repeats", 1, "--json", "-o", tmp_path / "x.png")
    assert "'dog'" in result.stderr
    assert json.loads(result.stdout)["notices"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("demo /nowhere/x.png", "image not found: /nowhere/x.png"),
        ("demo --image {text}", "cannot read image"),
        ("demo x.png --image y.png", "not both"),
        ("demo --model /nowhere/model", "model directory not found: /nowhere/model"),
        ("demo --model {empty}", "{empty}"),
        ("demo --method nope", "method must be"),
        ("demo --set lam", "--set must be key=value, got 'lam'"),
        ("demo --set lam=2", "lam must be a number in [0, 1]"),
        ("demo --set nope=1", "no hyperparameter 'nope'"),
        ("demo --method mustdrop --set thresholds=true", "so what leaves in each layer is not known before; use a"),
        ("show scene_3 --methods mustdrop --set thresholds=true", "so what leaves in each layer is not known before"),
        ("cost llava-1.5-7b --method mustdrop --set thresholds=true", "so its cost is not known before"),
        ("plan llava-1.5-7b --tflops 3 --method mustdrop --set thresholds=true", "what reaches a budget is not known"),
        ("cost llava-next-7b --method globalcom2 --set budget=floor", "such as globalcom2 with budget='exact'"),
        ("cost llava-next-7b --method mustdrop", "of whose windows padding may be a part; pass part='language_model'"),
        ("demo --set lam=0.1 --set lam=0.2", "given twice"),
        ("demo --keep-ratio 1.5", "--keep-ratio must be in (0, 1]"),
        ("demo --keep-ratio 0.5 --tokens 3", "give one of"),
        ("demo --r 1,x", "--r must be integers"),
        ("demo --keep-ratio half", "--keep-ratio must be numbers"),
        ("demo --method ficoco-l --layers 9", "in 0 ... 5"),
        ("demo --method ficoco-vl --layers 3", "say it for each part"),
        ("demo --method ficoco-vl --vision-keep-ratio 0.5", "all given"),
        ("demo --method ficoco-l --decoder-keep-ratio 0.5", "unless the method has several parts"),
        ("demo --method pyramiddrop --layers 1,2", "--keep-ratio has 3 entries for 2 layers"),
        ("demo --layers 7", "0 ... 6"),
        ("demo --layers a", "--layers must be integers"),
        ("demo --device tpu", "device must be"),
        ("demo --dtype int8", "dtype must be one of"),
        ("demo -o x.foo", "must end in"),
        ("demo -o /nowhere/x.png", "no folder"),
        ("demo --text-layers 2", "give one"),
        ("demo --geometry llava-9", "geometry must be one of"),
        ("demo --geometry llava-1.5-7b --keep-ratio 2", "--keep-ratio must be in (0, 1]"),
        ("demo --geometry llava-1.5-7b --vision-layers 1", "--vision-layers must be in 2 ... 24"),
        ("demo --geometry llava-1.5-13b", "--vision-layers and --text-layers"),
        ("reduce --shape 1,2", "--shape must be 3 integers"),
        ("reduce --shape 0,2,4", "--shape must be positive"),
        ("reduce --heads 3", "--heads must divide"),
        ("reduce --r 999", "largest legal r is 575"),
        ("reduce --grid 2,2", "grid must be of 576 cells"),
        ("reduce --visual 3,4", "it is for decoder methods"),
        ("reduce --method fastv --visual 3", "--visual must be 2 integers"),
        ("reduce --method fastv --visual 570,9", "(start, length) within 577 tokens"),
        ("reduce --method fastv --class-token", "--class-token must be False"),
        ("reduce --method fastv --shape 1,1,16", "at least 2 tokens"),
        ("reduce --method ficoco-vl", "one reduction"),
        ("reduce --dtype int8", "--dtype must be one of"),
        ("reduce --threads 0", "--threads must be in 1 ... 1024"),
        ("reduce --repeats 0", "--repeats must be at least 1"),
        ("demo --threads 0", "--threads must be in 1 ... 1024"),
        ("reduce --threads 100000000", "--threads must be in 1 ... 1024"),
        ("reduce --shape 1,1000000000000,1024", "--shape 1,1000000000000,1024 needs 12,288,000,000,000,000 bytes"),
        ("reduce --seed 100000000000000000000", "--seed must be an integer of 64 bits"),
        ("demo --layers 0-100000000000", "--layers must be integers separated by commas, or ranges of at most 10000"),
        (
            "demo --geometry llava-1.5-7b --text-layers 1000000",
            "--text-layers must be in 1 ... 32, what llava-1.5-7b has",
        ),
        ("demo --geometry llava-1.5-7b --text-tokens 1000000000", "--text-tokens must be in 1 ... 3520, the positions"),
        ("reduce --input /nowhere", "input not found"),
        ("reduce --input {text}", "as safetensors"),
        ("reduce --input {other}", "it holds x"),
        ("reduce --shape 1,5,4 --heads 1 -o /nowhere/x", "no folder"),
    ],
)
def test_a_mistake_is_one_clear_line_and_exit_code_2(tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr(timing, "available_bytes", lambda device: 2**30)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("no picture, no tensors")
    (tmp_path / "empty").mkdir()
    safetensors.torch.save_file({"x": torch.ones(1)}, tmp_path / "other")
    places = {name: str(tmp_path / name) for name in ("text", "empty", "other")}
    result = run(*(part.format(**places) for part in arguments.split()))
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("ficoco: error: ")
    assert message.format(**places) in lines[0]


def test_debug_shows_the_traceback():
    result = run("demo", "/nowhere/x.png", "--debug")
    assert isinstance(result.exception, FileNotFoundError)


def test_a_defect_of_ours_exits_with_1(monkeypatch):
    monkeypatch.setattr("ficoco_ext.cli.env.collect", lambda: {}["missing"])
    result = run("env")
    assert result.exit_code == 1
    assert "KeyError" in result.stderr
    assert "--debug" in result.stderr


def test_unknown_options_exit_with_2():
    assert run("demo", "--nope").exit_code == 2
    assert run("nope").exit_code == 2


def test_main_names_the_extra_when_typer_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "typer", None)
    for name in [name for name in sys.modules if name.startswith("ficoco_ext.cli.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SystemExit, match=r"typer .*pip install"):
        cli.main()


def test_the_package_imports_no_tools():
    heavy = ("transformers", "matplotlib", "typer", "rich", "PIL")
    code = f"import sys, ficoco_ext; ficoco_ext.METHODS; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
