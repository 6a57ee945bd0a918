"""HDF5 files, in which Keras stores weights: datasets by their paths."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any, cast

import h5py
import numpy as np

from vggfeat.network.containers.records import VALUE_BYTES, Contents, RefusedError, StoredTensor

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

    def note(path: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "fi" or not item.shape:
            return
        dtype = _DTYPES.get(item.dtype.str.lstrip("<|=")) if item.dtype.str[0] != ">" else None
        offset = item.id.get_offset()
        if dtype is None or offset is None:
            raise RefusedError(
                f"its dataset {path} is {item.dtype.name}, {item.dtype.str[0]} byte order, in "
                f"{'chunks' if item.chunks else 'one piece'}; expected little-endian floating "
                "point in one piece, as Keras writes it"
            )
        tensors[path] = StoredTensor(dtype, tuple(map(int, item.shape)), path)
        places[path] = (base + offset, int(np.prod(item.shape)) * VALUE_BYTES[dtype])

    try:
        with h5py.File(stream, "r") as file:
            file.visititems(note)
            metadata = {
                key: str(value) for key, value in file.attrs.items() if isinstance(value, str)
            }
    except OSError as error:  # h5py raises it for damage too
        raise ValueError(str(error)) from error
    return Contents(tensors, places.__getitem__, metadata)
