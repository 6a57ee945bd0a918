"""What lies at a path: whether an output may go there, and why a file cannot be found there.

`check_place` is called before the work starts, and before a lock file is made beside the output.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from vggfeat.errors import UsageError

STANDARD_OUTPUT = "-"


def check_place(out: str, what: str = "output") -> None:
    """Refuse a place where no regular file can be made or replaced; touch nothing.

    A folder passes: what it means there is the caller's to say.

    Args:
        out: the output, as the user has named it.
        what: it is to the user, for errors, e.g. "model".

    Raises:
        UsageError: it is `-`, a device, pipe or socket, a link in a circle, or in no folder.
    """
    refuse_standard_output(out, what)
    try:
        mode = os.stat(out).st_mode
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            raise UsageError(
                f"{what} {out!r} is no name for a file: {error.strerror}; name another place"
            ) from error
        _check_folder(out, what)
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UsageError(
            f"{what} {out!r} is {_kind(mode)}, expected a regular file or a new name; name "
            "another place"
        )


def refuse_standard_output(out: str, what: str = "output") -> None:
    """Refuse `-`, which many tools take for their standard output.

    Raises:
        UsageError: it is `-`.
    """
    if out == STANDARD_OUTPUT:
        raise UsageError(
            f"{what} '-' is not standard output here, where no file is written to; name a file"
        )


def _check_folder(out: str, what: str) -> None:
    target = os.path.realpath(out)
    is_link = os.path.islink(out)
    folder = os.path.dirname(target if is_link else os.path.abspath(out))
    if not os.path.isdir(folder):
        named = f"{what} {out!r} is a link to {target!r}" if is_link else f"{what} {out!r}"
        raise UsageError(f"{named}: its folder {folder!r} is not there; make it first")


def resolve(path: str) -> str:
    """Return the place that an output names, with symbolic links followed, as an absolute path.

    Raises:
        UsageError: something is there that is no regular file, such as a folder or a device.
    """
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
    """Say which link is why a file does not exist: the file itself or a folder above it; else "".

    Args:
        path: the file.
        error: that opening it ended with.
    """
    if error.errno != errno.ENOENT:  # of others a loop of links
        return ""
    while path and path != os.path.dirname(path):
        if os.path.islink(path) and not os.path.exists(path):
            target = os.fsdecode(os.readlink(path))
            return f"a symbolic link to {target!r}, which does not exist"
        path = os.path.dirname(path)
    return ""
