"""Python environments that have some distributions and what these require, and nothing else."""

from __future__ import annotations

import importlib.metadata
import sysconfig
import venv
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

if TYPE_CHECKING:
    from collections.abc import Iterable


def make_bare_environment(folder: Path, names: Iterable[str]) -> Path:
    """Make an environment in `folder` by links to what is installed here; return its Python."""
    venv.create(folder, symlinks=True)
    variables = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", scheme="posix_prefix", vars=variables))
    for name in required(names):
        distribution = importlib.metadata.distribution(name)
        for part in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            link = packages / part
            if not link.is_symlink():
                link.symlink_to(str(distribution.locate_file(part)))
    return folder / "bin" / "python"


def required(names: Iterable[str]) -> set[str]:
    """Distributions and all that they require on this machine, without extras."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for text in importlib.metadata.requires(name) or ():
            wanted = Requirement(text)
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                waiting.append(wanted.name)
    return found
