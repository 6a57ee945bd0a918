"""Safetensors, huggingface.co/docs/safetensors: 8 bytes of length, JSON, raw values."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from vggfeat.core.text import counted
from vggfeat.network.containers.records import VALUE_BYTES, Contents, StoredTensor
from vggfeat.storage.safetensors import header_length, parse_header

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vggfeat.storage.checked_file import CheckedFile

_LARGEST = 2**63


def is_safetensors(file: CheckedFile, head: bytes) -> bool:
    """Return whether a file begins like safetensors, or, perhaps damaged, is named so."""
    return head[8:9] == b"{" or file.path.endswith(".safetensors")


def read_safetensors(file: CheckedFile) -> Contents:
    """Locate the tensors by the header."""
    file.seek(0)
    length = header_length(_exactly(file, 8), file.size)
    header = parse_header(_exactly(file, length))
    _check_cover(header.entries, file.size - header.begin)
    places: dict[str, tuple[int, int]] = {}
    tensors = {}
    for name, entry in header.entries.items():
        tensors[name] = _entry(entry, name)
        begin, end = entry["data_offsets"]
        places[name] = (header.begin + begin, end - begin)
    return Contents(tensors, places.__getitem__, header.metadata)


def _exactly(file: CheckedFile, count: int) -> bytes:
    data = file.read(count)
    if data is None or len(data) < count:
        raise ValueError(f"{counted(count, 'byte')} expected")
    return data


def _check_cover(header: Mapping[str, Any], size: int) -> None:
    """Check that every byte after the header belongs to exactly one tensor."""
    at = 0
    for begin, end, name in sorted((*item["data_offsets"], name) for name, item in header.items()):
        if begin != at:
            raise ValueError(f"{name} begins at byte {begin}, where {at} was expected")
        at = end
    if at != size:
        raise ValueError(f"tensors end at byte {at} of {size}")


def _entry(entry: Mapping[str, Any], name: str) -> StoredTensor:
    dtype = entry["dtype"]
    if dtype not in VALUE_BYTES:
        raise ValueError(f"{name} has dtype {dtype}, which no VGG weight has")
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    sides = all(type(side) is int and 0 <= side < _LARGEST for side in shape)
    if not sides or not 0 <= begin <= end or end - begin != math.prod(shape) * VALUE_BYTES[dtype]:
        raise ValueError(f"{name} of shape {list(shape)} does not fit its bytes {begin} to {end}")
    return StoredTensor(dtype, shape, name)
