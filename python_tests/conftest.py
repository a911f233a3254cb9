"""What every test shares: the compiled kernels must be there, the backends, the GPU count."""

from __future__ import annotations

import gc
import os

import pytest
import torch

import ficoco_ext

pytest.register_assert_rewrite("helpers")  # their assertions say what they compared, too
from helpers import marks  # noqa: E402
from helpers.backends import BACKENDS, KERNELS, NO_GPU  # noqa: E402


def pytest_configure(config):
    """Without this a source tree imported by accident would test the specification against itself."""
    if not KERNELS and os.environ.get("FICOCO_ALLOW_REFERENCE") != "1":
        info = ficoco_ext.build_info()
        raise pytest.UsageError(
            f"the compiled CPU kernels of ficoco_ext are not loaded: {info['reasons']['cpu']}. To test the plain "
            "PyTorch specification alone, set FICOCO_ALLOW_REFERENCE=1."
        )


@pytest.hookimpl(hookwrapper=True)
def pytest_collection():
    """Garbage collection goes through torch, transformers and all tests again and again: a third of the time."""
    gc.disable()
    yield
    gc.enable()


def pytest_itemcollected(item):
    marks.mark(item)


def pytest_terminal_summary(terminalreporter):
    skipped = sum(NO_GPU in str(report.longrepr) for report in terminalreporter.stats.get("skipped", []))
    if skipped:
        terminalreporter.write_line(f"{skipped} tests were skipped for want of a GPU")


@pytest.fixture(autouse=True)
def _reproducible():
    torch.manual_seed(0)
    torch.set_num_threads(2)


@pytest.fixture
def fresh_compiler():
    """Nothing compiled before, nothing left compiled."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(params=BACKENDS)
def backend(request):
    """The specification itself, the CPU kernels, the CUDA kernels on the host, and on a GPU."""
    chosen = BACKENDS[request.param]
    if chosen.missing:
        pytest.skip(chosen.missing)
    return chosen
