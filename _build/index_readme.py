"""README.md as a package index can show it: relative links and pictures point at the repository, at the version's tag.

An index shows the page alone, so ``docs/demo.png`` leads nowhere there. In a clone the page stays as it is. The
repository's address is read from pyproject.toml, the only file that names it.
"""

import pathlib
import posixpath
import re

PICTURES = (".png", ".svg", ".jpg", ".jpeg", ".gif", ".webp")

_FENCE = re.compile(r"\s*(`{3,}|~{3,})(.*)")
_LIST_ITEM = re.compile(r" {0,3}(?:[-*+]|\d{1,9}[.)])\s")
_PATTERN = re.compile(
    r"""
      (?P<kept> (?<!`)(?P<ticks>`+)(?!`) (?:(?!\n[ \t]*\n).)+? (?<!`)(?P=ticks)(?!`)   # code in a line
              | <!--.*?--> )
    | (?P<before> (?<!\\)\]\(\s* | ^[ ]{0,3}\[(?!\^)[^\]\n]+\]:[ \t]* )               # [text](target), [name]: target
      (?P<target> <[^>\n]*> | (?:[^\s()]|\([^\s()]*\))+ )
    | (?P<tag> <[A-Za-z][^>]*> )                                                       # <img src="target">
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
_ATTRIBUTE = re.compile(
    r"""(?P<before>\s(?:href|src|srcset)\s*=\s*)(?P<quote>["'])(?P<value>.*?)(?P=quote)""", re.DOTALL
)


def absolute(target: str, repository: str, tag: str) -> str:
    """The address of what a link of README.md leads to; addresses, mail and the like stay as they are."""
    if not target or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:|//", target):
        return target
    path, rest = re.fullmatch(r"([^?#]*)(.*)", target, re.DOTALL).groups()
    normal = posixpath.normpath(path.lstrip("/")) if path else "README.md"
    if normal == ".." or normal.startswith("../"):
        raise ValueError(f"README.md: the link {target!r} leaves the repository; give a path inside it")
    folder = path.endswith("/") or normal == "."
    kind = "raw" if normal.lower().endswith(PICTURES) else "tree" if folder else "blob"
    return f"{repository}/{kind}/{tag}/{normal.replace(' ', '%20')}{rest}"


def with_absolute_links(text: str, repository: str, tag: str) -> str:
    """``text``, a page in Markdown, with every relative link and picture made absolute; code stays as it is."""

    def attribute(found: re.Match) -> str:
        parts = (
            [part.split() for part in found["value"].split(",")] if "srcset" in found["before"] else [[found["value"]]]
        )
        value = ", ".join(" ".join([absolute(part[0], repository, tag), *part[1:]]) for part in parts if part)
        return f"{found['before']}{found['quote']}{value}{found['quote']}"

    def link(found: re.Match) -> str:
        if found["kept"]:
            return found["kept"]
        if found["tag"]:
            return _ATTRIBUTE.sub(attribute, found["tag"])
        target = found["target"]
        if target.startswith("<"):
            return f"{found['before']}<{absolute(target[1:-1], repository, tag)}>"
        return found["before"] + absolute(target, repository, tag)

    return "".join(block if code else _PATTERN.sub(link, block) for code, block in _blocks(text))


def _blocks(text: str) -> list[tuple[bool, str]]:
    """The page cut into code blocks (True), fenced or indented, and the text between them (False)."""
    blocks: list[tuple[bool, str]] = []
    fence, in_list, after_blank, in_indented = "", False, True, False
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        blank, indented = not line.strip(), line.startswith(("    ", "\t"))
        if fence:
            code = True
            if mark and mark[1].startswith(fence) and not mark[2].strip():
                fence = ""
        elif mark and not (mark[1][0] == "`" and "`" in mark[2]):
            code, fence = True, mark[1]
        else:
            in_list = bool(_LIST_ITEM.match(line)) or (in_list and (blank or line[0] in " \t" or not after_blank))
            code = in_indented = not in_list and (in_indented if blank else indented and (after_blank or in_indented))
        after_blank = blank
        if blocks and blocks[-1][0] == code:
            blocks[-1] = (code, blocks[-1][1] + line)
        else:
            blocks.append((code, line))
    return blocks


def repository(project: str) -> str:
    """The address of the repository, from the text of pyproject.toml."""
    found = re.search(r'^Repository = "(https://[^"]+[^"/])"', project, re.MULTILINE)
    if not found:
        raise SystemExit('pyproject.toml: [project.urls] must have a line Repository = "https://...", without a last /')
    return found[1]


def long_description(root: pathlib.Path) -> str:
    """What the metadata of a build of ``root`` says about the project."""
    version = re.search(
        r'^__version__ = "(.+)"', (root / "ficoco_ext" / "version.py").read_text("utf-8"), re.MULTILINE
    )[1]
    address = repository((root / "pyproject.toml").read_text("utf-8"))
    return with_absolute_links((root / "README.md").read_text("utf-8"), address, f"v{version}")
