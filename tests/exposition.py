"""Metrics files as Prometheus reads them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

LINE = re.compile(r'(vggfeat_\w+)\{((?:\w+="(?:[^"\\\n]|\\.)*",?)+)\} (\S+)')


def figures(path: Path) -> dict[tuple[str, str], float]:
    """Every sample of a metrics file by name and labels; a line of another form is an error."""
    found: dict[tuple[str, str], float] = {}
    typed: set[str] = set()
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# TYPE "):
            typed.add(line.split()[2])
        elif not line.startswith("# HELP "):
            match = LINE.fullmatch(line)
            assert match, line
            assert match[1] in typed
            found[match[1], match[2]] = float(match[3])
    return found
