"""Read the metadata of a cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vggfeat.cache.hdf5_header import read_hdf5_header
from vggfeat.errors import CacheError
from vggfeat.storage.hdf5_file import open_hdf5

if TYPE_CHECKING:
    from vggfeat.cache.format import Header


def read_header(file_name: str) -> Header:
    """Read and check the metadata of a cache; take no lock and change nothing."""
    try:
        with open_hdf5(file_name) as file:
            return read_hdf5_header(file_name, file)
    except FileNotFoundError:
        raise CacheError(f"cache {file_name!r} does not exist") from None
    except (IsADirectoryError, PermissionError) as error:
        raise CacheError(f"cache {file_name!r} cannot be read: {error.strerror}") from error
    except (OSError, KeyError, RuntimeError) as error:  # h5py's words for damaged metadata
        raise CacheError(
            f"cache {file_name!r} is not an HDF5 file, or was cut short: {error}"
        ) from error
