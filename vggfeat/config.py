"""Presets and configuration files, options, and what a weight file records, as `Settings`."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggfeat.core.choices import unknown_value
from vggfeat.core.setting_values import plain_value
from vggfeat.core.settings import SETTING_NAMES, SETTINGS, Settings
from vggfeat.core.text import decode_text
from vggfeat.errors import UsageError
from vggfeat.storage.foreign_files import MOST_BYTES, check_depth, read_foreign

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Mapping

PRESETS = (
    "meaning",
    "overall",
    "pyramid",
    "same-picture",
    "similar-colour",
    "similar-style",
)


def load_config(name: str) -> dict[str, Any]:
    """Return settings by name from a TOML file, or from the preset of that name.

    Keys may be spelt as settings are, `batch_size`, or as options are, `batch-size`.

    Raises:
        UsageError: no such file or preset, not TOML, a key that is no setting, or one given in
            both spellings.
    """
    values = _parse(name, _config_path(name))
    return {
        key: plain_value(key, SETTINGS[key], value) for key, value in _by_name(name, values).items()
    }


def _parse(name: str, path: Path) -> dict[str, Any]:
    """Return the values of a TOML file by their keys."""
    try:
        data = read_foreign(os.fspath(path), MOST_BYTES["config"], pipes="shell")
    except OSError as error:
        raise UsageError(f"config {name!r} cannot be read: {error.strerror or error}") from error
    text = decode_text(data, f"config {name!r} cannot be read as TOML: it")
    try:
        values: dict[str, Any] = tomllib.loads(text)
        check_depth(values)
    except RecursionError:
        raise UsageError(f"config {name!r} cannot be read as TOML: it nests too deeply") from None
    except ValueError as error:  # also of a number with more digits than Python converts
        raise UsageError(f"config {name!r} cannot be read as TOML: {error}") from error
    return values


def _by_name(config: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by names of settings: `batch-size`, as options are spelt, is `batch_size`."""
    spelt = {key: key.replace("-", "_") for key in values}
    unknown = [key for key, setting in spelt.items() if setting not in SETTING_NAMES]
    if unknown:
        what = "setting" if len(unknown) == 1 else "settings"
        raise UsageError(f"config {config!r}: {unknown_value(what, SETTING_NAMES, *unknown)}")
    twice = [key for key, setting in spelt.items() if key != setting and setting in values]
    if twice:
        both = ", ".join(f"{spelt[key]} and {key}" for key in twice)
        raise UsageError(f"config {config!r} gives {both}, which are one setting; keep one of them")
    return {setting: values[key] for key, setting in spelt.items()}


def make_settings(config: str | None, flags: Mapping[str, Any]) -> Settings:
    """Return the settings of a configuration file or preset, with the given flags over it.

    What neither says, a weight file may: see `with_carried`.

    Args:
        config: see `load_config`; None for defaults alone.
        flags: setting names to values; None stands for not given.
    """
    # Here, since it opens weight files of all formats: a help page does not.
    from vggfeat.network.weight_metadata import with_carried

    values = load_config(config) if config is not None else {}
    given = {
        name: plain_value(name, SETTINGS[name], value) if name in SETTINGS else value
        for name, value in flags.items()
        if value is not None
    }
    return Settings(**with_carried({**values, **given}))


def preset_text(name: str) -> str:
    """Return what the file of a preset says of it, its first comment, as one paragraph."""
    lines = _config_path(name).read_text(encoding="utf-8").splitlines()
    comments = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return " ".join(line.lstrip("# ") for line in comments)


def _config_path(name: str) -> Path:
    if os.sep in name or name.endswith(".toml"):
        return Path(name)
    package = Path(__file__).parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / f"{name}.toml").is_file():
            return folder / f"{name}.toml"
    raise UsageError(unknown_value("config", (*PRESETS, "or the path of a .toml file"), name))
