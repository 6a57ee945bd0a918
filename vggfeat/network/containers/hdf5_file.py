"""HDF5 files, in which Keras stores weights: datasets by their paths."""

from __future__ import annotations

import math
import os
from typing import IO, TYPE_CHECKING, cast

from vggfeat.network.containers.records import VALUE_BYTES, Contents, RefusedError, StoredTensor
from vggfeat.storage.hdf5_metadata.reader import Hdf5File

if TYPE_CHECKING:
    from vggfeat.storage.checked_file import CheckedFile

HDF5_HEAD = b"\x89HDF\r\n\x1a\n"
_DTYPES = {"f8": "F64", "f4": "F32", "f2": "F16", "i8": "I64", "i4": "I32"}


def is_hdf5(_file: CheckedFile, head: bytes) -> bool:
    """Return whether a file begins with HDF5's signature."""
    return head.startswith(HDF5_HEAD)


def read_hdf5(file: CheckedFile) -> Contents:
    """Locate the datasets of a file."""
    file.seek(0)
    return hdf5_contents(cast("IO[bytes]", file), 0)


def hdf5_contents(stream: IO[bytes], base: int) -> Contents:
    """Locate the datasets of an HDF5 file that begins at byte `base` of the file on the disk."""
    tensors: dict[str, StoredTensor] = {}
    places: dict[str, tuple[int, int]] = {}

    def read_into(offset: int, view: memoryview) -> int:
        stream.seek(offset)
        data = stream.read(len(view))
        view[: len(data)] = data
        return len(data)

    file = Hdf5File(read_into, stream.seek(0, os.SEEK_END))
    for path, dataset in file.root.datasets():
        kind = dataset.datatype.numpy
        if kind is None or kind.kind not in "fi" or not dataset.shape:
            continue
        dtype = _DTYPES.get(kind.str.lstrip("<|=")) if kind.str[0] != ">" else None
        offset = dataset.offset()
        if dtype is None or offset is None:
            raise RefusedError(
                f"its dataset {path} is {kind.name}, {kind.str[0]} byte order, in "
                f"{'chunks' if dataset.is_chunked else 'one piece'}; expected little-endian "
                "floating point in one piece, as Keras writes it"
            )
        tensors[path] = StoredTensor(dtype, dataset.shape, path)
        places[path] = (base + offset, math.prod(dataset.shape) * VALUE_BYTES[dtype])
    attributes = {name: one.value() for name, one in file.root.attributes.items()}
    metadata = {name: value for name, value in attributes.items() if isinstance(value, str)}
    return Contents(tensors, places.__getitem__, metadata)
