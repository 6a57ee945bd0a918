"""The values of settings as Python has them, in the one form that is compared and recorded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vggfeat.core.held_weights import HeldWeights

if TYPE_CHECKING:
    from vggfeat.core.option import Option


def plain_value(name: str, option: Option, value: Any) -> Any:
    """Return the value of a setting as the command line has it; unchanged if it cannot be that.

    Lists, tuples, arrays and single numbers become comma separated text where the setting is such a
    text, paths their text, types and devices of torch and NumPy their names, NumPy's numbers
    Python's, and a state dict (or a module) the name of weights in memory, which keeps them.
    """
    if name == "weights":
        return _weights(value)
    value = _without_numpy(value)
    if option.kind is not str:
        return value
    if option.items is not None:
        return _listed(option.items, value)
    if type(value) is int and option.default is None:  # a count where a share may stand too
        return str(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else _named(value)


def _weights(value: Any) -> Any:
    if hasattr(value, "state_dict"):
        value = value.state_dict()
    if isinstance(value, Mapping):
        return HeldWeights(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _without_numpy(value: Any) -> Any:
    """Return a number or a list instead of an array, a tensor or NumPy's number."""
    has_values = hasattr(value, "tolist") and not isinstance(value, type)
    return value.tolist() if has_values else value


def _listed(kind: type[str | float], value: Any) -> Any:
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    items = [_named(_without_numpy(item)) for item in items]
    numbers = kind is float and all(type(item) in (int, float) for item in items)
    if numbers or all(isinstance(item, str) for item in items):
        return ",".join(map(str, items))
    return value


def _named(value: Any) -> Any:
    """Return the name of a type or device of torch or NumPy; anything else unchanged."""
    if isinstance(value, type) and value.__module__ == "numpy":
        return value.__name__
    if type(value).__name__ in ("dtype", "device") or type(value).__name__.endswith("DType"):
        return str(value).removeprefix("torch.")
    return value
