"""The CPU's screening by bytes, in a program of its own: matching gives the same with and without it, so only here can
it be seen that it happens."""

import shutil
import subprocess

import pytest
from helpers.paths import CSRC

FLAGS = ["-O1", "-g", "-std=c++20", "-fopenmp-simd", "-ffp-contract=fast", "-Wall", "-Wextra", "-Werror", "-Wno-psabi"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_it_decides_all_but_blank_pictures(tmp_path):
    """Every even token's nearest odd one, at sizes that fill no vector, under the sanitizers."""
    program = tmp_path / "byte_screen_test"
    sources = [CSRC / "testing/tools/byte_screen_test.cpp", CSRC / "cpu/nearest_bytes.cpp", CSRC / "cpu/simd.cpp"]
    subprocess.run(["g++", *FLAGS, *SANITIZERS, f"-I{CSRC}", *map(str, sources), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stderr
