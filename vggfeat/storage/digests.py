"""SHA-256 of large files, remembered so that each is read once."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

from vggfeat.core import activity
from vggfeat.core.resources import user_cache
from vggfeat.errors import UsageError, WeightsError
from vggfeat.storage.atomic import write_bytes
from vggfeat.storage.checked_file import FileDigest, digest_file
from vggfeat.storage.foreign_files import parse_json, read_foreign

if TYPE_CHECKING:
    from collections.abc import Mapping

_ATTEMPTS = 3
_LARGEST_MEMORY = 1 << 26  # bytes of the file that digests are remembered in


def file_digests(path: str) -> FileDigest:
    """Return the digests of a file, remembered by path, size, times and inode.

    A remembered digest may be outdated where a file system's clock is coarse: whoever reads the
    file checks its pieces, and calls `forget_digest` when they differ. Raises WeightsError if the
    file cannot be read, or changes while it is.
    """
    path = os.path.realpath(path)
    memory = _digest_memory()
    try:
        stamp = _stamp(path)
        remembered = _remembered(memory, path, stamp)
        if remembered is not None:
            return remembered
        activity.begins(f"reading {os.path.basename(path)}")  # once; its digest is remembered
        for _ in range(_ATTEMPTS):
            digest, before = digest_file(path), stamp
            stamp = _stamp(path)
            if stamp == before:
                break
        else:
            raise WeightsError(
                f"weights file {path!r} is being written: it changed each of {_ATTEMPTS} times it "
                "was read; wait until it is whole and run again"
            )
    except OSError as error:
        raise WeightsError(f"weights file {path!r} cannot be read: {error.strerror}") from error
    entry = {"stamp": stamp, "crc32": list(digest.pieces), "sha256": digest.sha256}
    _remember(memory, path, entry)
    return digest


def forget_digest(path: str) -> None:
    """Have the file read again by the next `file_digests`."""
    _remember(_digest_memory(), os.path.realpath(path), None)


def _stamp(path: str) -> list[int]:
    # The time of change too: `cp -p`, rsync and touch set the time of modification as they like.
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _remembered(memory: str | None, path: str, stamp: list[int]) -> FileDigest | None:
    entry = _read_memory(memory).get(path)
    if not isinstance(entry, dict) or entry.get("stamp") != stamp:  # earlier versions kept lists
        return None
    sha256, pieces = entry.get("sha256"), entry.get("crc32")
    if not isinstance(sha256, str) or not isinstance(pieces, list):
        return None
    return FileDigest(sha256, stamp[0], tuple(pieces))


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
        known = parse_json(read_foreign(path, _LARGEST_MEMORY))
    except (OSError, ValueError):
        return {}  # the file only saves time
    return known if isinstance(known, dict) else {}


def _remember(memory: str | None, path: str, entry: dict[str, Any] | None) -> None:
    known = _read_memory(memory)
    known.pop(path, None)
    _write_memory(memory, known if entry is None else {**known, path: entry})


def _write_memory(path: str | None, known: Mapping[str, Any]) -> None:
    if path is None:
        return
    with contextlib.suppress(OSError):  # a home that is not writable costs time, not the run
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_bytes(path, json.dumps(known).encode())
