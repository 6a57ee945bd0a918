"""One declaration per setting: the field of a dataclass says all that options and checks need.

`setting(224, help="Side in pixels.", kind=int, within=(32, 4096))` stands as the default of a
field. The command line makes its options from it, the checks their ranges and choices.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vggfeat.core.choices import unknown_value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ESSENTIALS = "Essentials"
PREPARATION = "Image preparation"
MEDICAL = "Medical and multichannel"
LEARNING = "Training"
SPEED = "Speed and storage"
RESUMING = "Resume and update"
FAILURES = "Failures"
MACHINES = "Many machines"
QUERIES = "Network of the queries"
OF_IMAGE = "Of an image"
OF_CACHE = "Of a cache"
REPORTING = "Reporting"

GROUPS = (
    ESSENTIALS, OF_IMAGE, OF_CACHE, PREPARATION, MEDICAL, LEARNING, SPEED, RESUMING, FAILURES,
    MACHINES, QUERIES, REPORTING,
)  # fmt: skip
"""Titles of the groups that help shows options in, in their order."""

_KEY = "option"
_LONGEST_CHOICES = 24


@dataclass(frozen=True, slots=True)
class Option:
    """What a setting is to the user.

    Attributes:
        help: what it does; without choices and default, which `full_help` adds.
        metavar: what stands for its value in help, e.g. "N".
        kind: type of the value.
        default: value where none is given.
        unset: in words, what an empty default stands for, e.g. "any number".
        choices: all allowed values; empty if others are allowed too.
        words: values besides numbers, e.g. "auto".
        within: least and largest number; None where the value is no number.
        above: whether the least number itself is excluded.
        items: type of each value of a comma separated text, which a TOML file may have as a list.
        flag: spelling of the option where it is not the setting's name, e.g. `--layer-weights`.
        also: older spellings of the option, which help does not show.
        parse: reads a value that is no text from the text of the command line.
        group: of `GROUPS`, where the help of a command with many options shows it.
    """

    help: str
    metavar: str | None = None
    kind: type[str | int | float] = str
    default: Any = None
    unset: str = ""
    choices: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    within: tuple[float, float] | None = None
    above: bool = False
    items: type[str | float] | None = None
    flag: str = ""
    also: tuple[str, ...] = ()
    parse: Callable[[Any], Any] | None = None
    group: str = ESSENTIALS

    @property
    def shown_value(self) -> str | None:
        """What stands for the value in help: the choices if they are short, else the metavar."""
        choices = "|".join(self.choices)
        return choices if 0 < len(choices) <= _LONGEST_CHOICES else self.metavar

    @property
    def full_help(self) -> str:
        """Help text with the choices and the default."""
        return self._help_with(self.choices)

    @property
    def option_help(self) -> str:
        """Help text beside `shown_value`: with the choices unless they stand there, and default."""
        return self._help_with(self.choices if self.shown_value == self.metavar else ())

    def _help_with(self, choices: tuple[str, ...]) -> str:
        parts = [self.help]
        if choices:
            parts.append(f"One of {', '.join(choices)}.")
        is_empty = self.default is None or self.default is False or self.default in ("", ())
        default = self.unset if is_empty else "on" if self.default is True else self.default
        return " ".join(parts) + (f" [default: {default}]" if default != "" else "")

    def flag_of(self, name: str) -> str:
        """Return the spelling of the option for the setting of that name."""
        return self.flag or "--" + name.strip("_").replace("_", "-")

    @property
    def is_text(self) -> bool:
        """Whether the value is free text that is never missing."""
        is_parsed = bool(self.choices or self.parse)
        return self.default is not None and self.kind is str and not is_parsed

    def read(self, text: Any) -> Any:
        """Return the value of a text of the command line."""
        return self.parse(text) if self.parse else text

    def problem(self, name: str, value: object) -> str:
        """Return what is wrong with a value by type, choices and range; '' if nothing is."""
        if value is None and self.default is None:
            return ""
        if self.choices and value not in self.choices:
            return unknown_value(name, self.choices, value)
        if self.is_text and not isinstance(value, str):
            return f"{name} is {value!r}; expected text"
        if self.within is None or self._is_allowed(value, *self.within):
            return ""
        return f"{name} is {value!r}; expected {self._range(*self.within)}"

    def _is_allowed(self, value: Any, least: float, most: float) -> bool:
        if value in self.words:
            return True
        if type(value) is not int and not (self.kind is float and type(value) is float):
            return False
        return (
            least <= value <= most and math.isfinite(value) and not (self.above and value == least)
        )

    def _range(self, least: float, most: float) -> str:
        number = "a number" if self.kind is float else "a whole number"
        begin = f"above {least}" if self.above else f"from {least}"
        end = "" if math.isinf(most) else f"{', up' if self.above else ''} to {most}"
        return f"{number} {begin}{end}" + "".join(f", or {word}" for word in self.words)


def setting(default: Any, help: str, metavar: str | None = None, **option: Any) -> Any:  # noqa: A002 as in Typer
    """Return the field of a dataclass for a setting; see `Option` for the arguments."""
    declared = Option(help, metavar, default=default, **option)
    return dataclasses.field(default=default, metadata={_KEY: declared})


def options_of(record: type) -> Mapping[str, Option]:
    """Return the settings of a dataclass by name."""
    return {
        field.name: field.metadata[_KEY]
        for field in dataclasses.fields(record)
        if _KEY in field.metadata
    }


def problems_of(settings: Any) -> list[str]:
    """Return what is wrong with each setting of a record by type, choices and range."""
    found = (
        option.problem(name.strip("_"), getattr(settings, name))
        for name, option in options_of(type(settings)).items()
    )
    return [problem for problem in found if problem]
