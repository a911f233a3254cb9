"""Applies mutations in a scratch copy of the checkout and runs their tests there: ``python_tests/mutate.py``."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from mutations import Mutation

from helpers import forked_pytest

KERNELS = "ficoco_ext/_C*.so"
BUILD = ("setup.py", "build_ext", "--inplace")
BUILD_SECONDS, BASELINE_SECONDS = 1800.0, 600.0
OURS = ("PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST", "PYTEST_XDIST_WORKER")  # of a pytest that runs this one
MUST_BUILD = {"FICOCO_EXT_CPU": "1"}  # or setup.py does without what does not compile
KILLED, TIMEOUT, SURVIVED, UNUSABLE = "killed", "timeout", "SURVIVED", "unusable"


@dataclass(frozen=True)
class Verdict:
    """What became of a mutation.

    ``status``: ``killed``, a test failed or the process crashed in one; ``timeout``, the tests did not end, which
    counts as killed; ``SURVIVED``, all passed; ``unusable``, it cannot be judged. ``note`` says by which test, or why.
    """

    mutation: Mutation
    status: str
    seconds: float
    note: str


@dataclass(frozen=True)
class Ran:
    """One run of pytest: its exit status (None after a timeout), the events, the end of what it printed."""

    code: int | None
    seconds: float
    events: list[dict[str, str]]
    output: str

    def first(self, kind: str) -> str | None:
        return next((event[kind] for event in self.events if kind in event), None)

    def last(self, kind: str) -> str | None:
        return next((event[kind] for event in reversed(self.events) if kind in event), None)


class Baselines:
    """Runs without a mutation, once for each set of tests, by the worker that asks first."""

    def __init__(self) -> None:
        self._lock, self._locks = threading.Lock(), {}  # type: ignore[var-annotated]
        self._known: dict[tuple[str, ...], Ran] = {}

    def get(self, tests: tuple[str, ...], run: Callable[[], Ran]) -> Ran:
        with self._lock:
            lock = self._locks.setdefault(tests, threading.Lock())
        with lock:
            if tests not in self._known:
                self._known[tests] = run()
            return self._known[tests]


class Scratch:
    """A copy of the checkout ``root`` in ``folder``, and the process that runs tests there.

    Args:
        root: A git checkout; what git tracks or does not ignore is copied, and compiled kernels.
        folder: An empty folder.
        preload: Modules to import once, for all tests. None of the checkout itself.
        timeout: Seconds that the tests of one mutation may take; None for ten times what they take without it and
            one minute.
    """

    def __init__(
        self, root: Path, folder: Path, preload: tuple[str, ...], timeout: float | None, jobs: int = 2
    ) -> None:
        self.root, self.folder, self.timeout = root, folder, timeout
        self.tree = folder / "tree"
        self._events, self._output = folder / "events", folder / "output"
        self._changed: Mutation | None = None
        self._originals: dict[str, str] = {}
        self._built: Mutation | str | None = "not here"  # the mutation in the kernels, or None for none
        self._copy()
        inherited = {name: value for name, value in os.environ.items() if name not in OURS}
        environment = inherited | {"PYTHONPATH": str(self.tree), "PWD": str(self.tree)}
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # none is needed, and some are slow to import
        environment["CI"] = "1"  # for hypothesis: the same draws every time, and no deadline
        environment |= {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "FICOCO_CUDA": "0", "MAX_JOBS": str(jobs)}
        command = [sys.executable, forked_pytest.__file__, str(self.tree), str(root), *preload]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)

    def __enter__(self) -> Scratch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate()

    def _copy(self) -> None:
        listed = ["git", "-C", str(self.root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split("\0")
        names += [str(path.relative_to(self.root)) for path in self.root.glob(KERNELS)]
        for name in filter(None, names):
            source, target = self.root / name, self.tree / name
            if source.is_file():  # git lists what was deleted, too
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target, follow_symlinks=False)

    def _ask(self, **request: Any) -> tuple[int | None, float, str]:
        self._output.write_text("")
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request | {"output": str(self._output)}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process that runs the tests has ended; its error output is above")
        answer = json.loads(line)
        return answer["code"], answer["seconds"], self._output.read_text(errors="replace")

    def _pytest(self, tests: tuple[str, ...], timeout: float) -> Ran:
        self._events.write_text("")
        code, seconds, output = self._ask(tests=tests, events=str(self._events), timeout=timeout)
        return Ran(code, seconds, [json.loads(line) for line in self._events.read_text().splitlines()], output)

    def original(self, name: str) -> str:
        """The text of a file as it was copied; the checkout may change while this runs."""
        if name not in self._originals:
            self._originals[name] = (self.tree / name).read_text()
        return self._originals[name]

    def _write(self, mutation: Mutation | None) -> None:
        """Make the copy the checkout with ``mutation`` and no other."""
        for change, apply in ((self._changed, False), (mutation, True)):
            if change is not None:
                text, path = self.original(change.file), self.tree / change.file
                path.write_text(text.replace(change.old, change.new) if apply else text)
                # Python knows a compiled module by time and size, and both may be those of the mutation before.
                for stale in path.parent.glob(f"__pycache__/{path.stem}.*"):
                    stale.unlink()
        self._changed = mutation

    def _build(self, needed: bool) -> str:
        """Compile what has changed; the end of the compiler's words if that fails.

        Without ``needed`` the kernels that came with the copy serve as long as nothing was compiled here.
        """
        wanted = self._changed if self._changed is not None and compiled(self._changed) else None
        if self._built == wanted or (self._built == "not here" and not needed):
            return ""
        self._built = "broken"
        code, _, output = self._ask(script=BUILD, environment=MUST_BUILD, timeout=BUILD_SECONDS)
        if code != 0:
            said = [line for line in output.splitlines() if "error:" in line.lower()]
            return "\n".join(said[:5] or output.splitlines()[-20:] or [f"no word, status {code}"])
        self._built = wanted
        return ""

    def baseline(self, mutation: Mutation) -> Ran:
        """The tests of ``mutation`` without it."""
        self._write(None)
        said, tests = self._build(compiled(mutation)), mutation.tests
        return Ran(1, 0.0, [], said) if said else self._pytest(tests, BASELINE_SECONDS)

    def try_one(self, mutation: Mutation, baselines: Baselines) -> Verdict:
        """Apply ``mutation``, run its tests, and say what became of it."""
        found = self.original(mutation.file).count(mutation.old) if mutation.old else 0
        if found != 1:
            return Verdict(mutation, UNUSABLE, 0.0, f"`old` occurs {found} times in {mutation.file}, must be once")
        clean = baselines.get(mutation.tests, lambda: self.baseline(mutation))
        wrong = _unusable(clean)
        if wrong:
            return Verdict(mutation, UNUSABLE, clean.seconds, f"without the mutation: {wrong}")
        self._write(mutation)
        said = self._build(compiled(mutation))
        if said:
            return Verdict(mutation, UNUSABLE, 0.0, f"does not compile: {said}")
        return _judge(mutation, self._pytest(mutation.tests, self.timeout or 10 * clean.seconds + 60))


def compiled(mutation: Mutation) -> bool:
    """Whether the kernels must be built again for it."""
    return mutation.file.startswith("csrc/")


def _unusable(ran: Ran) -> str:
    """Why a run without a mutation says nothing, if it does not."""
    if ran.first("uncollected"):
        return f"{ran.first('uncollected')} cannot be collected: {ran.first('text')}"
    if ran.first("failed"):
        return f"{ran.first('failed')} fails"
    if ran.code is None:
        return f"the tests do not end in {ran.seconds:.0f} s"
    if ran.first("foreign"):
        return f"the tests import {ran.first('foreign')}, not the copy of it"
    if ran.code != 0:
        return f"pytest ends with status {ran.code}: {ran.output.strip()[-1500:]}"
    return "" if ran.first("passed") else "no test ran: all are skipped"


def _judge(mutation: Mutation, ran: Ran) -> Verdict:
    """What a run with the mutation shows.

    A test that fails, in its setup too, has noticed it, for it passed without. Tests that cannot be collected have not
    been run: such a fault is noticed by every import, and says nothing of them.
    """
    if ran.first("failed"):
        return Verdict(mutation, KILLED, ran.seconds, f"{ran.first('failed')}")
    if ran.first("uncollected"):
        why = f"{ran.first('uncollected')} cannot be collected: {ran.first('text')}"
        return Verdict(mutation, UNUSABLE, ran.seconds, why)
    started = ran.last("started")
    if ran.code is None and started:
        return Verdict(mutation, TIMEOUT, ran.seconds, started)
    if ran.code is None:
        return Verdict(mutation, UNUSABLE, ran.seconds, "the tests do not begin: an import does not end")
    if ran.code == 0:
        return Verdict(mutation, SURVIVED, ran.seconds, ", ".join(mutation.tests))
    if ran.code < 0 and started:
        return Verdict(mutation, KILLED, ran.seconds, f"{started} (ended by signal {-ran.code})")
    return Verdict(mutation, UNUSABLE, ran.seconds, f"pytest ends with status {ran.code}: {ran.output.strip()[-1500:]}")
