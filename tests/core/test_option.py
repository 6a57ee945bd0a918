"""A setting is declared once, on its field: checks, options and configuration go by that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from vggfeat.cli.options import given, settings_options
from vggfeat.core.option import options_of, problems_of, setting
from vggfeat.core.settings import SETTINGS
from vggfeat.finetuning.settings import TRAINING


@dataclass(frozen=True)
class Camera:
    """A record with a setting of each kind."""

    lens: str = setting("wide", "What it looks through.", "LENS", choices=("wide", "tele"))
    shots: int | str = setting(
        "auto", "Pictures.", "N|auto", kind=int, words=("auto",), within=(1, 9)
    )
    delay: float = setting(
        2.5, "Seconds before.", "S", kind=float, within=(0, 60), above=True, also=("--wait",)
    )
    title: str = setting("", "Name of the picture.", "TEXT", unset="its number")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"lens": "fish"}, "unknown lens 'fish'; expected one of wide, tele"),
        ({"shots": 10}, "shots is 10; expected a whole number from 1 to 9, or auto"),
        ({"shots": 1.0}, "shots is 1.0; expected a whole number from 1 to 9, or auto"),
        ({"shots": True}, "shots is True; expected a whole number from 1 to 9, or auto"),
        ({"delay": 0}, "delay is 0; expected a number above 0, up to 60"),
        ({"delay": "1"}, "delay is '1'; expected a number above 0, up to 60"),
        ({"title": 1}, "title is 1; expected text"),
    ],
)
def test_checks_come_from_the_field(values: dict[str, Any], problem: str) -> None:
    """Choices, ranges and types are checked by what the field says."""
    assert problems_of(Camera(**values)) == [problem]


def test_what_is_allowed_is_no_problem() -> None:
    """Defaults, words, and numbers at the ends of a range."""
    assert problems_of(Camera()) == problems_of(Camera(shots=9, delay=60, lens="tele")) == []


def test_options_come_from_the_field() -> None:
    """A command gets its options, in the order named, and finds what was given in `flags`."""
    found: dict[str, Any] = {}

    @settings_options("title", "loud", "shots", "delay", of=(Camera,), instead={"shots": {
        "help": "How many."}})  # fmt: skip
    def shoot(place: str, *, last: bool = False, loud: bool = False, **flags: Any) -> None:
        """Take pictures."""
        found.update(flags, place=place, loud=loud, last=last)

    app = typer.Typer(rich_markup_mode=None)
    app.command()(shoot)
    result = CliRunner().invoke(app, ["here", "--wait", "3", "--loud", "--shots", "auto"])
    assert result.exit_code == 0, result.output
    assert found == {
        "place": "here", "title": None, "loud": True, "shots": "auto", "delay": 3.0, "last": False,
    }  # fmt: skip
    text = " ".join(CliRunner().invoke(app, ["--help"]).output.split())
    assert "--title TEXT Name of the picture. [default: its number]" in text
    assert "--shots N|auto How many. [default: auto]" in text
    places = [text.index(f"--{name}") for name in ("title", "loud", "shots", "delay", "last")]
    assert places == sorted(places)


def test_numbers_with_words_are_text_until_the_command_runs() -> None:
    """What stands for a number or a word becomes a number; what is not given is left out."""
    assert given({"workers": "3", "batch_size": "auto", "size": None}) == {
        "workers": 3, "batch_size": "auto",
    }  # fmt: skip


@pytest.mark.parametrize("declared", [SETTINGS, TRAINING], ids=["Settings", "AdaptSettings"])
def test_every_setting_says_what_it_is(declared: dict[str, Any]) -> None:
    """No setting is without help and a word for its value; defaults pass their own checks."""
    for name, option in declared.items():
        assert option.help, name
        assert option.metavar, name
        assert option.problem(name, option.default) == "", name


def test_fields_that_are_no_settings_are_none() -> None:
    """What is made from other settings is no option."""
    assert list(options_of(Camera)) == ["lens", "shots", "delay", "title"]
    assert "specs" not in SETTINGS
    assert "network" not in TRAINING
