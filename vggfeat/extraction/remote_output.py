"""Outputs in object stores: made on this machine, uploaded when complete, resumed from the store.

An object cannot be written in part. So a run works on a local file, which survives a kill as any
cache does, and uploads it once no row is pending. Of a sharded output each shard is uploaded by
itself while others are in progress, and the manifest last: readers see the whole cache or none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vggfeat.cache.format import RowState
from vggfeat.cache.reader import FeatureCache
from vggfeat.cache.shard_manifest import MANIFEST, is_ours, read_manifest
from vggfeat.core.resources import user_cache
from vggfeat.core.text import counted
from vggfeat.errors import (
    CacheError,
    CacheMismatchError,
    InterruptedRunError,
    SpaceError,
    TooManyFailuresError,
    UsageError,
    VggfeatError,
)
from vggfeat.images.skipped import member_name
from vggfeat.storage.atomic import write_bytes
from vggfeat.storage.foreign_files import MOST_BYTES, parse_json, read_foreign
from vggfeat.storage.locks import hold
from vggfeat.storage.object_store import (
    RemoteEntry,
    RemoteError,
    list_folder,
    look_up,
    remove_object,
)
from vggfeat.storage.paths import remote_scheme
from vggfeat.storage.transfer import download_object, upload

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

    from vggfeat.core.records import Summary

_LOOKED_EVERY_SECONDS = 5.0
_LAST_UPLOAD_SECONDS = 5.0
_SENDING = ""

log = logging.getLogger("vggfeat")


def scratch_place(address: str, scratch: str | None = None) -> str:
    """Return where the output at `address` is made: always the same local file or folder.

    It is in the folder `scratch`, by default one in the user's cache.
    """
    scheme, _, name = address.rstrip("/").partition("://")
    plain = name.encode(errors="surrogateescape")
    if "/" not in name or member_name(plain) != plain:
        raise UsageError(
            f"output {address!r} names no object; expected {scheme}://bucket/name.h5, without "
            "empty parts"
        )
    base = scratch or os.path.join(user_cache(), "vggfeat", "scratch")
    return os.path.join(os.path.abspath(base), remote_scheme(address), name)


def extract_to_store(
    address: str,
    work: str,
    extract_here: Callable[[], Summary],
    *,
    sharded: bool,
    fresh: bool,
) -> Summary:
    """Run `extract_here` with `work` as its output, and upload that to `address` when complete.

    What lies at `address` is downloaded first where `work` does not exist or is older, unless the
    run begins `fresh`. `work` is a file or a folder of shards, see `scratch_place`. The summary has
    `address` for its output. Too many failed images are an error only after the upload.
    """
    try:
        os.makedirs(os.path.dirname(work), exist_ok=True)
    except OSError as error:
        raise SpaceError(
            error.errno, f"scratch folder for {address!r} cannot be made: {error}"
        ) from error
    with hold(f"{work}.store"):
        output = _Output(address.rstrip("/"), work, sharded=sharded)
        output.find_stored()
        if not fresh:
            output.take_what_is_newer()
        try:
            with _Uploader(output):
                summary = extract_here()
        except TooManyFailuresError:
            output.put_what_is_complete()
            raise
        output.put_what_is_complete()
    return dataclasses.replace(summary, out=address)


@dataclass(frozen=True, slots=True)
class _Stamp:
    """When a file and its object were one: the store's mark of it, the file's size and time.

    While the file is being put there the mark is `_SENDING`.
    """

    tag: str
    size: int
    mtime_ns: int


@dataclass(slots=True)
class _Output:
    """One output, local and in the store: its files by name, one file or a manifest and shards."""

    address: str
    work: str
    sharded: bool
    stored: dict[str, RemoteEntry] = field(default_factory=dict)
    _stamps: dict[str, _Stamp] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            found = parse_json(read_foreign(f"{self.work}.stored", MOST_BYTES["manifest"]))
            self._stamps = {name: _Stamp(**stamp) for name, stamp in found.items()}

    @property
    def anchor(self) -> str:
        """The file whose object decides what the output is: the manifest, or the only one."""
        return MANIFEST if self.sharded else os.path.basename(self.work)

    def path(self, name: str) -> str:
        """Return the local path of one of its files."""
        return os.path.join(self.work, name) if self.sharded else self.work

    def _address(self, name: str) -> str:
        return f"{self.address}/{name}" if self.sharded else self.address

    def find_stored(self) -> None:
        """Ask the store which files of the output it has."""
        try:
            there = look_up(self.address)
            if there is not None and there.folder != self.sharded:
                found, requested = ("folder", "file") if there.folder else ("file", "folder")
                raise UsageError(
                    f"output {self.address!r} is a {found} in the store, requested as a "
                    f"{requested}; end a folder's address in a slash, or choose another --out"
                )
            below = list_folder(self.address) if there and self.sharded else [there]
        except RemoteError as error:
            raise SpaceError(
                f"output {self.address!r} cannot be reached: {error}; look at its name, and at the "
                "credentials and the endpoint that the environment names"
            ) from error
        files = [one for one in below if one is not None and not one.folder]
        names = {one.address.rpartition("/")[2]: one for one in files}
        self.stored = {
            name: one for name, one in names.items() if is_ours(name) or not self.sharded
        }

    def is_stored(self, name: str) -> bool:
        """Return whether a local file is as it was when it was uploaded or downloaded."""
        try:
            status = os.stat(self.path(name))
        except FileNotFoundError:
            return False
        known = self._stamps.get(name)
        if known is None or known.tag == _SENDING:
            return False
        return (known.size, known.mtime_ns) == (status.st_size, status.st_mtime_ns)

    def _stamp(self, name: str, tag: str) -> None:
        status = os.stat(self.path(name))
        self._stamps[name] = _Stamp(tag, status.st_size, status.st_mtime_ns)
        plain = {one: dataclasses.asdict(stamp) for one, stamp in self._stamps.items()}
        write_bytes(f"{self.work}.stored", json.dumps(plain).encode())

    def take_what_is_newer(self) -> None:
        """Download the files of the store where they are not those that were uploaded last."""
        there, known = self.stored.get(self.anchor), self._stamps.get(self.anchor)
        here = os.path.exists(self.path(self.anchor))
        if there is None or (here and known is not None and known.tag in (there.tag, _SENDING)):
            return
        if here and not all(self.is_stored(name) for name in self._names_here()):
            raise CacheMismatchError(
                f"{self.address!r} is another one than that which the unfinished run at "
                f"{self.work!r} began with; delete that to resume from what is stored now, "
                "choose another --out, or --fresh to begin again"
            )
        os.makedirs(os.path.dirname(self.path(self.anchor)), exist_ok=True)
        for name in sorted(self.stored, key=lambda name: name == self.anchor):  # that one last
            known = self._stamps.get(name)
            if not (self.is_stored(name) and known and known.tag == self.stored[name].tag):
                download_object(self.stored[name], self.path(name))
                self._stamp(name, self.stored[name].tag)

    def _names_here(self) -> list[str]:
        if not self.sharded:
            return [self.anchor]
        shards = read_manifest(self.work).shards
        return [MANIFEST, *(shard.name for shard in shards if shard.name)]

    def put(self, name: str) -> None:
        """Upload a file unless the store has it as it is."""
        if not self.is_stored(name):
            # Killed from here on, what lies there is ours, or what ours was to take the place of.
            self._stamp(name, _SENDING)
            self.stored[name] = upload(self.path(name), self._address(name))
            self._stamp(name, self.stored[name].tag)

    def is_complete(self, name: str) -> bool:
        """Return whether no row of a file is pending."""
        return not (FeatureCache(self.path(name)).state == RowState.PENDING).any()

    def put_what_is_complete(self) -> None:
        """Upload what is left at the end of a run; a manifest once all its shards are complete."""
        if not os.path.exists(self.path(self.anchor)):
            return
        names = self._names_here()
        files = [name for name in names if name != MANIFEST]
        complete = [name for name in files if self.is_stored(name) or self.is_complete(name)]
        for name in complete:
            self.put(name)
        if len(complete) < len(files):
            what = (
                f"{len(files) - len(complete)} of {counted(len(files), 'shard')}"
                if self.sharded
                else "it"
            )
            log.warning(
                "%s is not uploaded yet: %s has images left to do; what is done is kept at %s",
                self.address, what, self.work,
            )  # fmt: skip
            return
        self.put(self.anchor)
        for name in sorted(set(self.stored) - set(names)):  # of plans before
            with contextlib.suppress(RemoteError):
                remove_object(self._address(name))


class _Uploader(threading.Thread):
    """Upload each shard as soon as it is complete, in a thread beside the run that makes them.

    A failed upload is logged and repeated at the end of the run, whose error it then is.
    """

    def __init__(self, output: _Output) -> None:
        super().__init__(name="vggfeat-upload", daemon=True)
        self._output = output
        self._over = threading.Event()
        self._seen: dict[str, int] = {}  # when an incomplete shard was last written

    def __enter__(self) -> Self:
        if self._output.sharded:
            self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        if self.is_alive():
            stopped = isinstance(error, InterruptedRunError | KeyboardInterrupt)
            self.join(_LAST_UPLOAD_SECONDS if stopped else None)

    def run(self) -> None:
        """Look for complete shards every few seconds."""
        while not self._over.wait(_LOOKED_EVERY_SECONDS):
            try:
                self._look()
            except CacheError:  # no plan yet
                continue
            except VggfeatError as error:
                log.warning("%s; it is tried again at the end", error)
                return

    def _look(self) -> None:
        for shard in read_manifest(self._output.work).shards:
            if self._over.is_set():
                return
            if not shard.name or self._output.is_stored(shard.name):
                continue
            written = os.stat(self._output.path(shard.name)).st_mtime_ns
            if self._seen.get(shard.name) == written:
                continue
            if self._output.is_complete(shard.name):
                self._output.put(shard.name)
            else:
                self._seen[shard.name] = written
