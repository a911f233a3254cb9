"""Rewrites what a C++ compiler cannot parse in a .cu or .cuh file; all else, and every line number, stays.

* ``kernel<T, 4><<<grid, block, shared, stream>>>(args)`` becomes ``cuemu::launch("kernel<T, 4>", cuemu::Config(grid,
  block, shared, stream), kernel<T, 4>, args)``;
* ``extern __shared__ T name[];`` becomes a pointer to the block's dynamic shared memory;
* other ``__shared__`` variables stay, followed by a call that fills them before a block's first use.

Comments and literals are left alone: all searching is done in a copy of the text in which they are blank.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_HIDDEN = re.compile(
    r"//(?:\\\n|[^\n])*|/\*.*?\*/"  # comments
    r'|R"(?P<end>[^\s()\\]*)\(.*?\)(?P=end)"|"(?:\\.|[^"\\\n])*"'  # strings
    r"|(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])+'",  # characters, but not the separators of 1'000
    re.DOTALL,
)
_ALIGN = re.compile(r"\b(?:__align__|alignas)\s*\(")
_SHARED = re.compile(r"\b__shared__\b")
_CLOSES = {")": "(", "]": "[", "}": "{", ">": "<"}


class SourceError(Exception):
    """A construct that the converter does not understand."""


def _blank(text: str) -> str:
    return _HIDDEN.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), text)


class _Source:
    """The text, and the same text with comments and literals blank; both are edited alike."""

    def __init__(self, text: str, name: str):
        self.text, self.code, self.name = text, _blank(text), name

    def error(self, at: int, what: str) -> SourceError:
        return SourceError(f"{self.name}:{self.code.count(chr(10), 0, at) + 1}: {what}")

    def replace(self, start: int, end: int, new: str) -> None:
        if self.code.count("\n", start, end) != new.count("\n"):
            raise self.error(start, "cu2cpp would move the lines that follow")
        self.text = self.text[:start] + new + self.text[end:]
        self.code = self.code[:start] + _blank(new) + self.code[end:]

    def closing(self, at: int) -> int:
        """The position of the bracket that closes the one at ``at``."""
        depth = 0
        for i in range(at, len(self.code)):
            depth += (self.code[i] in "([{") - (self.code[i] in ")]}")
            if depth == 0:
                return i
        raise self.error(at, f"{self.code[at]!r} is never closed")

    def opening(self, at: int) -> int:
        """The position of the bracket that opens the one at ``at``; angle ones count only outside of parentheses."""
        pair = (_CLOSES[self.code[at]], self.code[at])
        depth = others = 0
        for i in range(at, -1, -1):
            char = self.code[i]
            if pair == ("<", ">"):
                others += (char in ")]}") - (char in "([{")
            if others == 0:
                depth += (char == pair[1]) - (char == pair[0])
            if depth == 0:
                return i
        raise self.error(at, f"{self.code[at]!r} is never opened")

    def before(self, at: int) -> int:
        """``at``, moved back over blanks."""
        while at > 0 and self.code[at - 1].isspace():
            at -= 1
        return at


def _kernel_start(source: _Source, end: int) -> int:
    """Where the expression begins that names the kernel and ends at ``end``: ``space::Traits<T>::kernel<4>``."""
    at = source.before(end)
    while True:
        if source.code[at - 1] in ">)":
            at = source.before(source.opening(at - 1))
            if source.code[at] == "(":
                return at
        name = at
        while name > 0 and re.match(r"\w", source.code[name - 1]):
            name -= 1
        if name == at:
            raise source.error(at, "no kernel in front of <<<")
        qualified = source.before(name)
        if source.code[max(qualified - 2, 0) : qualified] != "::":
            return name
        at = source.before(qualified - 2)
        if not re.match(r"[\w>]", source.code[at - 1 : at] or " "):
            return qualified - 2  # ::kernel


def _convert_launches(source: _Source) -> None:
    at = 0
    while (start := source.code.find("<<<", at)) >= 0:
        at = start
        end = start + 3
        while source.code[end : end + 3] != ">>>":
            if end >= len(source.code) or source.code[end] == ";":
                raise source.error(start, "<<< without >>>")
            end = (source.closing(end) if source.code[end] in "([{" else end) + 1
        call = re.compile(r"\s*\(").match(source.code, end + 3)
        if call is None:
            raise source.error(end, "no arguments after >>>")
        close = source.closing(call.end() - 1)
        kernel_start = _kernel_start(source, start)
        kernel = source.text[kernel_start:start]
        config = source.text[start + 3 : end]
        arguments = source.text[end + 3 : call.end() - 1] + source.text[call.end() : close]
        comma = ", " if source.code[call.end() : close].strip() else ""
        name = " ".join(source.code[kernel_start:start].split()).replace("\\", "").replace('"', "")
        source.replace(
            kernel_start, close + 1, f'cuemu::launch("{name}", cuemu::Config({config}), {kernel}{comma}{arguments})'
        )


def _declarators(code: str) -> list[str]:
    """The names that a declaration declares."""
    parts, depth, angles = [""], 0, 0
    for char in code:
        depth += (char in "([{") - (char in ")]}")
        angles += ((char == "<") - (char == ">")) * (depth == 0)
        if char == "," and depth == 0 and angles == 0:
            parts.append("")
        else:
            parts[-1] += char
    names = []
    for part in parts:
        while (block := re.search(r"\{[^{}]*\}|\[[^\[\]]*\]", part)) is not None:
            part = part[: block.start()] + " " + part[block.end() :]
        found = re.findall(r"[A-Za-z_]\w*", part.split("=")[0])
        names.append(found[-1] if found else "")
    return names


def _take_alignment(source: _Source, start: int, end: int) -> tuple[str, str]:
    """The declaration between the two positions, without __align__(n) or alignas(n), and n."""
    declaration, alignment = source.code[start:end], "1"
    while (match := _ALIGN.search(declaration)) is not None:
        close = source.closing(start + match.end() - 1) - start
        alignment = declaration[match.end() : close].strip()
        declaration = declaration[: match.start()] + " " * (close + 1 - match.start()) + declaration[close + 1 :]
    return declaration, alignment


def _convert_shared(source: _Source) -> None:
    at = 0
    while (match := _SHARED.search(source.code, at)) is not None:
        line = source.code.rfind("\n", 0, match.start()) + 1
        if source.code[line : match.start()].lstrip().startswith("#"):
            at = match.end()  # a macro: the declaration is where it is used, and not seen here
            continue
        end = match.end()
        while end < len(source.code) and source.code[end] != ";":
            end = (source.closing(end) if source.code[end] in "([{" else end) + 1
        start = max(source.code.rfind(char, 0, match.start()) for char in ";{}") + 1
        prefix = source.code[start : match.start()]
        if re.search(r"\bextern\b", prefix) is None:
            fresh = "".join(f" CUEMU_FRESH({name});" for name in _declarators(source.code[match.end() : end]))
            source.replace(end + 1, end + 1, fresh)
            at = end + 1
            continue
        start = re.compile(r"\b(?:__align__|alignas|extern)\b").search(source.code, start).start()
        declaration, alignment = _take_alignment(source, start, end)
        words = re.sub(r"\bextern\b|\b__shared__\b", "", declaration)
        parsed = re.fullmatch(r"\s*(.*?)\s*\b(\w+)\s*\[\s*\]\s*", words, re.DOTALL)
        if parsed is None or not parsed[1]:
            raise source.error(match.start(), "wanted extern __shared__ T name[];")
        kind = " ".join(parsed[1].split())
        lines = "\n" * source.code.count("\n", start, end)
        pointer = f"{kind}* {parsed[2]} = cuemu::dynamic_shared<{kind}, {alignment}>(){lines}"
        source.replace(start, end, pointer)
        at = start + len(pointer)


def convert(text: str, name: str) -> str:
    """C++ for the CUDA source ``text``; the compiler's messages will call it ``name``."""
    source = _Source(text, name)
    _convert_launches(source)
    _convert_shared(source)
    return f'#line 1 "{name}"\n{source.text}'


if __name__ == "__main__":
    try:
        Path(sys.argv[2]).write_text(convert(Path(sys.argv[1]).read_text(), sys.argv[1]))
    except SourceError as error:
        raise SystemExit(str(error)) from None
