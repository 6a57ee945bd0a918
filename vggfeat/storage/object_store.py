"""Object stores by fsspec: look up addresses, list folders, read an object by one request.

A decoding process is forked from one that may have listed a bucket. fsspec's event loop runs in a
thread, which does not survive a fork, so every process has file systems of its own. It never closes
those that it inherited: their sockets are in an epoll set that it shares with its parent.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vggfeat.core.optional import require
from vggfeat.core.text import counted
from vggfeat.errors import DecodeError, InputError, UsageError
from vggfeat.storage.paths import remote_scheme

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGEST_OBJECT: Final = 2**30
"""Bytes of the largest image that is fetched; it is held in memory while it is decoded."""

_PACKAGES = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs")}  # with the extra that installs it
_ATTEMPTS = 5
_FIRST_PAUSE = 0.5  # seconds; each one after it is twice as long
_PATIENCE = 30.0
"""Seconds after which an image's request is not repeated: less than the default of
`--decode-timeout`, so that a store that does not answer ends the run and fails no image."""

_GONE = "no such object"
_MISSING, _DENIED, _AWAY, _CHANGED = "missing", "denied", "away", "changed"
_SECOND = 10**9
# Errors that concern one object, and not the store, the bucket or the credentials.
_OF_AN_OBJECT = ("NoSuchKey", "AccessDenied", "InvalidObjectState", "404", "403")
_NOT_ALLOWED = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")

_systems: dict[tuple[int, str, bool], Any] = {}


class RemoteError(Exception):
    """A request that failed; its text is the reason.

    Attributes:
        kind: `missing`, `denied`, `away` or `changed`.
        of_object: whether the failure concerns this object alone.
    """

    def __init__(self, reason: str, kind: str, *, of_object: bool) -> None:
        super().__init__(reason)
        self.kind = kind
        self.of_object = of_object


@dataclass(frozen=True, slots=True)
class RemoteEntry:
    """What exists at an address.

    Attributes:
        address: with its scheme.
        folder: whether it is a common beginning of names and no object.
        size: bytes, 0 of a folder.
        mtime_ns: time of last change in nanoseconds since 1970, whole seconds; 0 of a folder.
        tag: the store's own mark of this content, else its size and time.
    """

    address: str
    folder: bool
    size: int
    mtime_ns: int
    tag: str


def file_system(address: str, *, patient: bool = True) -> Any:
    """Return this process's own fsspec file system for the scheme of `address`.

    Credentials, endpoint and region are found as the store's library finds them: environment,
    configuration files, the machine's role.

    Args:
        address: any of the store; raises UsageError if its scheme is unknown, or its package is not
            installed.
        patient: whether the library repeats failed requests; else s3fs makes each once.
    """
    scheme = remote_scheme(address)
    key = (os.getpid(), scheme, patient)
    if key not in _systems:
        fsspec = _import_store(scheme, address)
        options = {}
        if not patient and scheme == "s3":  # one attempt a request, with what the user configured
            given = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
            options["config_kwargs"] = {**given, "retries": {"total_max_attempts": 1}}
        system = fsspec.filesystem(scheme, use_listings_cache=False, **options)
        if options:
            system.retries = 1
        _systems[key] = system
    return _systems[key]


def _import_store(scheme: str, address: str) -> Any:
    if scheme not in _PACKAGES:
        known = " or ".join(f"{name}://bucket/…" for name in _PACKAGES)
        raise UsageError(f"{address!r} is in an unknown store; expected {known}, or a path")
    package, extra = _PACKAGES[scheme]
    require(package, extra, repr(address))
    return require("fsspec", extra, repr(address))


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn any error that a store's library raises in the block into a `RemoteError`."""
    try:
        yield
    except Exception as error:
        # Each library has a family of its own: botocore's, aiohttp's, asyncio's, OSError.
        raise _explain(error) from error


def _explain(error: Exception) -> RemoteError:
    code = _code(error)
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    if isinstance(error, FileNotFoundError):
        bucket = code == "NoSuchBucket"
        return RemoteError("no such bucket" if bucket else _GONE, _MISSING, of_object=not bucket)
    if isinstance(error, PermissionError) or type(error).__name__ in _NOT_ALLOWED:
        said = f"permission denied ({code or reason})"
        return RemoteError(said, _DENIED, of_object=code in _OF_AN_OBJECT)
    return RemoteError(reason or type(error).__name__, _AWAY, of_object=False)


