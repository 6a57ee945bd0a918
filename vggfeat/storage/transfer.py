"""Copy whole files to and from object stores, and check each copy."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
from typing import TYPE_CHECKING, Any

from vggfeat.core.text import byte_count, counted
from vggfeat.errors import InputError, SpaceError, VggfeatError
from vggfeat.storage.atomic import atomic_path
from vggfeat.storage.object_store import RemoteEntry, RemoteError, explained, file_system, look_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_BLOCK = 1 << 24

log = logging.getLogger("vggfeat")


def download_object(entry: RemoteEntry, path: str) -> None:
    """Fetch an object into the file `path`, which appears whole or not at all.

    Args:
        entry: the object as it was looked up; raises InputError if it cannot be fetched or has
            changed.
        path: the file; its folder is created. Raises SpaceError if there is no room.
    """
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _check_room(entry, path)
        log.info("fetching %s, %s", entry.address, byte_count(entry.size))
        with atomic_path(path) as temporary:
            with _as_input_error(entry.address), explained():
                file_system(entry.address).get_file(entry.address, temporary)
            _check_same(entry, temporary)
    except VggfeatError:
        raise
    except OSError as error:
        raise SpaceError(
            error.errno, f"{entry.address} cannot be stored at {path!r}: {error.strerror or error}"
        ) from error


def _check_room(entry: RemoteEntry, path: str) -> None:
    free = shutil.disk_usage(os.path.dirname(path)).free
    if entry.size > free:
        raise SpaceError(
            f"{entry.address} has {byte_count(entry.size)}, the disk at {path!r} has "
            f"{byte_count(free)} free; make room, or set XDG_CACHE_HOME or --scratch elsewhere"
        )


def _check_same(entry: RemoteEntry, temporary: str) -> None:
    with _as_input_error(entry.address):
        now = look_up(entry.address)
    size = os.stat(temporary).st_size
    if now is None or now.tag != entry.tag or now.size != entry.size:
        raise InputError(f"{entry.address!r} was replaced while it was fetched; run again")
    if size != now.size:
        raise InputError(
            f"{entry.address!r} cannot be fetched: {counted(size, 'byte')} came of an object of "
            f"{now.size} bytes that has not changed; does a proxy answer in place of the store?"
        )


@contextlib.contextmanager
def _as_input_error(address: str) -> Iterator[None]:
    try:
        yield
    except RemoteError as error:
        raise InputError(f"{address!r} cannot be fetched: {error}") from error


def upload(path: str, address: str) -> RemoteEntry:
    """Put the file `path` at `address`, read it back, and compare the digests.

    A store shows the object whole or not at all. Large files are uploaded in parts, several at
    once. Raises SpaceError unless it reads back as it was put.

    Returns:
        the object as it now exists.
    """
    log.info("uploading %s to %s", byte_count(os.stat(path).st_size), address)
    with open(path, "rb") as file:
        digest = _digest_of(lambda _: file.read(_BLOCK))
    try:
        system = file_system(address)
        with explained():
            system.put_file(path, address)
            found = _digest_of(lambda at: _range(system, address, at, os.stat(path).st_size))
        entry = look_up(address)
    except RemoteError as error:
        raise SpaceError(
            f"{address!r} cannot be written: {error}; the file is at {path!r}, and "
            "the same command resumes with it"
        ) from error
    if entry is None or found != digest:
        raise SpaceError(
            f"{address!r} reads back with SHA-256 {found[:8]}…, expected {digest[:8]}…; was it "
            f"written by others meanwhile? The file is at {path!r}; run again"
        )
    return entry


def _range(system: Any, address: str, at: int, size: int) -> bytes:
    end = min(size, at + _BLOCK)
    data: bytes = system.cat_file(address, start=at, end=end) if at < end else b""
    return data


def _digest_of(block_at: Callable[[int], bytes]) -> str:
    digest, at = hashlib.sha256(), 0
    while block := block_at(at):
        digest.update(block)
        at += len(block)
    return digest.hexdigest()
