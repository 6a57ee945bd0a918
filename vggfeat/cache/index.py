"""The index of a cache: all that opening it needs, in front of HDF5's first byte.

It says where every dataset lies and what the attributes are, and has checksums over itself and over
HDF5's metadata. Where both hold, HDF5 would say the same, and is not asked. Where they do not, the
file was repacked, extended by another program, or damaged, and HDF5's metadata counts.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vggfeat.cache.format import FORMAT_VERSION, DatasetExtent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAGIC = b"\x89VGG\r\n\x1a\n"
LEAST_USER_BLOCK = 1 << 14
MOST_USER_BLOCK = 1 << 26
RECORD_PAGES = 2 * 4096
"""Bytes at the end of the user block that hold the column records."""

_HEAD = struct.Struct("<8sIIQQ")  # magic, version, checksum, user block, length of the JSON
_CHECKSUM = slice(12, 16)
_SUPERBLOCK_SUM = slice(44, 48)
SUPERBLOCK_BYTES = 48
FLAGS_AT = 11
"""Offset in HDF5's superblock of the byte that marks files as open for writing."""

_MOST_METADATA = 1 << 26
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredDataset:
    """One dataset: its rows, and the bytes that HDF5 has allocated for them."""

    extent: DatasetExtent
    allocated: int

    @property
    def start(self) -> int:
        """Offset of its first byte."""
        return self.extent.offset

    @property
    def stop(self) -> int:
        """Offset behind the last byte that belongs to it."""
        return self.extent.offset + self.allocated


@dataclass(frozen=True, slots=True)
class Index:
    """What an index says.

    Attributes:
        user_block: bytes in front of HDF5's first one.
        file_bytes: size of the file when it was made.
        metadata_checksum: CRC-32 of all that belongs to no dataset; see `metadata_checksum`.
        datasets: by name without the leading slash.
        attributes: of `/`, texts and integers.
    """

    user_block: int
    file_bytes: int
    metadata_checksum: int
    datasets: Mapping[str, StoredDataset]
    attributes: Mapping[str, str | int]

    def gaps(self) -> Iterator[tuple[int, int]]:
        """Yield start and stop of every range behind the user block that is in no dataset."""
        at = self.user_block
        for one in sorted(self.datasets.values(), key=lambda dataset: dataset.start):
            if at < one.start:
                yield at, one.start
            at = one.stop
        if at < self.file_bytes:
            yield at, self.file_bytes


def user_block_for(attributes: Mapping[str, str | int], names: Mapping[str, int]) -> int:
    """Return how large a user block holds the index of a file.

    Args:
        attributes: of `/`.
        names: of the datasets, each with its number of dimensions.
    """
    most = (1 << 63) - 1
    extents = {
        name: StoredDataset(DatasetExtent("|S" + "9" * 19, (most,) * ndim, most), most)
        for name, ndim in names.items()
    }
    needed = len(_front(Index(most, most, (1 << 32) - 1, extents, attributes))) + RECORD_PAGES
    size = max(LEAST_USER_BLOCK, 1 << (needed - 1).bit_length())
    if size > MOST_USER_BLOCK:
        raise ValueError(f"attributes take {needed} bytes, expected {MOST_USER_BLOCK} at most")
    return size


def pack_index(index: Index) -> bytes:
    """Return the bytes of the user block in front of the column records."""
    front = bytearray(_front(index).ljust(index.user_block - RECORD_PAGES, b"\0"))
    front[_CHECKSUM] = zlib.crc32(front).to_bytes(4, "little")
    return bytes(front)


def _front(index: Index) -> bytes:
    content = {
        "file_bytes": index.file_bytes,
        "metadata_crc32": index.metadata_checksum,
        "datasets": {
            name: {
                "dtype": one.extent.dtype,
                "shape": one.extent.shape,
                "offset": one.extent.offset,
                "bytes": one.allocated,
            }
            for name, one in index.datasets.items()
        },
        "attributes": dict(index.attributes),
    }
    text = json.dumps(content, separators=(",", ":")).encode("ascii")
    return _HEAD.pack(MAGIC, FORMAT_VERSION, 0, index.user_block, len(text)) + text


def read_cache_index(handle: int) -> Index | None:
    """Return the index of an open file; None if it has none whose own checksum is right.

    Nothing that it says is checked against the file.

    Raises:
        ValueError: its checksum is right, but it is none of this format; says why.
    """
    start = os.pread(handle, LEAST_USER_BLOCK, 0)
    if len(start) < LEAST_USER_BLOCK or not start.startswith(MAGIC):
        return None
    _, version, checksum, user_block, length = _HEAD.unpack_from(start)
    size = user_block - RECORD_PAGES
    if (
        version != FORMAT_VERSION
        or not LEAST_USER_BLOCK <= user_block <= MOST_USER_BLOCK
        or user_block & (user_block - 1)
        or length > size - _HEAD.size
    ):
        return None
    front = bytearray(start[:size])
    front += os.pread(handle, size - len(front), len(front))
    front[_CHECKSUM] = bytes(4)
    if len(front) < size or zlib.crc32(front) != checksum:
        return None
    return _parse(front[_HEAD.size : _HEAD.size + length], user_block)


def _parse(text: bytearray, user_block: int) -> Index:
    try:
        content = json.loads(text)
        datasets = {name: _dataset(name, one) for name, one in content["datasets"].items()}
        attributes = content["attributes"]
        if not all(type(value) in (str, int) for value in attributes.values()):
            raise ValueError("an attribute is neither text nor an integer")
        return Index(
            user_block,
            _number(content["file_bytes"]),
            _number(content["metadata_crc32"]),
            datasets,
            attributes,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not of the form that it should have: {error!r:.80}") from error
    except RecursionError as error:
        raise ValueError("JSON of too many levels") from error


def _dataset(name: str, record: Mapping[str, Any]) -> StoredDataset:
    dtype, shape = record["dtype"], record["shape"]
    if type(dtype) is not str or type(shape) is not list:
        raise ValueError(f"/{name} has no dtype or shape")
    extent = DatasetExtent(dtype, tuple(map(_number, shape)), _number(record["offset"]))
    return StoredDataset(extent, _number(record["bytes"]))


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"{value!r:.40} is no number of bytes or rows")
    return value


def metadata_checksum(handle: int, index: Index) -> int:
    """Return the CRC-32 of all bytes that belong to no dataset, as the file has them now.

    HDF5's mark of files that are open for writing counts as zeros, and so does the checksum over
    it: a mark changes nothing that a reader needs.

    Raises:
        ValueError: they are more than the format allows.
    """
    gaps = list(index.gaps())
    if sum(stop - start for start, stop in gaps) > _MOST_METADATA + 4 * index.user_block:
        raise ValueError("its datasets leave more of the file out than the format allows")
    value = 0
    for start, stop in gaps:
        for at in range(start, stop, _READ_BYTES):
            data = bytearray(os.pread(handle, min(_READ_BYTES, stop - at), at))
            if at == index.user_block:
                data[FLAGS_AT] = 0
                data[_SUPERBLOCK_SUM] = bytes(4)
            value = zlib.crc32(data, value)
    return value
