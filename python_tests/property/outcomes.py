"""Runs draws, and says what became of them: counts, reasons, which combinations were covered, and what failed."""

from __future__ import annotations

import json
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from property.build import part_of
from property.cases import CACHES, FAMILIES, Case
from property.checks import check
from property.draw import draw
from property.script import script_of
from property.shrink import shrink

MOST_REFUSED, MOST_TIES = 0.10, 0.01


@dataclass
class Record:
    """What became of one draw; one line of a file of results.

    ``kind`` is that of :class:`property.checks.Outcome`, or "failed"; ``reason`` is then the error.
    """

    number: int
    kind: str
    reason: str = ""
    compared: int = 0
    ties: int = 0
    family: str = ""
    method: str = ""
    part: str = ""
    cache: str = ""
    use: str = ""
    seconds: float = 0.0

    def line(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))


def error_of(case: Case) -> BaseException | None:
    """What the case's check raises, None if it holds or is refused."""
    try:
        check(case)
    except Exception as error:
        return error
    return None


def record_of(number: int, scripts: Path) -> Record:
    """Draws and checks a case; one that fails leaves a script in the folder ``scripts``."""
    case, started = draw(number), time.perf_counter()
    error: BaseException | None = None
    try:
        outcome = check(case)
        found = Record(number, outcome.kind, outcome.reason, outcome.compared, outcome.ties)
    except Exception as caught:
        error = caught
        found = Record(number, "failed", f"{type(error).__name__}: {error}"[:300])
    found.family, found.part, found.cache, found.use = case.family, part_of(case), case.cache, case.use
    found.method = case.method if isinstance(case.method, str) else " + ".join(case.method)
    found.seconds = round(time.perf_counter() - started, 3)
    if error is not None:
        write_script(case, error, scripts)
    return found


def write_script(case: Case, error: BaseException, scripts: Path) -> Path:
    """Shrinks a case that fails with ``error``, and writes the script that repeats it."""
    found = [error]

    def fails(smaller: Case) -> bool:
        other = error_of(smaller)
        if type(other) is not type(error):
            return False
        found[0] = other
        return True

    small = shrink(case, fails)
    scripts.mkdir(parents=True, exist_ok=True)
    path = scripts / f"draw_{case.number}.py"
    trace = "".join(traceback.format_exception_only(found[0]))
    path.write_text(script_of(small, f"{trace.strip()}\nAs it was drawn: {case!r}"))
    return path


def read_records(path: Path) -> list[Record]:
    """The records of a file; none if it does not exist. A last line that was cut off is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(Record(**json.loads(line)))
        except json.JSONDecodeError:
            continue
    return records


def coverage(records: Iterable[Record]) -> str:
    """A table: held draws of each family and method by cache."""
    held = Counter((one.family, label(one), one.cache) for one in records if one.kind == "held")
    rows = sorted({key[:2] for key in held}, key=lambda key: (FAMILIES.index(key[0]), key[1]))
    lines = [f"{'family':<12} {'method':<28}" + "".join(f"{cache:>11}" for cache in CACHES)]
    for family, method in rows:
        counts = "".join(f"{held[family, method, cache] or '.':>11}" for cache in CACHES)
        lines.append(f"{family:<12} {method:<28}{counts}")
    return "\n".join(lines)


def label(record: Record) -> str:
    """The method, pairs of two parts by that of the language model, sequences in one line."""
    names = record.method.split(" + ")
    if len(names) == 1:
        return names[0]
    return f"(tower) + {names[1]}" if record.part == "both" else "one for each layer"


def summary(records: list[Record]) -> str:
    """Counts, reasons, coverage, and what failed."""
    kinds = Counter(one.kind for one in records)
    compared, ties = sum(one.compared for one in records), sum(one.ties for one in records)
    uses = Counter(one.use for one in records if one.kind == "held")
    lines = [coverage(records), ""]
    lines.append(f"{len(records)} draws: " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))
    lines.append("held: " + ", ".join(f"{count} {use}" for use, count in uses.most_common()))
    lines.append(f"selections compared: {compared}, of which {ties} differ as equal scores do")
    if records:
        lines.append(f"{sum(one.seconds for one in records) / len(records):.2f} s a draw")
    for kind in ("refused", "not here"):
        reasons = Counter(one.reason for one in records if one.kind == kind)
        lines += [f"{count:>5} {kind}: {reason}" for reason, count in reasons.most_common()]
    lines += [f"FAILED draw {one.number}: {one.reason}" for one in records if one.kind == "failed"]
    return "\n".join(lines)


def complaints(records: list[Record]) -> list[str]:
    """What is wrong with the draws as a whole; empty if all is well."""
    found, count = [], max(len(records), 1)
    failed = sum(one.kind == "failed" for one in records)
    refused = sum(one.kind == "refused" for one in records) / count
    compared, ties = sum(one.compared for one in records), sum(one.ties for one in records)
    if failed:
        found.append(f"{failed} draws failed")
    if refused > MOST_REFUSED:
        found.append(f"{refused:.0%} of the draws were refused, more than {MOST_REFUSED:.0%}: they show little")
    if ties > max(3, MOST_TIES * compared):
        found.append(f"{ties} of {compared} selections differ, too many for equal scores")
    return found
