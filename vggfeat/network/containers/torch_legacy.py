"""The format of torch.save before 1.6 and of the published VGG weights: a stream of pickles."""

from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING, Any

from vggfeat.network.containers.records import VALUE_BYTES, Contents
from vggfeat.network.containers.tensor_pickle import load_noted, named_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vggfeat.storage.checked_file import CheckedFile

LEGACY_HEAD = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)


def is_legacy(_file: CheckedFile, head: bytes) -> bool:
    """Return whether a file begins with the magic number."""
    return head.startswith(LEGACY_HEAD)


def read_legacy(file: CheckedFile) -> Contents:
    """Locate the tensors by the fourth pickle, and their storages by the fifth."""
    file.seek(0)
    # Buffered, but `tell` is exact: storages begin right behind the last pickle.
    stream = io.BufferedReader(file, 1 << 14)
    for _ in range(3):  # magic number, protocol version, the writer's type sizes
        load_noted(stream)
    noted, dtypes = load_noted(stream)
    tensors = named_tensors(noted)
    keys, _ = load_noted(stream)
    places = _storage_places(file, stream.tell(), keys, dtypes)
    stream.detach()
    return Contents(tensors, places.__getitem__)


def _storage_places(
    file: CheckedFile, at: int, keys: Any, dtypes: Mapping[str, str]
) -> dict[str, tuple[int, int]]:
    """Return first byte and length of every storage; its number of values stands in front."""
    places = {}
    for key in keys:
        file.seek(at)
        count = int.from_bytes(file.read(8) or b"", "little")
        length = count * VALUE_BYTES[dtypes[key]]
        places[key] = (at + 8, length)
        at += 8 + length
        if at > file.size:
            raise ValueError(f"storage {key} ends at byte {at} of {file.size}")
    return places
