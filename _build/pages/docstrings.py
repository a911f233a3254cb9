"""The package as mkdocstrings reads it: our way of writing docstrings and values in terms of griffe's.

- Roles (``:func:`` and the like) become links where the site has the target, and code where it has not.
- ``Example:`` becomes ``Examples:``, the section that griffe knows.
- Under ``Raises:`` a line that names no exception goes on with the one before.
- What is said of several arguments at once (``penalty, window: ...``) is said of each of them.
- Classes made by our ``@value``, and named tuples, get the signature of the dataclass that they are.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:func|class|meth|mod|data|attr|exc):`(~?)([\w.]+)`")
_SEVERAL = re.compile(r"^    (\w+(?:, \w+)+): (.*\n?(?:     .*\n?)*)", re.MULTILINE)
_RAISES = re.compile(r"^Raises:\n(?:    .*(?:\n|\Z))+", re.MULTILINE)
_GOES_ON = re.compile(r"^    (?=\w)(?!\w+(?:, \w+)*: )", re.MULTILINE)
_VALUE = "ficoco_ext.stages.frozen.value"
_DATACLASS = griffe.ExprName("dataclasses.dataclass")


def _link(role: re.Match[str]) -> str:
    name = role[2].rsplit(".", 1)[-1] if role[1] else role[2]
    return f'<autoref optional identifier="{role[2]}"><code>{name}</code></autoref>'


def _each(entry: re.Match[str]) -> str:
    text = entry[2].rstrip("\n")
    return "".join(f"    {name}: {text}\n" for name in entry[1].split(", "))


class Docstrings(griffe.Extension):
    """Rewrites what is read, before sections are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of ``obj``."""
        if obj.docstring is not None:
            text = _ROLE.sub(_link, obj.docstring.value).replace("``", "`")
            text = _RAISES.sub(lambda block: _GOES_ON.sub(" " * 8, block[0]), text)
            text = _SEVERAL.sub(_each, text)
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Say that a value is a dataclass; griffe makes its signature from that when the package is read."""
        named_tuple = any(str(base).rsplit(".", 1)[-1] == "NamedTuple" for base in cls.bases)
        if named_tuple or any(one.callable_path == _VALUE for one in cls.decorators):
            cls.decorators.append(griffe.Decorator(_DATACLASS, lineno=None, endlineno=None))
