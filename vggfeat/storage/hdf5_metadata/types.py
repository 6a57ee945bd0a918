"""HDF5's descriptions of values: their type, and how many there are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.storage.hdf5_metadata.blocks import MetadataError, check_version

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vggfeat.storage.hdf5_metadata.blocks import Fields

_INTEGER, _FLOAT, _STRING, _OPAQUE, _ENUMERATION, _VARIABLE = 0, 1, 3, 5, 8, 9
_KINDS: Mapping[int, str] = {
    2: "times", 4: "bit fields", _OPAQUE: "opaque bytes", 6: "a compound of fields",
    7: "references", 8: "an enumeration", 9: "sequences", 10: "arrays", 11: "complex numbers",
}  # fmt: skip
# Bits: precision, where exponent and mantissa begin and how many they are, bias, where the sign is.
_FLOATS: Mapping[tuple[int, ...], str] = {
    (0, 16, 10, 5, 0, 10, 15, 15): "f2",
    (0, 32, 23, 8, 0, 23, 127, 31): "f4",
    (0, 64, 52, 11, 0, 52, 1023, 63): "f8",
}
_BOOLEAN = (("FALSE", 0), ("TRUE", 1))  # as h5py stores NumPy's
_MOST_AXES = 32
_UTF8 = 1
_NULL = 2


@dataclass(frozen=True, slots=True)
class Datatype:
    """Type of the elements of a dataset or attribute.

    Attributes:
        words: for messages, such as `float16` or `a compound of fields`.
        size: bytes of an element.
        numpy: the same type of NumPy; None if there is none, or texts are of variable length.
        padding: of texts: 0 they end in NUL, 1 they are filled up with NUL, 2 with blanks.
        charset: of texts, `ascii` or `utf-8`; else None.
    """

    words: str
    size: int
    numpy: np.dtype[Any] | None = None
    padding: int = 0
    charset: str | None = None

    @property
    def is_opaque(self) -> bool:
        """Whether elements are bytes of no declared kind."""
        return self.words == _KINDS[_OPAQUE]

    @property
    def variable_text(self) -> bool:
        """Whether elements are texts of variable length, which lie in the global heap."""
        return self.charset is not None and self.numpy is None


def read_datatype(fields: Fields) -> Datatype:
    """Return the type that a message describes."""
    first = fields.uint(1)
    kind, version = first & 0xF, first >> 4
    bits, size = fields.uint(3), fields.uint(4)
    if not 1 <= version <= 5 or not size:  # noqa: PLR2004 versions that exist
        raise MetadataError(f"a type has version {version} and elements of {size} bytes")
    if kind == _INTEGER:
        return _number(f"{'i' if bits & 8 else 'u'}{size}", bits & 1, _whole(fields, size))
    if kind == _FLOAT:
        return _number(*_float(fields, bits), size)
    if kind == _STRING:
        charset = "utf-8" if bits >> 4 & 0xF == _UTF8 else "ascii"
        return Datatype(f"texts of {size} bytes", size, np.dtype(f"S{size}"), bits & 0xF, charset)
    if kind == _VARIABLE and bits & 0xF == 1:
        charset = "utf-8" if bits >> 8 & 0xF == _UTF8 else "ascii"
        return Datatype("texts of variable length", size, None, 0, charset)
    if kind == _ENUMERATION and _is_boolean(fields, bits & 0xFFFF, version):
        return Datatype("bool", 1, np.dtype(bool))
    return Datatype(_KINDS.get(kind, f"a type of class {kind}"), size)


def _whole(fields: Fields, size: int) -> int:
    """Return the size of an integer that fills its bytes; 0 of one that does not."""
    offset, precision = fields.uint(2), fields.uint(2)
    return size if offset == 0 and precision == 8 * size else 0


def _float(fields: Fields, bits: int) -> tuple[str, int]:
    """Return NumPy's name of a float, or one it does not know, and whether it is big-endian."""
    layout = [fields.uint(count) for count in (2, 2, 1, 1, 1, 1, 4)]
    found = _FLOATS.get((*layout, bits >> 8 & 0xFF), "")
    implied = bits >> 4 & 3 == 2  # noqa: PLR2004 the first bit of the mantissa is not stored
    return found if implied else "", bits & 0x41


def _number(name: str, big_endian: int, size: int) -> Datatype:
    if big_endian not in (0, 1) or name[1:] != str(size) or size not in (1, 2, 4, 8):
        return Datatype("numbers of an unusual layout", max(size, 1))
    dtype = np.dtype(f"{'>' if big_endian else '<'}{name}")
    return Datatype(dtype.name if not big_endian else f"big-endian {dtype.name}", size, dtype)


def _is_boolean(fields: Fields, count: int, version: int) -> bool:
    base = read_datatype(fields)
    if base.numpy != np.int8 or count != len(_BOOLEAN):
        return False
    names = []
    for _ in range(count):
        end = fields.data.find(b"\0", fields.at)
        name = fields.take(max(end - fields.at, 0) + 1)
        if version < 3:  # noqa: PLR2004 names were padded
            fields.take(-len(name) % 8)
        names.append(name[:-1].decode("ascii", "replace"))
    return tuple((name, fields.uint(1)) for name in names) == _BOOLEAN


def read_dataspace(fields: Fields) -> tuple[int, ...] | None:
    """Return the shape that a message describes, () for one value, None for none at all."""
    version = check_version(fields, "a shape", 1, 2)
    axes, _flags = fields.uint(1), fields.uint(1)
    if axes > _MOST_AXES:
        raise MetadataError(f"a shape has {axes} axes, expected {_MOST_AXES} at most")
    if version == 1:
        fields.take(5)
        null = False
    else:
        null = fields.uint(1) == _NULL
    shape = tuple(fields.length() for _ in range(axes))
    return None if null else shape


def array_bytes(datatype: Datatype, shape: tuple[int, ...]) -> int:
    """Return the bytes of an array, however large the numbers claim it to be."""
    return datatype.size * math.prod(shape)
