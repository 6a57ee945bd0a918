"""Read the metadata of a cache: by its index alone where that may be trusted, else by HDF5."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vggfeat.cache.index_header import read_index_header

if TYPE_CHECKING:
    from vggfeat.cache.format import Header


def read_header(file_name: str) -> Header:
    """Read and check the metadata of a cache; take no lock and change nothing.

    Raises:
        CacheError: it does not exist, is not a cache of ours, or is damaged.
    """
    header = read_index_header(file_name)
    if header is None:
        # Only here: a cache with an index is opened without libhdf5.
        from vggfeat.cache.hdf5_header import read_hdf5_header

        header = read_hdf5_header(file_name)
    return header
