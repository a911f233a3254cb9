"""The lists of ``python_tests/mutations`` fit the checkout: each fault can be applied, and its tests are there."""

from __future__ import annotations

import ast
import functools

import pytest
from helpers.paths import ROOT
from mutations import Mutation, load

LISTS = load()
EVERY = [mutation for room in LISTS.values() for mutation in room]


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
