"""What the names of files and of members of archives say: image, archive, hidden, unsafe.

And how any name is shown, and which addresses are those of object stores.
"""

from __future__ import annotations

import os
import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, overload
from urllib.parse import unquote_to_bytes

from vggfeat.core.text import counted
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from os import PathLike

IMAGE_EXTENSIONS: Final = frozenset(
    b"apng avif avifs bmp dcm dib dicom gif ico j2c j2k jfif jp2 jpc jpe jpeg jpf jpg jpx mpo pbm "
    b"pcx pgm png pnm ppm rgb rgba sgi tga tif tiff webp".split()
)
"""Lower-case extensions of pictures that Pillow reads, and of DICOM; files in folders are chosen by
them."""

TAR_SUFFIXES: Final = tuple(b"tar tar.gz tgz tar.bz2 tbz2 tbz tar.xz txz tar.zst tzst".split())
"""Lower-case endings, without the dot, of files that are read as tar archives."""

ZIP_SUFFIX: Final = b"zip"
"""Likewise, of those that are read as zip archives."""

NOT_REGULAR: Final = "not a regular file"
"""Key in `ImageList.skipped` for sockets, FIFOs and devices that are named like an image, and for
links and sparse files in archives."""

UNSAFE_NAME: Final = "unsafe name"
"""Key in `ImageList.skipped` for members of archives whose names lead out of it or nowhere."""

HIDDEN_IMAGE: Final = "hidden image"
"""Key in `ImageList.skipped` for images by extension whose names begin with a dot."""

HIDDEN_FOLDER: Final = "hidden folder"
"""Likewise, of folders whose names begin with a dot, which are not looked into, and `__MACOSX`."""

SHARD_MANIFEST: Final = "manifest.json"
"""Name of the file that says which shards a sharded cache is made of."""

MEMBER_MARK: Final = b"!"
"""Between the path of an archive and the name of a member."""


_EXPORTS: Final = MappingProxyType(
    {
        b"npy": "npy",
        b"npz": "npz",
        b"csv": "csv",
        b"tsv": "csv",
        b"parquet": "parquet",
        b"pq": "parquet",
        b"safetensors": "safetensors",
        b"faiss": "faiss",
        b"tar": "webdataset",
    }
)
_NO_HDF5: Final = frozenset(
    b"7z arrow avi avro bz2 ckpt feather gz html ini ipynb joblib json jsonl lmdb log md mov mp4 "
    b"onnx orc pdf pickle pkl pt pth py sqlite svg tfrecord tgz toml txt xls xlsx xml xz yaml yml "
    b"zarr zip zst".split()
)
"""Lower-case extensions that stand for another format than HDF5, beside pictures and `_EXPORTS`."""


def other_format(out: str) -> str:
    """Say what is wrong with naming a cache so, if the ending is that of another format; else ''.

    Endings that nothing else is known by, such as `.v2`, are fine.
    """
    name = foreign_ending(out)
    if not name:
        return ""
    # Beside a picture, which the user did not mean to name, no cache is suggested.
    cache = "feats.h5" if name in IMAGE_EXTENSIONS else f"{out[: -len(name) - 1]}.h5"
    form = _EXPORTS.get(name, "FORMAT")
    return (
        f"output {out!r} is named like a file of another format, and a cache is HDF5; name it "
        f"{cache!r}, and for another format use `vggfeat export {cache} --to {form} --out PATH` "
        "afterwards"
    )


def foreign_ending(out: str) -> bytes:
    """Return the lower-case ending of a name that stands for another format than HDF5, or b''."""
    stem, dot, ending = os.path.basename(out).rpartition(".")
    name = os.fsencode(ending).lower()
    known = name in _NO_HDF5 | IMAGE_EXTENSIONS | _EXPORTS.keys()
    return name if dot and stem and known else b""


def extension(name: bytes) -> bytes:
    """Lower-case extension without its dot, b'' for none."""
    _, dot, found = name.rpartition(b".")
    return found.lower() if dot else b""


def archive_suffix(name: bytes) -> bytes:
    """Lower-case ending that marks `name` as an archive, without its dot; b'' for none."""
    lower = name.lower()
    for suffix in (*TAR_SUFFIXES, ZIP_SUFFIX):
        if lower.endswith(b"." + suffix):
            return suffix
    return b""


def member_name(name: bytes) -> bytes:
    """The name of a member in its plain form, without `.` parts and doubled slashes.

    b'' for one that is empty, absolute, leads upward, or holds a NUL byte.
    """
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if name.startswith(b"/") or b".." in parts or b"\0" in name:
        return b""
    return b"/".join(parts)


def is_hidden(name: bytes) -> bool:
    """Whether a part of a member's plain name is hidden, or macOS's own."""
    return name.startswith((b".", b"__MACOSX/")) or b"/." in name


def hidden_kind(name: bytes) -> tuple[str, bytes]:
    """Say what hides a member of plain name `name`: a key of `ImageList.skipped`, and its path.

    A hidden folder is named by its own path, so that its members count once; `("", b"")` stands for
    a hidden file that has not the extension of an image, such as `.DS_Store`.
    """
    parts = name.split(b"/")
    for depth, part in enumerate(parts[:-1], 1):
        if part.startswith(b".") or (depth == 1 and part == b"__MACOSX"):
            return HIDDEN_FOLDER, b"/".join(parts[:depth])
    return (HIDDEN_IMAGE, name) if extension(parts[-1]) in IMAGE_EXTENSIONS else ("", b"")


def hidden_text(skipped: Mapping[str, int]) -> str:
    """`2 hidden images and 1 hidden folder` of `ImageList.skipped`; '' for none."""
    counts = [(skipped.get(kind, 0), kind) for kind in (HIDDEN_IMAGE, HIDDEN_FOLDER)]
    shown = [counted(count, kind) for count, kind in counts if count]
    return " and ".join(shown) + " (names that begin with a dot)" if shown else ""


def printable(text: str) -> str:
    """Text that can be shown and encoded: control characters and undecodable bytes escaped."""
    safe = text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in safe)


_SHOWN = 5  # offenders that an error message names; it counts the others


def quoted(path: bytes) -> str:
    """A path as an error message shows it."""
    return repr(os.fsdecode(path))


def first_few(offenders: Iterable[str]) -> str:
    """The first five, and how many more there are."""
    names = list(offenders)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://")


def remote_scheme(path: str | bytes | PathLike[str]) -> str:
    """`s3` of `s3://bucket/folder`, lower case; '' for a path of this machine.

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

    Raises:
        UsageError: the address is of another host, or names no path.
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
    """Return a user's path as text; a `file:` address, which only text can be, as its path.

    Raises:
        UsageError: see `local_path`.
    """
    return local_path(path) if isinstance(path, str) else os.fspath(path)


def absolute_place(path: str) -> str:
    """A path made absolute; an address in an object store as it is, without a slash at its end."""
    path = local_path(path)
    return path.rstrip("/") if remote_scheme(path) else os.path.abspath(path)
