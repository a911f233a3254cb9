"""Runs pytest, or a script, again and again in forks of one process that has imported what is slow to import.

    python forked_pytest.py TREE OWNER [MODULE...]

reads one request a line, as JSON, and answers each with a line:

    {"tests": [...], "events": FILE, "output": FILE, "timeout": SECONDS}     -> {"code": 0, "seconds": 1.5}
    {"script": [FILE, ARGUMENT...], "environment": {...}, "output": FILE, "timeout": SECONDS}

``code`` is the exit status, minus the signal that ended it, or null after the timeout. What the tests do is written to
``events`` as it happens, a JSON object a line, so that it is known after a crash, too. TREE is the current folder and
the first place of imports. OWNER is the checkout that TREE was copied from: nothing may be imported from there.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

BETWEEN_LOOKS = 0.02  # seconds, at a child that runs


class Events:
    """A plugin of pytest: what was collected and run, and from where the modules came."""

    def __init__(self, path: str, tree: Path, owner: Path) -> None:
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (stays open until the process ends)
        self.tree, self.owner = tree, owner

    def _say(self, **event: Any) -> None:
        self.file.write(json.dumps(event) + "\n")
        self.file.flush()

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._say(uncollected=report.nodeid, text=str(report.longrepr)[-2000:])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._say(started=nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self._say(failed=report.nodeid)
        elif report.passed and report.when == "call":
            self._say(passed=report.nodeid)

    def pytest_sessionfinish(self) -> None:
        files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
        paths = [Path(file) for file in files if isinstance(file, str)]
        foreign = [path for path in paths if path.is_relative_to(self.owner) and not path.is_relative_to(self.tree)]
        own = {Path(__file__), Path(sys.prefix)}  # this very file, and an environment inside the checkout
        for path in foreign:
            if not any(path.is_relative_to(one) for one in own):
                self._say(foreign=str(path))


def _child(request: dict[str, Any], tree: Path, owner: Path) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.setpgid(0, 0)
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.update(request.get("environment", {}))
    if "script" in request:
        sys.argv = request["script"]
        runpy.run_path(sys.argv[0], run_name="__main__")
        return 0
    import pytest

    # The CUDA kernels on the host are left out: to compile them takes minutes, and no mutation is of them.
    arguments = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not emulated and not gpu"]
    arguments += ["-c", "pyproject.toml", "--rootdir", str(tree)]
    return pytest.main([*arguments, *request["tests"]], plugins=[Events(request["events"], tree, owner)])


def _fork(request: dict[str, Any], tree: Path, owner: Path) -> int:
    child = os.fork()
    if child:
        with contextlib.suppress(OSError):  # it may have done so itself, and even be gone
            os.setpgid(child, child)
        return child
    code: Any = 70
    try:
        code = _child(request, tree, owner)
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else int(done.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(code))


def _wait(child: int, timeout: float) -> int | None:
    """The exit status of ``child``, or None if it had to be ended. What it started ends with it."""
    limit = time.monotonic() + timeout
    try:
        while time.monotonic() < limit:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(BETWEEN_LOOKS)
        return None
    finally:
        _end(child)


def _end(child: int) -> None:
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)


def main(tree: Path, owner: Path, modules: list[str]) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    os.chdir(tree)
    sys.path[0] = str(tree)  # in place of this file's folder
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError:
            continue  # then the tests that need it are skipped
    gc.freeze()  # or every collection in a child looks through torch, and copies it
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a module prints is no answer
    for line in sys.stdin:
        request = json.loads(line)
        started = time.monotonic()
        code = _wait(_fork(request, tree, owner), request["timeout"])
        answers.write(json.dumps({"code": code, "seconds": time.monotonic() - started}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
