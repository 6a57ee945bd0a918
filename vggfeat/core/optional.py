"""Libraries that only some features need, and that the plain installation lacks."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import json
import os
from typing import Any
from urllib.parse import unquote, urlsplit

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
        remedy = install_command(extra) if extra else f"pip install {package}"
        raise error(f"{what} needs {package} ({cause}): {remedy}") from cause


def install_command(extra: str) -> str:
    """Return the command that installs an extra, from where this package was installed from."""
    return f"pip install '{_source().format(f'[{extra}]')}'"


@functools.cache
def _source() -> str:
    """Return what pip was told to install, with `{}` where extras go.

    An installation from a folder or a repository leaves `direct_url.json` (PEP 610): the registry
    may have another version by the same name, or none.
    """
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError, KeyError):
        recorded = importlib.metadata.distribution("vggfeat").read_text("direct_url.json")
        direct = json.loads(recorded or "{}")
        if "vcs_info" in direct:
            return f"vggfeat{{}} @ {direct['vcs_info']['vcs']}+{direct['url']}"
        folder = unquote(urlsplit(direct.get("url", "")).path)
        if "dir_info" in direct and os.path.isdir(folder):
            return folder.replace("{", "{{").replace("}", "}}") + "{}"
    return "vggfeat{}"
