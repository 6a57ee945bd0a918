"""The blocks of our pages, as a reader would run them."""

from __future__ import annotations

import re

from places import REPOSITORY


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of that language."""
    text = (REPOSITORY / page).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)
