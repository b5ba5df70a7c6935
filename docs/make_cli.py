"""Writes docs/cli.md from what the commands declare of themselves: `python docs/make_cli.py`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from cli.main import make_app

PAGE = Path(__file__).with_name("cli.md")
INTRODUCTION = """\
# Command line

Made from the code by `python docs/make_cli.py`; a test compares the two.

Data goes to stdout, messages to stderr. On a terminal rows are a table, elsewhere tab-separated values; `--json`, where
a command has it, gives JSON, errors included. Exit status: 0 done, 1 failed or a check found something, 2 called
wrongly. Every command reads the same [configuration](operations.md#configuration); the environment variable
`HEADRACE_LOG_LEVEL` sets the level of the logs of `headrace run`.
"""


def render() -> str:
    """The whole page as Markdown."""
    root = typer.main.get_command(make_app())
    context = root.make_context("headrace", [], resilient_parsing=True)
    leaves = list(_leaves(root, context, "headrace"))
    index = [f"| [`{name}`](#{name.replace(' ', '-')}) | {_first(command)} |" for name, command, _ in leaves]
    table = "\n".join(["| command | |", "|---|---|", *index])
    return "\n".join([INTRODUCTION, table, *(_section(*leaf) for leaf in leaves)]) + "\n"


def _leaves(group: Any, context: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    for word in group.list_commands(context):
        command = group.get_command(context, word)
        inner = type(context)(command, info_name=word, parent=context)
        if hasattr(command, "list_commands"):
            yield from _leaves(command, inner, f"{name} {word}")
        else:
            yield f"{name} {word}", command, inner


def _help(command: Any) -> str:
    return inspect.cleandoc(command.help or "")


def _first(command: Any) -> str:
    return _cell(" ".join(_help(command).partition("\n\n")[0].split()))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _section(name: str, command: Any, context: Any) -> str:
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    lines = [f"\n## {name}", "", _help(command), "", "```console", f"$ {usage}", "```"]
    known = (parameter.get_help_record(context) for parameter in command.get_params(context))
    rows = [record for record in known if record is not None and record[0] != "--help"]
    if rows:
        lines += ["", "| | |", "|---|---|", *(f"| `{_cell(left)}` | {_cell(right)} |" for left, right in rows)]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
