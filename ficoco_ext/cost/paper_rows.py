"""FiCoCo's tables 3 and 5 (accuracy against TFLOPs) row by row: who runs it here, and its operations layer by layer.

A printed TFLOPs is reproduced from the tokens that every layer of the language model gets. What they are, and how well
that is known, :mod:`ficoco_ext.cost.paper_presets` says of each row. Accuracy needs the models' weights and the
benchmarks, neither of which comes with this package: :class:`AccuracyCell` names the command that measures a cell.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from ..methods import get_method
from . import paper_presets
from .architecture import Architecture
from .bill import Cost
from .model import prefill
from .paper_presets import Preset
from .presets import architecture
from .schedules import Schedules, build
from .scope import bill

TABLES = ("3", "5")
MEASURE = "benchmarks/lmms_eval/run.py"
NOT_HERE = "not measurable here: needs the model's weights and the benchmark's pictures"
_AMOUNT = ("r", "keep_ratio", "tokens", "layers")  # of the arguments of attach; others are hyperparameters
_HUB = {"llava-1.5-7b": "llava-hf/llava-1.5-7b-hf", "llava-1.5-13b": "llava-hf/llava-1.5-13b-hf"}

# Of lmms-eval 0.7.3, and how its split or its judge differs from the papers'.
TASKS: dict[str, tuple[str, str]] = {
    "SQA": ("scienceqa_img", ""),
    "TextVQA": ("textvqa_val", ""),
    "POPE": ("pope", "papers print its F1 score"),
    "VizWiz": ("vizwiz_vqa_val", "papers upload the test split to its server: vizwiz_vqa_test"),
    "MM-Vet": ("mmvet", "a GPT judges: needs a key of its API"),
    "MMB-CN": ("mmbench_cn_dev", "a GPT reads answers that name no option: needs a key of its API"),
    "GQA": ("gqa", ""),
    "LLaVA-W": ("llava_in_the_wild", "a GPT judges: needs a key of its API"),
    "MMB": ("mmbench_en_dev", "a GPT reads answers that name no option: needs a key of its API"),
    "VQAv2": ("vqav2_val", "papers upload the test split to its server: vqav2_test"),
}


@dataclass(frozen=True)
class AccuracyCell:
    """One accuracy of a table, in percent.

    Attributes:
        benchmark: a key of :data:`TASKS`. printed: as printed; None where the table has none.
        here: that it is not measurable here, always.
        task: of lmms-eval. note: how that task differs from the paper's.
        command: measures it on a machine with the weights; None if no method of ours is the row's.
    """

    benchmark: str
    printed: float | None
    here: str
    task: str
    note: str
    command: str | None


@dataclass(frozen=True)
class Reading:
    """A row's schedule in one reading, counted.

    Attributes:
        preset: what is read, from where, and how well it is known.
        layers: visual tokens that enter each layer of the language model.
        ours: TFLOPs in the preset's unit. error: ours / printed - 1. rounds: whether ours, rounded, is what is printed.
        attach: arguments of :func:`ficoco_ext.attach` that make these tokens; None if no method of ours does.
    """

    preset: Preset
    layers: tuple[float, ...]
    ours: float
    error: float
    rounds: bool
    attach: dict[str, Any] | None

    @property
    def average(self) -> float:
        """Visual tokens, mean over layers."""
        return sum(self.layers) / len(self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        given = {name: getattr(self.preset, name) for name in ("said", "basis", "source", "unit")}
        counted = {name: getattr(self, name) for name in ("ours", "error", "rounds", "attach", "average")}
        return {**given, **counted, "layers": list(self.layers)}


@dataclass(frozen=True)
class PaperRow:
    """One row of a table.

    Attributes:
        table, model, label: where it stands, and what it is called there.
        printed: TFLOPs. training_free: as the table says.
        method: ours that is this row's; None: :attr:`reason` says why.
        readings: of its schedule, the best known first; none if it is not known.
        accuracy: the row's other cells.
        reason: why no method of ours is the row's, or why its schedule or its TFLOPs are not reproduced; or "".
    """

    table: str
    model: str
    label: str
    printed: float
    training_free: bool
    method: str | None
    readings: tuple[Reading, ...]
    accuracy: tuple[AccuracyCell, ...]
    reason: str

    def command(self) -> str | None:
        """Measures all cells of the row that are printed, in one run."""
        said = [cell for cell in self.accuracy if cell.printed is not None]
        call = next((one.attach for one in self.readings if one.attach is not None), None)
        return measure(self.model, ",".join(cell.task for cell in said), self.method, call)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain = dataclasses.asdict(dataclasses.replace(self, readings=()))
        return {**plain, "readings": [one.to_dict() for one in self.readings], "reproduces": self.reproduces}

    @property
    def reproduces(self) -> bool:
        """Whether a reading that was not fitted to this cell is within 5 % of it."""
        return any(abs(one.error) <= 0.05 for one in self.readings if one.preset.basis != "fitted")


@functools.cache
def _data() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("data/accuracy_tables.json").read_text(encoding="utf-8")
    return json.loads(text)


def source() -> str:
    """Where the printed numbers are from."""
    return str(_data()["source"])


@functools.cache
def paper_rows(*tables: str) -> tuple[PaperRow, ...]:
    """The rows of these tables, or of both.

    Raises:
        ValueError: a table that there is not.

    Example:
        >>> from ficoco_ext.cost.paper_rows import paper_rows
        >>> row = next(one for one in paper_rows("3") if one.label.startswith("SparseVLM"))
        >>> row.printed, [(one.preset.said, round(one.ours, 2)) for one in row.readings][0]
        (3.3, ('309, 204, 113 from layers 2, 6, 15 on', 3.31))
    """
    for table in tables:
        if table not in TABLES:
            raise ValueError(f"table must be one of {', '.join(TABLES)}, got {table!r}")
    return tuple(_row(row) for table in tables or TABLES for row in _data()["rows"] if row["table"] == table)


def _row(printed: Mapping[str, Any]) -> PaperRow:
    table, label, tflops = printed["table"], printed["method"], printed["tflops"]
    model, text = _data()["models"][table], _data()["text_tokens"][table]
    known = paper_presets.find(table, label, tflops)
    readings = tuple(_read(architecture(model), text, known.method, one, tflops) for one in known.presets)
    call = next((one.attach for one in readings if one.attach is not None), None)
    cells = tuple(
        AccuracyCell(name, value, NOT_HERE, *TASKS[name], command=measure(model, TASKS[name][0], known.method, call))
        for name, value in zip(_data()["benchmarks"], printed["accuracy"], strict=True)
    )
    free = printed["training_free"]
    return PaperRow(table, model, label, tflops, free, known.method, readings, cells, known.reason)


def _read(shape: Architecture, text: int, method: str | None, preset: Preset, printed: float) -> Reading:
    leaves = _leaves(shape, method, preset)
    if preset.unit == paper_presets.MACS:
        cost = prefill(
            shape, text_tokens=0, include_tower=False, include_projector=False, include_head=False, **leaves._asdict()
        )
        ours = cost.tflops / 2
    else:
        cost = bill(shape, "llmviewer", text_tokens=text, visual_tokens=preset.entering, **leaves._asdict())
        ours = cost.tflops
    layers = tuple(one.tokens - cost.text_tokens for one in _decoder(cost))
    against = printed if preset.printed is None else preset.printed
    digits = len(f"{against:g}".partition(".")[2])
    rounds = abs(ours - against) <= 0.5 * 10**-digits
    return Reading(
        preset, layers, ours, ours / against - 1, rounds, None if preset.attach is None else dict(preset.attach)
    )


def _decoder(cost: Cost) -> tuple[Any, ...]:
    return tuple(one for one in cost.layers if one.part == "decoder")


def _leaves(shape: Architecture, method: str | None, preset: Preset) -> Schedules:
    """What leaves each part."""
    if any(preset.leaves) or method is None or preset.attach is None:
        return preset.leaves
    amount = {name: value for name, value in preset.attach.items() if name in _AMOUNT}
    rest = {name: value for name, value in preset.attach.items() if name not in _AMOUNT}
    return build(shape, get_method(method, **rest), **amount)


def measure(model: str, tasks: str, method: str | None, attach: Mapping[str, Any] | None) -> str | None:
    """The command that measures accuracy on a machine with the weights; None if there is nothing to attach."""
    if attach is None:
        return None
    command = f"python {MEASURE} {_HUB[model]} --tasks {tasks}"
    if method is None:
        return command
    return f"{command} --method {method}" + (f" --attach '{json.dumps(dict(attach))}'" if attach else "")
