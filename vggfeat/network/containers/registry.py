"""The supported formats, recognized by first bytes; a new one is a file here and a line below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vggfeat.network.containers.hdf5_file import is_hdf5, read_hdf5
from vggfeat.network.containers.keras_archive import is_keras_archive, read_keras_archive
from vggfeat.network.containers.safetensors_file import is_safetensors, read_safetensors
from vggfeat.network.containers.torch_archive import is_torch_archive, read_torch_archive
from vggfeat.network.containers.torch_legacy import is_legacy, read_legacy

if TYPE_CHECKING:
    from collections.abc import Callable

    from vggfeat.network.containers.records import Contents
    from vggfeat.storage.checked_file import CheckedFile

_HEAD_BYTES = 16

# Safetensors come last: a damaged one is recognized by its name.
CONTAINERS: tuple[
    tuple[Callable[[CheckedFile, bytes], bool], Callable[[CheckedFile], Contents]], ...
] = (
    (is_hdf5, read_hdf5),
    (is_keras_archive, read_keras_archive),
    (is_torch_archive, read_torch_archive),
    (is_legacy, read_legacy),
    (is_safetensors, read_safetensors),
)


def read_contents(file: CheckedFile) -> Contents | None:
    """Locate the tensors of a file; None if its format is unknown."""
    file.seek(0)
    head = file.read(_HEAD_BYTES) or b""
    for knows, read in CONTAINERS:
        if knows(file, head):
            return read(file)
    return None
