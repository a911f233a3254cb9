"""A page for each method, and the table of all of them, from what the methods say of themselves."""

from __future__ import annotations

from typing import Any

from markup import cell, code, table_of

import ficoco_ext
from ficoco_ext.stages.needs import CROPS

PAGE = """\
# {name}

{summary}

| what | `{name}` |
|---|---|
{facts}

{hyperparameters}## Try it

The model that the package carries{dressed}, with {amount} of its visual tokens:

```python
import torch

import ficoco_ext
from ficoco_ext.apps import {module}

llava = {module}.{load}, torch.float32, torch.device("cpu"))
handle = ficoco_ext.attach(llava.model, "{name}"{argument})
print(handle)  # where it reduces, and from how many patches to how many
handle.detach()
```

From the command line, with a picture of what stayed:

```sh
ficoco demo --method {name}{family}{option} -o {file}.png
ficoco methods {name}
```

What it costs before anything is downloaded: `ficoco cost {model} --method {name}{option}`. Which method
to take: [choosing a method](../choose.md). How accurate it is: [accuracy](../accuracy.md).
"""

# A model with pictures of one grid, and one with pictures of several crops.
_GRID = {"dressed": "", "module": "checkpoint", "load": "load(None", "family": "", "model": "llava-1.5-7b"}
_CROPS = {
    "dressed": ", as a LLaVA-NeXT",
    "module": "next_dress",
    "load": 'load_family(None, "llava-next"',
    "family": " --family llava-next",
    "model": "llava-next-7b --picture 480x640",
}
_NOTHING_ELSE = {"projector": "projected features alone"}


def names() -> list[str]:
    """All methods, in the order of the registry."""
    return list(ficoco_ext.METHODS)


def _file(name: str) -> str:
    return name.replace("+", "-plus")


def uri(name: str) -> str:
    """The page of the method ``name``."""
    return f"methods/{_file(name)}.md"


def _facts(one: Any) -> dict[str, str]:
    return {
        "Reduces in": one.acts_in,
        "Filter: which leave": one.filter,
        "Correlate: into which": one.correlate,
        "Compress: how": one.compress,
        "Needs": ", ".join(one.needs) or _NOTHING_ELSE.get(one.acts_in, "query and key, or an attention map"),
        "Layers, if none are named": one.layers,
        "Amount, if none is given": one.amount,
        "Source": one.source or "this project",
    }


def _hyperparameters(one: Any) -> str:
    if not one.hyperparameters:
        return "## Hyperparameters\n\nNone.\n\n"
    rows = [
        [code(key), code(repr(value)), cell(one.meanings.get(key, ""))] for key, value in one.hyperparameters.items()
    ]
    made = table_of(("hyperparameter", "default", "meaning"), rows)
    calls = "`select`, `merge`" if one.acts_in == "projector" else "`reduce`"
    how = f"Pass them to `attach`, {calls} or `get_method` by name, on the command line by `--set`.\n\n{made}"
    return f"## Hyperparameters\n\n{how}\n\n"


def page(name: str) -> str:
    """The page of the method ``name`` as Markdown."""
    one = ficoco_ext.describe(name)
    facts = "\n".join(f"| {what} | {cell(text)} |" for what, text in _facts(one).items())
    own = not one.amount.startswith("none")  # it names an amount itself
    return PAGE.format(
        name=name,
        file=_file(name),
        summary=cell(one.summary),
        facts=facts,
        hyperparameters=_hyperparameters(one),
        amount="its own share" if own else "a quarter",
        argument="" if own else ", keep_ratio=0.25",
        option="" if own else " --keep-ratio 0.25",
        **(_CROPS if CROPS in one.needs else _GRID),
    )


def table() -> str:
    """All methods side by side."""
    rows = []
    for one in map(ficoco_ext.describe, names()):
        link = f"[`{one.name}`]({_file(one.name)}.md)"
        rows.append([link, *map(cell, (one.acts_in, one.filter, one.correlate, one.compress, ", ".join(one.needs)))])
    return table_of(
        ("method", "reduces in", "filter: which leave", "correlate: into which", "compress: how", "needs"), rows
    )
