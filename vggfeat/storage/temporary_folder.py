"""A folder for a while, which a Ctrl-C at any instant does not leave behind."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def temporary_folder(prefix: str, parent: str | None = None) -> Iterator[str]:
    """Make an empty folder, and remove it with all that it holds.

    `tempfile.TemporaryDirectory` leaves its folder if a signal arrives right after it is made; here
    the name is known before.

    Args:
        prefix: of its name.
        parent: folder in which it is made; by default the system's for temporary files.

    Raises:
        OSError: it cannot be made.
    """
    path = os.path.join(parent or tempfile.gettempdir(), f"{prefix}{secrets.token_hex(16)}")
    try:
        os.mkdir(path, 0o700)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
