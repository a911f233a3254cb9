"""Runs transformers' model tests with hooks attached, and holds what differs to the list in ``expected.py``.

python python_tests/foreign/run.py SDIST   SDIST: the source distribution of the transformers that is installed
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are so small that threads only wait for each other
os.environ["HF_HUB_OFFLINE"] = "1"  # tests that need the hub are skipped
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # none is needed, and each would be imported in each process
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
sys.path[0] = str(Path(__file__).parent.parent)  # the folder that holds foreign

from foreign import tree  # noqa: E402
from foreign.outcomes import Expected, of_those  # noqa: E402
from foreign.report import UNMODIFIED, Run, report  # noqa: E402


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sdist", type=Path, help="source distribution of the transformers that is installed")
    parser.add_argument("-n", type=int, default=2, help="processes (2)")
    parser.add_argument("-k", default="", help="only these tests, as pytest's -k")
    parser.add_argument("--modes", nargs="+", help="only these modes, and the unmodified models")
    parser.add_argument("--families", nargs="+", help="only these families")
    parser.add_argument("--logs", type=Path, help="a folder to keep the tests and their logs in")
    return parser.parse_args()


def main() -> int:
    """Prints a table and what is wrong; the exit code says whether anything is."""
    given = arguments()
    with tempfile.TemporaryDirectory() as made:
        folder = (given.logs or Path(made)).resolve()
        tests = tree.unpack(given.sdist, folder)
        sys.path.insert(1, str(tests.parent))
        started = time.monotonic()
        lines, faults = report(*results(given, folder))
    print("\n".join(lines))
    print(f"\n{time.monotonic() - started:.0f} s; {len(faults)} faults")
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def results(given: argparse.Namespace, folder: Path) -> tuple[list[Run], Sequence[Expected], str]:
    """Everything that was asked for: what ``report`` needs."""
    import transformers

    import ficoco_ext
    from foreign.expected import EXPECTED
    from foreign.jobs import Job, run_all
    from foreign.modes import CLASSES, MODES

    sdist = tree.version(given.sdist)
    if sdist != transformers.__version__:
        raise SystemExit(f"transformers {transformers.__version__} is installed, and the tests are those of {sdist}")
    print(f"transformers {sdist}, ficoco_ext with kernels {ficoco_ext.build_info()['cpu']}")
    modes = {UNMODIFIED: tuple(CLASSES)} | {mode: families for mode, (_, families) in MODES.items()}
    jobs = [
        Job(mode, family, given.k)
        for mode, families in modes.items()
        for family in families
        if family in (given.families or CLASSES) and mode in (UNMODIFIED, *(given.modes or MODES))
    ]
    for family in CLASSES:
        __import__(f"foreign.families.{family}")  # before the processes are forked
    runs = [Run(job.mode, job.family, *found) for job, found in run_all(jobs, folder, given.n).items()]
    expected = of_those(EXPECTED, {name for run in runs for name in run.results}) if given.k else EXPECTED
    return runs, expected, ".".join(sdist.split(".")[:2])


if __name__ == "__main__":
    sys.exit(main())
