"""Records of every format: named tensors, and where in the file their values lie."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

VALUE_BYTES: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
    "BOOL": 1,
}  # fmt: skip
"""Bytes of a value of each type, by safetensors' names."""


class RefusedError(Exception):
    """A file that holds other things than tensors; the message says what, and what to do."""


class MoreThanTensorsError(RefusedError):
    """A pickle that refers to other things than tensors."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a file.

    Attributes:
        dtype: a key of `VALUE_BYTES`.
        shape: of the tensor.
        storage: key of its values for `Contents.locate`.
        offset: of its first value in the storage, in values.
        stride: in values; None for C order.
    """

    dtype: str
    shape: tuple[int, ...]
    storage: str
    offset: int = 0
    stride: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Contents:
    """The tensors of a weight file.

    Attributes:
        tensors: by the file's names.
        locate: storage → its first byte in the file, and its length in bytes.
        metadata: of the file.
    """

    tensors: Mapping[str, StoredTensor]
    locate: Callable[[str], tuple[int, int]]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor by its name."""
        return {name: one.shape for name, one in self.tensors.items()}
