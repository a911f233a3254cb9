"""Runs transformers' tests of one family in one mode, in a process of its own that has all imports already."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from tests import test_modeling_common

from foreign.modes import MODES, Attached
from foreign.outcomes import Outcome
from foreign.report import UNMODIFIED

LIMIT = 1800  # seconds for one job
HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Job:
    """Tests of one family in one mode; ``select`` is pytest's ``-k``."""

    mode: str
    family: str
    select: str

    @property
    def name(self) -> str:
        """For files and tables."""
        return f"{self.family}-{self.mode}"


class Recorder:
    """A plugin of pytest: seeds every test alike in all modes, and notes how it ended."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Outcome] = {}

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """The same inputs and weights in all modes."""
        for seed in (random.seed, numpy.random.seed, torch.manual_seed, test_modeling_common.global_rng.seed):
            seed(0)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One report for each phase and each subtest: the worst counts."""
        name = report.nodeid.rpartition("::")[2]
        before = self.outcomes.get(name)
        if before is not None and (before.result == "failed" or report.outcome == "passed"):
            return
        self.outcomes[name] = Outcome(report.outcome, "" if report.outcome == "passed" else message(report))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be imported is a failure, too."""
        if report.failed:
            self.outcomes[f"collecting {report.nodeid}"] = Outcome("failed", message(report))


def message(report: Any) -> str:
    """Why a test failed or was skipped, in one line."""
    found = report.longrepr
    if isinstance(found, tuple):
        text = found[2]
    else:
        crash = getattr(found, "reprcrash", None)
        text = str(found) if crash is None else crash.message
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:300] if lines else ""


def run(job: Job, folder: Path) -> None:
    """Run a job in this process; its outcomes become ``NAME.json`` in ``folder``."""
    torch.set_num_threads(1)
    attached = Attached(MODES[job.mode][0]) if job.mode != UNMODIFIED else None
    if attached is not None:
        attached.install()
    recorder = Recorder()
    alone = ["-q", "--tb=short", "--disable-warnings", "--assert=plain", "--noconftest", "-p", "no:cacheprovider"]
    where = ["-c", os.devnull, "--rootdir", str(folder), str(HERE / "families" / f"{job.family}.py")]
    options = [*alone, "-k", job.select, *where]
    pytest.main(options, plugins=[recorder])
    found = {name: dataclasses.asdict(outcome) for name, outcome in recorder.outcomes.items()}
    report = {"attached": 0 if attached is None else attached.count, "outcomes": found}
    (folder / f"{job.name}.json").write_text(json.dumps(report))


def _process(job: Job, folder: Path) -> None:
    log = os.open(folder / f"{job.name}.log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        run(job, folder)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)  # what torch and transformers do at exit was done for the process that was forked


def run_all(jobs: Sequence[Job], folder: Path, processes: int) -> dict[Job, tuple[int, dict[str, Outcome]]]:
    """Run jobs side by side, each in a fork of this process.

    Returns:
        For each job the number of models that were attached, and the outcomes of its tests.

    Raises:
        RuntimeError: a job ended without a result, or did not end in time.
    """
    context = multiprocessing.get_context("fork")
    waiting, running = list(jobs), []
    while waiting or running:
        while waiting and len(running) < processes:
            job = waiting.pop(0)
            process = context.Process(target=_process, args=(job, folder))
            process.start()
            running.append((job, process, time.monotonic()))
        time.sleep(0.05)
        for job, process, started in list(running):
            if time.monotonic() - started > LIMIT:
                process.kill()
            if not process.is_alive():
                running.remove((job, process, started))
    return {job: _result(job, folder) for job in jobs}


def _result(job: Job, folder: Path) -> tuple[int, dict[str, Outcome]]:
    path = folder / f"{job.name}.json"
    if not path.exists():
        log = (folder / f"{job.name}.log").read_text(errors="replace")
        raise RuntimeError(f"{job.name} ended without a result, or after {LIMIT} s:\n{log[-3000:]}")
    report = json.loads(path.read_text())
    return report["attached"], {name: Outcome(**outcome) for name, outcome in report["outcomes"].items()}
