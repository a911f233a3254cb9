"""``ficoco env``: what is installed, what runs, and why nothing faster does."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Annotated, Any

import torch

from .. import METHODS, build_info
from ..methods import hyperparameters
from . import common

MODELS = {"LLaVA-1.5": "transformers LlavaForConditionalGeneration with a CLIP tower (5.17 <= transformers < 6)"}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def collect() -> dict[str, Any]:
    """Everything the command prints, as plain values. Imports nothing that is not imported already."""
    packages = ("torch", "transformers", "safetensors", "pillow", "matplotlib")
    cuda = []
    for index in range(torch.cuda.device_count()):
        of = torch.cuda.get_device_properties(index)
        cuda.append({"name": of.name, "capability": f"{of.major}.{of.minor}", "bytes": of.total_memory})
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
        "models": MODELS,
    }


def command(
    json_: Annotated[bool, common.JsonOption] = False, debug: Annotated[bool, common.DebugOption] = False
) -> None:
    """Show what is installed, what runs the operators, and why nothing faster does."""
    with common.reported(debug):
        found = collect()
        if json_:
            common.print_json(found)
        else:
            _show(found)


def _show(found: dict[str, Any]) -> None:
    console, build = common.console(), found["build"]
    operators = common.table("device", "runs", "why nothing faster")
    for device in ("cpu", "cuda"):
        operators.add_row(device, build[device], build["reasons"].get(device, ""))
    console.print(f"ficoco_ext {build['version']}", highlight=False)
    console.print(operators)
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
    console.print(facts)
    methods = common.table("method", "hyperparameters and defaults")
    for name, defaults in found["methods"].items():
        methods.add_row(name, ", ".join(f"{key}={value!r}" for key, value in defaults.items()))
    console.print(methods)
    for name, what in found["models"].items():
        console.print(f"model {name}: {what}", highlight=False)
