"""The command line: options only. Each command's work is a call of the library.

Begin with `extract.py`; a command is one file here. `terminal.py` has what they share: errors to
exit codes, log lines, tables, the progress bar.
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
from vggfeat.cli.adapt import adapt
from vggfeat.cli.bench import bench
from vggfeat.cli.compare import compare
from vggfeat.cli.doctor import doctor
from vggfeat.cli.duplicates import duplicates
from vggfeat.cli.explore import explore
from vggfeat.cli.export import export
from vggfeat.cli.extract import extract
from vggfeat.cli.inspect import inspect
from vggfeat.cli.layers import layers
from vggfeat.cli.merge import merge
from vggfeat.cli.plot import plot
from vggfeat.cli.presets import presets
from vggfeat.cli.search import search
from vggfeat.cli.sheet import sheet
from vggfeat.cli.similarity import similarity
from vggfeat.cli.stats import stats
from vggfeat.cli.trace import trace
from vggfeat.cli.transforms import fuse, reduce
from vggfeat.cli.verify import verify
from vggfeat.cli.zeroshot import zeroshot
from vggfeat.core.address_space import check_libraries_fit
from vggfeat.storage.mapped_files import end_on_cut_files

app = typer.Typer(
    name="vggfeat",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Extract features of any layers of a VGG network from images into one HDF5 file.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vggfeat {__version__}")
        raise typer.Exit


@app.callback()
def common(
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[  # noqa: ARG001 its callback does the work
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Apply the options before the command."""
    console.show_tracebacks(wanted=debug)
    console.set_up_logging(quiet=False, verbose=False)  # until the command says otherwise


for command in (
    extract,
    inspect,
    verify,
    merge,
    fuse,
    reduce,
    compare,
    search,
    similarity,
    duplicates,
    layers,
    presets,
    trace,
    plot,
    sheet,
    explore,
    export,
    adapt,
    stats,
    doctor,
    bench,
):
    app.command()(command)
app.add_typer(zeroshot)


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
