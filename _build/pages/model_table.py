"""Which models are served, from the lists that attach itself goes by."""

from __future__ import annotations

from markup import cell, code, table_of

from ficoco_ext.models import families
from ficoco_ext.models import transformers_api as api


def table() -> str:
    """Each family, its class, and what can be reduced."""
    rows = []
    for family in families.FAMILIES:
        tower = "yes" if family.vision is None else f"no: {cell(family.vision)}"
        rows.append([family.name, code(family.model), tower, ", ".join(map(code, family.decoders))])
    return table_of(("model", "class in transformers", "methods in the tower", "language models"), rows)


def language_models() -> str:
    """The classes of the language models that are served."""
    rows = [[code(key), code(one.model), code(one.layer)] for key, one in api.LANGUAGE_MODELS.items()]
    made = table_of(("language model", "class", "layer"), rows)
    return f"{made}\n\nTested with transformers {api.TESTED_OLDEST} to {api.TESTED_NEWEST}."
