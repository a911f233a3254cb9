"""What a build needs besides torch, for builds without isolation."""

import setuptools

SETUPTOOLS = 77  # the first that reads pyproject.toml's `license` as text and `license-files`


def need_setuptools() -> None:
    """Stop with one line where setuptools would give pages about pyproject.toml."""
    if int(setuptools.__version__.split(".")[0]) < SETUPTOOLS:
        raise SystemExit(
            f"ficoco_ext: needs setuptools >= {SETUPTOOLS}, found {setuptools.__version__}: "
            f'pip install -U "setuptools>={SETUPTOOLS}"'
        )
