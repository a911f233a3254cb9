"""``ficoco methods``: what there is, what each does and needs, and one of them in full."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import common, completion, options, values

if TYPE_CHECKING:
    from ..cost.selection import Share
    from ..methods import Description


_Name = Annotated[
    str | None,
    typer.Argument(
        metavar="NAME",
        help="Show one method in full; all methods if not given.",
        autocompletion=completion.one_of(completion.methods),
    ),
]


def command(
    name: _Name = None, set_: options.Set = None, json_: options.Json = False, debug: options.Debug = False
) -> None:
    """Say what the methods do, or what one of them does, with which hyperparameters."""
    with common.reported(debug):
        from ..cost import selection
        from ..methods import METHODS, describe

        given = values.assignments(set_)
        if name is None and given:
            raise ValueError("--set is of one method; give its NAME")
        found = [describe(one) for one in METHODS] if name is None else [describe(name, **given)]
        shares = {one.name: selection.shares(one.name, **given) for one in found}
        if json_:
            documents = [asdict(one) | {"selection": [asdict(share) for share in shares[one.name]]} for one in found]
            common.print_json({"methods": documents} if name is None else documents[0])
        elif name is None:
            _show_all(found, _exceptions(shares))
        else:
            _show_one(found[0], selection.said(shares[found[0].name]))


def _exceptions(shares: dict[str, tuple[Share, ...]]) -> str:
    """Which methods cost more than the limit, and where."""
    from ..cost.selection import BUDGETS, LIMIT, OF_CROPS

    above = [
        f"{name} {worst.share:.1%} ({worst.model}, {worst.tokens} tokens)"
        for name, found in shares.items()
        for worst in [max(found, key=lambda one: one.share, default=None)]
        if worst is not None and worst.share > LIMIT
    ]
    counted = {**BUDGETS, **OF_CROPS}.items()
    budgets = "; ".join(f"{model} at {', '.join(map(str, tokens))} tokens" for model, tokens in counted)
    return f"Selection costs at most {LIMIT:.0%} of the prefill ({budgets}), except: {', '.join(above) or 'none'}."


def _show_all(found: list[Description], exceptions: str) -> None:
    made = common.table("method", "reduces in", "who leaves", "into whom", "how", "needs")
    made.columns[0].no_wrap = True  # a name to copy
    made.show_lines = True
    for one in found:
        made.add_row(one.name, one.acts_in, one.filter, one.correlate, one.compress, ", ".join(one.needs))
    console = common.console()
    common.show(console, made)
    console.print(common.text(exceptions), soft_wrap=True)
    console.print(common.text("ficoco methods NAME shows hyperparameters, layers and source of one.", style="dim"))


def _show_one(one: Description, selection: str) -> None:
    console = common.console()
    console.print(common.text(one.summary))
    facts = common.table("what", one.name)
    rows: dict[str, Any] = {
        "reduces in": one.acts_in,
        "filter: who leaves": one.filter,
        "correlate: into whom": one.correlate,
        "compress: how": one.compress,
        "needs": ", ".join(one.needs) or "nothing else",
        "layers, if none are named": one.layers,
        "amount, if none is given": one.amount,
        "selection costs": selection or "not known: it fits none of the models counted, or a stage has no price",
        "source": one.source,
    }
    for what, text in rows.items():
        facts.add_row(what, common.text(str(text)))
    common.show(console, facts)
    if one.hyperparameters:
        made = common.table("hyperparameter", "value", "meaning")
        for key, value in one.hyperparameters.items():
            made.add_row(key, common.text(repr(value)), common.text(one.meanings.get(key, "")))
        common.show(console, made)
