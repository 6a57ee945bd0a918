"""Help of commands: panels of options, for a terminal drawn by rich, elsewhere plain text.

`-h` of a command with many options shows the essential ones and examples, `--help` all. An option's
panel is declared with it: `group` of a setting, `rich_help_panel` of an option of a command.
"""

from __future__ import annotations

import inspect
import os
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand, TyperGroup

from vggfeat.core.option import ESSENTIALS, GROUPS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_BRIEF = "vggfeat.brief_help"
_MOST_IN_ONE_PANEL = 12
_OPTIONS = "Options"
_WIDEST = 100
_LEFT_SHARE = 0.46  # of the width, for names, at most
_WIDEST_NAME = 32
_DUMB = ("dumb", "unknown")


@dataclass(frozen=True, slots=True)
class Panel:
    """Names under a title, each with what it means."""

    title: str
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Page:
    """A help page: how the command is called, what it does, panels, and what to read on."""

    usage: str
    text: str
    panels: tuple[Panel, ...]
    examples: tuple[str, ...] = ()
    footer: str = ""


class Command(TyperCommand):
    """A command; the lines of its `epilog` are examples."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words; note which help is asked for."""
        ctx.meta[_BRIEF] = "-h" in args and "--help" not in args
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Return what the shell may complete: no older spellings of options."""
        every = visible_options(self)
        older = {name for one in every for name in one.opts if name not in spellings(one)}
        found = super().shell_complete(ctx, incomplete)
        return [item for item in found if item.value not in older]

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ARG002 as the base class has it
        """Return the words behind the command's name."""
        return usage_pieces(self)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help page."""
        brief = ctx.meta.get(_BRIEF, False) and is_long(self)
        panels = [_arguments(self), *_option_panels(self, ctx, brief=brief)]
        number = len(visible_options(self))
        page = Page(
            " ".join(ctx.get_usage().removeprefix("Usage: ").split()),
            first_paragraph(self) if brief else inspect.cleandoc(self.help or ""),
            tuple(panel for panel in panels if panel.rows),
            tuple((self.epilog or "").splitlines()),
            f"{ctx.command_path} --help shows all {number} options." if brief else "",
        )
        formatter.write(rendered(page))


class Group(TyperGroup):
    """A command of commands, whose help shows them in panels."""

    def panels(self) -> Iterator[Panel]:
        """Yield the panels of its commands."""
        yield Panel(
            "Commands",
            tuple((name, first_paragraph(one)) for name, one in self.commands.items()),
        )

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help page."""
        page = Page(
            " ".join(ctx.get_usage().removeprefix("Usage: ").split()),
            inspect.cleandoc(self.help or ""),
            (*self.panels(), *_option_panels(self, ctx, brief=False)),
            footer=f"{ctx.command_path} COMMAND -h shows a command's options and examples.",
        )
        formatter.write(rendered(page))


def visible_options(command: Any) -> list[Any]:
    """Return the options that help shows, in the order of their declaration."""
    return [one for one in command.params if one.param_type_name == "option" and not one.hidden]


def is_long(command: Any) -> bool:
    """Return whether a command has options for more than one panel."""
    return len(visible_options(command)) > _MOST_IN_ONE_PANEL


def grouped_options(command: Any) -> Mapping[str, list[Any]]:
    """Return the options of a command by the titles of their panels."""
    options = visible_options(command)
    if not is_long(command):
        return {_OPTIONS: options}
    titles = [one.rich_help_panel or ESSENTIALS for one in options]
    return {
        title: [one for one, its in zip(options, titles, strict=True) if its == title]
        for title in sorted(set(titles), key=GROUPS.index)
    }


def spellings(option: Any) -> list[str]:
    """Return the spellings of an option, short ones first; of several long ones only the first.

    Others are older spellings, which stay accepted.
    """
    long = [name for name in option.opts if name.startswith("--")]
    short = [name for name in option.opts if not name.startswith("--")]
    return [*short, *long[:1]]


def option_name(option: Any) -> str:
    """Return `-o, --out FILE.h5`, or `--resume / --fresh`."""
    names = ", ".join(spellings(option))
    if option.secondary_opts:
        return f"{names} / {', '.join(option.secondary_opts)}"
    return f"{names} {option.metavar}" if option.metavar else names


def usage_pieces(command: Any) -> list[str]:
    """Return arguments, options that are required, and `[OPTIONS]`."""
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    required = [one for one in visible_options(command) if one.required]
    return [
        *(_word(one) if one.required else f"[{_word(one)}]" for one in arguments),
        *(f"{spellings(one)[-1]} {one.metavar}" for one in required),
        "[OPTIONS]",
    ]


