"""The lists of ``python_tests/mutations`` fit the checkout: each fault can be applied, and its tests are there."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest
from helpers.paths import ROOT
from mutations import ROOMS, Mutation, load

LISTS = load()
EVERY = [mutation for room in LISTS.values() for mutation in room]
ENOUGH = 120


@functools.cache
def functions(name: str) -> frozenset[str]:
    """What ids of tests in the file ``name`` may go on with."""
    tree = ast.parse((ROOT / name).read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef)))


def faults(mutation: Mutation) -> list[str]:
    """What is wrong with it, if anything."""
    path = ROOT / mutation.file
    if not path.is_file() or mutation.file.startswith("python_tests/"):
        return [f"{mutation.file}: no file to change, or one of the tests"]
    found = path.read_text().count(mutation.old) if mutation.old else 0
    wrong = [] if found == 1 else [f"{mutation.file}: {mutation.old!r} occurs {found} times, must be once"]
    if mutation.old == mutation.new:
        wrong.append(f"{mutation.file}: {mutation.old!r} is not changed")
    if not mutation.tests or not mutation.why.endswith("."):
        wrong.append(f"{mutation.file}: {mutation.old!r} needs tests, and a sentence that says who is hurt")
    for test in mutation.tests:
        name, _, function = test.partition("::")
        if not (ROOT / name).is_file():
            wrong.append(f"{mutation.file}: {name} is not there")
        elif function and function.partition("[")[0].split("::")[-1] not in functions(name):
            wrong.append(f"{mutation.file}: {name} has no {function}")
    return wrong


@pytest.mark.parametrize("room", sorted(LISTS))
def test_mutations_can_be_applied(room):
    assert [fault for mutation in LISTS[room] for fault in faults(mutation)] == []


def test_no_mutation_is_listed_twice():
    changes = [(mutation.file, mutation.old, mutation.new) for mutation in EVERY]
    assert sorted({change for change in changes if changes.count(change) > 1}) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"file": "ficoco_ext/absent.py"}, "no file to change"),
        ({"file": "python_tests/mutate.py"}, "one of the tests"),
        ({"old": "no such text"}, "occurs 0 times"),
        ({"old": '"'}, "occurs 8 times"),
        ({"old": ""}, "occurs 0 times"),
        ({"new": "__version__"}, "is not changed"),
        ({"tests": ()}, "needs tests"),
        ({"why": "a word"}, "needs tests, and a sentence"),
        ({"tests": ("python_tests/packaging/test_absent.py",)}, "test_absent.py is not there"),
        ({"tests": ("python_tests/packaging/test_mutations.py::test_absent",)}, "has no test_absent"),
    ],
)
def test_a_wrong_entry_is_found(change, said):
    here = "python_tests/packaging/test_mutations.py"
    right = {"file": "ficoco_ext/version.py", "old": "__version__", "new": "version"}
    right |= {"tests": (here, f"{here}::test_a_wrong_entry_is_found[a]"), "why": "Nobody can ask for it."}
    assert faults(Mutation(**right)) == []
    assert any(said in fault for fault in faults(Mutation(**right | change))), faults(Mutation(**right | change))


def computes(path: Path) -> bool:
    """Whether a file has functions with a body, and not only names, constants and declarations."""
    text = path.read_text()
    if path.suffix == ".py":
        return any(isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) for node in ast.walk(ast.parse(text)))
    return bool(re.search(r"\)\s*(const\s*)?(noexcept\s*)?(override\s*)?(->[^{;]*)?\{", text))


def must_have_mutations(root: Path) -> list[str]:
    """Files of the package and of the CPU kernels that compute something."""
    found = [*root.glob("ficoco_ext/**/*.py")]
    found += [path for room in ("cpu", "ops") for path in root.glob(f"csrc/{room}/*") if path.suffix in (".cpp", ".h")]
    # The CUDA side of the operators is compiled with the toolkit only, and mutate.py builds without it.
    return sorted(str(path.relative_to(root)) for path in found if computes(path) and path.stem != "device_cuda")


def test_every_room_has_a_list():
    assert sorted(LISTS) == sorted(ROOMS)


def test_everything_that_computes_has_a_mutation():
    assert sorted(set(must_have_mutations(ROOT)) - {mutation.file for mutation in EVERY}) == []


def test_there_are_enough():
    assert len(EVERY) >= ENOUGH


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("ficoco_ext/a.py", "def f():\n    return 1\n", True),
        ("ficoco_ext/viz/a.py", "class A:\n    async def f(self): ...\n", True),
        ("ficoco_ext/a.py", "from b import c\n__all__ = ['c']\nD = (1, 2)\n", False),
        ("csrc/cpu/a.cpp", "int f(int x) { return x; }\n", True),
        ("csrc/ops/a.h", "inline auto f(int x) -> int {\n  return x;\n}\n", True),
        ("csrc/ops/a.h", "int f(int x);\nstruct A { int x; };\nnamespace b {\n}\n", False),
        ("csrc/cuda/a.cu", "int f(int x) { return x; }\n", False),
        ("csrc/ops/device_cuda.cpp", "int f(int x) { return x; }\n", False),
    ],
)
def test_what_must_have_mutations(tmp_path, name, text, wanted):
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text(text)
    assert must_have_mutations(tmp_path) == ([name] if wanted else [])
