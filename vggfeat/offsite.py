"""Outputs in object stores: made on this machine, put there when complete, gone on with from there.

An object cannot be written in the middle. So a run works on a file here, which survives a kill as
any other does, and the store gets it whole once no row is pending.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vggfeat.errors import CacheMismatchError, SpaceError, TooManyFailuresError, UsageError
from vggfeat.lock import hold
from vggfeat.machine import user_cache
from vggfeat.names import member_name, remote_scheme
from vggfeat.remote import RemoteEntry, RemoteError, look_up
from vggfeat.transfer import download, upload

if TYPE_CHECKING:
    from collections.abc import Callable

    from vggfeat.records import Summary

log = logging.getLogger("vggfeat")


def scratch_place(address: str, scratch: str | None = None) -> str:
    """Where the output at `address` is worked on: always the same file or folder here.

    Args:
        address: with its scheme.
        scratch: folder; by default one in the user's cache.

    Raises:
        UsageError: the address names no object, or has parts that no path may have.
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


def extract_to_object(
    address: str,
    work: str,
    extract_here: Callable[[], Summary],
    *,
    fresh: bool,
) -> Summary:
    """Runs `extract_here` on the file `work`, and puts that at `address` once it is complete.

    What lies at `address` is fetched first where `work` is not there, or is older.

    Args:
        address: of the output, one object.
        work: file here, see `scratch_place`.
        extract_here: the run, with `work` as its output.
        fresh: whether it begins again whatever is there.

    Returns:
        what the run says, with `address` for its output.

    Raises:
        CacheMismatchError: both the file here and the object have changed since they were one.
        LockedError: another run of this machine works on it.
        SpaceError: the store cannot be reached or written, or the scratch folder not be made.
        Whatever `extract_here` raises; too many failed images only after the file is put there.
    """
    try:
        os.makedirs(os.path.dirname(work), exist_ok=True)
    except OSError as error:
        raise SpaceError(
            error.errno, f"scratch folder for {address!r} cannot be made: {error}"
        ) from error
    with hold(f"{work}.store"):
        stored = find_stored(address)
        if not fresh:
            _take_what_is_newer(address, work, stored)
        try:
            summary = extract_here()
        except TooManyFailuresError as error:
            _put_if_complete(address, work, error.summary, stored)
            raise
        _put_if_complete(address, work, summary, stored)
    return dataclasses.replace(summary, out=address)


def find_stored(address: str) -> RemoteEntry | None:
    """The object at an output's address, None for none yet.

    Raises:
        SpaceError: there is no such bucket, or the store does not say.
        UsageError: there is a folder.
    """
    try:
        stored = look_up(address)
    except RemoteError as error:
        raise SpaceError(
            f"output {address!r} cannot be reached: {error}; look at its name, and at the "
            "credentials and the endpoint that the environment names"
        ) from error
    if stored is not None and stored.folder:
        raise UsageError(f"output {address!r} is a folder; expected an object such as feats.h5")
    return stored


@dataclass(frozen=True, slots=True)
class _Stamp:
    """When file and object were one: the store's mark of it, the file's size and time."""

    tag: str
    size: int
    mtime_ns: int


def _stamp_of(work: str, stored: RemoteEntry) -> _Stamp:
    status = os.stat(work)
    return _Stamp(stored.tag, status.st_size, status.st_mtime_ns)


def _read_stamp(work: str) -> _Stamp | None:
    with contextlib.suppress(OSError, ValueError, TypeError), open(f"{work}.stored") as file:
        return _Stamp(**json.load(file))
    return None


def _write_stamp(work: str, stored: RemoteEntry) -> None:
    temporary = f"{work}.stored.part"
    with open(temporary, "w") as file:
        json.dump(dataclasses.asdict(_stamp_of(work, stored)), file)
    os.replace(temporary, f"{work}.stored")


def _take_what_is_newer(address: str, work: str, stored: RemoteEntry | None) -> None:
    known = _read_stamp(work)
    if stored is None or (os.path.exists(work) and known and known.tag == stored.tag):
        return
    if os.path.exists(work) and (known is None or _stamp_of(work, stored) != _moved(known, stored)):
        raise CacheMismatchError(
            f"{address!r} was replaced since the run that {work!r} is of began; delete that file "
            "to go on with what is there now, choose another --out, or --fresh to begin again"
        )
    download(stored, work)
    _write_stamp(work, stored)


def _moved(known: _Stamp, stored: RemoteEntry) -> _Stamp:
    return dataclasses.replace(known, tag=stored.tag)


def _put_if_complete(address: str, work: str, summary: Summary, stored: RemoteEntry | None) -> None:
    if summary.pending:
        log.warning(
            "not uploaded: %d images are left; what is done is kept at %s", summary.pending, work
        )
        return
    if stored is None or _read_stamp(work) != _stamp_of(work, stored):
        _write_stamp(work, upload(work, address))
