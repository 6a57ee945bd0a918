"""Help: panels, usage lines, short and long pages, completion, and what they cost."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from pseudo_terminal import on_terminal
from typer.main import get_command
from typer.testing import CliRunner

from vggfeat.cli import app
from vggfeat.cli.commands import COMMANDS
from vggfeat.cli.help_page import first_paragraph, grouped_options, is_long, spellings
from vggfeat.core.option import ESSENTIALS, GROUPS

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM: Any = get_command(app)


def _commands() -> Iterator[tuple[str, Any]]:
    for name, command in PROGRAM.commands.items():
        for under, one in getattr(command, "commands", {}).items():
            yield f"{name} {under}", one
        if not hasattr(command, "commands"):
            yield name, command


EVERY = dict(_commands())
LONG = [name for name, command in EVERY.items() if is_long(command)]


def page(*words: str, columns: int = 80) -> str:
    """What a command writes into a pipe."""
    done = CliRunner().invoke(app, [*words], env={"COLUMNS": str(columns)}, prog_name="vggfeat")
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_commands_are_in_their_panels() -> None:
    """Each panel has its commands, one line each of under 55 characters, also at 60 columns."""
    text = page("--help", columns=60)
    found = {
        title: re.findall(r"^  (\w+)  ", body, re.MULTILINE)
        for title, body in re.findall(r"^(\w+):\n((?:  .*\n)+)", text, re.MULTILINE)
    }
    panels = {title: set(names) for title, names in found.items()}
    assert list(panels)[:5] == ["Make", "Look", "Derive", "Learn", "Know"]
    assert panels["Make"] == {"extract", "merge", "verify"}
    assert panels["Look"] >= {"inspect", "search", "duplicates", "compare", "plot", "sheet",
                              "similarity", "explore"}  # fmt: skip
    assert panels["Derive"] == {"fuse", "reduce", "export"}
    assert panels["Learn"] == {"zeroshot", "adapt", "stats"}
    assert panels["Know"] == {"layers", "presets", "trace", "doctor", "bench"}
    assert all(len(line) <= 60 for line in text.splitlines())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_line_of_a_command_is_how_its_own_help_begins(name: str) -> None:
    """The table that is shown without importing the command says what the command says."""
    line = COMMANDS[name].line
    assert line == first_paragraph(PROGRAM.commands[name])
    assert len(line) < 55


@pytest.mark.parametrize("columns", [60, 100])
@pytest.mark.parametrize("name", EVERY)
def test_pages_are_readable(name: str, columns: int) -> None:
    """Every option is shown once; nothing of Typer's types; no line is longer than the terminal."""
    text = page(*name.split(), "--help", columns=columns)
    assert not re.search(r"[{}]|list\[|<[a-z]", text)
    assert text.startswith(f"Usage: vggfeat {name} ")
    for option in EVERY[name].params:
        if option.param_type_name == "option":
            shown = {word for word in option.opts if re.search(rf"\n  .*{word}(?![\w-])", text)}
            assert shown == set(spellings(option))
    long = [line for line in text.splitlines() if len(line) > columns]
    assert not [line for line in long if len(line.split()) > 1 and "  vggfeat " not in line]


def test_the_panels_of_extract() -> None:
    """They are those of the issue, in its order, and have all options."""
    titles = re.findall(r"^(\w.*):$", page("extract", "--help"), re.MULTILINE)
    assert titles == [
        "Arguments", "Essentials", "Image preparation", "Medical and multichannel",
        "Speed and storage", "Resume and update", "Failures", "Many machines", "Reporting",
        "Examples",
    ]  # fmt: skip


