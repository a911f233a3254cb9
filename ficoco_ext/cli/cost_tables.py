"""Tables of ``ficoco cost`` and ``ficoco plan``."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from ..cost import SYMBOLS, flash, reproduce, scope
from ..cost.bill import AfterProjector, Cost, LayerCost, Sum
from ..cost.compare import TIME, Comparison, Side
from ..cost.lines import Line
from ..schedule import Schedule
from . import common

_BASES = {
    "entering": "that enter the language model",
    "average": "mean over its layers",
    "final": "that leave its last layer",
}
_UNREPRODUCED = "OFF"
_AFTER = "after the projector"


def show(found: Comparison, notes: Sequence[str], lines: Sequence[str] | None) -> None:
    """Everything about one comparison."""
    console, at = common.console(), found.hardware
    for note in notes:
        console.print(common.text(note, style="bold"))
    images = f"{found.images} image{'s' * (found.images > 1)}"
    console.print(f"{found.shape.name}: {images} and {found.text_tokens} text tokens, {found.precision}")
    console.print(common.text(found.shape.source, style="dim"))
    if found.shape.seen:
        console.print(common.text(found.shape.seen, style="dim"))
    console.print(f"{_reduces(found)}")
    if at is not None:
        console.print(f"{at.name}: {at.source}", style="dim", highlight=False)
    common.show(console, _totals(found))
    console.print(common.text(f"counts ({found.convention}): {scope.SCOPES[found.convention]}", style="dim"))
    console.print(common.text(TIME, style="dim"))
    common.show(console, _parts(found), _bases(found), _layers(found.shown.running))
    for line in lines or ():
        console.print(common.text(line), soft_wrap=True)


def explained(found: Comparison) -> list[str]:
    """The formula of every line that is counted, equal neighbouring layers once, and what the letters mean."""
    cost = found.shown.counted
    said: list[str] = []
    used: set[str] = set()
    layers = [
        (part, layer, tuple(text for line in group for text in _formulas(line)))
        for (part, layer), group in itertools.groupby(cost.lines, key=lambda line: (line.part, line.layer))
    ]
    for (part, texts), same in itertools.groupby(layers, key=lambda one: (one[0], one[2])):
        numbers = [layer for _, layer, _ in same if layer is not None]
        where = "" if not numbers else f" layer {numbers[0]}"
        where += f" to {numbers[-1]}, each" if len(numbers) > 1 else ""
        said.append(f"{part}{where}")
        said += [f"  {text}" for text in texts]
    for line in cost.lines:
        used |= {name for name, _ in line.values if name in line.formula + line.bytes_formula}
    said.append(f"total: {cost.total.operations:,} operations, {cost.total.bytes:,.0f} bytes")
    return [*said, *(f"{name}: {meaning}" for name, meaning in SYMBOLS.items() if name in used)]


def _formulas(line: Line) -> tuple[str, str]:
    """Operations and bytes of one line. What is no product is no operation in the convention ``"matmul"``."""
    operations = line.explain() if line.operations else f"{line.name}: 0"
    return operations, f"  bytes: {line.explain_bytes().removeprefix(f'{line.name}: ')}"


def _reduces(found: Comparison) -> str:
    if found.method is None or found.reduced is None:
        return "nothing is reduced; --method and --keep-ratio say what to compare with"
    vision, _, decoder = found.schedules
    there = found.shown.running.after_projector
    said = [
        "" if vision is None else f"in the tower {_staircase(vision)}",
        "" if there is None else f"{_AFTER} {_pictures(there)}",
        "" if decoder is None else f"in the language model {_staircase(decoder)}",
        "" if decoder is None or found.cache != "output-aware" else _cut(decoder),
    ]
    return f"{found.method.name}: {'; '.join(one for one in said if one)}"


def _staircase(schedule: Schedule) -> str:
    runs = [(r, len(list(same))) for r, same in itertools.groupby(schedule.r)]
    each = ", ".join(f"{r} in {count} layer{'s' * (count > 1)}" for r, count in runs if r)
    names = [layer for layer, r in zip(schedule.layers, schedule.r, strict=True) if r]
    span = f"layers {names[0]} to {names[-1]}" if names else "no layer"
    return f"{schedule.patches} - {sum(schedule.r)} = {schedule.final} ({span}: {each})"


def _cut(schedule: Schedule) -> str:
    return f"then its cache is cut to {schedule.final} from layer {schedule.layers[0]} on"


def _pictures(there: AfterProjector) -> str:
    each = "" if there.pictures == 1 else f" of each of {there.pictures} pictures"
    return f"{there.before} - {there.before - there.after} = {there.after}{each}"


def _row(
    table: Any, name: str, full: float | None, few: float | None, show: Any, words: tuple[str, str] = ("less", "more")
) -> None:
    cells = [name, "-" if full is None else show(full)]
    if len(table.columns) == 4:
        cells += ["-" if few is None else show(few), common.times(full or 0, few or 0, *words)]
    table.add_row(*cells)


def _columns(found: Comparison, first: str) -> Any:
    reduced = [">reduced", ">that is"] if found.reduced is not None else []
    return common.table(first, ">all tokens", *reduced)


def _totals(found: Comparison) -> Any:
    table = _columns(found, "prompt and answer")
    full, few = found.full.totals(), found.shown.totals()
    faster = ("faster", "slower")
    rows = [("TFLOPs", "tflops", "{:.3f}")]
    if found.precision.weights != 16:
        rows.append((f"TFLOPs x {found.precision.weights} / 16 bits, as papers print", "bit_scaled_tflops", "{:.3f}"))
    rows += [
        ("KV cache after the prompt, MB", "kv_mb", "{:.1f}"),
        ("bytes moved (papers: total memory), GB", "memory_access_gb", "{:.2f}"),
        ("resident: weights, cache, activations, GB", "resident_gb", "{:.2f}"),
        ("time to first token, ms", "ttft_ms", "{:.2f}"),
        ("time per further token, ms", "tpot_ms", "{:.2f}"),
        (f"answer of {found.full.new_tokens} tokens, ms", "answer_ms", "{:.1f}"),
    ]
    for name, key, form in rows:
        _row(table, name, full[key], few[key], form.format, *([faster] if key.endswith("_ms") else []))
    return table


def _parts(found: Comparison) -> Any:
    """Of what runs: operations and time of every part."""
    several = found.reduced is not None
    table = common.table("part", ">all tokens", ">time", *([">reduced", ">time"] if several else []), "bound by")
    sides: list[Side] = [found.full] if found.reduced is None else [found.full, found.reduced]
    for part in found.shown.running.parts:
        cells = [part]
        for side in sides:
            one = side.running.parts.get(part)
            if one is None:
                cells += ["-", "-"]
            else:
                time = "-" if one.seconds is None else common.seconds(one.seconds)
                cells += [common.amount(one.operations, "FLOP"), time]
        table.add_row(*cells, found.shown.running.parts[part].bound or "-")
    return table


def _bases(found: Comparison) -> Any:
    table = _columns(found, "visual tokens")
    full, few = found.full.counted.tokens, found.shown.counted.tokens
    for key, name in _BASES.items():
        _row(table, name, getattr(full, key), getattr(few, key), "{:.6g}".format)
    return table


def _layers(cost: Cost) -> Any:
    """One row for each run of equal layers."""
    table = common.table("layers", ">tokens", ">GFLOP", ">MB", ">cache", ">FLOP/B", ">time", "bound by")

    def key(one: LayerCost) -> Any:
        return one.part, one.tokens, one.tokens_in_mlp, one.total

    def row(name: str, tokens: float, leaving: float, cache: float, total: Sum) -> None:
        table.add_row(
            name,
            f"{tokens:g}" if tokens == leaving else f"{tokens:g} > {leaving:g}",
            f"{total.operations / 1e9:.3g}",
            f"{total.bytes / 1e6:.3g}",
            f"{cache / 1e6:.3g}" if cache else "",
            f"{total.intensity:.0f}",
            "-" if total.seconds is None else common.seconds(total.seconds),
            total.bound or "-",
        )

    there = cost.after_projector
    for (part, *_), same in itertools.groupby(cost.layers, key=key):
        held = list(same)
        first, last = held[0], held[-1]
        if there is not None and part == "decoder" and first.layer == 0:
            row("projected", there.pictures * there.before, there.pictures * there.after, 0, there.total)
        name = f"{first.part} {first.layer}" + ("" if first is last else f"-{last.layer}")
        row(name, first.tokens, first.tokens_in_mlp, first.kv_bytes, first.total)
    table.caption = "each layer; tokens that enter attention > MLP, where they differ; cache in MB"
    if there is not None:
        table.caption += f"\nprojected: what leaves {_AFTER}, tokens before > those that stay"
    table.caption_justify = "left"
    return table


def show_flash(rows: Sequence[flash.Memory]) -> None:
    """Memory of table 10's rows with and without flash attention."""
    head = ("method", "flash", ">tokens", ">TFLOPs", ">KV MB", ">moved GB", ">held GB")
    made = common.table(*head, title="Table 10 with and without flash attention: Open-LLaVA-NeXT-7B")
    for one in rows:
        made.add_row(
            common.text(one.method),
            ("yes" if one.flash_attention else "no") + ("" if one.printed else " *"),
            f"{one.visual_tokens:g}+{one.text_tokens}",
            f"{one.tflops:.1f}",
            f"{one.kv_mb:.0f}",
            f"{one.moved_gb:.1f}",
            f"{one.held_gb:.1f}",
        )
    console = common.console()
    common.show(console, made)
    console.print(common.text(flash.COUNTED), soft_wrap=True)


