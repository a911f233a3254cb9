"""A folder in which transformers' model tests can run: what its source distribution has of them, and stand-ins."""

from __future__ import annotations

import tarfile
from pathlib import Path

STAND_INS = {  # file that transformers' tests import and the distribution lacks: what it holds instead
    "__init__.py": "",
    "generation/__init__.py": "",
    "generation/test_utils.py": "from foreign.generation import GenerationTesterMixin\n",
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
}


def unpack(sdist: Path, folder: Path) -> Path:
    """The tests of ``sdist``, a source distribution of transformers, and the stand-ins that it needs.

    Returns:
        The folder ``tests``, a package whose parent belongs on ``sys.path``.

    Raises:
        ValueError: there are no model tests in it.
    """
    tests = folder / "tests"
    with tarfile.open(sdist) as archive:
        for member in archive:
            parts = Path(member.name).parts
            if len(parts) == 3 and parts[1] == "tests" and parts[2].endswith(".py") and member.isfile():
                content = archive.extractfile(member)
                assert content is not None
                write(tests / parts[2], content.read())
    if not (tests / "test_modeling_common.py").exists():
        raise ValueError(f"{sdist} must have */tests/test_modeling_common.py; pass a source distribution, not a wheel")
    for name, text in STAND_INS.items():
        if not (tests / name).exists():
            write(tests / name, text.encode())
    return tests


def version(sdist: Path) -> str:
    """The release of transformers that ``sdist``, a source distribution, is of: its name says it."""
    name = sdist.name.removesuffix(".tar.gz")
    if not name.startswith("transformers-") or name == sdist.name:
        raise ValueError(f"sdist must be called transformers-VERSION.tar.gz, got {sdist.name}")
    return name.removeprefix("transformers-")


def write(path: Path, content: bytes) -> None:
    """A file, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