@pytest.mark.parametrize("name", LONG)
def test_short_help_shows_essentials_and_examples(name: str) -> None:
    """`-h` has one panel of options and three examples that parse, and says where the rest is."""
    text = page(*name.split(), "-h")
    titles = re.findall(r"^(\w.*):$", text, re.MULTILINE)
    assert titles == ["Arguments", ESSENTIALS, "Examples"]
    assert f"vggfeat {name} --help shows all" in text
    groups = grouped_options(EVERY[name])
    assert list(groups) == [title for title in GROUPS if title in groups]
    examples = EVERY[name].epilog.splitlines()
    assert len(examples) == 3
    for example in examples:
        assert f"\n  {example}\n" in text
        words = shlex.split(example)
        length = 1 + len(name.split())
        assert words[0] == "vggfeat"
        if words[1:length] == name.split():
            EVERY[name].make_context(name, words[length:])


def test_a_mistake_shows_the_usage() -> None:
    """A missing argument is exit 2, with the usage line as help has it."""
    done = CliRunner().invoke(app, ["search"], prog_name="vggfeat")
    assert done.exit_code == 2
    assert "Usage: vggfeat search FILE.h5 [QUERY...] [OPTIONS]" in done.stderr


def test_the_version_has_a_short_option() -> None:
    """-V is --version."""
    assert page("-V") == page("--version")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ex", {"extract", "explore", "export"}),
        ("extract --crop p", {"pad"}),
        ("extract --layers conv5_3,fc", {"conv5_3,fc6", "conv5_3,fc7", "conv5_3,fc8"}),
        ("extract --config same", {"same-picture"}),
        ("extract --model vgg1", {f"vgg1{n}{bn}" for n in "1369" for bn in ("", "_bn")}),
        ("search f.h5 --metric ", {"cosine", "l2", "l2-raw", "dot"}),
        ("search f.h5 --lay", {"--layers", "--layer-weights"}),
        ("zeroshot fit f.h5 --method d", {"devise"}),
        ("export f.h5 --to np", {"npy", "npz"}),
    ],
)
def test_the_shell_completes_values(words: str, expected: set[str]) -> None:
    """Commands, options and choices, as the script of --show-completion asks for them."""
    env = {
        "_VGGFEAT_COMPLETE": "complete_bash",
        "COMP_WORDS": f"vggfeat {words}",
        "COMP_CWORD": str(len(words.split(" "))),
    }
    done = CliRunner().invoke(app, [], env=env, prog_name="vggfeat")
    assert set(done.stdout.split()) >= expected
    assert done.stdout.split()
    if words.rsplit(" ", maxsplit=1)[-1]:
        assert all(
            word.startswith(words.rsplit(" ", maxsplit=1)[-1]) for word in done.stdout.split()
        )
    assert "--layer" not in done.stdout.split()


def test_help_imports_little() -> None:
    """The page of all commands imports none of them, and nothing that is slow to import."""
    code = (
        "import contextlib, sys\n"
        "sys.argv = ['vggfeat', '--help']\n"
        "from vggfeat.__main__ import main\n"
        "with contextlib.suppress(SystemExit):\n"
        "    main()\n"
        "print('MODULES', *sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )  # fmt: skip
    modules = set(done.stderr.split())
    assert "vggfeat.cli.commands" in modules
    assert not modules & {"rich", "pydantic", "numpy", "torch", "vggfeat.cli.extract",
                          "vggfeat.core.settings"}  # fmt: skip


def test_a_terminal_gets_boxes_and_colours() -> None:
    """Lines fit its 60 columns; NO_COLOR leaves no colour; a dumb terminal gets plain text."""
    coloured = on_terminal("search", "-h")
    plain = re.sub(r"\x1b\[[\d;]*m", "", coloured)
    assert "╭─ Essentials ─" in plain
    assert max(map(len, plain.splitlines())) <= 60
    assert "\x1b[1;36m" in coloured
    for text in (
        on_terminal("search", "-h", NO_COLOR="1"),
        on_terminal("search", "-h", TERM="dumb"),
    ):
        assert not re.search(r"\x1b\[[\d;]*(3\d|9\d)m", text)
    assert "\x1b" not in text
    assert "\nEssentials:\n" in text