def _code(error: BaseException) -> str:
    """Return the code of a store's reply, from below the error that the library makes of it."""
    below: BaseException | None = error
    while below is not None:
        response = getattr(below, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        below = below.__cause__
    return ""


def look_up(address: str) -> RemoteEntry | None:
    """Return what exists at `address`, an object before a folder; None for nothing."""
    system = file_system(address)
    try:
        with explained():
            entry = _entry(address, system.info(address))
            _check_is_reply(address, entry)
            return entry
    except RemoteError as error:
        if error.kind == _MISSING and error.of_object:
            return None
        raise


def list_folder(address: str) -> list[RemoteEntry]:
    """Return what is directly below the folder `address`; raise RemoteError if nothing is."""
    system = file_system(address)
    scheme = remote_scheme(address)
    with explained():
        found = system.ls(address.rstrip("/"), detail=True)
        return [_entry(f"{scheme}://{one['name']}", one) for one in found]


def _entry(address: str, found: Any) -> RemoteEntry:
    if found["type"] == "directory":
        return RemoteEntry(address, folder=True, size=0, mtime_ns=0, tag="")
    moment = found.get("LastModified") or found.get("mtime") or found.get("updated")
    # Listings of some stores have fractions of a second where the object's own reply has none.
    seconds = int(moment.timestamp()) if hasattr(moment, "timestamp") else 0
    size = int(found["size"])
    tag = str(found.get("ETag") or found.get("etag") or f"{size}-{seconds}").strip('"')
    return RemoteEntry(address, False, size, seconds * 10**9, tag)


def _check_is_reply(address: str, entry: RemoteEntry) -> None:
    """Refuse a reply without the time of last change, which S3 sends with every object.

    No store has sent it: a login page, for example, answers every request with status 200.
    """
    if remote_scheme(address) == "s3" and not entry.folder and not entry.mtime_ns:
        raise RemoteError(
            f"{counted(entry.size, 'byte')} came without the ETag and date of an object; does a "
            "proxy or a login page answer in place of the store?",
            _AWAY,
            of_object=False,
        )


def read_object(address: str, size: int = 0, mtime_ns: int = 0) -> bytes:
    """Read all bytes of an object.

    Args:
        address: with its scheme.
        size: bytes that it had when it was listed.
        mtime_ns: time of its last change when it was listed; 0 if it was not.

    Raises:
        DecodeError: this object is missing, denied, larger than `LARGEST_OBJECT`, or has changed
            since it was listed.
        InputError: the store does not answer, refuses the credentials or the bucket, or something
            answers in its place: not one object's fault, so no row may fail for it.
    """
    if size > LARGEST_OBJECT:
        raise DecodeError(f"larger than {LARGEST_OBJECT} bytes, which is not fetched: {size}")
    try:
        listed: RemoteEntry | None
        if mtime_ns:
            listed = RemoteEntry(address, folder=False, size=size, mtime_ns=mtime_ns, tag="")
        else:  # as the store describes it now
            listed = look_up(address)
        return _read(address, None if listed is None or listed.folder else listed)
    except RemoteError as error:
        if error.of_object:
            raise DecodeError(f"{error} in the store") from error
        raise InputError(
            f"{address!r} cannot be read: {error}; what is done so far is kept, and the same "
            "command resumes once the store answers"
        ) from error


def _read(address: str, listed: RemoteEntry | None) -> bytes:
    system = file_system(address, patient=False)
    pause, until = _FIRST_PAUSE, time.monotonic() + _PATIENCE
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with explained():
                data, said = _fetch(system, address)
            _check_is_reply(address, said)
            if listed is not None:
                _check_same(listed, said, len(data))
        except RemoteError as error:
            if error.kind != _AWAY or attempt == _ATTEMPTS or time.monotonic() + pause > until:
                raise
        else:
            return data
        time.sleep(pause)
        pause *= 2
    raise AssertionError


def _fetch(system: Any, address: str) -> tuple[bytes, RemoteEntry]:
    """Fetch all bytes of an object by one request; also return what the reply says of it."""
    # Only s3fs's private call gives the headers that a body came with.
    if remote_scheme(address) != "s3" or not hasattr(system, "_call_s3"):
        data: bytes = system.cat_file(address)
        return data, RemoteEntry(address, folder=False, size=len(data), mtime_ns=0, tag="")
    from fsspec.asyn import sync

    found: tuple[bytes, RemoteEntry] = sync(system.loop, _fetch_s3, system, address)
    return found


async def _fetch_s3(system: Any, address: str) -> tuple[bytes, RemoteEntry]:
    bucket, key, version = system.split_path(address)
    which = {"VersionId": version} if version else {}
    # `cat_file` does not return the headers, by which a reply of the store is recognised.
    reply = await system._call_s3("get_object", Bucket=bucket, Key=key, **which)  # noqa: SLF001 no public way
    try:
        data = await reply["Body"].read()
    finally:
        reply["Body"].close()
    return data, _entry(address, {**reply, "type": "file", "size": len(data)})


def _check_same(listed: RemoteEntry, said: RemoteEntry, size: int) -> None:
    """Refuse a body that is not the object as it was listed, or not all of it."""
    # A listing may round the date to a second where the object's own reply truncates it.
    same_time = not said.mtime_ns or abs(said.mtime_ns - listed.mtime_ns) <= _SECOND
    if size == listed.size and same_time:
        return
    now = look_up(listed.address)
    if now is None:
        raise RemoteError(_GONE, _MISSING, of_object=True)
    if now.size != listed.size or abs(now.mtime_ns - listed.mtime_ns) > _SECOND:
        raise RemoteError(
            "changed since it was listed (--update reads it)", _CHANGED, of_object=True
        )
    raise RemoteError(
        f"{counted(size, 'byte')} came of an object of {counted(listed.size, 'byte')} that has "
        "not changed; does a proxy shorten what it passes on?",
        _AWAY,
        of_object=False,
    )


def is_there(address: str) -> bool:
    """Return whether an object exists at `address`; True also if it is denied.

    Raises InputError if the store does not answer.
    """
    try:
        found = look_up(address)
    except RemoteError as error:
        if error.of_object:
            return True  # a row is not given up for that
        raise InputError(f"{address!r} cannot be looked for: {error}; run again later") from error
    return found is not None and not found.folder


def remove_object(address: str) -> None:
    """Remove an object."""
    system = file_system(address)
    with explained():
        system.rm_file(address)
