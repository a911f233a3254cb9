"""The options that several commands have: each is one type, with its help, its panel and what completes it.

A command names the options that it has and their defaults. Panels group them in its help.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from . import completion

PICTURE = "Picture and model"
QUESTIONS = "Questions"
REMOVE = "What to remove"
PROMPT = "Prompt and how to count"
GEOMETRY = "True shapes, random weights"
MACHINE = "Machine"
OUTPUT = "Output"


def option(*names: str, panel: str, values: Sequence[str] = (), **settings: Any) -> Any:
    """An option in ``panel``; of one that takes one of ``values`` help lists them and a shell offers them.

    The library refuses other values, in its own words: so the message is the same as in Python, with a suggestion.
    """
    if values:
        settings = {"metavar": "|".join(values), "autocompletion": completion.one_of(values)} | settings
    return typer.Option(*names, rich_help_panel=panel, **settings)


def picture(help: str = "A photograph, or an embedded scene as scene_3.") -> Any:
    """The argument IMAGE."""
    return typer.Argument(help=help, autocompletion=completion.one_of(completion.scenes))


# ---- picture and model
Model = Annotated[
    str | None,
    option(panel=PICTURE, metavar="PATH_OR_ID", help="A LLaVA-1.5 checkpoint; the embedded tiny one if not given."),
]
ModelOfFamily = Annotated[
    str | None,
    option(
        panel=PICTURE,
        metavar="PATH_OR_ID",
        help="A LLaVA-1.5 or LLaVA-NeXT checkpoint; the embedded tiny one if not given.",
    ),
]
Family = Annotated[
    str | None,
    option(
        panel=PICTURE,
        values=completion.FAMILIES,
        help="With llava-next the embedded model cuts pictures into crops; of a checkpoint, what it must be.",
    ),
]
MaxNewTokens = Annotated[int | None, option(panel=PICTURE, help="Longest answer.")]

# ---- what to remove
Method = Annotated[
    str,
    option(
        panel=REMOVE,
        metavar="NAME",
        help="A method's name; see ficoco methods.",
        autocompletion=completion.one_of(completion.methods),
    ),
]
MethodIfAny = Annotated[
    str | None,
    option(
        panel=REMOVE,
        metavar="NAME",
        help="A method's name; see ficoco methods.",
        autocompletion=completion.one_of(completion.methods),
    ),
]
KeepRatio = Annotated[
    str | None,
    option(
        panel=REMOVE,
        metavar="RATIO[,..]",
        help="Visual tokens kept / all; one number or one a layer. If not given the method's own, or 0.25.",
    ),
]
R = Annotated[
    str | None,
    option(
        "--r", panel=REMOVE, metavar="N[,..]", help="Visual tokens removed in each layer; one number or one a layer."
    ),
]
Tokens = Annotated[int | None, option(panel=REMOVE, help="Visual tokens kept.")]
Layers = Annotated[
    str | None,
    option(
        panel=REMOVE,
        metavar="12,13,..",
        help="Layers that reduce, of the part that the method acts in; 12-22 is a range.",
    ),
]
Set = Annotated[
    list[str] | None,
    option(
        "--set",
        panel=REMOVE,
        metavar="KEY=VALUE",
        help="A hyperparameter of the method: a Python literal, true, false or text; repeatable.",
    ),
]

# ---- true shapes with random weights
Geometry = Annotated[
    str | None,
    option(
        panel=GEOMETRY,
        values=completion.GEOMETRIES,
        metavar="NAME",
        help=f"Time {' or '.join(completion.GEOMETRIES)} in true shapes with random weights instead of a model.",
    ),
]
VisionLayers = Annotated[int | None, option(panel=GEOMETRY, help="Build only so many vision layers; all if not given.")]
TextLayers = Annotated[int | None, option(panel=GEOMETRY, help="Build only so many text layers; all if not given.")]
TextTokens = Annotated[int, option(panel=GEOMETRY, help="Text tokens in the prompt of --geometry.")]

# ---- machine
Dtype = Annotated[
    str | None,
    option(
        panel=MACHINE, values=completion.DTYPES, help="Precision; if not given float32 on the CPU, bfloat16 on a GPU."
    ),
]
Device = Annotated[
    str, option(panel=MACHINE, help="cpu or cuda.", autocompletion=completion.one_of(completion.DEVICES))
]
Threads = Annotated[
    int | None,
    option(panel=MACHINE, help="CPU threads; if not given 1 for the embedded model, else torch's own choice."),
]

# ---- output
Output = Annotated[Path | None, option("--output", "-o", panel=OUTPUT, metavar="FILE", help="Where the picture goes.")]
Json = Annotated[bool, option("--json", panel=OUTPUT, help="Print one JSON document instead of tables.")]
Debug = Annotated[bool, option("--debug", panel=OUTPUT, help="Show the traceback of an error.")]
