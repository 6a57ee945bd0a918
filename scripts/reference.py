"""Writes docs/CLI.md from the commands themselves; with --check, says whether it is up to date."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.main import get_command

from vggfeat.cli import app
from vggfeat.cli.commands import COMMANDS
from vggfeat.cli.help_page import grouped_options, option_name, usage_pieces
from vggfeat.errors import EXIT_CODES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PAGE = Path(__file__).parent.parent / "docs" / "CLI.md"
HEAD = """# The command line

Written by `scripts/reference.py` from the commands themselves; CI checks that it is up to date.
"""


def render() -> str:
    """The page as it should be."""
    group: Any = get_command(app)
    parts = [HEAD + _exit_codes(), "## vggfeat\n", _by_panel(), _table(group.params)]
    for name, command in _commands(group, ""):
        usage = " ".join(["vggfeat", name, *usage_pieces(command)])
        text = "\n".join(line.strip() for line in command.help.strip().splitlines())
        parts += [f"## vggfeat {name}\n", f"    {usage}\n", f"{text}\n"]
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        groups = grouped_options(command)
        if len(groups) == 1:
            parts.append(_table([*arguments, *next(iter(groups.values()))]))
            continue
        parts += [_table(arguments)] * bool(arguments)
        for title, options in groups.items():
            parts += [f"### {title}\n", _table(options)]
    return "\n".join(parts)


def _by_panel() -> str:
    """A line for each panel of `vggfeat --help`."""
    names: dict[str, list[str]] = {}
    for name, entry in COMMANDS.items():
        names.setdefault(entry.panel, []).append(f"`{name}`")
    return "".join(f"- {title}: {', '.join(some)}\n" for title, some in names.items())


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


def _table(parameters: Iterable[Any]) -> str:
    rows = ["| option | meaning |", "|---|---|"]
    for one in parameters:
        name = one.metavar if one.param_type_name == "argument" else option_name(one)
        rows.append(f"| `{_cell(name)}` | {_prose(one.help)} |")
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
