"""PEP 517 backend: setuptools, plus the torch of the environment that is being installed into.

pip runs a build with the target environment's interpreter but hides its site-packages, and torch must not be a build
requirement: pip would then fetch its newest release, of another ABI, into a throw-away environment. The finder below is
asked last and only for imports, so the isolated setuptools wins and no entry point of the environment leaks in.
"""

import importlib.machinery
import json
import os
import pathlib
import subprocess
import sys

import prerequisites
from setuptools import build_meta as _setuptools

_HOOKS = (
    "get_requires_for_build_sdist",
    "build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_wheel",
    "build_wheel",
    "get_requires_for_build_editable",
    "prepare_metadata_for_build_editable",
    "build_editable",
)

_NO_TORCH = """
ficoco_ext is compiled against the PyTorch that is already installed, and none was found ({error}).
Install PyTorch first, then ficoco_ext:

    pip install torch
    pip install .

If `python -c "import torch"` works here nevertheless, this build cannot see what you see. Let it, with setuptools >=
{setuptools} and ninja installed (with uv: the same after `uv`; with build: python -m build --no-isolation):

    pip install --no-build-isolation .

(looked in: {paths})"""

# Asked of an interpreter: where it looks for modules, and where it finds torch, if another finder finds it.
_PROBE = """
import importlib.util, json, os, sys
spec = importlib.util.find_spec("torch")
found = [os.path.dirname(os.path.dirname(spec.origin))] if spec and spec.origin else []
print(json.dumps([list(sys.version_info[:2]), [path for path in sys.path + found if path]]))
"""


def _caller() -> dict[str, str]:
    """The environment that pip was called in, where the system shows it: pip hides PYTHONPATH and the user's site."""
    try:
        entries = pathlib.Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    pairs = (os.fsdecode(entry).partition("=") for entry in entries if entry)
    return {name: value for name, _, value in pairs}


def _probed(python: str, environment: dict[str, str]) -> list[str]:
    """Where this interpreter finds modules: site-packages, what .pth files add, the user's site, PYTHONPATH."""
    try:
        run = subprocess.run(
            [python, "-c", _PROBE],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=os.path.abspath(os.sep),
        )
        version, paths = json.loads(run.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return []
    return paths if tuple(version) == sys.version_info[:2] else []


def _outer_paths() -> list[str]:
    caller = _caller()
    hidden = ("PYTHONPATH", "PYTHONNOUSERSITE")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {name: caller[name] for name in hidden if name in caller}
    pythons = [sys.executable]
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):  # `python -m build` and others make an environment of their own
        if os.environ.get(variable):
            pythons.append(os.path.join(os.environ[variable], "bin", "python"))
    paths = [path for python in dict.fromkeys(pythons) for path in _probed(python, environment)]
    return [path for path in dict.fromkeys(paths) if os.path.isdir(path)]


class _OuterFinder:
    paths = _outer_paths()

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return importlib.machinery.PathFinder.find_spec(name, cls.paths if path is None else path, target)


def _need_torch() -> None:
    if _OuterFinder not in sys.meta_path:
        sys.meta_path.append(_OuterFinder)
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise SystemExit(
            _NO_TORCH.format(error=error, setuptools=prerequisites.SETUPTOOLS, paths=", ".join(_OuterFinder.paths))
        ) from None


def _with_torch(hook):
    def run(*args, **kwargs):
        prerequisites.need_setuptools()
        _need_torch()
        return getattr(_setuptools, hook)(*args, **kwargs)

    run.__name__ = hook
    return run


globals().update({hook: _with_torch(hook) for hook in _HOOKS})
