"""Runs pytest with the CUDA kernels on the host under address and undefined-behaviour sanitizers.

python python_tests/helpers/sanitized.py [arguments of pytest]
"""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, it finds itself alone
from helpers import emulated_kernels

if __name__ == "__main__":
    if "FICOCO_EMULATION_LIBRARY" in os.environ:  # the second time, with the sanitizers' libraries loaded first
        sys.exit(pytest.main(["-q", *sys.argv[1:]]))
    library = emulated_kernels.build(sanitize=True)
    environment = {**os.environ, **emulated_kernels.builder().sanitizer_environment(), "PYTHONMALLOC": "malloc"}
    environment["FICOCO_EMULATION_LIBRARY"] = str(library)
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)
