"""The help of every command, from the application itself."""

from __future__ import annotations

from typing import Any

import typer.main
from markup import cell, code, table_of

from ficoco_ext.cli.app import app


def _default(parameter: Any) -> str:
    value = parameter.default
    if value is None or value is False or value == () or callable(value):
        return ""
    return "on" if value is True else code(str(getattr(value, "value", value)))


def _options(command: Any, context: Any) -> str:
    rows = []
    for one in command.get_params(context):
        if one.param_type_name == "option" and not one.hidden:
            names = ", ".join(map(code, (*one.opts, *one.secondary_opts)))
            value = "" if one.is_flag else code(one.metavar or one.display_type(context))
            rows.append([names, value, _default(one), cell(one.help or "")])
    return table_of(("option", "value", "default", "meaning"), rows)


def _arguments(command: Any, context: Any) -> str:
    rows = []
    for one in command.get_params(context):
        if one.param_type_name == "argument":
            name = code(one.metavar or one.name.upper())
            rows.append([name, "required" if one.required else _default(one), cell(one.help or "")])
    return table_of(("argument", "default", "meaning"), rows) if rows else ""


def _section(name: str, command: Any) -> str:
    context = command.make_context(f"ficoco {name}", [], resilient_parsing=True)
    usage = " ".join([f"ficoco {name}", *command.collect_usage_pieces(context)])
    parts = (
        f"## {name}",
        cell(command.help or ""),
        f"```text\n{usage}\n```",
        _arguments(command, context),
        _options(command, context),
    )
    return "\n\n".join(filter(None, parts))


def commands() -> str:
    """What ``ficoco`` itself takes, and a section for each command."""
    group: Any = typer.main.get_command(app)
    context = group.make_context("ficoco", [], resilient_parsing=True)
    sections = [_section(name, command) for name, command in group.commands.items() if not command.hidden]
    return "\n\n".join([_options(group, context), *sections])
