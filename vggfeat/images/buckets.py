"""List the images below addresses of object stores."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from vggfeat.core.file_types import IMAGE_EXTENSIONS, archive_suffix, extension
from vggfeat.core.text import first_few
from vggfeat.errors import InputError, UsageError
from vggfeat.images.image_list import FileList
from vggfeat.images.skipped import HIDDEN_FOLDER, HIDDEN_IMAGE, UNSAFE_NAME, member_name
from vggfeat.storage.object_store import RemoteEntry, RemoteError, list_folder, look_up
from vggfeat.storage.paths import remote_scheme

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_Answer = TypeVar("_Answer")

_REQUESTS_AT_ONCE = 16  # each mostly waits for the network


@dataclass(slots=True)
class Objects:
    """Images below addresses.

    Attributes:
        found: their addresses, sizes and times of last change.
        skipped: counts of objects skipped, by extension or reason.
        root: beginning that all addresses have in common.
    """

    found: FileList = field(default_factory=FileList)
    skipped: Counter[str] = field(default_factory=Counter)
    root: bytes = b""

    def take(self, entry: RemoteEntry) -> None:
        """Keep an object of a folder if its name is that of an image, else count it."""
        name = entry.address.rpartition("/")[2].encode(errors="surrogateescape")
        kind = extension(name)
        if not name:
            return
        if name.startswith(b"."):
            if kind in IMAGE_EXTENSIONS:
                self.skipped[HIDDEN_IMAGE] += 1
            return
        if kind in IMAGE_EXTENSIONS:
            self.add(entry)
        else:
            self.skipped[os.fsdecode(archive_suffix(name) or kind)] += 1

    def add(self, entry: RemoteEntry) -> None:
        """Keep an object whatever its name."""
        address = entry.address.encode(errors="surrogateescape")
        self.found.add(address, entry.size, entry.mtime_ns)


def find_objects(named: Sequence[str], listed: Sequence[str]) -> Objects:
    """List the images below addresses of one object store.

    Args:
        named: of folders, read with all below them, or of objects; raises InputError if one is
            missing, denied or an archive.
        listed: of objects; one that does not exist gets size 0, to become a failed row.
    """
    schemes = {remote_scheme(address) for address in (*named, *listed)}
    if len(schemes) > 1:
        raise UsageError(
            f"sources are of several stores ({', '.join(sorted(schemes))}); one run reads one "
            "store: make a cache of each, and merge them"
        )
    objects = Objects()
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        folders, lone = _sort(pool, named)
        for entry in lone:
            objects.add(entry)
        for address, found in zip(listed, _look_up_all(pool, listed), strict=True):
            size, time = (found.size, found.mtime_ns) if found and not found.folder else (0, 0)
            objects.found.add(os.fsencode(address), size, time)
        _walk(pool, folders, objects)
    objects.root = _common_root(schemes.pop(), folders, [*listed, *(one.address for one in lone)])
    return objects


def _sort(pool: ThreadPoolExecutor, named: Sequence[str]) -> tuple[list[str], list[RemoteEntry]]:
    """Split addresses that must exist into folders and single objects."""
    folders, lone, missing, archives = [], [], [], []
    plain = [address.rstrip("/") for address in named]
    for address, found in zip(plain, _look_up_all(pool, plain), strict=True):
        if found is None:
            missing.append(repr(address))
        elif found.folder:
            folders.append(address)
        elif archive_suffix(os.fsencode(address)):
            archives.append(repr(address))
        else:
            lone.append(found)
    if missing:
        raise InputError(
            f"cannot find {first_few(missing)}; expected folders or objects of a bucket, each with "
            "something below it"
        )
    if archives:
        raise InputError(
            f"archives are not read in object stores: {first_few(archives)}; copy them here, or "
            "unpack them there"
        )
    return folders, lone


def _look_up_all(
    pool: ThreadPoolExecutor, addresses: Sequence[str]
) -> Iterable[RemoteEntry | None]:
    return pool.map(lambda address: _ask(look_up, address), addresses)


def _walk(pool: ThreadPoolExecutor, folders: Iterable[str], objects: Objects) -> None:
    """Take the images below folders, one level after the other."""
    waiting = sorted(set(folders))
    seen = set(waiting)
    while waiting:
        below: set[str] = set()
        for entries in pool.map(lambda folder: _ask(list_folder, folder), waiting):
            for entry in entries:
                if not entry.folder and entry.address.endswith("/"):
                    continue  # an object by which consoles show an empty folder
                name = entry.address.partition("://")[2].encode(errors="surrogateescape")
                # No path of a file has a part that is empty, `.` or `..`.
                if member_name(name) != name:
                    objects.skipped[UNSAFE_NAME] += 1
                elif not entry.folder:
                    objects.take(entry)
                elif entry.address.rpartition("/")[2].startswith("."):
                    objects.skipped[HIDDEN_FOLDER] += 1
                else:
                    below.add(entry.address)
        waiting = sorted(below - seen)
        seen |= below


def _ask(question: Callable[[str], _Answer], address: str) -> _Answer:
    try:
        return question(address)
    except RemoteError as error:
        raise InputError(
            f"cannot list {address!r}: {error}; check the name, and the credentials and the "
            "endpoint that the environment names"
        ) from error


def _common_root(scheme: str, folders: Iterable[str], lone: Iterable[str]) -> bytes:
    parents = [address.rpartition("/")[0] for address in lone]
    names = [address.partition("://")[2] for address in (*folders, *parents)]
    return f"{scheme}://{os.path.commonpath(names)}".encode(errors="surrogateescape")
