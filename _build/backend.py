"""PEP 517 backend: setuptools, plus the torch of the environment that is being installed into.

pip runs a build with the target environment's interpreter but hides its site-packages, and torch must not be a build
requirement: pip would then fetch its newest release, of another ABI, into a throw-away environment. The finder below is
asked last and only for imports, so the isolated setuptools wins and no entry point of the environment leaks in.
"""

import importlib.machinery
import os
import pathlib
import site
import sys
import sysconfig

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

With uv: uv pip install --no-build-isolation .   With build: python -m build --no-isolation
(looked in: {paths})"""


def _uses_base_site() -> bool:
    if sys.prefix == sys.base_prefix:
        return True
    try:
        config = pathlib.Path(sys.prefix, "pyvenv.cfg").read_text().lower()
    except OSError:
        return False
    return "include-system-site-packages = true" in config


def _outer_paths() -> list[str]:
    paths = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):  # `python -m build` and others make an environment of their own
        if os.environ.get(variable):
            paths += map(str, pathlib.Path(os.environ[variable]).glob(f"lib/{python}/site-packages"))
    if _uses_base_site():
        paths += [*site.getsitepackages([sys.base_prefix]), site.getusersitepackages()]
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
        raise SystemExit(_NO_TORCH.format(error=error, paths=", ".join(_OuterFinder.paths))) from None


def _with_torch(hook):
    def run(*args, **kwargs):
        _need_torch()
        return getattr(_setuptools, hook)(*args, **kwargs)

    run.__name__ = hook
    return run


globals().update({hook: _with_torch(hook) for hook in _HOOKS})
