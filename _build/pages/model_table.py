"""Which models are served, from the declarations that attach itself uses."""

from __future__ import annotations

from markup import cell, code, table_of

from ficoco_ext.models import transformers_release as release
from ficoco_ext.models.families import FAMILIES, LANGUAGE_MODELS, TOWERS


def table() -> str:
    """Each family, its class, and what can be reduced."""
    rows = []
    for family in FAMILIES:
        towers = ", ".join(code(TOWERS[key].model) for key in family.towers)
        tower = towers or f"no: {cell(family.why_no_tower or '')}"
        inside = ", ".join(map(code, family.language_models)) or f"no: {cell(family.why_no_language_model or '')}"
        taken = " and ".join(f"{one.name}s" for one in family.modalities)
        rows.append([family.name, code(family.model), tower, f"yes: {taken}", inside])
    heads = ("model", "class in transformers", "in the tower", "after the projector", "in the language model")
    return table_of(heads, rows)


def language_models() -> str:
    """The classes of the language models that are served."""
    rows = [[code(key), code(one.model), code(one.layer)] for key, one in LANGUAGE_MODELS.items()]
    made = table_of(("language model", "class", "layer"), rows)
    return f"{made}\n\nTested with transformers {release.TESTED_OLDEST} to {release.TESTED_NEWEST}."
