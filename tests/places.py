"""Where the checkout and what lies in it are, whatever folder a test is in."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = next(
    folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file()
)
TESTS = REPOSITORY / "tests"
DOCS = REPOSITORY / "docs"
