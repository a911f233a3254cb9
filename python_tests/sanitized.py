"""Runs pytest with the CUDA kernels on the host under address and undefined-behaviour sanitizers.

python python_tests/sanitized.py [arguments of pytest]
"""

import os
import sys

import emulated_kernels
import pytest  # noqa: F401  (or its absence would be found after the build)

if __name__ == "__main__":
    library = emulated_kernels.build(sanitize=True)
    environment = {**os.environ, **emulated_kernels.builder().sanitizer_environment()}
    environment |= {"FICOCO_EMULATION_LIBRARY": str(library), "PYTHONMALLOC": "malloc"}
    os.execve(sys.executable, [sys.executable, "-m", "pytest", "-q", *sys.argv[1:]], environment)
