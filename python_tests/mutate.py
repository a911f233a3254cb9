"""Tries the checked-in faults of ``python_tests/mutations`` one after the other: are there tests that notice?

    python python_tests/mutate.py [ROOM...] [-k TEXT] [-n WORKERS] [--json]

Each mutation is applied in a scratch copy, never in the checkout, and its tests run there. A faulty file of ``csrc``
is compiled first. Exit code 0 if all are killed, 1 if not, 2 if there is nothing to try.
"""

from __future__ import annotations

import argparse
import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)] if str(HERE) not in sys.path else []
from helpers import mutants  # noqa: E402
from helpers.mutants import KILLED, SURVIVED, TIMEOUT, UNUSABLE, Baselines, Scratch, Verdict  # noqa: E402
from mutations import ROOMS, Mutation, load  # noqa: E402

ROOT = HERE.parent
PRELOAD = (  # what is slow to import, and nothing of the package's own
    "torch",
    "torch._dynamo",
    "pytest",
    "numpy",
    "PIL.Image",
    "rich.console",
    "typer.testing",
    "hypothesis",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.clip.modeling_clip",
    "transformers.models.llava.modeling_llava",
    "transformers.models.llava_next.modeling_llava_next",
    "transformers.models.qwen2_vl.modeling_qwen2_vl",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
)
Report = Callable[[str, Verdict], None]


def groups(chosen: dict[str, list[Mutation]]) -> list[list[tuple[str, Mutation]]]:
    """What one worker does in one go: mutations of one compiled file together, others alone."""
    found: dict[object, list[tuple[str, Mutation]]] = {}
    for room, listed in chosen.items():
        for number, mutation in enumerate(listed):
            key = mutation.file if mutants.compiled(mutation) else (room, number)
            found.setdefault(key, []).append((room, mutation))
    return sorted(found.values(), key=lambda group: mutants.compiled(group[0][1]))


def _work(scratch: Scratch, waiting: queue.SimpleQueue, baselines: Baselines) -> Iterator[tuple[str, Verdict]]:
    while True:
        try:
            group = waiting.get_nowait()
        except queue.Empty:
            return
        for _, mutation in group:  # before the first is compiled: afterwards these would need another build
            if mutants.compiled(mutation):
                baselines.get(mutation.tests, lambda mutation=mutation: scratch.baseline(mutation))
        for room, mutation in group:
            yield room, scratch.try_one(mutation, baselines)


def try_all(
    root: Path,
    chosen: dict[str, list[Mutation]],
    report: Report,
    *,
    workers: int = 1,
    timeout: float | None = None,
    preload: tuple[str, ...] = PRELOAD,
) -> list[tuple[str, Verdict]]:
    """Every mutation of ``chosen``, tried in copies of ``root``; ``report`` is called after each."""
    waiting: queue.SimpleQueue = queue.SimpleQueue()
    for group in groups(chosen):
        waiting.put(group)
    done: list[tuple[str, Verdict]] = []
    errors: list[BaseException] = []
    lock, baselines = threading.Lock(), Baselines()

    def run(scratch: Scratch) -> None:
        try:
            for room, verdict in _work(scratch, waiting, baselines):
                with lock:
                    done.append((room, verdict))
                    report(room, verdict)
        except BaseException as error:
            errors.append(error)

    with ExitStack() as stack:
        copies = []
        for _ in range(workers):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mutate-"))
            copies.append(stack.enter_context(Scratch(root, Path(folder).resolve(), preload, timeout)))
        threads = [threading.Thread(target=run, args=(scratch,), daemon=True) for scratch in copies]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    return done


def line_of(root: Path, mutation: Mutation) -> int:
    """The line that ``mutation`` changes first, from 1; 0 where it is not found."""
    before, found, _ = (root / mutation.file).read_text().partition(mutation.old)
    return before.count("\n") + 1 if found else 0


