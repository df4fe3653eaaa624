"""Writes ``docs/reference/cli.md``: the help of every command, as wide as the page.

Run it after a change of the command line::

    python docs/make_cli_reference.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from reshard.cli.app import app

PAGE = Path(__file__).with_name("reference") / "cli.md"

_WIDTH = 110
_START = """\
# Command line reference

Made from the help texts by `docs/make_cli_reference.py`; a test compares. `reshard COMMAND --help` prints the same.
What the commands are for, with examples: [how-to pages](../index.md#how-to).
"""


def reference() -> str:
    """Make the page."""
    sections = [f"## {path}\n\n```text\n{text}\n```\n" for path, text in _helps(typer.main.get_command(app), None)]
    return "\n".join([_START, *sections])


def _helps(command: Any, parent: Any) -> Iterator[tuple[str, str]]:
    """Yield the path and the help text of a command and of those below it."""
    settings = {"terminal_width": _WIDTH, **command.context_settings, "max_content_width": _WIDTH}
    context = command.context_class(command, info_name=command.name or "reshard", parent=parent, **settings)
    lines = command.get_help(context).splitlines()
    yield context.command_path, "\n".join(line.rstrip() for line in lines)
    for name in command.list_commands(context) if hasattr(command, "list_commands") else ():
        yield from _helps(command.get_command(context, name), context)


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(reference())
