"""The decoder's operators form no N x N map: their memory, measured in fresh processes, grows as the tokens do."""

import json
import os
import subprocess
import sys

import pytest
from helpers.ops import needs_kernels
from helpers.paths import PACKAGE, ROOT

PROGRAM = ROOT / "benchmarks" / "decoder_memory.py"
RESULTS = PROGRAM.parent / "results" / "decoder_memory_cpu.json"
METER = "torch one head's map"
# Below this a page more or less, or a thread's buffer, is what is measured.
FLOOR = 2**20

pytestmark = [
    pytest.mark.skipif(not PROGRAM.exists(), reason="needs the source tree"),
    pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's account of memory"),
    needs_kernels,
]


def measure(form: str, visual: int) -> int:
    package = str(PACKAGE.parent)
    shape = [f"--visual={visual}", "--text=128", "--heads=4", "--width=32"]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--here", form, *shape],
        env={**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": "2"},  # each thread has buffers of its own
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def growth(form: str) -> float:
    """From 2048 visual tokens to 4096, and a little text."""
    once, twice = (max(measure(form, visual), FLOOR) for visual in (2048, 4096))
    return twice / once


@pytest.mark.slow
def test_the_meter_sees_a_map():
    """One head's map is N^2 floats, and what grows so would be found below."""
    assert measure(METER, 2048) > 4 * (2048 + 128) ** 2
    assert growth(METER) > 2.9


@pytest.mark.slow
@pytest.mark.parametrize(
    "form",
    [
        "token_attention logits row",
        "token_attention probs row",
        "token_attention probs column",
        "correlate_tokens logits column",
        "correlate_tokens probs row",
        "correlate_tokens probs column",
    ],
)
def test_memory_grows_as_the_tokens_do(form):
    """Four times as much would be a map."""
    assert growth(form) < 2.5
    assert measure(form, 4096) < 4 * (4096 + 128) ** 2 / 8


def test_the_published_figures():
    """Every form at the full size, far below one head's map, let alone all heads'."""
    document = json.loads(RESULTS.read_text())
    rows = {(row["form"], row["visual"]): row for row in document["results"]}
    forms = {form for form, _ in rows} - {METER}
    assert len(forms) == 8
    assert document["environment"]["build"]["cpu"] == "kernels"
    assert "dirty" not in document["environment"]["commit"]
    for form in forms:
        row = rows[form, 2881]
        assert (row["tokens"], row["heads"], row["width"]) == (3393, 32, 128)
        assert row["extra_bytes"] == max(row["runs"]) < row["map_of_one_head_bytes"] / 4
    for found in document["growth"]:
        assert found["extra"] < 2.5 or found["form"] == METER