def first_paragraph(command: Any) -> str:
    """Return the first sentence of a command's help, without its full stop."""
    return " ".join((command.help or "").strip().split("\n\n")[0].split()).rstrip(".")


def _word(argument: Any) -> str:
    return str(argument.metavar).strip("[]")


def _meaning(option: Any, ctx: Any) -> str:
    text: str = option.get_help_record(ctx)[1]
    return " ".join(text.replace("\\[", "[").split())  # older versions of Typer escape for rich


def _arguments(command: Any) -> Panel:
    rows = [
        (_word(one), one.help or "") for one in command.params if one.param_type_name == "argument"
    ]
    return Panel("Arguments", tuple(rows))


def _option_panels(command: Any, ctx: Any, *, brief: bool) -> list[Panel]:
    """Return the panels of options; the last one ends with the options that show help."""
    groups = {
        title: [(option_name(one), _meaning(one, ctx)) for one in some]
        for title, some in grouped_options(command).items()
        if not brief or title == ESSENTIALS
    }
    if not brief:
        long = is_long(command)
        text = "Show this; -h shows the essentials and examples." if long else "Show this help."
        groups.setdefault(next(reversed(groups), _OPTIONS), []).append(("-h, --help", text))
    return [Panel(title, tuple(rows)) for title, rows in groups.items()]


def rendered(page: Page) -> str:
    """Return a page as it is printed.

    On a terminal it has boxes and colours; for pipes, files and dumb terminals it is plain, without
    the time that importing rich takes.
    """
    if sys.stdout.isatty() and os.environ.get("TERM") not in _DUMB:
        return _drawn(page, min(shutil.get_terminal_size().columns, _WIDEST))
    return _plain(page)


def _plain(page: Page) -> str:
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    lines = [*_filled(f"Usage: {page.usage}", width, 0, 7)]
    for paragraph in page.text.split("\n\n"):
        lines += ["", *_filled(paragraph, width, 2, 2)]
    for panel in page.panels:
        lines += ["", f"{panel.title}:", *_columns(panel.rows, width)]
    if page.examples:
        lines += ["", "Examples:", *(f"  {line}" for line in page.examples)]
    if page.footer:
        lines += ["", *_filled(page.footer, width, 0, 0)]
    return "".join(f"{line}\n" for line in lines)


def _columns(rows: Sequence[tuple[str, str]], width: int) -> Iterator[str]:
    """Yield lines of names and meanings; a meaning begins below a name that is too long."""
    most = min(int(width * _LEFT_SHARE), _WIDEST_NAME)
    left = max((len(name) for name, _ in rows if len(name) <= most), default=most) + 4
    for name, meaning in rows:
        if len(name) + 4 > left:
            yield f"  {name}"
            yield from _filled(meaning, width, left, left)
        else:
            yield from _filled(f"  {name}".ljust(left) + meaning, width, 0, left)


def _filled(text: str, width: int, first: int, others: int) -> list[str]:
    """Return lines of a text, broken between words only."""
    import textwrap

    lead = len(text) - len(text.lstrip())
    return textwrap.wrap(
        text if lead else " ".join(text.split()), width, initial_indent=" " * first,
        subsequent_indent=" " * others, break_on_hyphens=False, break_long_words=False,
    )  # fmt: skip


def _drawn(page: Page, width: int) -> str:
    import io

    from rich.console import Console
    from rich.text import Text

    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, highlight=False)
    console.print(Text.assemble(("Usage: ", "bold"), page.usage))
    console.print()
    for paragraph in page.text.split("\n\n"):
        console.print(Text(" ".join(paragraph.split())))
        console.print()
    for panel in page.panels:
        console.print(_box(panel.title, panel.rows, width))
    if page.examples:
        console.print(_box("Examples", [(line, "") for line in page.examples], width))
    if page.footer:
        console.print(Text(page.footer, "dim"))
    return out.getvalue()


def _box(title: str, rows: Sequence[tuple[str, str]], width: int) -> Any:
    from rich.panel import Panel as Box
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    alone = not any(meaning for _, meaning in rows)
    longest = max(len(name) for name, _ in rows)
    grid.add_column(max_width=None if alone else min(longest, int(width * _LEFT_SHARE)))
    if not alone:
        grid.add_column()
    for name, meaning in rows:
        first, _, rest = name.partition(" ") if alone else (name, "", "")
        shown = Text.assemble((first, "bold cyan"), f" {rest}" if rest else "")
        grid.add_row(shown, *([] if alone else [Text(meaning)]))
    return Box(grid, title=title, title_align="left", border_style="dim", padding=(0, 1))
