"""Libraries that only some features need, and that the plain installation lacks."""

from __future__ import annotations

import importlib
from typing import Any

from vggfeat.errors import UsageError, VggfeatError


def require(
    module: str,
    extra: str,
    what: str,
    package: str = "",
    *,
    error: type[VggfeatError] = UsageError,
) -> Any:
    """Import a library that is installed with an extra of this package.

    Args:
        module: e.g. `matplotlib.figure`.
        extra: that installs it, e.g. `plot`; empty where none does.
        what: needs it, for the error message, e.g. "a chart".
        package: its name in the registry, where the module has another one.
        error: raised if it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as cause:
        package = package or module.partition(".")[0]
        wanted = f"'vggfeat[{extra}]'" if extra else package
        raise error(f"{what} needs {package} ({cause}): pip install {wanted}") from cause
