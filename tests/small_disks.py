"""File systems of our own, mounted for a test."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def mounted(folder: Path, *words: str) -> Iterator[Path]:
    """A file system mounted at `folder`; skips where that may not be done."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", *words, str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def with_mount(mount: str, folder: Path) -> tuple[str, ...]:
    """Words in front of a command that runs it in mounts of its own; skips where these may not be.

    Args:
        mount: a shell command that mounts; `$PWD` is the folder.
        folder: where the command will be run.
    """
    wrapper = ("unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh")
    if (
        shutil.which("unshare") is None
        or subprocess.run(
            [*wrapper, "true"], cwd=folder, check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("mounting is not permitted here")
    return wrapper
