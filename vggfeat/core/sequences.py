"""One value where several may be given."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any


def as_tuple(given: Any) -> tuple[Any, ...]:
    """Return one value or several as a tuple; a text, a path or a number is one by itself."""
    if isinstance(given, (str, bytes, os.PathLike)) or not isinstance(given, Iterable):
        return (given,)
    return tuple(given)
