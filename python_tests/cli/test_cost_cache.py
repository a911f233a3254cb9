"""``--cache`` of ``ficoco cost`` and ``ficoco plan``."""

import pytest
import torch
from helpers.cli import document, run
from helpers.paths import PACKAGE

import ficoco_ext
from ficoco_ext.apps import checkpoint

TINY = PACKAGE / "data" / "tiny_llava"
STAGES = ("cost", "llava-1.5-7b", "--method", "pyramiddrop")


def test_what_the_cache_keeps():
    stairs, cut = document(*STAGES), document(*STAGES, "--cache", "output-aware")
    assert (stairs["cache"], cut["cache"]) == ("staircase", "output-aware")
    token = 2 * 4096 * 2 / 1e6
    assert cut["kv_mb"] == pytest.approx((8 * (576 + 60) + 24 * (72 + 60)) * token)
    assert cut["kv_mb"] < stairs["kv_mb"] and cut["tpot_ms"] < stairs["tpot_ms"]
    assert cut["tflops"] == stairs["tflops"] and cut["resident_gb"] == stairs["resident_gb"]
    assert cut["all_tokens"] == stairs["all_tokens"]
    held = [layer["kv_cache_bytes"] for layer in cut["layers"] if layer["part"] == "decoder"]
    assert sum(held) == pytest.approx(cut["kv_mb"] * 1e6) and held[7] > held[8] == held[31]


def test_the_tables_say_it():
    said = " ".join(run(*STAGES, "--cache", "output-aware").stdout.split())
    assert "then its cache is cut to 72 from layer 8 on" in said
    assert "its cache is cut" not in " ".join(run(*STAGES).stdout.split())
    explained = run(*STAGES, "--cache", "output-aware", "--convention", "matmul", "--explain").stdout
    assert "cut_cache: 0" in explained


def test_a_plan_for_it():
    pytest.importorskip("transformers")
    given = ("plan", TINY, "--method", "ficoco-l", "--kv-mb", 0.5, "--text-tokens", 12, "--precision", "fp32")
    found = document(*given, "--cache", "output-aware")
    assert found["attach"].endswith(', cache="output-aware")') and "cache" not in document(*given)["attach"]
    assert found["schedule"]["decoder"]["final"] > document(*given)["schedule"]["decoder"]["final"]
    model = checkpoint.load(None, torch.float32, torch.device("cpu")).model
    with eval(found["attach"], {"ficoco_ext": ficoco_ext, "model": model}) as handle:
        assert handle.attach_plan.cache == "output-aware"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*STAGES, "--cache", "h2o"), "cache must be 'staircase' or 'output-aware', got 'h2o'"),
        (("cost", "llava-1.5-7b", "--cache", "staircase"), "cache must be None without a method for the language"),
        (("plan", "llava-1.5-7b", "--tflops", 3, "--cache", "staircase"), "cache must be None without a method for"),
        (
            ("cost", "llava-1.5-7b", "--method", "ficoco-l", "--layers", "0,3", "--r", 9, "--cache", "output-aware"),
            "layers must be from 1 on with an output-aware cache, got (0, 3)",
        ),
    ],
)
def test_a_mistake_is_one_clear_line(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2 and message in " ".join(result.stderr.split())
