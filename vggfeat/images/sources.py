"""List what the user names, folders, files, archives, lists and buckets, as one `ImageList`."""

from __future__ import annotations

import logging
import os
import stat
import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, BinaryIO

from vggfeat.core import activity
from vggfeat.core.file_types import MEMBER_MARK, archive_suffix
from vggfeat.core.path_list import LOOKED_AT, check_beginning, read_paths
from vggfeat.core.text import counted, first_few, quoted
from vggfeat.errors import DecodeError, InputError, UsageError, VggfeatError
from vggfeat.images.archives import Listing, list_archive, with_members
from vggfeat.images.buckets import find_objects
from vggfeat.images.folders import FolderWalk
from vggfeat.images.image_list import FileList, ImageList, sorted_order, taken_in_order
from vggfeat.images.skipped import (
    HIDDEN_FOLDER,
    HIDDEN_IMAGE,
    NOT_REGULAR,
    UNSAFE_NAME,
    hidden_text,
    member_name,
)
from vggfeat.storage.foreign_files import MOST_BYTES, open_foreign, read_bounded
from vggfeat.storage.locks import refuse_open_lock
from vggfeat.storage.object_store import read_object
from vggfeat.storage.paths import local_path, path_text, remote_scheme

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


_HIDDEN = (HIDDEN_IMAGE, HIDDEN_FOLDER)

log = logging.getLogger("vggfeat")


def discover(
    sources: Sequence[str | os.PathLike[str]],
    *,
    root: str | None = None,
    stdin: BinaryIO | None = None,
) -> ImageList:
    """List the images that `sources` name.

    In folders, names with a leading dot are skipped, links are followed, each real folder is read
    once, and archives are not looked into. A list whose data holds a NUL byte is separated by NULs,
    else by line ends, and may have comments; see `core.path_list.read_paths`. Its relative paths
    start at the current directory; those that do not exist stay, with size 0, to become failed
    rows.

    Args:
        sources: each a folder, read with all below it; a tar or zip archive; any other file, taken
            whatever its extension; `ARCHIVE!MEMBER`, one member of an archive; `@LIST`, a file with
            a path a line; or `-`, such a list from standard input. A file called `-` or `@x` is
            `./-` or `./@x`, or a `Path`, which is never taken for a list. Each may be a `file:`
            address. Or addresses of folders and objects in one object store, such as
            `s3://bucket/folder`.
        root: what paths are made relative to; by default the one folder named, or what all folders
            and files have in common.
        stdin: used in place of standard input.

    Raises:
        InputError: a source is missing or cannot be read, an archive is damaged, a path is outside
            `root`, or there is not one image.
        UsageError: a list is no list of paths; sources are of several stores, or a store's package
            is not installed.
    """
    activity.begins("listing images")
    named = _read_names(sources, stdin)
    root = None if root is None else local_path(root)
    if named.addresses or named.objects:
        return _discover_objects(named, sources, root)
    walk = FolderWalk()
    walk.read(named.folders)
    if walk.unreadable:
        raise InputError(
            f"cannot read {first_few(walk.unreadable)}; every folder must be readable, or images "
            "would be missing from the file"
        )
    found = walk.found.extended(named.files)
    listings = _list_archives(named)
    skipped = sum((listing.skipped for listing in listings), walk.skipped)
    if not len(found) and not any(listing.names for listing in listings):
        raise InputError(_nothing_found(sources, skipped))
    base = _common_root(named) if root is None else _absolute(os.fsencode(root))
    return _image_list(found, listings, base, dict(sorted(skipped.items())))


def log_skipped(images: ImageList) -> None:
    """Log what was skipped in folders, archives and object stores."""
    hidden = hidden_text(images.skipped)
    others = {kind: n for kind, n in images.skipped.items() if kind not in _HIDDEN}
    if others:
        kinds = ", ".join(f"{kind or 'no extension'} {n}" for kind, n in others.items())
        total = sum(others.values())
        what = "that is not an image" if total == 1 else "that are not images"
        log.info("skipped %s %s: %s", counted(total, "file"), what, kinds)
    if hidden:
        log.info("skipped %s; name them as sources to take them", hidden)


