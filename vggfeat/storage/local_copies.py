"""Local copies of caches in object stores: fetched once, and again when they change."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from typing import TYPE_CHECKING

from vggfeat.core.resources import user_cache
from vggfeat.errors import InputError, SpaceError, VggfeatError
from vggfeat.storage.atomic import atomic_folder
from vggfeat.storage.locks import wait_for_lock
from vggfeat.storage.object_store import RemoteEntry, RemoteError, list_folder, look_up
from vggfeat.storage.paths import SHARD_MANIFEST
from vggfeat.storage.transfer import download_object

if TYPE_CHECKING:
    from collections.abc import Sequence

_KEPT_SECONDS = 86_400.0

log = logging.getLogger("vggfeat")


def mirror_folder() -> str:
    """Return the folder of fetched caches; its content may be deleted at any time."""
    return os.path.join(user_cache(), "vggfeat", "remote")


def local_copy(address: str) -> str:
    """Return a local copy of the cache at `address`: a file, or a folder of its shards.

    Each call checks whether the store still has the content that was fetched last. Older copies are
    deleted a day after they were last used: a program that has one open may read another layer of
    it at any time.
    """
    try:
        entry = look_up(address.rstrip("/"))
        if entry is not None and not entry.folder:
            return _file(entry)
        below = [] if entry is None else list_folder(address)
    except RemoteError as error:
        raise InputError(f"{address!r} cannot be opened: {error}") from error
    files = [one for one in below if not one.folder and not one.address.endswith("/")]
    if not files:
        raise InputError(
            f"{address!r} does not exist; expected a cache, FILE.h5 or a folder of them"
        )
    if not any(one.address.endswith(f"/{SHARD_MANIFEST}") for one in files):
        raise InputError(
            f"{address!r} is not a cache yet: it has no {SHARD_MANIFEST}, which is written last; "
            "wait for the run that writes it, or run it again"
        )
    return _folder(address.rstrip("/"), files)


def _key(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:20]


def _mark(entry: RemoteEntry) -> str:
    return f"{entry.tag} {entry.size} {entry.mtime_ns}"


def _file(entry: RemoteEntry) -> str:
    """Return the local copy of an object, whose path depends on its address and its content."""
    place = os.path.join(mirror_folder(), _key(entry.address))
    name = entry.address.rpartition("/")[2]
    path = os.path.join(place, _key(_mark(entry)), name)
    if _have(path):
        return path
    try:
        os.makedirs(place, exist_ok=True)
        with wait_for_lock(place, lambda: log.info("another run is fetching %s", entry.address)):
            if not os.path.exists(path):
                download_object(entry, path)
                _remove_others(place, os.path.dirname(path))
    except VggfeatError:
        raise
    except OSError as error:
        raise _no_room(entry.address, error) from error
    return path


def _folder(address: str, files: Sequence[RemoteEntry]) -> str:
    """Return a folder of links to the objects' own copies, so that an unchanged one is kept."""
    place = os.path.join(mirror_folder(), _key(address + "/"))
    marks = "\n".join(f"{one.address} {_mark(one)}" for one in files)
    path = os.path.join(place, _key(marks), address.rpartition("/")[2])
    if _have(path):
        return path
    copies = [_file(one) for one in files]
    try:
        os.makedirs(place, exist_ok=True)
        with wait_for_lock(place, lambda: log.info("another run is fetching %s", address)):
            if not os.path.exists(path):
                _link(copies, path)
                _remove_others(place, os.path.dirname(path))
    except OSError as error:
        raise _no_room(address, error) from error
    return path


def _link(copies: Sequence[str], path: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with atomic_folder(path) as folder:
        os.mkdir(folder)
        for copy in copies:
            os.link(copy, os.path.join(folder, os.path.basename(copy)))


def _no_room(address: str, error: OSError) -> SpaceError:
    return SpaceError(
        error.errno,
        f"{address!r} cannot be stored in {mirror_folder()!r}: {error.strerror or error}; set "
        "XDG_CACHE_HOME elsewhere",
    )


def _have(path: str) -> bool:
    """Return whether the copy exists, and if so record that it is in use."""
    try:
        os.utime(os.path.dirname(path))
    except OSError:
        return False
    return os.path.exists(path)


def _remove_others(place: str, kept: str) -> None:
    for name in os.listdir(place):
        other = os.path.join(place, name)
        if other != kept and time.time() - os.stat(other).st_mtime > _KEPT_SECONDS:
            shutil.rmtree(other, ignore_errors=True)
