"""Writes docs/CLI.md from the commands themselves; with --check, says whether it is up to date."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.main import get_command

from vggfeat.cli import app
from vggfeat.errors import EXIT_CODES

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parent.parent / "docs" / "CLI.md"
HEAD = """# The command line

Written by `scripts/reference.py` from the commands themselves; CI checks that it is up to date.
"""


def render() -> str:
    """The page as it should be."""
    group: Any = get_command(app)
    parts = [HEAD + _exit_codes(), "## vggfeat\n", _table(group)]
    for name, command in _commands(group, ""):
        arguments = [p.metavar for p in command.params if p.param_type_name == "argument"]
        usage = " ".join(["vggfeat", name, *arguments, "[OPTIONS]"])
        text = "\n".join(line.strip() for line in command.help.strip().splitlines())
        parts += [f"## vggfeat {name}\n", f"    {usage}\n", f"{text}\n", _table(command)]
    return "\n".join(parts)


def _exit_codes() -> str:
    meanings = "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES)
    return textwrap.fill(f"Exit codes: {meanings}.", 100) + "\n"


def _commands(group: Any, before: str) -> Iterator[tuple[str, Any]]:
    """Every command by its name, those of a command's own commands behind it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


def _table(command: Any) -> str:
    rows = ["| option | meaning |", "|---|---|"]
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            rows.append(f"| `{_cell(parameter.metavar)}` | {_prose(parameter.help)} |")
            continue
        names = ", ".join([*parameter.opts, *parameter.secondary_opts])
        value = f" {parameter.metavar}" if parameter.metavar else ""
        rows.append(f"| `{_cell(names + value)}` | {_prose(parameter.help)} |")
    return "\n".join(rows) + "\n"


def _prose(text: str | None) -> str:
    return _cell(text).replace("][", "]\\[")  # which Markdown would take for a link


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|").strip()


if __name__ == "__main__":
    if "--check" in sys.argv:
        if not PAGE.is_file() or PAGE.read_text() != render():
            sys.exit("docs/CLI.md is out of date: run python scripts/reference.py")
    else:
        PAGE.write_text(render())
