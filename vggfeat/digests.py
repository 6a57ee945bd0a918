"""SHA-256 of large files, remembered so that each is read once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

from vggfeat.errors import UsageError, WeightsError
from vggfeat.machine import user_cache
from vggfeat.storage.atomic import write_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping


def file_digest(path: str) -> str:
    """SHA-256 of a file, remembered by path, size and time so that a large one is read once.

    Raises:
        WeightsError: the file cannot be read.
    """
    path = os.path.realpath(path)
    try:
        status = os.stat(path)
        stamp = [status.st_size, status.st_mtime_ns, status.st_ino]
        memory = _digest_memory()
        known = _read_memory(memory)
        entry = known.get(path)
        if isinstance(entry, list) and entry[:-1] == stamp:
            return str(entry[-1])
        digest = _digest_of(path)
    except OSError as error:
        raise WeightsError(f"weights file {path!r} cannot be read: {error.strerror}") from error
    _write_memory(memory, {**known, path: [*stamp, digest]})
    return digest


def _digest_of(path: str) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _digest_memory() -> str | None:
    """Return the file that digests are remembered in; None where this user has no place for it."""
    try:
        return os.path.join(user_cache(), "vggfeat", "digests.json")
    except UsageError:
        return None


def _read_memory(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            known = json.load(file)
    except (OSError, ValueError):
        return {}  # it only saves time
    return known if isinstance(known, dict) else {}


def _write_memory(path: str | None, known: Mapping[str, Any]) -> None:
    if path is None:
        return
    with contextlib.suppress(OSError):  # a home that cannot be written to costs time, not the run
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_bytes(path, json.dumps(known).encode())
