"""What lies at a path: whether an output may go there, and why a file cannot be found there.

`check_place` is called before the work starts, and before a lock file is made beside the output.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from typing import TYPE_CHECKING, Final, overload
from urllib.parse import unquote_to_bytes

from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from os import PathLike

STANDARD_OUTPUT = "-"

SHARD_MANIFEST: Final = "manifest.json"
"""Name of the file that says which shards a sharded cache is made of."""


def check_place(out: str, what: str = "output") -> None:
    """Refuse a path where no regular file can be created or replaced; touch nothing.

    A folder passes: whether it may be one is the caller's to say.

    Args:
        out: the output, as the user has named it.
        what: its name in errors, e.g. "model".
    """
    refuse_standard_output(out, what)
    try:
        mode = os.stat(out).st_mode
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            raise UsageError(
                f"{what} {out!r} is not a file name: {error.strerror}; name another place"
            ) from error
        target, is_link = os.path.realpath(out), os.path.islink(out)
        folder = os.path.dirname(target if is_link else os.path.abspath(out))
        if not os.path.isdir(folder):
            named = f"{what} {out!r}" + (f" is a link to {target!r}" if is_link else "")
            raise UsageError(
                f"{named}: its folder {folder!r} does not exist; create it first"
            ) from error
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UsageError(
            f"{what} {out!r} is {_kind(mode)}, expected a regular file or a new name; name "
            "another place"
        )


def refuse_standard_output(out: str, what: str = "output") -> None:
    """Refuse `-`, which many tools take for their standard output."""
    if out == STANDARD_OUTPUT:
        raise UsageError(
            f"{what} '-' is not standard output here, where no file is written to; name a file"
        )


def resolve(path: str) -> str:
    """Return an output's absolute path, links followed; refuse what is no regular file."""
    target = os.path.realpath(path)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(target).st_mode):
            raise UsageError(
                f"output {path!r} is {kind_of(target)}, expected a regular file or a new name; "
                "name another place"
            )
    return target


def kind_of(path: str) -> str:
    """Return what is at `path`, in words; a link is not followed."""
    return _kind(os.lstat(path).st_mode)


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISREG, "a file"),
    )
    return next((word for test, word in kinds if test(mode)), "a device, pipe or socket")


def dangling_link(path: bytes, error: OSError) -> str:
    """Return which link is why a file does not exist, the file or a folder above it; else "".

    Args:
        path: the file.
        error: raised by opening it.
    """
    if error.errno != errno.ENOENT:  # of others a loop of links
        return ""
    while path and path != os.path.dirname(path):
        if os.path.islink(path) and not os.path.exists(path):
            target = os.fsdecode(os.readlink(path))
            return f"a symbolic link to {target!r}, which does not exist"
        path = os.path.dirname(path)
    return ""


_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://")


def remote_scheme(path: str | bytes | PathLike[str]) -> str:
    """Return `s3` of `s3://bucket/folder`, lower case; '' for a path of this machine.

    Only text can be an address: a `Path` never is one, since it folds the two slashes.
    """
    text = path.decode(errors="surrogateescape") if isinstance(path, bytes) else path
    found = _ADDRESS.match(text.lower()) if isinstance(text, str) else None
    return found[1] if found else ""


_FILE_ADDRESS = re.compile(rb"file:(?://([^/]*))?(/.*)?", re.IGNORECASE | re.DOTALL)


@overload
def local_path(text: str) -> str: ...
@overload
def local_path(text: bytes) -> bytes: ...
def local_path(text: str | bytes) -> str | bytes:
    """Return the path of this machine that a `file:` address names; other text as it is.

    RFC 8089: `file:///a%20b/c.jpg`, `file://localhost/…` and `file:/…`. A folder called `file:` is
    `./file:`.
    An address of another host, or without a path, is refused.
    """
    data = text if isinstance(text, bytes) else os.fsencode(text)
    found = _FILE_ADDRESS.fullmatch(data)
    if found is None or (found[1] is None and found[2] is None):
        return text
    host, path = (found[1] or b"").lower(), unquote_to_bytes(found[2] or b"")
    if host not in (b"", b"localhost") or not path or b"\0" in path:
        raise UsageError(
            f"{os.fsdecode(data)!r} names no file of this machine; expected file:///folder/name, "
            "with %20 for a space, or a plain path"
        )
    return path if isinstance(text, bytes) else os.fsdecode(path)


def path_text(path: str | PathLike[str]) -> str:
    """Return a user's path as text; a `file:` address, which only text can be, as its path."""
    return local_path(path) if isinstance(path, str) else os.fspath(path)


def absolute_place(path: str) -> str:
    """Return an absolute path; an address in an object store stays, less a slash at its end."""
    path = local_path(path)
    return path.rstrip("/") if remote_scheme(path) else os.path.abspath(path)
