"""Libraries that only some features need, and that the plain installation lacks."""

from __future__ import annotations

import importlib
from typing import Any

from vggfeat.errors import UsageError


def require(module: str, extra: str, what: str, package: str = "") -> Any:
    """Import a library that is installed with an extra of this package.

    Args:
        module: e.g. `matplotlib.figure`.
        extra: that installs it, e.g. `plot`.
        what: needs it, for the error message, e.g. "a chart".
        package: its name in the registry, where the module has another one.

    Raises:
        UsageError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"{what} needs {package or module.partition('.')[0]} ({error}): "
            f"pip install 'vggfeat[{extra}]'"
        ) from error
