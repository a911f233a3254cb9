"""The marks of the tests, which ``pytest -m`` selects by. This is the one place that says which test has which.

``gpu``       is skipped without a GPU: decorated with ``needs_gpu``, or its ``backend`` or ``name`` is "cuda".
``emulated``  runs the CUDA kernels on the host: decorated, or its ``backend`` or ``name`` is "emulated".
``slow``      takes more than about 5 s alone: decorated.
``browser``   opens a page in a real browser: decorated.
``quick``     stands in a file of QUICK, not in EXCEPT, and is none of the above; or is decorated.

The quick ones cover every folder and stay under 60 s on two cores, collection included: a file belongs there if all
its tests together take a few seconds.
"""

from __future__ import annotations

import pytest

from helpers.backends import NO_GPU
from helpers.paths import TESTS

QUICK = {  # folder: its files without test_ and .py
    "apps": ("loading", "parts", "timing"),
    "cli": ("methods", "options"),
    "clients": ("need", "saved"),
    "cost": ("advice", "formulas", "model", "refusals", "reproduce", "staircase"),
    "decoder": ("arguments", "scores", "refused_calls"),
    "docs": ("cost_model", "performance_pages"),
    "evaluation": ("data", "gridvqa", "judging", "judging_doubts", "results", "statistics"),
    "families": ("kit",),
    "foreign": ("runner",),
    "gpu": ("host_emulation",),
    "io": ("configs", "images"),
    "methods": (
        "baselines",
        "declarations",
        "evit",
        "projector_plan",
        "projector_selection",
        "prumerge",
        "resolve",
        "staged",
        "tome",
    ),
    "models": ("modalities", "placeholders", "prompt_cut", "tower"),
    "ops": ("errors", "filter", "spec", "to_sequence", "token_attention"),
    "packaging": ("csrc_includes", "cuda_build", "marks", "mutations", "versions"),
    "property": ("draws",),
    "reduce": ("density", "errors", "greedy", "notebook", "reduce", "reduction", "schedule", "selects", "stages"),
    "viz": ("panels", "trace", "visualize"),
}
EXCEPT = {  # what takes a second or more in those files
    "test_a_fault_is_found_shrunk_and_written_down",
    "test_demo",
    "test_placeholders_are_as_many_as_features_for_random_pictures",
    "test_what_is_taken_away_is_missed",
    "test_few_draws_are_refused",
    "test_long_sequences",
    "test_overview_is_written_and_not_blank",
    "test_the_script_runs_alone",
    "test_tower_compiles_without_graph_breaks",
}
FILES = {TESTS / folder / f"test_{name}.py" for folder, names in QUICK.items() for name in names}


def mark(item: pytest.Item) -> None:
    """Adds to ``item`` the marks that follow from its parameters and from where it stands."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    values = [params.get("backend"), params.get("name")]
    if "cuda" in values or any(one.kwargs.get("reason") == NO_GPU for one in item.iter_markers("skipif")):
        item.add_marker("gpu")
    if "emulated" in values:
        item.add_marker("emulated")
    special = any(item.get_closest_marker(name) for name in ("gpu", "emulated", "slow", "browser"))
    if item.path in FILES and not special and item.originalname not in EXCEPT:
        item.add_marker("quick")
