"""Archives made for tests, and what is found in them."""

from __future__ import annotations

import io
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import pytest

from vggfeat.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from vggfeat.images.image_list import ImageList

SIZE, PACKED, CRC, METHOD, FLAGS, LOCAL = 24, 20, 16, 10, 8, 42  # where in the entry


def tar_bytes(members: Mapping[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def zip_bytes(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return stream.getvalue()


def zstd(data: bytes) -> bytes:
    packed: bytes = pytest.importorskip("zstandard").ZstdCompressor().compress(data)
    return packed


def lzipped(data: bytes) -> bytes:
    """A lzip file of one member, as the format's manual describes it."""
    how = {"id": lzma.FILTER_LZMA1, "dict_size": 1 << 16, "lc": 3, "lp": 0, "pb": 2}
    # A .lzma file has the same stream and end mark behind a header of 13 bytes.
    stream = lzma.compress(data, lzma.FORMAT_ALONE, filters=[how])[13:]
    end = struct.pack("<IQQ", zlib.crc32(data), len(data), 6 + len(stream) + 20)
    return b"LZIP\1\x10" + stream + end


def renumbered_zip(
    members: Mapping[str, bytes], method: int, pack: Callable[[bytes], bytes]
) -> bytes:
    """A zip whose members are compressed by a method that `zipfile` does not write."""
    archive, directory = b"", b""
    for name, data in members.items():
        packed = pack(data)
        fields = struct.pack(
            "<HHHHHIIIHH", 63, 0, method, 0, 33, zlib.crc32(data), len(packed), len(data),
            len(name), 0,
        )  # fmt: skip
        directory += b"PK\1\2" + struct.pack("<H", 63) + fields
        directory += struct.pack("<HHHII", 0, 0, 0, 0, len(archive)) + name.encode()
        archive += b"PK\3\4" + fields + name.encode() + packed
    count = len(members)
    return archive + directory + b"PK\5\6" + struct.pack(
        "<HHHHIIH", 0, 0, count, count, len(directory), len(archive), 0
    )  # fmt: skip


def made(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def contents(manifest: ImageList, rows: Any = None) -> dict[str, bytes | str]:
    """Path → bytes of the image, or why it cannot be had."""
    found: dict[str, bytes | str] = {}
    for row in range(len(manifest)) if rows is None else rows:
        name = os.fsdecode(manifest.paths[row])
        try:
            with manifest.open(row) as stream:
                found[name] = stream.read()
        except DecodeError as error:
            found[name] = str(error)
    return found


def reason(manifest: ImageList) -> str:
    """Why the only image cannot be had."""
    (found,) = contents(manifest).values()
    assert isinstance(found, str)
    return found


def changed_entry(data: bytes, at: int, value: bytes) -> bytes:
    """A zip of one member with other bytes in its entry of the central directory."""
    at += data.index(b"PK\1\2")
    return data[:at] + value + data[at + len(value) :]
