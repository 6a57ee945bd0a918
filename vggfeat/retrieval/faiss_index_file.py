"""The file of an index: what faiss writes, followed by a record of what it was built from.

faiss does not read beyond its own part. So an index is one file, which appears whole by one rename,
and which faiss can read without vggfeat.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import weakref
import zlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.core.optional import require
from vggfeat.errors import CacheError, SpaceError, UsageError
from vggfeat.storage.atomic import atomic_path
from vggfeat.storage.descriptors import open_descriptor
from vggfeat.storage.foreign_files import open_foreign, parse_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vggfeat.cache.reader import FeatureCache
    from vggfeat.retrieval.similarity import Metric

_END = struct.Struct("<QI8s")  # length of the record, its CRC-32, and what tells that it is ours
_MAGIC = b"VGGFIDX1"
_ID_BYTES = 8
_LONGEST_RECORD = 1 << 20
_READ_BYTES = 1 << 24
_RECORDED = {"l2": "l2-unit", "l2-raw": "l2"}
"""Names of metrics in a file, where they differ: `l2` meant vectors as stored in earlier files."""
_NAMES = {recorded: name for name, recorded in _RECORDED.items()}


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """An index, and its recall: share of the `at` nearest rows that `sample` queries found.

    Of kind `flat` a query compares every row; of `ivf` rows lie in lists around centroids and a
    query probes the nearest few.
    """

    kind: str
    rows: int
    storage: str  # type of its rows, float16 or float32
    lists: int  # 0 for a flat index
    probes: int  # lists that a query probes
    trained: int  # rows that the centroids were trained on
    recall: float
    at: int
    sample: int  # 0 for an index of one row


@dataclass(frozen=True, slots=True)
class IndexedLayer:
    """What an index was built from: a layer of a cache, and the rows that were done.

    `digest` is the SHA-256 of these rows' checksums, in order.
    """

    fingerprint: str
    root: str
    layer: str
    metric: Metric
    rows: int
    digest: str

    @classmethod
    def of(
        cls, cache: FeatureCache, layer: str, metric: Metric, done: NDArray[np.bool_]
    ) -> IndexedLayer:
        """Describe a cache whose rows `done`, bool (N,), are done."""
        # Not which rows: entries count done rows, so that a cache may gain others between them.
        checksums = np.ascontiguousarray(cache.checksums[done], "<u4")
        header = cache.header
        return cls(
            header.identity.fingerprint(),
            os.fsdecode(header.provenance.root).encode("utf-8", "backslashreplace").decode(),
            layer,
            metric,
            int(done.sum()),
            hashlib.sha256(checksums.tobytes()).hexdigest(),
        )


@dataclass(frozen=True, slots=True)
class Record:
    """What follows faiss's part of the file."""

    source: IndexedLayer
    info: IndexInfo
    faiss_bytes: int
    head_bytes: int  # before the lists of rows; of a flat index all
    # Lists are mapped and not read at once, so that they have none; hits are scored from the cache.
    head_crc32: int


def load_faiss() -> Any:
    """Return the faiss module; a UsageError says how to install it."""
    return require("faiss", "faiss", "an index")


def write_file(path: str, index: Any, source: IndexedLayer, info: IndexInfo) -> None:
    """Write an index to `path`, whole or not at all; the caller holds the lock of `path`."""
    try:
        with atomic_path(path) as temporary:
            load_faiss().write_index(index, temporary)
            with open(temporary, "r+b") as file:
                size = file.seek(0, os.SEEK_END)
                head = size - info.rows * (index.code_size + _ID_BYTES) if info.lists else size
                record = Record(source, info, size, head, _crc32(file, head))
                fields = asdict(record)
                fields["source"]["metric"] = _RECORDED.get(source.metric, source.metric)
                data = json.dumps(fields).encode()
                file.seek(size)
                file.write(data + _END.pack(len(data), zlib.crc32(data), _MAGIC))
    except UsageError:
        raise
    except (OSError, RuntimeError) as error:  # faiss says RuntimeError of a full disk
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise SpaceError(
            f"index {path!r} cannot be written: {reason}; name another place"
        ) from error


def read_record(path: str) -> Record | None:
    """Return the record of an index; None if the file does not exist."""
    try:
        with open_foreign(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _END.size))
            end = file.read()
            if len(end) < _END.size:
                raise _not_ours(path)
            length, crc32, magic = _END.unpack(end)
            start = size - _END.size - length
            if magic != _MAGIC or length > _LONGEST_RECORD or start < 0:
                raise _not_ours(path)
            file.seek(start)
            data = file.read(length)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CacheError(f"index {path!r} cannot be read: {error.strerror}") from error
    if zlib.crc32(data) != crc32:
        raise damaged(path, "its record")
    try:
        fields = parse_json(data)
        built_from = fields.pop("source")
        metric = built_from.pop("metric")
        record = Record(
            IndexedLayer(**built_from, metric=_NAMES.get(metric, metric)),
            IndexInfo(**fields.pop("info")),
            **fields,
        )
    except (TypeError, KeyError, ValueError) as error:
        raise CacheError(
            f"index {path!r} was written by another version of vggfeat; delete it to have it built "
            "anew"
        ) from error
    if record.faiss_bytes != start:
        raise damaged(path, "its length")
    return record


class LengthGuard:
    """Detects before a search that a mapped file was cut short since it was opened.

    Touching a page beyond its end would be a SIGBUS. Reading the lists instead of mapping them
    would take memory and time for the whole index, where a query probes a few lists.
    """

    def __init__(self, path: str, size: int) -> None:
        self._path, self._size = path, size
        self._handle = open_descriptor(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)

    def check(self) -> None:
        """Raise CacheError if the file is shorter now."""
        left = os.fstat(self._handle).st_size
        if left < self._size:
            raise CacheError(
                f"index {self._path!r} was cut short while it was used: {left} of {self._size} "
                "bytes are left; delete it to have it built anew"
            )


def read_index(path: str, record: Record) -> tuple[Any, LengthGuard | None]:
    """Open the index in faiss; map lists of rows, and return a guard to check before searches."""
    faiss = load_faiss()
    try:
        guard = LengthGuard(path, record.faiss_bytes) if record.info.lists else None
        with open_foreign(path) as file:
            if _crc32(file, record.head_bytes) != record.head_crc32:
                raise damaged(path, "its content")
        index = faiss.read_index(path, faiss.IO_FLAG_MMAP if record.info.lists else 0)
    except (OSError, RuntimeError) as error:
        raise damaged(path, "its content") from error
    if index.ntotal != record.info.rows:
        raise damaged(path, "its number of rows")
    return index, guard


def damaged(path: str, what: str) -> CacheError:
    """Return the error of an index whose parts do not fit together."""
    return CacheError(
        f"index {path!r} is damaged: {what} is wrong; delete it to have it built anew"
    )


def _not_ours(path: str) -> CacheError:
    return CacheError(
        f"file {path!r} is no index of vggfeat, or was cut short; name another, or delete it to "
        "have one built"
    )


def _crc32(file: Any, count: int) -> int:
    """Return the CRC-32 of the first `count` bytes."""
    file.seek(0)
    crc32 = 0
    while count > 0:
        data = file.read(min(count, _READ_BYTES))
        if not data:
            break
        crc32 = zlib.crc32(data, crc32)
        count -= len(data)
    return crc32