def show_tables(cells: Sequence[reproduce.Cell]) -> None:
    """The papers' tables: what is printed, what we get, how far off, and what that proves."""
    console = common.console()
    console.print(common.text(reproduce.source()), soft_wrap=True)
    known = []
    for (number, model), of_table in itertools.groupby(cells, key=lambda cell: (cell.table, cell.model)):
        name = f"Table {number}" if number.isdigit() else number[0].upper() + number[1:]
        head = ("method", "bits", "quantity", ">printed", ">ours", ">error", "basis")
        made = common.table(*head, title=f"{name}: {model}")
        held = tuple(of_table)
        for cell in held:
            proves = common.text(f"{cell.basis.replace('_', ' ')} {cell.tier.removeprefix('<=')}")
            if cell.note:
                known.append(cell)
                proves = common.text(f"{_UNREPRODUCED} [{len(known)}]", style="red")
            quantity = reproduce.QUANTITIES[cell.quantity]
            made.add_row(
                common.text(cell.method),
                cell.precision,
                quantity,
                f"{cell.printed:g}",
                f"{cell.ours:.4g}",
                f"{cell.error:+.1%}",
                proves,
            )
        common.show(console, made)
        twice = ", ".join(f"{cell.rounded:g}" for cell in held if cell.rounded is not None)
        if twice:
            said = f"KV cache: {reproduce.rounding(number)}; ours, so rounded: {twice}"
            console.print(common.text(said, style="dim"), soft_wrap=True)
    console.print("basis: what agreement proves, and the error that the tests allow", soft_wrap=True)
    for basis, meaning in reproduce.basis_meaning().items():
        console.print(common.text(f"{basis.replace('_', ' ')}: {meaning}"), soft_wrap=True)
    predicted = [cell for cell in cells if cell.basis == "predicted"]
    within = sum(abs(cell.error) <= 0.01 for cell in predicted)
    close = sum(cell.reproduces for cell in predicted)
    console.print(
        common.text(
            f"{len(predicted)} of {len(cells)} cells are predictions: {within} are within 1 %, {close} within 5 %, "
            f"{len(predicted) - close} are not reproduced:",
            style="bold",
        )
    )
    for index, cell in enumerate(known, 1):
        where = f"table {cell.table}, {cell.method} {cell.precision}, {reproduce.QUANTITIES[cell.quantity]}"
        console.print(common.text(f"[{index}] {where}: {cell.note}"), soft_wrap=True)
