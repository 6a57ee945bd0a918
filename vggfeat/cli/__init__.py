"""The command line: options only. Each command's work is a call of the library.

Begin with `extract.py`; a command is one file here, and a line in `commands.py`. `terminal.py` has
what they share: errors to exit codes, log lines, tables, the progress bar. `help_page.py` has the
pages of help.
"""

from __future__ import annotations

from vggfeat.storage.descriptors import open_standard_streams

open_standard_streams()  # before a module that is imported below opens a file

import gc

# Imports create hundreds of thousands of objects, none of which is garbage: at the usual threshold
# of 700, garbage collection takes a sixth of the time of a short command.
gc.set_threshold(50_000)

import sys
from typing import Annotated

import typer

from vggfeat._version import __version__
from vggfeat.cli import streams
from vggfeat.cli import terminal as console
from vggfeat.cli.commands import HELP_NAMES, Program
from vggfeat.core import activity
from vggfeat.core.address_space import check_libraries_fit
from vggfeat.storage.mapped_files import end_on_cut_files

app = typer.Typer(
    name="vggfeat",
    cls=Program,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=HELP_NAMES,
    help="Extract features of any layers of a VGG network from images into one HDF5 file.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vggfeat {__version__}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[  # noqa: ARG001 its callback does the work
        bool,
        typer.Option(
            "--version",
            "-V",
            help="Show the version and exit.",
            callback=_show_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Apply the options before the command."""
    console.show_tracebacks(wanted=debug)
    console.set_up_logging(quiet=False, verbose=False)  # until the command says otherwise
    activity.begins(f"starting {context.invoked_subcommand}")


def main() -> None:
    """Parse the words of the command line, and run the command; `vggfeat.__main__` calls it."""
    streams.install()
    check_libraries_fit()
    end_on_cut_files(console.tell_error)
    with console.leaving_lost_devices():
        try:
            app(prog_name="vggfeat")
        except streams.OutputError as error:  # of a help text, outside of any command
            console.tell_error(str(error))
            sys.exit(error.exit_code)
        except streams.ReaderGoneError:
            sys.exit(0)
