"""What a terminal and a spreadsheet get of strangers' names, reasons and attributes."""

from __future__ import annotations

import csv
import io
import json
import logging
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from caches_to_search import cache_of, noise
from typer.testing import CliRunner

from vggfeat.cli import app
from vggfeat.cli.terminal import painted, say, tell_error
from vggfeat.core.csv_text import csv_text, path_cell, text_cell

if TYPE_CHECKING:
    from pathlib import Path

ESCAPE = "\x1b]0;owned\x07\x1b[2J\u202e\x9b31m\r"
"""Sets the title of a window, clears it, turns the direction of text, and goes back in the line."""


def run(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return str(done.output)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A cache whose names and attributes would take over a terminal."""
    paths = [b"=1+1.jpg", b"@x.jpg", f"a{ESCAPE}.jpg".encode(), b"plain.jpg"]
    place = tmp_path / "f.h5"
    cache_of(place, {"conv5_1": noise(4, 8)}, paths=paths)
    with h5py.File(place, "r+") as file:
        for name in ("warning", "created_utc", "tool_version"):
            file.attrs[name] = f"since {ESCAPE}"
    return place


@pytest.mark.parametrize(
    "words",
    [
        ("inspect",),
        ("inspect", "--rows", "*"),
        ("inspect", "--nearest", "plain.jpg"),
        ("search", "--row", "plain.jpg"),
        ("duplicates", "--threshold", "-1"),
        ("verify",),  # which finds that the rows have no checksums
    ],
)
def test_a_terminal_gets_no_control_characters(hostile: Path, words: tuple[str, ...]) -> None:
    """Names and attributes are escaped wherever a command shows them."""
    said = CliRunner().invoke(app, [words[0], str(hostile), *words[1:]]).output
    assert "plain.jpg" in said or words == ("inspect",)
    assert [line for line in said.splitlines() if not line.isprintable()] == []


def test_json_keeps_the_texts(hostile: Path) -> None:
    """JSON escapes by its own rule, so that a program gets the very text."""
    said = run("inspect", hostile, "--json")
    assert said.replace("\n", "").isprintable()
    assert json.loads(said)["warning"] == f"since {ESCAPE}"


def test_lines_keep_our_colours_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a painted line the paint stays, and what else is in it is escaped."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    line = painted("x\x1b[8mhidden\nnext", "red", bold=True)
    monkeypatch.undo()
    say(line)
    # By a terminal's rules (ECMA-48): 31 red, 1 bold, 0 all off.
    assert capsys.readouterr().out in (
        "\x1b[31m\x1b[1mx\\x1b[8mhidden\\nnext\x1b[0m\n", "x\\x1b[8mhidden\\nnext\n"
    )  # fmt: skip


def test_errors_and_log_lines_are_one_printable_line(capsys: pytest.CaptureFixture[str]) -> None:
    """What a message quotes cannot break out of its line."""
    tell_error(f"shard {ESCAPE} is missing")
    run("layers")  # sets up the log
    logging.getLogger("vggfeat").warning("shard %s is missing", ESCAPE)
    said = capsys.readouterr().err
    assert said.count("\n") == 2
    assert said.replace("\n", "").isprintable()


@pytest.mark.parametrize("first", [*"=+-@\t\r\uff1d\uff0b\uff0d\uff20"])
def test_no_cell_is_a_formula(first: str) -> None:
    """The characters of OWASP's list of CSV injection, and their wide forms."""
    text = csv_text([(path_cell(f"{first}1"), text_cell(f'{first}cmd|"x"'), -0.5)])
    path, words, number = next(csv.reader(io.StringIO(text, newline="")))
    assert (path, words, number) == (f"./{first}1", f"""'{first}cmd|"x\"""", "-0.5")
    assert path_cell(f"a{first}") == f"a{first}"


def cells_of(words: tuple[Any, ...], hostile: Path, out: Path) -> list[list[str]]:
    said = run(words[0], hostile, *words[1:])
    text = out.read_bytes().decode() if out.exists() else said
    return list(csv.reader(io.StringIO(text, newline="")))


def test_tables_of_commands_hold_no_formula(hostile: Path, tmp_path: Path) -> None:
    """`export --to csv` and `search --csv`: names are still those of the files, numbers numbers."""
    out = tmp_path / "out.csv"
    exported = cells_of(("export", "--to", "csv", "--out", out), hostile, out)
    assert [row[0] for row in exported[1:3]] == ["./=1+1.jpg", "./@x.jpg"]
    with h5py.File(hostile) as file:
        stored = file["features/conv5_1"][0]
    np.testing.assert_array_equal(np.array(exported[1][2:], dtype=stored.dtype), stored)
    found = cells_of(("search", "--row", "plain.jpg", "--csv"), hostile, tmp_path / "none")
    assert {row[2] for row in found[1:]} >= {"./=1+1.jpg", "./@x.jpg"}
