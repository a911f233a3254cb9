"""``ficoco env``: what is installed, what runs, and why nothing faster does."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

from . import common, options


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def reduces(name: str) -> str:
    """Where the method of this name removes tokens.

    Example:
        >>> reduces("ficoco-v"), reduces("fastv"), reduces("ficoco-vl")
        ('tower', 'language model', 'tower and language model')
    """
    from ..methods import describe

    return describe(name).acts_in


def transformers() -> tuple[dict[str, Any], dict[str, str]]:
    """The range that was tested and where the installed release stands; and, tried on it, what it does not serve.

    Returns:
        ``tested``, the oldest and the newest; ``newer_than_tested``; ``why_not`` where it cannot be imported, else
        None. And for each model that has another form than ours in it the reason, by name.
    """
    from ..models import transformers_release
    from ..models.families import FAMILIES

    tested = [transformers_release.TESTED_OLDEST, transformers_release.TESTED_NEWEST]
    try:
        problems, newer = transformers_release.structure_problems(), transformers_release.newer_than_tested()
    except Exception as error:  # a broken installation raises what it likes
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        reason = f"transformers cannot be imported: {why}"
        return (
            {"tested": tested, "newer_than_tested": None, "why_not": reason},
            {family.name: reason for family in FAMILIES},
        )
    return {"tested": tested, "newer_than_tested": newer, "why_not": None}, problems


def models(problems: dict[str, str]) -> list[dict[str, Any]]:
    """What is served, model by model, and in which of its parts methods can act.

    ``why_not``: None where the installed transformers has the model as we know it, else the reason, of ``problems``.
    ``tower_why_not``, ``language_model_why_not``: None where methods of that part work. ``saliency``: the kinds that
    can be measured in its vision tower, for methods that need them; "class" needs a class token.
    """
    from ..models.families import FAMILIES

    return [
        {
            "name": family.name,
            "class": family.model,
            "why_not": problems.get(family.name),
            "takes": [one.name for one in family.modalities],
            "tower": bool(family.towers),
            "towers": list(family.towers),
            "tower_why_not": family.why_no_tower,
            "projector": True,
            "language_model": bool(family.language_models),
            "language_models": list(family.language_models),
            "language_model_why_not": family.why_no_language_model,
            "saliency": saliency(family.name),
        }
        for family in FAMILIES
    ]


def saliency(family: str) -> list[str]:
    """The kinds of saliency that the vision tower of a family gives, whichever of its towers a checkpoint has.

    Example:
        >>> saliency("LLaVA-1.5"), saliency("Qwen2.5-VL")
        (['class', 'column', 'keys'], ['column', 'keys'])
    """
    from ..models import tower_saliency
    from ..models.tower_families import TOWERS

    known = TOWERS.get(family)
    if known is None:
        return []
    class_token = any(body.class_token is not None for body in known.bodies)
    return [*([tower_saliency.CLASS] if class_token else []), tower_saliency.COLUMN, tower_saliency.KEYS]


def collect() -> dict[str, Any]:
    """Everything the command prints, as plain values. What is served is tried on the transformers that is installed."""
    import torch

    from .. import METHODS, build_info
    from ..methods import hyperparameters

    packages = ("torch", "transformers", "safetensors", "pillow", "matplotlib")
    cuda = []
    for index in range(torch.cuda.device_count()):
        of = torch.cuda.get_device_properties(index)
        cuda.append({"name": of.name, "capability": f"{of.major}.{of.minor}", "bytes": of.total_memory})
    release, problems = transformers()
    return {
        "build": dict(build_info()),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "devices": {
            "cpu": {
                "machine": platform.machine(),
                "instructions": torch.backends.cpu.get_cpu_capability(),
                "threads": torch.get_num_threads(),
                "cores": os.cpu_count(),
            },
            "cuda": cuda,
        },
        "methods": {name: hyperparameters(name) for name in METHODS},
        "reduces": {name: reduces(name) for name in METHODS},
        "transformers": release,
        "models": models(problems),
    }


def command(json_: options.Json = False, debug: options.Debug = False) -> None:
    """Show what is installed, what runs the operators, and why nothing faster does."""
    with common.reported(debug):
        with common.progress() as progress:
            progress("trying what is installed")
            found = collect()
        if json_:
            common.print_json(found)
        else:
            _show(found)


def show_machine(console: common.Console, found: dict[str, Any]) -> None:
    """Tables of what runs the operators, what is installed and which devices there are."""
    build = found["build"]
    operators = common.table("device", "runs", "why nothing faster")
    for device in ("cpu", "cuda"):
        operators.add_row(device, build[device], build["reasons"].get(device, ""))
    common.show(console, operators)
    cpu, cuda = found["devices"]["cpu"], found["devices"]["cuda"]
    facts = common.table("what", "value")
    for name, version in found["versions"].items():
        facts.add_row(name, version or "not installed")
    if build["compiled"]:
        facts.add_row("kernels built with", f"{build['compiler']}, for torch {build['built_for_torch']}")
        facts.add_row("kernels use", str(build.get("cpu_simd")))
    if build["cuda_version"]:
        facts.add_row("CUDA kernels built with", f"CUDA {build['cuda_version']} for {build['cuda_archs']}")
    facts.add_row("CPU", f"{cpu['machine']}, {cpu['instructions']}, {cpu['threads']} threads of {cpu['cores']} cores")
    for index, gpu in enumerate(cuda):
        facts.add_row(f"CUDA {index}", f"{gpu['name']}, {gpu['bytes'] / 2**30:.0f} GiB, capability {gpu['capability']}")
    if not cuda:
        facts.add_row("CUDA", "no device")
    common.show(console, facts)


def _show(found: dict[str, Any]) -> None:
    console = common.console()
    console.print(f"ficoco_ext {found['build']['version']}", highlight=False)
    show_machine(console, found)
    methods = common.table("method", "reduces in", "hyperparameters and defaults")
    for name, defaults in found["methods"].items():
        said = ", ".join(f"{key}={value!r}" for key, value in defaults.items())
        methods.add_row(name, found["reduces"][name], said)
    common.show(console, methods)
    common.show(console, _served(found["models"]))
    common.show(console, _parts(found["models"]))
    oldest, newest = found["transformers"]["tested"]
    console.print(common.text(f"works here: tried on the installed transformers. Tested: {oldest} to {newest}.", "dim"))
    if found["transformers"]["newer_than_tested"]:
        from ..models import transformers_release

        installed = found["versions"]["transformers"]
        console.print(
            common.text(
                f"transformers {installed} is newer than what was tested: what looks as we know it may still differ "
                f"in what it computes; {transformers_release.REMEDY} is safe.",
                "yellow",
            ),
            soft_wrap=True,
        )


def _served(models: list[dict[str, Any]]) -> common.Table:
    """Which models there are, and which of them the installed transformers has as we know them."""
    made = common.table("model", "class in transformers", "works here")
    made.columns[1].no_wrap = True  # a name to copy
    for one in models:
        made.add_row(one["name"], one["class"], "yes" if one["why_not"] is None else f"NO: {one['why_not']}")
    return made


def _parts(models: list[dict[str, Any]]) -> common.Table:
    """What methods can do in each part of a model, or why not."""
    made = common.table("model", "in the tower", "after the projector", "in the language model", "saliency")
    made.show_lines = True
    for one in models:
        made.add_row(
            one["name"],
            ", ".join(one["towers"]) if one["tower"] else f"no: {one['tower_why_not']}",
            f"yes: {' and '.join(f'{kind}s' for kind in one['takes'])}",
            ", ".join(one["language_models"]) if one["language_model"] else f"no: {one['language_model_why_not']}",
            ", ".join(one["saliency"]) or "none",
        )
    return made
