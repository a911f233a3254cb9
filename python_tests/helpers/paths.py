"""Where things are: the checkout, and the package that is tested, which may be installed somewhere else."""

from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "python_tests"
CSRC = ROOT / "csrc"
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"

_spec = find_spec("ficoco_ext")  # not imported: some tests need neither the package nor torch
PACKAGE = Path(_spec.origin).parent if _spec is not None and _spec.origin else ROOT / "ficoco_ext"
