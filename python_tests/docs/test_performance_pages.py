"""The page on CPU performance says what the committed results hold; gpu/test_bench.py holds the one on a GPU."""

from __future__ import annotations

import json
import re

import pytest
from helpers.paths import DOCS, RESULTS

PAGE = (DOCS / "performance_cpu.md").read_text()


def results(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def rows(heading: str) -> list[list[str]]:
    """The body of the table below ``heading``, cell by cell."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def number(cell: str) -> float:
    return float(re.match(r"-?[\d.]+", cell)[0])


def said(cells: list[str], values: list[float]) -> None:
    """Each cell is its value, rounded to as many digits as the cell has."""
    for cell, value in zip(cells, values, strict=True):
        digits = len(re.match(r"-?\d+\.?(\d*)", cell)[1])
        assert number(cell) == pytest.approx(value, abs=0.51 * 10**-digits), (cells, cell)


def test_one_reduction():
    table, found = rows("One FiCoCo-V reduction"), results("ops_cpu")
    assert len(table) == len(found["results"])
    for cells, row in zip(table, found["results"], strict=True):
        shape = f"({', '.join(map(str, row['shape']))})"
        assert cells[:3] == [f"{row['attn']}, {row['layout']}", shape, row["dtype"]]
        names = ("ours_ms", "gigabytes_per_second", "bytes_floor_ms")
        said(cells[3:], [row[name] for name in (*names, "speedup_over_best_eager", "speedup_over_best_compiled")])
    peak, flat = found["peak_memory"], " ".join(PAGE.split())
    ours, result, through_map = (peak[name] / 1e6 for name in ("ours", "output_bytes", "torch map"))
    assert f"{peak['tokens']} tokens: {ours:.1f} MB, of which {result:.1f} MB are the result" in flat
    assert f"map of all heads takes {through_map:.0f} MB" in flat


def test_matching():
    table, found = rows("ToMe's matching"), results("match_cpu")
    assert len(table) == len(found["results"])
    for cells, row in zip(table, found["results"], strict=True):
        assert cells[:3] == [f"({', '.join(map(str, row['shape']))})", row["layout"], row["dtype"]]
        names = ("ours_ms", "bytes_floor_ms", "speedup_over_best_eager", "speedup_over_best_compiled")
        said(cells[3:], [row[name] for name in names])


def test_greedy_selection():
    table, found = rows("Greedy selection"), results("greedy_select_cpu")
    assert len(table) == len(found["results"])
    for cells, row in zip(table, found["results"], strict=True):
        shape = f"({', '.join(map(str, row['shape']))})"
        assert cells[:3] == [f"`{row['objective']}`", shape, str(row["count"])]
        ratios = [row["speedup"][name] for name in ("incremental", "compiled", "growing") if name in row["speedup"]]
        said(cells[3 : 5 + len(ratios)], [row["ours_ms"], row["gflop"], *ratios])
        assert len(ratios) == 3 or cells[-1] == "not run"


def test_choices():
    table, found = rows("What MustDrop and GlobalCom2 choose by"), results("choices_cpu")
    assert len(table) == len(found["results"])
    for cells, row in zip(table, found["results"], strict=True):
        shape = f"({', '.join(map(str, row['shape']))})"
        assert cells[:3] == [f"`{row['operator']}`", shape, row["dtype"]]
        ratios = [row["speedup"][name] for name in ("eager", "compiled", "pairs") if name in row["speedup"]]
        said(cells[3 : 4 + len(ratios)], [row["ours_ms"], *ratios])
        assert len(ratios) == 3 or cells[-1] == "none"


def test_a_reducing_layer():
    table, found = rows("A reducing layer of a language model"), results("reduce_sequence_cpu")
    assert len(table) == len(found["results"])
    for cells, row in zip(table, found["results"], strict=True):
        assert cells[:3] == [row["shape"], row["method"], row["dtype"]]
        times = [row["timings"][name]["median_ms"] for name in ("one operator", "in turn")]
        said(cells[3:], [*times, row["speedup"]])


def test_a_whole_prefill():
    table, found = rows("A whole prefill with reduction in the language model"), results("decoder_cpu")
    assert len(table) == len(found["results"])
    for cells, row in zip(table, found["results"], strict=True):
        options = row["options"]
        assert f"`{options['method']}`" in cells[0]
        assert ('variant="released"' in cells[0]) == (options.get("variant") == "released")
        assert ("targets=0" in cells[0]) == (options.get("targets") == 0)
        layers = options.get("layers")
        if layers:
            where = f"over layers {layers[0]} to {layers[-1]}" if len(layers) > 1 else f"in layer {layers[0]}"
            assert where in cells[0]
        times = [row["timings"][name]["median_ms"] for name in ("all tokens", row["method"])]
        said(cells[1:], [*times, row["speedup"], row["flops_ratio"], row["share"]])


def test_memory():
    table = rows("Memory of the language model's operators")
    found = [row for row in results("decoder_memory_cpu")["results"] if row["visual"] == 2881]
    assert len(table) == len(found) > 5
    for cells, row in zip(table, found, strict=True):
        assert cells[0].strip("`") == row["form"].replace("torch one head's map", "plain torch, the map of one head")
        said(cells[1:], [row["extra_bytes"] / 1e6])


NAMES = ("ops_cpu", "match_cpu", "greedy_select_cpu", "reduce_sequence_cpu", "decoder_cpu", "decoder_memory_cpu")
ONE_THREAD = ("choices_cpu",)


@pytest.mark.parametrize("name", NAMES + ONE_THREAD)
def test_each_file_is_named_with_its_commit_and_command(name):
    made, threads = results(name)["environment"], 1 if name in ONE_THREAD else 2
    assert f"`{name}.json`, commit {made['commit']}" in PAGE
    assert f"\n    {made['command']}\n" in PAGE
    assert (made["cpu"], made["threads"], made["torch"]) == ("AMD EPYC", threads, "2.13.0+cpu")
