"""Read named tensors of weight files of any format, by torchvision's names, into memory.

Tensors that no layer needs are never read. Nothing is memory-mapped: a file that is overwritten or
truncated while it is read is an error, and later changes have no effect. `containers` knows the
formats, `dialects` the names.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.core.text import counted
from vggfeat.errors import WeightsError
from vggfeat.network.containers.records import VALUE_BYTES, MoreThanTensorsError, RefusedError
from vggfeat.network.containers.registry import read_contents
from vggfeat.network.containers.safetensors_file import read_safetensors
from vggfeat.network.dialects.registry import translate
from vggfeat.storage.checked_file import CheckedFile, FileChangedError
from vggfeat.storage.damage import DAMAGE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import torch
    from numpy.typing import NDArray

    from vggfeat.network.containers.records import Contents, StoredTensor
    from vggfeat.network.dialects.records import Reading
    from vggfeat.storage.checked_file import FileDigest

_NUMPY_DTYPES: Mapping[str, str] = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True, slots=True)
class WeightFile:
    """An open weight file: the place of its tensors, and the dialect of their names."""

    path: str
    contents: Contents
    reading: Reading
    _file: CheckedFile

    @property
    def metadata(self) -> Mapping[str, str]:
        """Texts that the file says of itself."""
        return self.contents.metadata

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each tensor by torchvision's name."""
        return self.reading.shapes

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Return tensors by torchvision's names in the file's dtypes; they own their memory."""
        sources = {name: self.reading.sources[name] for name in names}
        with _as_weights_errors(self.path, self._file):
            found = _values(self._file, self.contents, [one.name for one in sources.values()])
        tensors = {}
        for name, source in sources.items():
            # One after the other, so that only one tensor is in memory twice.
            value = found.pop(source.name)
            tensors[name] = value if source.convert is None else source.convert(value)
        return tensors

    def array(self, name: str) -> NDArray[np.float32] | None:
        """Read a small tensor as float32 without torch; None if missing or of another type."""
        source = self.reading.sources.get(name)
        stored = self.contents.tensors[source.name] if source else None
        if source is None or stored is None or source.convert or not _is_plain(stored):
            return None
        with _as_weights_errors(self.path, self._file):
            begin, length = self.contents.locate(stored.storage)
            values = np.empty(_span(stored), _NUMPY_DTYPES[stored.dtype])
            first = stored.offset * values.itemsize
            if first < 0 or first + values.nbytes > length:
                raise ValueError(f"{name} does not fit its {counted(length, 'byte')}")
            self._file.copy_into([(begin + first, values.data.cast("B"))])
        if stored.dtype == "BF16":  # the upper half of a float32
            values = (values.astype(np.uint32) << 16).view(np.float32)
        strides = _strides(stored)
        inside = np.lib.stride_tricks.as_strided(
            values, stored.shape, [step * values.itemsize for step in strides]
        )
        return inside.astype(np.float32)


@contextlib.contextmanager
def open_checkpoint(path: str, digest: FileDigest | None = None) -> Iterator[WeightFile]:
    """Open a weight file of any format and locate its tensors, without reading values.

    Every read is checked against `digest`; give None if only names and shapes are needed.
    """
    try:
        file = CheckedFile(path, digest)
    except OSError as error:
        raise WeightsError(f"weights {path!r} cannot be read: {error.strerror}") from error
    with file:
        with _as_weights_errors(path, file):
            contents = read_contents(file)
        if contents is None:
            raise WeightsError(
                f"weights {path!r} are in no known format; expected safetensors, torch.save's, "
                "TorchScript, or Keras's .h5 or .keras"
            )
        try:
            reading = translate(contents.shapes)
        except WeightsError as error:
            raise WeightsError(f"weights {path!r}: {error}") from error
        yield WeightFile(path, contents, reading, file)


def read_tensors(path: str, digest: FileDigest) -> dict[str, torch.Tensor]:
    """Read all tensors of a weight file by the names of the file."""
    with open_checkpoint(path, digest) as file, _as_weights_errors(path, file._file):  # noqa: SLF001 of this module
        return _values(file._file, file.contents, file.contents.tensors)  # noqa: SLF001


def read_own_safetensors(path: str) -> dict[str, torch.Tensor]:
    """Read all tensors of a file that this package wrote, by the names it gave them."""
    with CheckedFile(path) as file:
        contents = read_safetensors(file)
        return _values(file, contents, contents.tensors)


@contextlib.contextmanager
def _as_weights_errors(path: str, file: CheckedFile) -> Iterator[None]:
    try:
        yield
    except (OSError, RefusedError, *DAMAGE) as error:
        reason = file.failure or error
        raise _weights_error(path, reason) from reason


def _weights_error(path: str, error: Exception) -> WeightsError:
    if isinstance(error, WeightsError):
        return error
    if isinstance(error, FileChangedError):
        return WeightsError(
            f"weights {path!r} changed while they were read: {error}; wait until the file is "
            "whole, and run again"
        )
    if isinstance(error, OSError):
        return WeightsError(f"weights {path!r} cannot be read: {error.strerror or error}")
    if isinstance(error, RefusedError):
        more = "hold more than tensors and " if isinstance(error, MoreThanTensorsError) else ""
        return WeightsError(f"weights {path!r} {more}were refused: {error}")
    reason = (str(error) or type(error).__name__).splitlines()[0][:200]
    return WeightsError(f"weights {path!r} are damaged or cut short: {reason}; fetch them again")


def _is_plain(stored: StoredTensor) -> bool:
    """Return whether a tensor has values of a type that NumPy can read, none of them twice."""
    sparse = math.prod(stored.shape) > _span(stored)  # expanded, as no trained tensor is
    return stored.dtype in _NUMPY_DTYPES and 0 not in stored.shape and not sparse


def _strides(stored: StoredTensor) -> tuple[int, ...]:
    if stored.stride is not None:
        return tuple(stored.stride)
    return tuple(np.cumprod((1, *stored.shape[:0:-1]))[::-1].tolist())


def _values(file: CheckedFile, contents: Contents, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Read tensors by the file's names, each into its own buffer, in one pass."""
    import torch

    targets, tensors = [], {}
    for name in names:
        stored = contents.tensors[name]
        begin, length = contents.locate(stored.storage)
        first, count = stored.offset, _span(stored)
        item = VALUE_BYTES[stored.dtype]
        if first < 0 or (first + count) * item > length:
            raise ValueError(
                f"{name} of shape {list(stored.shape)} does not fit its {counted(length, 'byte')}"
            )
        buffer = torch.empty(count * item, dtype=torch.uint8)
        targets.append((begin + first * item, buffer.numpy().data))
        flat = buffer.view(_torch_dtype(stored.dtype))
        if stored.stride is None or not count:
            tensors[name] = flat.view(stored.shape)
        else:
            tensors[name] = flat.as_strided(stored.shape, stored.stride)
    file.copy_into(targets)
    return tensors


def _span(stored: StoredTensor) -> int:
    """Return the number of values in the storage from a tensor's first to its last."""
    count = math.prod(stored.shape)
    if not count or stored.stride is None:
        return count
    return 1 + sum((n - 1) * step for n, step in zip(stored.shape, stored.stride, strict=True))


def _torch_dtype(name: str) -> torch.dtype:
    import torch

    return {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
        "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
        "U8": torch.uint8, "BOOL": torch.bool,
    }[name]  # fmt: skip
