"""Weight files → named tensors, mapped and not read: what no layer asks for is never touched.

Three formats: safetensors, torch's zip archive, and torch's legacy pickle stream, in which the
published VGG weights are kept. Of a pickle only tensors are taken; anything else in it is refused
before it runs.
"""

from __future__ import annotations

import collections
import math
import mmap
import os
import pickle
import zipfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import torch

from vggfeat.errors import WeightsError
from vggfeat.tensorheader import header_length, parse_header

if TYPE_CHECKING:
    from collections.abc import Mapping

_LEGACY_HEAD = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
_ZIP_HEAD = b"PK\x03\x04"

# What readers of pickle, zip and JSON come to on bytes that were changed; an offset or a size among
# them asks for absurd amounts of memory.
_DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
)

_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
}
_STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
}


@dataclass(frozen=True, slots=True)
class _StorageRef:
    key: str
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where one tensor's values lie, in elements of its storage."""

    storage: _StorageRef
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read_checkpoint(path: str) -> dict[str, torch.Tensor]:
    """All tensors of a weight file by name, as private memory maps (changes never reach the file).

    A wrapping `state_dict` entry and a `module.` prefix (DataParallel) are taken off.

    Raises:
        WeightsError: the file cannot be read, is none of the three formats, or holds more than
            tensors.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(len(_LEGACY_HEAD))
        if path.endswith(".safetensors"):
            return _plain_names(read_safetensors(path))
        if zipfile.is_zipfile(path):
            loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        elif head == _LEGACY_HEAD:
            loaded = _read_legacy(path)
        elif head.startswith(_ZIP_HEAD):
            raise ValueError("a zip archive without its end")
        else:
            raise WeightsError(
                f"weights {path!r} are in no known format; expected safetensors or torch.save's"
            )
    except OSError as error:
        raise WeightsError(f"weights {path!r} cannot be read: {error.strerror}") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"weights {path!r} hold more than tensors and were refused: {_first_line(error)}; "
            "save the state_dict alone, or as safetensors"
        ) from error
    except _DAMAGE as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(
            f"weights {path!r} are damaged or cut short: {_first_line(error)}; fetch them again"
        ) from error
    return _plain_names(loaded)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def _plain_names(loaded: Any) -> dict[str, torch.Tensor]:
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict):
        raise WeightsError(
            f"weights hold a {type(loaded).__name__}; expected a state_dict, names to tensors"
        )
    return {
        str(name).removeprefix("module."): value
        for name, value in loaded.items()
        if isinstance(value, torch.Tensor)
    }


def _map_file(path: str) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _tensor_at(
    mapped: mmap.mmap, dtype: torch.dtype, count: int, offset: int, shape: tuple[int, ...]
) -> torch.Tensor:
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    flat = torch.frombuffer(mapped, dtype=dtype, count=count, offset=offset)
    if flat.data_ptr() % dtype.itemsize:
        flat = flat.clone()  # kernels may assume what the language promises: aligned elements
    return flat.view(shape)


def read_safetensors(path: str) -> dict[str, torch.Tensor]:
    """The format of huggingface.co/docs/safetensors: 8 bytes of length, JSON, raw values."""
    mapped = _map_file(path)
    length = header_length(mapped[:8], len(mapped))
    header = parse_header(mapped[8 : 8 + length])
    _check_cover(header.entries, len(mapped) - header.begin)
    return {
        name: _safetensors_entry(mapped, entry, header.begin, name)
        for name, entry in header.entries.items()
    }


def _check_cover(header: Mapping[str, Any], size: int) -> None:
    """The format has every byte behind the header belong to exactly one tensor."""
    at = 0
    for begin, end, name in sorted((*item["data_offsets"], name) for name, item in header.items()):
        if begin != at:
            raise ValueError(f"{name} begins at byte {begin}, where {at} was expected")
        at = end
    if at != size:
        raise ValueError(f"tensors end at byte {at} of {size}")


def _safetensors_entry(
    mapped: mmap.mmap, entry: Mapping[str, Any], base: int, name: str
) -> torch.Tensor:
    dtype = _SAFETENSORS_DTYPES.get(entry["dtype"])
    if dtype is None:
        raise ValueError(f"{name} has dtype {entry['dtype']}, which no VGG weight has")
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    count = math.prod(shape)
    if not (0 <= begin <= end <= len(mapped) - base and end - begin == count * dtype.itemsize):
        raise ValueError(f"{name} of shape {list(shape)} does not fit its bytes {begin} to {end}")
    return _tensor_at(mapped, dtype, count, base + begin, shape)


class _RefusedError(pickle.UnpicklingError):
    """A pickle that wants more than tensors, where any other error of it means damage."""


class _TensorsOnly(pickle.Unpickler):
    """Knows the names that a state_dict of tensors needs; where values lie is noted, not read."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.dtypes: dict[str, torch.dtype] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _note_tensor,
            ("torch._utils", "_rebuild_tensor"): _note_tensor,
            ("torch._utils", "_rebuild_parameter"): _note_parameter,
        }
        if (module, name) not in known:
            raise _RefusedError(f"it names {module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: Any) -> _StorageRef:
        kind, dtype, key, _location, _numel, view = pid
        if kind != "storage" or view is not None or not isinstance(dtype, torch.dtype):
            raise _RefusedError("it holds objects other than plain tensors")
        self.dtypes[str(key)] = dtype
        return _StorageRef(str(key), dtype)


def _note_tensor(
    storage: _StorageRef, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> _Stored:
    return _Stored(storage, offset, shape, stride)


def _note_parameter(noted: _Stored, *_: object) -> _Stored:
    return noted


def _read_legacy(path: str) -> dict[str, torch.Tensor]:
    """What torch.save wrote before 1.6: four pickles, the storages' keys, their values."""
    with open(path, "rb") as file:
        for _ in range(3):  # magic number, protocol version, the writer's type sizes
            _unpickle(file)
        noted, dtypes = _unpickle(file)
        stored = _named(noted)
        keys, _ = _unpickle(file)
        places = _storage_places(file, keys, dtypes)
    mapped = _map_file(path)
    return {name: _view(mapped, places, where) for name, where in stored.items()}


def _unpickle(file: IO[bytes]) -> tuple[Any, dict[str, torch.dtype]]:
    """The next pickle's value, and the dtype of every storage in it by key."""
    unpickler = _TensorsOnly(file)
    try:
        return unpickler.load(), unpickler.dtypes
    except _RefusedError:
        raise
    except pickle.UnpicklingError as error:
        raise ValueError(str(error)) from error


def _named(noted: Any) -> dict[str, _Stored]:
    if isinstance(noted, dict) and isinstance(noted.get("state_dict"), dict):
        noted = noted["state_dict"]
    if not isinstance(noted, dict):
        raise _RefusedError(f"it holds a {type(noted).__name__}, not a state_dict")
    return {name: value for name, value in noted.items() if isinstance(value, _Stored)}


def _storage_places(
    file: IO[bytes], keys: list[str], dtypes: Mapping[str, torch.dtype]
) -> dict[str, tuple[int, int]]:
    """Offset in the file and number of elements of every storage; each has its length in front."""
    places = {}
    end = os.fstat(file.fileno()).st_size
    at = file.tell()
    for key in keys:
        file.seek(at)
        count = int.from_bytes(file.read(8), "little")
        places[key] = (at + 8, count)
        at += 8 + count * dtypes[key].itemsize
        if at > end:
            raise ValueError(f"storage {key} ends at byte {at} of {end}")
    return places


def _view(
    mapped: mmap.mmap, places: Mapping[str, tuple[int, int]], stored: _Stored
) -> torch.Tensor:
    start, count = places[stored.storage.key]
    flat = _tensor_at(mapped, stored.storage.dtype, count, start, (count,))
    return flat.as_strided(stored.shape, stored.stride, stored.offset)
