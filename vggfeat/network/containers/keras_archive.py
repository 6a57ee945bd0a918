"""Keras 3's `.keras` archives: weights as HDF5 beside the model as JSON, which is not read."""

from __future__ import annotations

import zipfile
from typing import IO, TYPE_CHECKING, cast

from vggfeat.network.containers.hdf5_file import hdf5_contents
from vggfeat.network.containers.torch_archive import ZIP_HEAD, member_place
from vggfeat.storage.checked_file import FileWindow

if TYPE_CHECKING:
    from vggfeat.network.containers.records import Contents
    from vggfeat.storage.checked_file import CheckedFile

_WEIGHTS = "model.weights.h5"


def is_keras_archive(file: CheckedFile, head: bytes) -> bool:
    """Return whether a file is a zip archive that holds Keras's weights."""
    if not head.startswith(ZIP_HEAD):
        return False
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            return _WEIGHTS in archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return False  # `read_torch_archive` reports the damage


def read_keras_archive(file: CheckedFile) -> Contents:
    """Locate the datasets of the weights in the archive."""
    with zipfile.ZipFile(file) as archive:
        member = archive.getinfo(_WEIGHTS)
    begin, size = member_place(file, member)
    return hdf5_contents(cast("IO[bytes]", FileWindow(file, begin, size)), begin)
