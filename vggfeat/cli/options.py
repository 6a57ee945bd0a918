"""Options: those of settings, made from their declarations, and those that commands share."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from vggfeat.config import PRESETS
from vggfeat.core.layer_spec import NORMS, POOLS, split_specs
from vggfeat.core.option import QUERIES, REPORTING, RESUMING, SPEED, options_of
from vggfeat.core.settings import SETTINGS, Settings
from vggfeat.core.vgg_layers import VARIANTS, layer_table
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vggfeat.core.option import Option


def among(*words: str) -> Callable[[str], list[str]]:
    """Return the completion of a value that is one of these words, for the shell."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


def _layer_names(incomplete: str) -> list[str]:
    """Complete the last of several layers separated by commas."""
    before, comma, last = incomplete.rpartition(",")
    names = dict.fromkeys(layer.name for model in VARIANTS for layer in layer_table(model))
    return [f"{before}{comma}{name}" for name in names if name.startswith(last)]


def completion_of(name: str, words: tuple[str, ...]) -> Callable[[str], list[str]] | None:
    """Return the shell's completion for a setting; None if it is free."""
    known = {
        "model": VARIANTS,
        "device": ("auto", "cpu", "cuda", "all"),
        "weights": ("imagenet", "features", "random"),
        "pool": tuple(POOLS),
        "norm": NORMS,
    }
    if name == "layers":
        return _layer_names
    words = words or known.get(name, ())
    return among(*words) if words else None


Cache = Annotated[
    str, typer.Argument(help="A cache: a file, or a folder of shards.", metavar="FILE.h5")
]
Config = Annotated[
    str | None,
    typer.Option(
        help=f"A TOML file or a preset ({', '.join(PRESETS)}) with default values of options; "
        "flags override them. Keys are the names of options, such as batch-size or "
        "batch_size.",
        metavar="NAME|FILE.toml",
        autocompletion=among(*PRESETS),
    ),
]
Layers = Annotated[
    str | None,
    typer.Option(
        "--layers",
        "--layer",
        help="Layers of the cache, comma separated. [default: all]",
        metavar="NAME,...",
        autocompletion=_layer_names,
    ),
]
Root = Annotated[
    str | None,
    typer.Option(
        help="Directory that the paths of images are relative to. [default: the source folder, or "
        "what all sources have in common]",
        metavar="DIR",
        rich_help_panel=RESUMING,
    ),
]
ImagesNow = Annotated[
    str | None,
    typer.Option(
        "--root",
        help="Directory where the images are now. [default: where they were]",
        metavar="DIR",
        rich_help_panel=REPORTING,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        help="Where the network computes features of images: auto, cpu, cuda or cuda:N.",
        metavar="NAME",
        rich_help_panel=SPEED,
        autocompletion=among("auto", "cpu", "cuda"),
    ),
]
ModelWeights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        "--model-weights",
        help="Weights of the network, if they are not where the cache says; they must be the same.",
        metavar="FILE",
        rich_help_panel=QUERIES,
    ),
]
Use = Annotated[
    list[str] | None,
    typer.Option(
        help="Model that fuse or reduce fitted when they made the cache; repeat it for a cache "
        "made in several steps. [default: FILE.model.h5 beside the cache]",
        metavar="MODEL.h5",
        rich_help_panel=QUERIES,
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=REPORTING)
]
Csv = Annotated[
    bool, typer.Option("--csv", help="Print the result as CSV.", rich_help_panel=REPORTING)
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        help="Print errors only: no progress, no notices.",
        rich_help_panel=REPORTING,
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="Also print how the time was spent.", rich_help_panel=REPORTING
    ),
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
        option.flag_of(name),
        *option.also,
        help=option.option_help,
        metavar=option.shown_value,
        show_default=False,
        rich_help_panel=option.group,
        autocompletion=completion_of(name, option.choices or option.words),
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


def one_layer(layers: str | None, what: str) -> str | None:
    """Return the layer of --layers of a command that takes one; None if none is given.

    Raises:
        UsageError: several are given; `what` begins its message, as "duplicates compares by".
    """
    names = split_specs(layers or "")
    if len(names) > 1:
        raise UsageError(f"{what} one layer, found {len(names)}: {', '.join(names)}; name one")
    return names[0] if names else None


def whole_numbers(name: str, text: str, example: str) -> tuple[int, ...]:
    """Return the numbers of an option such as `1,5`."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise UsageError(f"{name} is {text!r}; expected whole numbers such as {example}")
    return tuple(int(word) for word in words)
