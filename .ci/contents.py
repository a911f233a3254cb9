"""What is in a built distribution, held to what should be there.

python .ci/contents.py sdist FILE     the files of the commit, but for those that serve the repository's host alone
python .ci/contents.py wheel FILE     the package and its data, nothing that builds or tests it, no debug data
"""

import pathlib
import re
import subprocess
import sys
import tarfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
HOST_ALONE = (".github/",)
MADE = ("PKG-INFO", "setup.cfg", "ficoco_ext.egg-info/")
# Bytes at most. CHANGELOG.md has what was measured when they were set.
LARGEST = {"cpu": 7_500_000, "cuda": 13_000_000, "sdist": 14_000_000, "module": 8_500_000}
NEEDED = ("ficoco_ext/py.typed", "ficoco_ext/data/tiny_llava/model.safetensors", "ficoco_ext/data/tiny_llava/README.md")
FOREIGN = re.compile(
    r"\.(?:o|a|c|cc|cpp|cu|cuh|h|pyc|orig)$|(?:^|/)(?:python_)?tests?/|(?:^|/)(?:test_[^/]*|conftest)\.py$"
)


def committed() -> list[str]:
    """The files of the commit, by their paths."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name]


def sdist_faults(names: list[str], wanted: list[str]) -> list[str]:
    """``names``: the files of the archive, below its one folder; ``wanted``: those of the commit."""
    expected = {name for name in wanted if not name.startswith(HOST_ALONE)}
    faults = [f"is missing: {name} (see MANIFEST.in)" for name in sorted(expected - set(names))]
    extra = sorted(name for name in set(names) - expected if not name.startswith(MADE))
    return faults + [f"is not in the commit: {name}" for name in extra]


def wheel_faults(files: dict[str, bytes], wanted: list[str]) -> list[str]:
    """``files``: the contents of the wheel by path; ``wanted``: the files of the commit."""
    modules = [name for name in files if name.endswith(".so")]
    infos = {name.split("/")[0] for name in files if ".dist-info/" in name}
    package = {name for name in wanted if name.startswith("ficoco_ext/")}
    needed = {*NEEDED, *package, *(f"{info}/licenses/{name}" for info in infos for name in ("LICENSE", "NOTICE"))}
    known = {*package, *modules, *(name for name in files if name.split("/")[0] in infos)}
    faults = [f"is missing: {name}" for name in sorted(needed - set(files))]
    faults += [f"is not in the commit: {name}" for name in sorted(set(files) - known)]
    faults += [f"does not belong here: {name}" for name in sorted(known & set(files)) if FOREIGN.search(name)]
    if len(infos) != 1 or len(modules) != 1 or not modules[0].endswith(".abi3.so"):
        faults.append(f"must hold one *.abi3.so and one *.dist-info, holds {sorted(modules)} and {sorted(infos)}")
    return faults + [f"{name} {fault}" for name in modules for fault in module_faults(files[name])]


def module_faults(content: bytes) -> list[str]:
    """``content``: a compiled module."""
    return ["has debug data (see setup.py)"] if b"\0.debug_info\0" in content else []


def size_fault(size: int, kind: str) -> list[str]:
    """One line if ``size`` bytes are more than a distribution of this kind may have."""
    if size <= LARGEST[kind]:
        return []
    return [f"is too large: {size / 1e6:.1f} MB, at most {LARGEST[kind] / 1e6:.1f} MB ({kind}); find out what grew"]


def faults(kind: str, path: pathlib.Path) -> list[str]:
    """All that is wrong with a distribution, a line each."""
    size = path.stat().st_size
    if kind == "sdist":
        with tarfile.open(path) as archive:
            names = [member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()]
        return sdist_faults(names, committed()) + size_fault(size, kind)
    if kind == "module":
        return module_faults(path.read_bytes()) + size_fault(size, kind)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    with_cuda = any(b".nv_fatbin" in content for name, content in files.items() if name.endswith(".so"))
    return wheel_faults(files, committed()) + size_fault(size, "cuda" if with_cuda else "cpu")


def main(arguments: list[str]) -> int:
    """Prints the faults; the exit code says whether there are any."""
    if len(arguments) != 2 or arguments[0] not in ("sdist", "wheel", "module"):
        print(__doc__, file=sys.stderr)
        return 2
    path = pathlib.Path(arguments[1])
    found = faults(arguments[0], path)
    for fault in found:
        print(f"{path.name} {fault}", file=sys.stderr)
    if not found:
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB, as it should be")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
