"""A failing case as one file of Python that needs ficoco_ext, torch and transformers alone.

The file is :func:`property.checks.check` with all that it uses of the tests' own modules, taken from their source.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

import torch
import transformers
from helpers.paths import TESTS
from property.cases import Case

import ficoco_ext

OWN = ("helpers", "property")
HEAD = '''"""{title}

{failure}

torch {torch}, transformers {transformers}, ficoco_ext {ficoco}. Run: python THIS_FILE
"""

from __future__ import annotations

{imports}

{code}


CASE = {case}

if __name__ == "__main__":
    print(check(CASE))
'''


@dataclass
class Module:
    """A module of the tests: what it imports and what it defines, by name."""

    foreign: dict[str, str] = field(default_factory=dict)  # name: the line that imports it
    own: dict[str, tuple[str, str]] = field(default_factory=dict)  # name: module and name there
    defined: dict[str, ast.stmt] = field(default_factory=dict)
    text: str = ""


def read(name: str) -> Module:
    """The module of that dotted name."""
    text = (TESTS / f"{name.replace('.', '/')}.py").read_text()
    module = Module(text=text)
    for node in ast.parse(text).body:
        if isinstance(node, ast.Import):
            for one in node.names:
                module.foreign[one.asname or one.name.split(".")[0]] = ast.unparse(ast.Import([one]))
        elif isinstance(node, ast.ImportFrom):
            for one in node.names:
                if str(node.module).split(".")[0] in OWN:
                    module.own[one.asname or one.name] = str(node.module), one.name
                else:
                    line = ast.unparse(ast.ImportFrom(node.module, [one], node.level))
                    module.foreign[one.asname or one.name] = line
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            module.defined[node.name] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for one in ast.walk(target):
                    if isinstance(one, ast.Name):
                        module.defined[one.id] = node
    return module


class Program:
    """What one function needs of the tests' modules."""

    def __init__(self, module: str, name: str) -> None:
        self.modules: dict[str, Module] = {}
        self.imports: set[str] = set()
        self.parts: list[str] = []
        self.done: dict[str, tuple[str, str]] = {}
        self.add(module, name)

    def add(self, module: str, name: str) -> None:
        """A definition, after those that it uses."""
        held = self.modules.setdefault(module, read(module)) if module not in self.modules else self.modules[module]
        if name in held.foreign:
            self.imports.add(held.foreign[name])
        elif name in held.own:
            assert held.own[name][1] == name, f"{module} renames {held.own[name]}"
            self.add(*held.own[name])
        elif name in held.defined:
            if name in self.done:
                assert self.done[name] == (module, name), f"{name} is in {module} and in {self.done[name][0]}"
                return
            node = held.defined[name]
            mine = [other for other, one in held.defined.items() if one is node]
            self.done |= {one: (module, one) for one in mine}
            for used in ast.walk(node):
                if isinstance(used, ast.Name):
                    self.add(module, used.id)
            lines = held.text.splitlines()
            first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
            self.parts.append("\n".join(lines[first - 1 : node.end_lineno]))


def script_of(case: Case, failure: str) -> str:
    """The text of the file."""
    program = Program("property.checks", "check")
    for name in ("Case",):
        program.add("property.cases", name)
    return HEAD.format(
        title=f"Draw {case.number}: a check of ficoco_ext that failed.",
        failure=failure.replace("\\", "/").replace('"""', "'''").strip()[:600],
        torch=torch.__version__,
        transformers=transformers.__version__,
        ficoco=ficoco_ext.__version__,
        imports="\n".join(sorted(program.imports)),
        code="\n\n\n".join(program.parts),
        case=repr(case),
    )
