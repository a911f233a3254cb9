"""Turns the results of ``run.sh`` into one committed file, and that file into the tables of README and docs.

    python benchmarks/gpu/tables.py collect gpu_results [MORE ...] --out benchmarks/results/gpu_h200.json
    python benchmarks/gpu/tables.py write benchmarks/results/gpu_h200.json README.md docs/performance_gpu.md

``collect`` joins the sections of several runs of one GPU, later ones over earlier ones. ``write`` replaces what stands
between ``<!-- gpu NAME FILE -->`` and ``<!-- end -->`` with table NAME of FILE.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rows import write_json

Document = dict[str, Any]
MARK = re.compile(r"(<!-- gpu ([\w ]+?) (\S+\.json) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def collect(folders: list[Path]) -> Document:
    """One document of several runs; the rows of first contact are counted, faults kept whole."""
    document: Document = {"runs": []}
    for folder in folders:
        found, summary = (json.loads((folder / name).read_text()) for name in ("results.json", "summary.json"))
        if found.get("rehearsal"):
            raise SystemExit(f"{folder} is a rehearsal: it measured nothing")
        contact = found.get("contact")
        if contact is not None:
            found["contact"] = _counted(contact)
        names = {entry.get("gpu") for entry in (document.get("environment"), found.get("environment")) if entry}
        if len(names) > 1:
            raise SystemExit(f"the runs are of different GPUs: {', '.join(map(str, sorted(names)))}")
        document["runs"].append({**summary, "environment": found.get("environment")})
        document |= {name: section for name, section in found.items() if name not in ("rehearsal", "commands")}
    return document


def _counted(contact: Document) -> Document:
    probes = contact.get("probes", [])
    verdicts = Counter(f"{row['op']}: {row['verdict']}" for row in probes)
    errors: dict[str, float] = {}
    for row in probes:
        errors[row["op"]] = max(errors.get(row["op"], 0.0), row["relative_error"])
    faults = [row for row in probes if row["verdict"] != "right"]
    kept = {name: value for name, value in contact.items() if name != "probes"}
    return {**kept, "verdicts": dict(verdicts), "largest_relative_error": errors, "faults": faults}


def _row(cells: list[Any]) -> str:
    return "| " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |"


def _table(head: list[str], rows: list[list[Any]]) -> str:
    return "\n".join([_row(head), _row(["---"] * len(head)), *map(_row, rows)])


def _us(milliseconds: float | None) -> str | None:
    if milliseconds is None:
        return None
    micro = milliseconds * 1e3
    return f"{micro:.1f}" if micro < 100 else f"{micro:.0f}"


def _times(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}x"


def _best(row: Document, start: str, graph: bool) -> float | None:
    found = [
        timing["median_ms"]
        for name, timing in row["timings"].items()
        if name.startswith(start) and name.endswith("graph") == graph
    ]
    return min(found, default=None)


def provenance(document: Document, section: str) -> str:
    """The line under every table."""
    made = document[section]["environment"]
    return (
        f"{made['gpu']}, driver {made['driver']}, CUDA {made['cuda']}, torch {made['torch']}, commit {made['commit']}"
        f" (sources {made['source']}), {made['date']}."
    )


def _reductions(document: Document, section: str) -> str:
    rows = []
    for row in document[section].get("rows", []):
        if "timings" not in row:
            rows.append(
                [f"`{row['op']}`", row["shape"], row["batch"], row["dtype"], "failed: " + row.get("failed", "")]
            )
            continue
        timing = {name: value["median_ms"] for name, value in row["timings"].items()}
        floor, graph = max(row["floors_ms"].values()), timing.get("ours, graph")
        rivals = [_best(row, start, True) for start in ("torch: ",)]
        rows.append(
            [
                f"`{row['op']}`",
                row["shape"],
                row["batch"],
                row["dtype"],
                _us(timing["ours"]),
                _us(graph),
                _us(timing.get("ours, warm graph")),
                f"{_us(floor)} ({row['floor']})",
                _times(rivals[0] / graph if rivals[0] and graph else None),
                _times(row.get("speedup_call", {}).get("torch")),
                _times(row.get("speedup_call", {}).get("compiled")),
                _times(row.get("speedup_call", {}).get("released")),
            ]
        )
    head = ["", "shape", "B", "dtype", "call, us", "graph, us", "warm graph, us", "floor, us"]
    head += ["over torch, graphs", "over torch, calls", "over compiled", "over released"]
    empty = [index for index in range(len(head)) if not any(len(r) > index and r[index] is not None for r in rows)]
    kept = [index for index in range(len(head)) if index not in empty]
    body = [[row[index] if index < len(row) else None for index in kept] for row in rows]
    return _table([head[index] for index in kept], body) + "\n\n" + provenance(document, section)


def _kernels(document: Document, _: str) -> str:
    rows = []
    for row in document["kernels"].get("kernels", []):
        if "ficoco" not in row["kernel"]:
            continue
        name = re.sub(r"^(void )?ficoco::(\(anonymous namespace\)::)?", "", row["kernel"])
        name = re.match(r"\w+", name).group(0)  # type: ignore[union-attr]
        launch = [row["grid"], row["block"], row["registers"], row["shared_bytes"]]
        rows.append([row["work"], f"`{row['op']}`", f"`{name}`", row["us"], *launch])
    head = ["input", "", "kernel", "us", "grid", "block", "registers", "shared bytes"]
    return _table(head, rows) + "\n\n" + provenance(document, "kernels")


def _prefill(document: Document, _: str) -> str:
    rows = []
    for row in document["end_to_end"].get("prefill", []):
        what = [row["batch"], row.get("images"), row.get("text_tokens"), f"`{row['method']}`"]
        if "failed" in row:
            rows.append([*what, row["failed"]])
            continue
        speedup, ratio = 1 / row["time_ratio"], 1 / row["flops_ratio"]
        rows.append(
            [
                *what,
                f"{row['ttft_ms']:.1f}",
                f"{speedup:.2f}x",
                f"{ratio:.2f}x",
                f"{speedup / ratio:.2f}",
                f"{row['kv_bytes'] / 2**20:.0f}",
            ]
        )
    head = ["B", "images", "words", "method", "TTFT, ms", "speed-up", "ratio of FLOPs", "share", "KV cache, MiB"]
    return _table(head, rows) + "\n\n" + provenance(document, "end_to_end")


FIRST_TOKEN = ("without", "prune-then-merge", "ficoco-v", "fastv", "ficoco-l")


def _first_token(document: Document, _: str) -> str:
    """The short form of ``prefill``: times without a reduction, and what a few methods make of them."""
    found: dict[tuple[int, int, int], dict[str, Document]] = {}
    for row in document["end_to_end"].get("prefill", []):
        load = (row["batch"], row["images"], row["text_tokens"])
        found.setdefault(load, {})[row["method"]] = row

    def cell(row: Document | None) -> str | None:
        if row is None or "failed" in row:
            return row and row["failed"]
        if row["method"] == "without":
            return f"{row['ttft_ms']:.1f} ms"
        ratio = row["time_ratio"]
        return f"{1 / ratio:.2f}x faster" if ratio < 1 else f"{ratio:.2f}x slower"

    head = [
        f"{batch} prompt{'s' * (batch > 1)}, {images} image{'s' * (images > 1)}, {words} words"
        for batch, images, words in found
    ]
    rows: list[list[Any]] = [[f"`{name}`", *(cell(load.get(name)) for load in found.values())] for name in FIRST_TOKEN]
    return _table(["method", *head], rows) + "\n\n" + provenance(document, "end_to_end")


def _tower(document: Document, _: str) -> str:
    rows = [
        [
            row["batch"],
            f"`{row['method']}`",
            row.get("images_per_second", row.get("failed")),
            _times(row.get("speedup")),
        ]
        for row in document["end_to_end"].get("tower", [])
    ]
    return _table(["B", "method", "images/s", "speed-up"], rows) + "\n\n" + provenance(document, "end_to_end")


def _contact(document: Document, _: str) -> str:
    counts: dict[str, Counter[str]] = {}
    for name, number in document["contact"]["verdicts"].items():
        op, verdict = name.rsplit(": ", 1)
        counts.setdefault(op, Counter())[verdict] += number
    errors = document["contact"]["largest_relative_error"]
    verdicts = ("right", "near", "unstable", "wrong")
    rows = [[f"`{op}`", *(found.get(v, 0) for v in verdicts), errors[op]] for op, found in counts.items()]
    return _table(["", *verdicts, "largest relative error"], rows) + "\n\n" + provenance(document, "contact")


def _ceilings(document: Document, _: str) -> str:
    found = document["whole"]["ceilings"]
    units = {
        "copy_bytes_per_second": ("copy, read plus written", 1e12, "TB/s"),
        "bfloat16_flop_per_second": ("product of 8192 x 8192 matrices, bfloat16", 1e12, "TFLOP/s"),
        "float32_flop_per_second": ("the same, float32", 1e12, "TFLOP/s"),
        "exponentials_per_second": ("exponentials (computed, not measured)", 1e12, "T/s"),
        "least_graph_ms": ("graph of one tiny kernel", 1e-3, "us"),
    }
    rows = [[what, f"{found[name] / scale:.3g} {unit}"] for name, (what, scale, unit) in units.items() if name in found]
    return _table(["ceiling", "measured"], rows) + "\n\n" + provenance(document, "whole")


TABLES: dict[str, Callable[[Document, str], str]] = {
    "ceilings": _ceilings,
    "contact": _contact,
    "whole": _reductions,
    "operators": _reductions,
    "compiled": _reductions,
    "kernels": _kernels,
    "prefill": _prefill,
    "first token": _first_token,
    "tower": _tower,
}


def written(text: str, folder: Path) -> str:
    """``text`` with its tables replaced; files are looked up in ``folder``."""

    def fresh(match: re.Match[str]) -> str:
        begin, name, file, _, end = match.groups()
        if name not in TABLES:
            raise SystemExit(f"there is no table {name!r}; there are {', '.join(TABLES)}")
        document = json.loads((folder / file).read_text())
        return f"{begin}\n{TABLES[name](document, name)}\n\n{end}"

    return MARK.sub(fresh, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("collect", help="join runs into one file")
    one.add_argument("folders", nargs="+", type=Path)
    one.add_argument("--out", type=Path, required=True)
    other = commands.add_parser("write", help="put tables into texts")
    other.add_argument("results", type=Path, help="the file whose folder the texts' marks are looked up in")
    other.add_argument("texts", nargs="+", type=Path)
    args = parser.parse_args()
    if args.command == "collect":
        write_json(args.out, collect(args.folders))
        return
    for text in args.texts:
        text.write_text(written(text.read_text(), args.results.parent))


if __name__ == "__main__":
    main()