def _discover_objects(
    named: _Named, sources: Sequence[str | os.PathLike[str]], root: str | None
) -> ImageList:
    local = sorted({*named.folders, *named.files, *named.whole, *named.wanted})
    if local:
        raise UsageError(
            f"sources are both in an object store and here ({first_few(map(quoted, local))}); "
            "make a cache of each, and merge them"
        )
    objects = find_objects(named.addresses, named.objects)
    if not len(objects.found):
        raise InputError(_nothing_found(sources, objects.skipped))
    base = objects.root if root is None else os.fsencode(root.rstrip("/"))
    return _image_list(objects.found, [], base, dict(sorted(objects.skipped.items())))


def _image_list(
    found: FileList,
    listings: Sequence[Listing],
    root: bytes,
    skipped: Mapping[str, int],
) -> ImageList:
    """Sort rows by their absolute paths, and make the paths relative to `root`."""
    paths, facts = found.paths, found.facts()  # (N,), (N, 2)
    places = None
    if listings:
        paths, facts, places = with_members(paths, facts, listings)
    prefix = root if root.endswith(b"/") else root + b"/"
    outside = sorted(path for path in paths if not path.startswith(prefix))
    if outside:
        raise InputError(
            f"not below root {os.fsdecode(root)!r}: {first_few(map(quoted, outside))}; name a "
            "root that holds all images, or leave it out"
        )
    activity.begins(f"listing images: {len(paths)}")
    order = sorted_order(paths)
    return ImageList(
        root=root,
        paths=taken_in_order(paths, order, len(prefix)),
        sizes=facts[order, 0],
        mtimes=facts[order, 1],
        skipped=skipped,
        places=None if places is None else replace(places, table=places.table[order]),
    )


def _list_archives(named: _Named) -> list[Listing]:
    """List all archives that are named, or whose members are."""
    listings, broken = [], []
    for path in sorted({*named.whole, *named.wanted}):
        whole = path in named.whole
        try:
            listing = list_archive(path, whole=whole, wanted=named.wanted.get(path, frozenset()))
        except VggfeatError:
            raise
        except OSError as error:
            broken.append(f"{quoted(path)} ({error.strerror or error})")
            continue
        if whole and listing.damage:
            broken.append(
                f"{quoted(path)} ({listing.damage}; {counted(len(listing.names), 'image')} before)"
            )
        listings.append(listing)
    if broken:
        raise InputError(
            f"cannot read {first_few(broken)}; every archive must be whole, or images would be "
            "missing from the file; fetch it again, or list the members you want as ARCHIVE!MEMBER"
        )
    return listings


@dataclass(slots=True)
class _Named:
    """What the sources name: absolute paths, and addresses in object stores.

    Attributes:
        folders: to walk.
        files: with size and time.
        whole: archives of which all images are meant.
        wanted: archive → plain names of the members that are meant.
        addresses: in object stores, of folders or objects that must exist.
        objects: addresses from lists, which need not exist.
        missing: sources that were not found, each with its reason.
    """

    folders: set[bytes] = field(default_factory=set)
    files: FileList = field(default_factory=FileList)
    whole: set[bytes] = field(default_factory=set)
    wanted: dict[bytes, set[bytes]] = field(default_factory=dict)
    addresses: list[str] = field(default_factory=list)
    objects: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def add(self, path: bytes, *, listed: bool) -> None:
        """File `path` under one of the attributes; a path from a list need not exist."""
        if remote_scheme(path):
            (self.objects if listed else self.addresses).append(os.fsdecode(path))
            return
        where = _absolute(path)
        try:
            status = os.stat(where)
        except OSError as error:
            archive, name = _split_member(where)
            if name:
                self.wanted.setdefault(archive, set()).add(name)
            elif listed:
                self.files.add(where, 0, 0)
            else:
                self.missing.append(f"{quoted(path)} ({error.strerror})")
            return
        if stat.S_ISDIR(status.st_mode):
            self.folders.add(where)
        elif stat.S_ISREG(status.st_mode) and archive_suffix(where):
            self.whole.add(where)
        else:
            self.files.add(where, status.st_size, status.st_mtime_ns)


