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
from vggfeat.storage.foreign_files import open_foreign, parse_json

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
    """One tensor to be written.

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
    """The header of a file.

    Attributes:
        entries: tensor name → `dtype`, `shape`, `data_offsets`, as in the file, unchecked.
        metadata: the file's own, text by name.
        begin: offset of the first value in the file.
    """

    entries: Mapping[str, Any]
    metadata: Mapping[str, str]
    begin: int


def header_length(head: bytes, size: int) -> int:
    """Return the bytes of the JSON after the first eight bytes; raise ValueError if they cannot be.

    Args:
        head: the first eight bytes of the file.
        size: of the whole file.
    """
    length = int.from_bytes(head, "little")
    if not 0 < length <= min(_LONGEST_HEADER, size - _ALIGNMENT):
        raise ValueError(f"a header of {counted(length, 'byte')} in a file of {size}")
    return length


def parse_header(text: bytes) -> TensorHeader:
    """Parse the JSON of a header; raise ValueError or TypeError if it is none."""
    entries = parse_json(text)
    if not isinstance(entries, dict):
        raise TypeError(f"a header that is a {type(entries).__name__} and no table of tensors")
    said = entries.pop(_METADATA, None)
    metadata = said if isinstance(said, dict) else {}
    texts = {name: value for name, value in metadata.items() if isinstance(value, str)}
    return TensorHeader(entries, texts, 8 + len(text))


def read_safetensors_header(path: str) -> TensorHeader:
    """Read the header of the file at `path`; raise ValueError or TypeError if it has none."""
    with open_foreign(path) as file:
        head = file.read(8)
        size = file.seek(0, 2)
        file.seek(8)
        return parse_header(file.read(header_length(head, size)))


def header_bytes(entries: Iterable[TensorEntry], metadata: Mapping[str, str]) -> bytes:
    """Return the header of a file whose values follow in the order of `entries`, without gaps."""
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
    """Write float32 tensors to a file that appears whole, or not at all; then raise SpaceError.

    Args:
        path: of the file; an existing one is replaced.
        tensors: by name, on any device.
        metadata: texts by name.
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