def say(root: Path, room: str, verdict: Verdict) -> None:
    """One line of a verdict, and all of it where it was not killed."""
    mutation = verdict.mutation
    place = f"{mutation.file}:{line_of(root, mutation)}"
    print(f"{verdict.status:9} {room:12} {place:44} {verdict.seconds:6.1f} s  {verdict.note}", flush=True)
    if verdict.status == SURVIVED:
        for sign, text in (("-", mutation.old), ("+", mutation.new)):
            print("\n".join(f"    {sign} {line}" for line in text.splitlines()))
        print(f"    {mutation.why}", flush=True)


def table(done: list[tuple[str, Verdict]]) -> str:
    """How many of each room were killed."""
    head = f"{'room':12} {'tried':>6} {KILLED:>7} {TIMEOUT:>8} {SURVIVED:>9} {UNUSABLE:>9} {'seconds':>8}"
    rooms = sorted({room for room, _ in done}, key=ROOMS.index)
    lines = [head, *(_row(room, [verdict for one, verdict in done if one == room]) for room in rooms)]
    return "\n".join([*lines, _row("all", [verdict for _, verdict in done])])


def _row(name: str, verdicts: list[Verdict]) -> str:
    count = {status: sum(one.status == status for one in verdicts) for status in (KILLED, TIMEOUT, SURVIVED, UNUSABLE)}
    return (
        f"{name:12} {len(verdicts):6} {count[KILLED]:7} {count[TIMEOUT]:8} {count[SURVIVED]:9} {count[UNUSABLE]:9} "
        f"{sum(one.seconds for one in verdicts):8.0f}"
    )


def document(root: Path, done: list[tuple[str, Verdict]]) -> dict[str, object]:
    """All of it for a program."""
    rows = []
    for room, verdict in done:
        row = {"room": room, "status": verdict.status, "seconds": round(verdict.seconds, 2), "note": verdict.note}
        rows.append(row | {"line": line_of(root, verdict.mutation)} | asdict(verdict.mutation))
    return {"killed": all_killed(done), "mutations": rows}


def all_killed(done: list[tuple[str, Verdict]]) -> bool:
    return all(verdict.status in (KILLED, TIMEOUT) for _, verdict in done)


def choose(lists: dict[str, list[Mutation]], rooms: list[str], text: str) -> dict[str, list[Mutation]]:
    """The mutations of ``rooms``, or of all, that have ``text`` in their file, change, tests or reason."""
    chosen = {}
    for room, listed in lists.items():
        if not rooms or room in rooms:
            found = [one for one in listed if any(text in str(value) for value in asdict(one).values())]
            chosen |= {room: found} if found else {}
    return chosen


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help=f"one or more of {', '.join(ROOMS)}; default all")
    parser.add_argument("-k", dest="text", default="", help="only those with TEXT in file, change, tests or reason")
    parser.add_argument("-n", dest="workers", type=int, default=1, help="how many at once, a copy each; default 1")
    parser.add_argument(
        "--timeout", type=float, help="seconds for the tests of one mutation; default 10 times their own"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    known = parser.parse_args(arguments)
    for room in known.rooms:
        if room not in ROOMS:
            parser.error(f"ROOM must be one of {', '.join(ROOMS)}, got {room!r}")
    if known.workers < 1:
        parser.error(f"-n must be at least 1, got {known.workers}")
    return known


def main(arguments: list[str] | None = None) -> int:
    known = _arguments(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the copies are removed
    chosen = choose(load(), known.rooms, known.text)
    if not chosen:
        print("no mutation fits; see python_tests/mutations", file=sys.stderr)
        return 2
    if not list(ROOT.glob(mutants.KERNELS)):
        print("the kernels are not compiled here; run python setup.py build_ext --inplace", file=sys.stderr)
        return 2
    report: Report = (lambda room, verdict: None) if known.json else (lambda room, verdict: say(ROOT, room, verdict))
    try:
        done = try_all(ROOT, chosen, report, workers=known.workers, timeout=known.timeout)
    except subprocess.CalledProcessError as error:
        print(f"not a git checkout: {error.stderr.strip()}", file=sys.stderr)
        return 2
    print(json.dumps(document(ROOT, done), indent=2) if known.json else f"\n{table(done)}")
    return 0 if all_killed(done) else 1


if __name__ == "__main__":
    sys.exit(main())