def _split_member(path: bytes) -> tuple[bytes, bytes]:
    """Split `path` into an existing archive and a member's plain name, else into b"" twice."""
    at = path.find(MEMBER_MARK)
    while at >= 0:
        archive = path[:at]
        if archive_suffix(archive) and os.path.isfile(archive):
            return archive, member_name(path[at + 1 :])
        at = path.find(MEMBER_MARK, at + 1)
    return b"", b""


def _read_names(sources: Sequence[str | os.PathLike[str]], stdin: BinaryIO | None) -> _Named:
    named = _Named()
    for source in sources:
        text = os.fspath(source)
        if isinstance(source, str) and (text == "-" or text.startswith("@")):
            name = "the list on standard input" if text == "-" else f"list {text[1:]!r}"
            try:
                data = _list_data(text, name, stdin)
            except (OSError, DecodeError) as error:
                named.missing.append(f"{text!r} ({getattr(error, 'strerror', None) or error})")
                continue
            for path in read_paths(data, name, os.path.lexists, local_path):
                named.add(path, listed=True)
        elif text:
            named.add(os.fsencode(path_text(source)), listed=False)
        else:  # probably an unset shell variable, hardly the current directory
            named.missing.append("'' (an empty name)")
    if named.missing:
        raise InputError(
            f"cannot find {first_few(named.missing)}; expected folders, image files, archives, "
            "@LIST or -"
        )
    return named


def _list_data(text: str, name: str, stdin: BinaryIO | None) -> bytes:
    """Return the whole of the list that `text` names, `-` or `@LIST`."""
    if text == "-":
        return _bounded(_stdin(stdin), name)
    path = local_path(text[1:])
    if remote_scheme(path):
        return read_object(path)
    refuse_open_lock(path, "list")
    with open_foreign(path, most=MOST_BYTES["list"], pipes="named") as stream:
        return _bounded(stream, name)


def _bounded(stream: BinaryIO, name: str) -> bytes:
    # What has no end, as `cat /dev/zero` has none, is refused by its beginning.
    start = stream.tell() if stream.seekable() else None
    beginning = stream.read(LOOKED_AT)
    check_beginning(beginning, name, os.path.lexists)
    if start is None:
        return read_bounded(stream, MOST_BYTES["list"], beginning=beginning)
    size = stream.seek(0, os.SEEK_END) - start
    stream.seek(start)
    return read_bounded(stream, MOST_BYTES["list"], size)


def _stdin(given: BinaryIO | None) -> BinaryIO:
    stream: BinaryIO | None = given or getattr(sys.stdin, "buffer", None)
    if stream is None:  # as some daemons start their children
        raise OSError("standard input is closed")
    return stream


def _absolute(path: bytes) -> bytes:
    # POSIX lets two leading slashes mean something else than one; Linux does not.
    return b"/" + os.path.abspath(path).lstrip(b"/")


def _common_root(named: _Named) -> bytes:
    lone = (*named.files, *named.whole, *named.wanted)
    parents = {os.path.dirname(path) for path in lone}
    return os.path.commonpath([*named.folders, *parents])


def _nothing_found(sources: Sequence[str | os.PathLike[str]], skipped: Mapping[str, int]) -> str:
    where = first_few(repr(os.fspath(source)) for source in sources) or "no sources"
    if not skipped:
        return f"no images in {where}; expected folders, image files, archives, @LIST or -"
    hidden = hidden_text(skipped)
    skipped = {kind: count for kind, count in skipped.items() if kind not in _HIDDEN}
    if not skipped:
        return f"no images in {where} but {hidden}; name them as sources to take them"
    order = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    kinds = first_few(f"{count} {_kind(kind)}" for kind, count in order)
    total = sum(skipped.values())
    suffixes = [kind for kind, _ in order if archive_suffix(b"." + os.fsencode(kind))]
    hints = []
    if suffixes:
        hints.append(f"archives are read where they are named themselves (DIR/*.{suffixes[0]})")
    if len(suffixes) < len(order):
        hints.append("name them in an @LIST to take them all the same")
    if hidden:
        hints.append(f"{hidden} skipped too; name them as sources to take them")
    return (
        f"no images in {where}; {counted(total, 'file')} skipped because of the extension "
        f"({kinds}); " + "; ".join(hints)
    )


def _kind(key: str) -> str:
    if key in (NOT_REGULAR, UNSAFE_NAME):
        return key
    return f".{key}" if key else "without"
