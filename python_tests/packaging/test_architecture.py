"""The rooms of the package: who may import whom, everywhere, inside functions too; and what nobody may ask."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import ficoco_ext

PACKAGE = Path(ficoco_ext.__file__).parent
# From the ground up. A room imports rooms below its own floor, never one above or beside it.
FLOORS = (
    ("version", "io"),
    ("schedule", "reduction", "judging"),
    ("ops", "viz"),
    ("stages", "gridvqa"),
    ("methods",),
    ("amounts",),
    ("resolve",),
    ("api", "features", "models", "cost"),
    ("ficoco_ext",),  # the public names
    ("apps",),
    ("evaluation",),
    ("cli",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = (package.name, *path.relative_to(package).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """Modules that ``name`` imports, also in functions and for types alone, each by its own name."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inside = f"{base}.{alias.name}"
                found.add(inside if inside in known else base)
    return {one for one in found if one in known} - {name}


@functools.cache
def graph() -> dict[str, frozenset[str]]:
    known = modules()
    return {name: frozenset(imports(name, path, known)) for name, path in known.items()}


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else name


def circle(arrows: dict[str, frozenset[str]]) -> list[str] | None:
    """A circle of arrows, or None."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str] | None:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return None
        for after in sorted(arrows[name]):
            if found := visit(after, [*path, name]):
                return found
        done.add(name)
        return None

    return next((found for name in sorted(arrows) if (found := visit(name, []))), None)


def test_every_room_has_a_floor():
    assert {room(name) for name in modules()} == set(FLOOR)


def test_no_module_imports_itself_by_way_of_others():
    assert circle(graph()) is None


def test_no_room_imports_itself_by_way_of_others():
    rooms: dict[str, set[str]] = {one: set() for one in FLOOR}
    for name, after in graph().items():
        rooms[room(name)] |= {room(one) for one in after} - {room(name)}
    assert circle({one: frozenset(after) for one, after in rooms.items()}) is None


@pytest.mark.parametrize("name", sorted(modules()))
def test_arrows_point_down(name):
    up = [one for one in graph()[name] if room(one) != room(name) and FLOOR[room(one)] >= FLOOR[room(name)]]
    assert not up, f"{name} imports {', '.join(up)}"


def test_a_circle_and_an_arrow_back_are_seen(tmp_path):
    files = {
        "__init__": "",
        "a": "from . import b",
        "b": "def late():\n    from .sub.c import x",
        "sub/__init__": "",
        "sub/c": "from typing import TYPE_CHECKING\nfrom ..a import y\nif TYPE_CHECKING:\n    from ..d import z\nx = 1",
        "d": "import package.sub",
    }
    for name, text in files.items():
        path = tmp_path / "package" / f"{name}.py"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
    known = modules(tmp_path / "package")
    arrows = {name: frozenset(imports(name, path, known)) for name, path in known.items()}
    assert arrows["package.b"] == {"package.sub.c"} and arrows["package.sub.c"] == {"package.a", "package.d"}
    assert arrows["package.d"] == {"package.sub"}
    assert circle(arrows) == ["package.a", "package.b", "package.sub.c", "package.a"]


def test_the_package_imports_without_what_is_optional():
    program = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.split('.')[0] in ('transformers', 'matplotlib', 'typer', 'rich'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "import ficoco_ext\n"
        "assert 'balanced' in ficoco_ext.METHODS and ficoco_ext.cost.prefill('llava-1.5-7b').tflops > 0\n"
    )
    subprocess.run([sys.executable, "-W", "error::RuntimeWarning", "-c", program], check=True, cwd=PACKAGE.parent)
