"""Options: those of settings, made from their declarations, and those that commands share."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from vggfeat.config import PRESETS
from vggfeat.core.option import options_of
from vggfeat.core.settings import SETTINGS, Settings
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vggfeat.core.option import Option


Cache = Annotated[
    str, typer.Argument(help="A cache: a file, or a folder of shards.", metavar="FILE.h5")
]
Config = Annotated[
    str | None,
    typer.Option(
        help=f"A TOML file or a preset ({', '.join(PRESETS)}) with default values of options; "
        "flags override them. Keys are the names of options, as batch-size or batch_size.",
        metavar="NAME|FILE.toml",
    ),
]
Root = Annotated[
    str | None,
    typer.Option(
        help="Directory that the paths of images are relative to. [default: the source folder, or "
        "what all sources have in common]",
        metavar="DIR",
    ),
]
ImagesNow = Annotated[
    str | None,
    typer.Option(
        "--root", help="Directory where the images are now. [default: where they were]",
        metavar="DIR",
    ),
]  # fmt: skip
Device = Annotated[
    str,
    typer.Option(
        help="Where the network computes features of images: auto, cpu, cuda or cuda:N.",
        metavar="NAME",
    ),
]
ModelWeights = Annotated[
    str | None,
    typer.Option(
        help="Weights of the network, if they are not where the cache says; they must be the same.",
        metavar="FILE",
    ),
]
Use = Annotated[
    list[str] | None,
    typer.Option(
        help="Model that fuse or reduce fitted when they made the cache; repeat it for a cache "
        "made in several steps. [default: FILE.model.h5 beside the cache]",
        metavar="MODEL.h5",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print the result as CSV.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print errors only: no progress, no notices.")
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Print also how the time was spent.")
]


def settings_options(
    *names: str,
    of: tuple[type, ...] = (Settings,),
    instead: Mapping[str, Mapping[str, Any]] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each setting, in place of its parameter `**flags`.

    Typer reads options from a command's signature, so the signature is what is changed. The command
    finds in `flags` every setting by its name; None stands for not given.

    Args:
        names: settings in the order of the help; keyword parameters of the command itself stand
            where they are named, or after all settings.
        of: records that declare the settings; the first that has a name counts.
        instead: what is declared otherwise for this command, by setting, e.g. another `help`.
    """
    declared: dict[str, Option] = {}
    for record in reversed(of):
        declared |= options_of(record)
    for name, changes in (instead or {}).items():
        declared[name] = dataclasses.replace(declared[name], **changes)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        types = get_type_hints(command, include_extras=True)
        own = {
            name: parameter.replace(annotation=types[name])
            for name, parameter in inspect.signature(command).parameters.items()
            if parameter.kind is not parameter.VAR_KEYWORD
        }
        named = {name: own.get(name) or _parameter(name, declared[name]) for name in names}
        first = {n: one for n, one in own.items() if one.kind is not one.KEYWORD_ONLY}
        parameters = {**first, **named, **own}
        command.__annotations__ = {name: one.annotation for name, one in parameters.items()}
        command.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined] # any function takes it
        return command

    return decorate


def _parameter(name: str, option: Option) -> inspect.Parameter:
    flag = typer.Option(
        "--" + name.strip("_").replace("_", "-"),
        *option.also,
        help=option.full_help,
        metavar=option.metavar,
        show_default=False,
    )
    kind: Any = str if option.words else option.kind  # a number or a word is text at first
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, flag]
    )


def given(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that were given, numbers as numbers where words are allowed as well.

    Raises:
        UsageError: neither a whole number nor one of the words.
    """
    return {name: _value(name, value) for name, value in flags.items() if value is not None}


def _value(name: str, value: Any) -> Any:
    words = SETTINGS[name].words if name in SETTINGS else ()
    if not words or not isinstance(value, str) or value in words:
        return value
    if not value.isdecimal():
        raise UsageError(f"{name} is {value!r}; expected a whole number or {' or '.join(words)}")
    return int(value)


def whole_numbers(name: str, text: str, example: str) -> tuple[int, ...]:
    """Return the numbers of an option such as `1,5`."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise UsageError(f"{name} is {text!r}; expected whole numbers such as {example}")
    return tuple(int(word) for word in words)
