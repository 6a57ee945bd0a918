"""Read the metadata of a cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vggfeat.cache.hdf5_header import read_hdf5_header

if TYPE_CHECKING:
    from vggfeat.cache.format import Header


def read_header(file_name: str) -> Header:
    """Read and check the metadata of a cache; take no lock and change nothing."""
    return read_hdf5_header(file_name)
