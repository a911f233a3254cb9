"""The includes of ``csrc``: arrows one way, no circle, and no torch where kernels are.

``module.cpp, ops, testing -> cpu, cuda -> the headers directly in csrc``.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.paths import CSRC

ROOMS = {  # a room, and the rooms that its files may include
    "module": {"cpu", "cuda"},
    "ops": {"ops", "cpu", "cuda", "plain"},
    "cpu": {"cpu", "plain"},
    "cuda": {"cuda", "plain"},
    "plain": {"plain"},
    "testing": {"testing", "cpu", "cuda", "plain"},
}
WITH_TORCH = {"module", "ops"}
TORCH = re.compile(r"(ATen|torch|c10|pybind11|Python)(/|\.h)")
Graph = dict[str, list[str]]


def includes(folder: Path) -> tuple[Graph, Graph]:
    """By file: the files of ``folder`` that it includes, and the headers of others."""
    own: Graph = {}
    foreign: Graph = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix not in (".cpp", ".h", ".cu", ".cuh"):
            continue
        name = path.relative_to(folder).as_posix()
        own[name], foreign[name] = [], []
        for line in re.findall(r'^\s*#\s*include\s*([<"][^>"]+[>"])', path.read_text(), re.M):
            beside, below = path.parent / line[1:-1], folder / line[1:-1]
            found = next((file for file in (beside, below) if line[0] == '"' and file.exists()), None)
            if found is None:
                foreign[name].append(line[1:-1])
            else:
                own[name].append(found.resolve().relative_to(folder.resolve()).as_posix())
    return own, foreign


def circles(graph: Graph) -> list[str]:
    """Every circle that a walk in depth meets, as ``a -> b -> a``."""
    found: list[str] = []
    finished: set[str] = set()

    def walk(name: str, path: list[str]) -> None:
        if name in path:
            found.append(" -> ".join([*path[path.index(name) :], name]))
        elif name not in finished:
            for other in graph[name]:
                walk(other, [*path, name])
            finished.add(name)

    for name in graph:
        walk(name, [])
    return found


def room(name: str) -> str:
    """Its folder; of the files directly in csrc, the headers are ``plain`` and module.cpp is ``module``."""
    return name.split("/")[0] if "/" in name else "plain" if name.endswith(".h") else "module"


def faults(folder: Path) -> list[str]:
    """Circles, arrows back, and headers of torch or Python outside of ``WITH_TORCH``."""
    own, foreign = includes(folder)
    wrong = [f"circle: {circle}" for circle in circles(own)]
    for name, others in own.items():
        wrong += [f"{name} must not include {other}" for other in others if room(other) not in ROOMS[room(name)]]
    for name, headers in foreign.items():
        bare = room(name) not in WITH_TORCH
        wrong += [f"{name} must not include <{header}>" for header in headers if bare and TORCH.match(header)]
    return wrong


def test_arrows_go_one_way():
    own, _ = includes(CSRC)
    assert {room(name) for name in own} == set(ROOMS)
    assert any(room(name) == "ops" and room(other) == "cuda" for name, others in own.items() for other in others)
    assert faults(CSRC) == []


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("params.h", '#include "cpu/rows.h"\n', "params.h must not include cpu/rows.h"),
        ("cpu/rows.h", '#include "ops/call.h"\n', "cpu/rows.h must not include ops/call.h"),
        ("cpu/rows.h", '#include "cuda/launch.h"\n', "cpu/rows.h must not include cuda/launch.h"),
        ("cuda/launch.h", '#  include "ops/call.h"\n', "cuda/launch.h must not include ops/call.h"),
        ("cuda/filter.cu", "#include <c10/util/Half.h>\n", "cuda/filter.cu must not include <c10/util/Half.h>"),
        ("cpu/rows.h", "#include <ATen/Parallel.h>\n", "cpu/rows.h must not include <ATen/Parallel.h>"),
        ("params.h", "#include <torch/version.h>\n", "params.h must not include <torch/version.h>"),
        ("ops/call.h", '#include "ops/device.h"\n', "circle: ops/call.h -> ops/device.h -> ops/call.h"),
        ("cuda/launch.h", '#include "launch.h"\n', "circle: cuda/launch.h -> cuda/launch.h"),
    ],
)
def test_a_planted_fault_is_found(tmp_path, name, text, said):
    right = {
        "module.cpp": '#include <Python.h>\n#include "cuda/launch.h"\n',
        "params.h": "#include <cstdint>\n",
        "ops/call.h": '#include <ATen/core/Tensor.h>\n#include "params.h"\n',
        "ops/device.h": '#include "ops/call.h"\n#include "cpu/rows.h"\n',
        "cpu/rows.h": '#include "params.h"\n',
        "cuda/launch.h": '#include <cuda_runtime_api.h>\n#include "params.h"\n',
        "cuda/filter.cu": '#include "launch.h"\n',
    }
    for file, content in right.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(content)
    assert faults(tmp_path) == []
    (tmp_path / name).write_text(right[name] + text)
    assert said in faults(tmp_path)
