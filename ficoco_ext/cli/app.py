"""The application: one command a module."""

from __future__ import annotations

import typer

from . import cost, data, demo, env, evaluate, methods, plan, reduce, show

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Training-free reduction of visual tokens. Every command gives one JSON document with --json.",
)
app.command("env")(env.command)
app.command("methods")(methods.command)
app.command("reduce")(reduce.command)
app.command("demo")(demo.command)
app.command("cost")(cost.command)
app.command("plan")(plan.command)
app.command("data")(data.command)
app.command("eval")(evaluate.command)
app.command("show")(show.command)
