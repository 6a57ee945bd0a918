"""`vggfeat presets`."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vggfeat.cli.options import Json, given, settings_options
from vggfeat.cli.terminal import exit_codes, output_width, print_json, say
from vggfeat.config import PRESETS, load_config, make_settings, preset_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(frozen=True, slots=True)
class _Row:
    """A preset: what it sets besides its layers, and what for."""

    name: str
    layers: tuple[str, ...]
    others: dict[str, Any]
    purpose: str


@settings_options("model")
def presets(*, as_json: Json = False, **flags: Any) -> None:
    """List the presets of --config.

    Show the layers they choose, and what for.
    """
    with exit_codes():
        chosen = given(flags)
        rows = [_row(name, chosen) for name in PRESETS]
        model = make_settings(None, {**chosen, "layers": "fc7"}).model
        if as_json:
            print_json({"model": model, "presets": rows})
            return
        say(f"presets with {model}, for `vggfeat extract --config NAME`", *_lines(rows))


def _row(name: str, flags: dict[str, Any]) -> _Row:
    settings = make_settings(name, flags)
    layers = tuple(map(str, settings.specs))
    others = {key: value for key, value in load_config(name).items() if key != "layers"}
    return _Row(name, layers, others, preset_text(name))


def _lines(rows: Iterable[_Row]) -> Iterator[str]:
    for row in rows:
        others = "".join(f", {key} {value}" for key, value in row.others.items())
        yield ""
        yield f"{row.name}: {', '.join(row.layers)}{others}"
        yield from textwrap.wrap(
            row.purpose, min(output_width(), 100), initial_indent="  ", subsequent_indent="  "
        )
