"""Safetensors files: their headers, and writing tensors to a new one.

The format is that of huggingface.co/docs/safetensors: 8 bytes of length, JSON, raw values. Only
`write_tensors` is given tensors; nothing here imports torch.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vggfeat.core.text import counted
from vggfeat.errors import SpaceError
from vggfeat.storage.atomic import atomic_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch

_LONGEST_HEADER = 100_000_000  # the limit that the format sets itself
_ALIGNMENT = 8
_METADATA = "__metadata__"
ITEM_BYTES: Mapping[str, int] = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1}
"""Bytes of a value of each type that is written here."""

_DTYPES: Mapping[str, str] = {"torch.float32": "F32"}  # by text, so that torch is not imported


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor that is to be written.

    Attributes:
        name: of the tensor.
        dtype: as the format names it, a key of `ITEM_BYTES`.
        shape: of the tensor.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return ITEM_BYTES[self.dtype] * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What the head of a file holds.

    Attributes:
        entries: tensor name → `dtype`, `shape`, `data_offsets`, as they stand there, unchecked.
        metadata: what the file says of itself, texts by name.
        begin: offset of the first value in the file.
    """

    entries: Mapping[str, Any]
    metadata: Mapping[str, str]
    begin: int


def header_length(head: bytes, size: int) -> int:
    """Bytes of the JSON behind the first eight.

    Args:
        head: the first eight bytes of the file.
        size: of the whole file.

    Raises:
        ValueError: it cannot be so long.
    """
    length = int.from_bytes(head, "little")
    if not 0 < length <= min(_LONGEST_HEADER, size - _ALIGNMENT):
        raise ValueError(f"a header of {counted(length, 'byte')} in a file of {size}")
    return length


def parse_header(text: bytes) -> TensorHeader:
    """The JSON of a header.

    Raises:
        ValueError: it is no JSON.
        TypeError: it is no table.
    """
    entries = json.loads(text)
    if not isinstance(entries, dict):
        raise TypeError(f"a header that is a {type(entries).__name__} and no table of tensors")
    said = entries.pop(_METADATA, None)
    metadata = said if isinstance(said, dict) else {}
    texts = {name: value for name, value in metadata.items() if isinstance(value, str)}
    return TensorHeader(entries, texts, 8 + len(text))


def read_safetensors_header(path: str) -> TensorHeader:
    """The header of the file at `path`.

    Raises:
        OSError: the file cannot be read.
        ValueError, TypeError: it is no safetensors file.
    """
    with open(path, "rb") as file:
        head = file.read(8)
        size = file.seek(0, 2)
        file.seek(8)
        return parse_header(file.read(header_length(head, size)))


def header_bytes(entries: Iterable[TensorEntry], metadata: Mapping[str, str]) -> bytes:
    """The head of a file whose values follow in the order of `entries`, without gaps."""
    table: dict[str, Any] = {_METADATA: dict(metadata)}
    at = 0
    for entry in entries:
        end = at + entry.nbytes
        table[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def write_tensors(
    path: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Write float32 tensors as a file that appears whole, synced, or not at all.

    Args:
        path: where to; what was there is replaced.
        tensors: by name, on any device.
        metadata: texts by name.

    Raises:
        SpaceError: it cannot be written; what was there stays.
    """
    entries = [
        TensorEntry(name, _DTYPES[str(tensor.dtype)], tuple(tensor.shape))
        for name, tensor in tensors.items()
    ]
    try:
        with atomic_file(path) as file:
            file.write(header_bytes(entries, metadata))
            file.writelines(
                tensor.detach().cpu().contiguous().numpy().data for tensor in tensors.values()
            )
    except OSError as error:
        raise SpaceError(
            error.errno,
            f"{path!r} cannot be written: {error.strerror}; what was there before is whole, run "
            "again once the disk has room",
        ) from error
