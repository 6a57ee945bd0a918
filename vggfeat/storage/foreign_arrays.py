"""Arrays in HDF5, `.npy` and `.npz` files of others: checked before memory is taken for them."""

from __future__ import annotations

import math
import os
import zipfile
from typing import IO, TYPE_CHECKING, Any, Final

import h5py
import numpy as np
from numpy.lib import format as npy

from vggfeat.core.text import byte_count
from vggfeat.storage.damage import DAMAGE
from vggfeat.storage.foreign_files import open_foreign

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_ARRAY_BYTES: Final = 1 << 30
"""Bytes of all arrays of an `.npz` together, unpacked."""

_PACKED_AT_MOST = 200  # times that filters make an array smaller; deflate reaches 1000 with zeros
_SMALL = 1 << 24  # bytes that any array may have, whatever is stored of it


def read_hdf5_array(item: Any, name: str) -> NDArray[Any]:
    """Return the values of a dataset; raise ValueError for one that claims more than it stores.

    Args:
        item: what the file has under that name.
        name: for errors.
    """
    if not isinstance(item, h5py.Dataset) or item.shape is None or item.dtype.hasobject:
        raise ValueError(f"{name!r} is no array of numbers")
    if item.is_virtual or item.external:
        raise ValueError(f"the values of {name!r} lie in other files")
    size = math.prod(item.shape) * item.dtype.itemsize
    stored = item.id.get_storage_size()
    packed = item.chunks is not None
    if size > (max(_SMALL, stored * _PACKED_AT_MOST) if packed else stored):
        raise ValueError(
            f"{name!r} claims {byte_count(size)} of shape {item.shape} and stores "
            f"{byte_count(stored)}"
        )
    return np.asarray(item[()])


def read_npz(path: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of an `.npz` by name.

    Raises:
        ValueError: it is damaged, holds objects, or claims more than `MOST_ARRAY_BYTES`.
        OSError: it cannot be read.
    """
    with open_foreign(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                _check_size(archive)
                return {
                    member.filename.removesuffix(".npy"): _read_member(archive, member)
                    for member in archive.infolist()
                }
        except ValueError:
            raise
        except (OSError, *DAMAGE) as error:  # OSError is bzip2's word for damage
            raise ValueError(str(error) or type(error).__name__) from error


def _check_size(archive: zipfile.ZipFile) -> None:
    size = sum(member.file_size for member in archive.infolist())
    if size > MOST_ARRAY_BYTES:
        raise ValueError(
            f"its arrays have {byte_count(size)}, and at most {byte_count(MOST_ARRAY_BYTES)} are "
            "read"
        )


def read_npy(path: str) -> NDArray[Any]:
    """Return the array of an `.npy` file; errors are those of `read_npz`."""
    with open_foreign(path) as file:
        try:
            _check_header(file, os.path.basename(path), os.fstat(file.fileno()).st_size)
            file.seek(0)
            return np.asarray(npy.read_array(file, allow_pickle=False))
        except ValueError:
            raise
        except (OSError, *DAMAGE) as error:
            raise ValueError(str(error) or type(error).__name__) from error


def _check_header(stream: IO[bytes], name: str, stored: int) -> None:
    """Refuse an array of objects, or one that claims more bytes than are stored."""
    version = npy.read_magic(stream)
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    if dtype.hasobject:
        raise ValueError(f"{name!r} holds Python objects, which may run any program")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > stored:
        raise ValueError(f"{name!r} is cut short: shape {shape}, type {dtype}")


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(member) as stream:
        _check_header(stream, member.filename, member.file_size)
    with archive.open(member) as stream:
        return np.asarray(npy.read_array(stream, allow_pickle=False))
