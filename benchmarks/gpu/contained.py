"""Runs a program's tasks in a process of their own: a crash or a hang costs one task, never the rest.

A program lists its tasks, each with a key. The parent starts the program again as a child, which writes a line before
and after every task. Where the child dies or stays silent too long, the parent notes which task was lost and starts
another child, which goes on after it. A device that an error has made unusable is left in the same way.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rows import Line, Recorder, fold, put, read

UNUSABLE = 3  # exit code of a child whose device answers every call with an error
RESTARTS = 12  # of one group
POLL = 0.1  # seconds
LATE = 5.0  # seconds that a task which runs when the time is up still has
START = 120.0  # seconds of silence outside of any task: imports, the first contact with a device

Task = tuple[str, Callable[[], Any]]


def said(error: BaseException) -> str:
    """One line of an exception."""
    first = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {first}"[:400]


def options(parser: argparse.ArgumentParser, budget: float) -> None:
    """What every program takes; all of it is handed on to the child."""
    parser.add_argument("--json", type=Path, help="results file; only this program's section of it is written")
    parser.add_argument("--budget", type=float, default=budget, help="seconds after which no more tasks are begun")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on the CPU and planted faults")
    parser.add_argument("--lines", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--group", default="", help=argparse.SUPPRESS)


@dataclass
class Program:
    """One program under supervision.

    Args:
        section: its name in the results file.
        tasks: (arguments, recorder) to the tasks of ``arguments.group``, in order.
        patience: seconds of silence after which a child is taken for hung.
        groups: lists of tasks that run beside each other, each in a process.
        beside: how many at a time.
        bad: whether a row is a fault.
    """

    section: str
    tasks: Callable[[argparse.Namespace, Recorder], Iterable[Task]]
    patience: float
    groups: tuple[str, ...] = ("",)
    beside: int = 1
    bad: Callable[[dict[str, Any]], bool] = lambda row: "failed" in row
    planted: tuple[str, ...] = ("crash", "hang")
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def main(self, args: argparse.Namespace) -> int:
        """The exit code: 0 if every task is done and well; in a rehearsal, if all faults are the planted ones."""
        if args.lines is not None:
            return self._child(args)
        with tempfile.TemporaryDirectory() as folder:
            return self._parent(args, Path(folder))

    def _child(self, args: argparse.Namespace) -> int:
        recorder, stop = Recorder(args.lines), time.monotonic() + args.budget
        begun = recorder.begun()
        for key, run in self._all(args, recorder):
            if key in begun:
                continue
            if time.monotonic() > stop:
                recorder.add("not_reached", {"task": key})
                continue
            recorder.begin(key)
            print(f"--- {key}", file=sys.stderr, flush=True)
            try:
                run()
            except Exception as error:
                recorder.add("failures", {"task": key, "failed": said(error)})
                print(f"    {said(error)}", file=sys.stderr, flush=True)
                if device_lost():
                    recorder.end(key)
                    return UNUSABLE
            recorder.end(key)
        return 0

    def _all(self, args: argparse.Namespace, recorder: Recorder) -> Iterable[Task]:
        if args.rehearse and args.group == self.groups[0]:
            faults = {"crash": lambda: os.kill(os.getpid(), signal.SIGSEGV), "hang": lambda: time.sleep(1e6)}
            for name in self.planted:
                if name in faults:
                    yield f"planted {name}", faults[name]
        yield from self.tasks(args, recorder)

    def _parent(self, args: argparse.Namespace, folder: Path) -> int:
        stop = time.monotonic() + args.budget
        files = [folder / f"{index}.jsonl" for index in range(len(self.groups))]

        def show() -> dict[str, Any]:
            with self._lock:
                section = fold(line for path in files for line in read(path))
                if args.json is not None:
                    put(args.json, **{self.section: section})
                return section

        with ThreadPoolExecutor(self.beside) as pool:
            each = [
                pool.submit(self._supervise, args, group, path, stop, show)
                for group, path in zip(self.groups, files, strict=True)
            ]
            for one in each:
                one.result()
        Recorder(files[0]).facts(complete=True)
        return self._judge(show(), args.rehearse)

    def _judge(self, section: dict[str, Any], rehearsal: bool) -> int:
        rows = [row for value in section.values() if isinstance(value, list) for row in value if isinstance(row, dict)]
        lost = {f"{row['task']}: {row['lost']}" for row in section.get("lost", [])}
        wrong = {str(row.get("task", row)) for row in rows if self.bad(row) and "lost" not in row}
        wanted_lost = {f"planted {name}: {name}" for name in self.planted if name in ("crash", "hang")}
        wanted_wrong = {f"planted {name}" for name in self.planted if name not in ("crash", "hang")}
        print(f"{self.section}: lost {sorted(lost)}, faults {sorted(wrong)}", file=sys.stderr, flush=True)
        if rehearsal:
            return int(lost != wanted_lost or wrong != wanted_wrong)
        return int(bool(lost or wrong or section.get("not_reached")))

    def _supervise(
        self, args: argparse.Namespace, group: str, path: Path, stop: float, show: Callable[[], Any]
    ) -> None:
        for _ in range(RESTARTS):
            left = stop - time.monotonic()
            if left <= 0 and path.exists():
                break
            command = [sys.executable, *sys.argv, "--lines", str(path), "--group", group, "--budget", f"{left:.1f}"]
            child = subprocess.Popen(command, start_new_session=True)
            lost = self._wait(child, path, stop, show)
            running = _running(read(path))
            if child.returncode == 0:
                break
            recorder = Recorder(path)
            if running is not None:
                recorder.add("lost", {"task": running, "lost": lost or "crash", "exit": child.returncode})
                recorder.end(running)
            elif child.returncode != UNUSABLE:  # died outside of any task: another child would do so too
                recorder.add("lost", {"task": f"{group or self.section} itself", "lost": lost or "crash",
                                      "exit": child.returncode})  # fmt: skip
                break
            if lost == "out of time":
                break
        show()

    def _wait(self, child: subprocess.Popen[bytes], path: Path, stop: float, show: Callable[[], Any]) -> str | None:
        """Until the child ends; why it was ended, if it was."""
        size, heard, patience = -1, time.monotonic(), START
        while child.poll() is None:
            now, length = time.monotonic(), path.stat().st_size if path.exists() else 0
            if length != size:
                size, heard = length, now
                patience = START if _running(read(path)) is None else self.patience
                show()
            silent = now - heard > patience
            if silent or now > stop + min(self.patience, LATE):
                _end(child)
                return "hang" if silent else "out of time"
            time.sleep(POLL)
        return None


def _end(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _running(lines: list[Line]) -> str | None:
    """The task that began and did not end."""
    ended = {line["end"] for line in lines if "end" in line}
    return next((line["begin"] for line in reversed(lines) if "begin" in line and line["begin"] not in ended), None)


def device_lost() -> bool:
    """Whether the GPU no longer answers: after an illegal access every later call of the process fails."""
    import torch

    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device="cuda").item()
    except Exception:
        return True
    return False
