"""Read torch's pickles: note the tensors, and never run anything that a pickle names.

A pickle is a program. This module knows the few names that a state_dict of tensors needs; names of
plain data that training tools add become `Inert` objects, which do nothing; with any other name the
file is refused.
"""

from __future__ import annotations

import collections
import itertools
import pickle
import struct
import sys
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, ClassVar

from vggfeat.network.containers.records import MoreThanTensorsError, RefusedError, StoredTensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_STORAGES: Mapping[str, str] = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL", "UntypedStorage": "U8",
}  # fmt: skip
_TORCH_DTYPES: Mapping[str, str] = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64",
    "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip

# Packages of data that training tools save: arguments, hyperparameters, metrics, paths.
_DATA_PACKAGES = frozenset({
    "argparse", "collections", "datetime", "enum", "lightning", "lightning_fabric", "numpy",
    "omegaconf", "pathlib", "pytorch_lightning", "torch", "typing",
})  # fmt: skip
_DATA_NAMES = frozenset(
    {("builtins", name) for name in (
        "bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list",
        "object", "range", "set", "slice", "str", "tuple",
    )}
    | {("_codecs", "encode"), ("copyreg", "_reconstructor"), ("copy_reg", "_reconstructor")}
)  # fmt: skip
_OLD_BUILTINS = "__builtin__"  # Python 2's, which protocol 2 still writes
_MODELS = ("torch.nn", "torchvision.models", "timm", "torch.fx", "torch._dynamo")

_DEEPEST = 100  # levels of tables and tuples
_MOST_ENTRIES = 8  # levels of networks in entries of others
_MOST_TABLES = 50_000
_LARGEST = 2**63

SAVE_STATE = (
    "in the program that made it save its tensors alone: "
    "torch.save(model.state_dict(), 'weights.pth')"
)
"""The remedy for a file that holds more."""

# Usual keys of a network's tensors, the likeliest first; averaged ones last.
_ENTRIES = (
    "state_dict", "model_state_dict", "model", "net", "network", "module",
    "ema", "ema_state_dict", "model_ema", "ema_model", "state_dict_ema", "model_ema_state_dict",
)  # fmt: skip


class _RefusedPickleError(pickle.UnpicklingError):
    """A pickle that needs more than tensors; any other error of a pickle means damage."""


class Inert:
    """Stand for an object that is not needed: accept everything and do nothing."""

    def __init__(self, *_: object, **__: object) -> None:
        self.state: Any = {}

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, _key: object, _value: object) -> None:
        pass

    def append(self, _value: object) -> None:
        """Drop a value."""

    def extend(self, _values: object) -> None:
        """Drop values."""

    def add(self, _value: object) -> None:
        """Drop a value."""

    def __call__(self, *_: object, **__: object) -> Inert:
        """Return something as inert."""
        return Inert()


class ScriptModule(Inert):
    """A module of TorchScript: its attributes are in `state`; its code is not read."""


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: str


@dataclass(frozen=True, slots=True)
class _Dtype:
    name: str


class _TensorsOnly(pickle._Unpickler):  # noqa: SLF001 see below
    """Python's own unpickler, in which each step can be bounded.

    That in C takes 32 GiB where a pickle of ten bytes asks for a place in its memo, and its tuples
    that nest deep crash the interpreter once they are hashed.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)  # noqa: SLF001

    stack: list[Any]
    read: Callable[[int], bytes]

    def __init__(self, file: IO[bytes], *, script: bool) -> None:
        super().__init__(file)
        self.dtypes: dict[str, str] = {}
        self._script = script
        self._depths: dict[int, int] = {}  # of tuples that hold tuples, by their id
        self._kept: list[tuple[Any, ...]] = []  # so that no other tuple gets such an id

    def build(self) -> None:
        """Give its state to an object that stands for another; drop that of any other."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Inert):
            self.stack[-1].__setstate__(state)

    def bytes_8(self) -> None:
        """Read bytes; the array is not made before they are there."""
        (length,) = struct.unpack("<Q", self.read(8))
        self.stack.append(bytearray(self.read(min(length, sys.maxsize))))

    def note_depth(self) -> None:
        """Refuse a tuple on top of the stack that nests too deep."""
        made = self.stack[-1]
        inner = [self._depths.get(id(one), 1) for one in made if type(one) is tuple]
        if inner:
            self._depths[id(made)] = depth = 1 + max(inner)
            self._kept.append(made)
            if depth > _DEEPEST:
                raise pickle.UnpicklingError(f"tuples nest deeper than {_DEEPEST} levels")

    def find_class(self, module: str, name: str) -> Any:
        module = "builtins" if module == _OLD_BUILTINS else module
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _Dtype(_STORAGES[name])
        if module == "torch" and name in _TORCH_DTYPES:
            return _Dtype(_TORCH_DTYPES[name])
        if self._script and module.startswith("__torch__"):
            return ScriptModule
        if (module, name) in _DATA_NAMES:
            return Inert
        if module.startswith(_MODELS):
            raise _RefusedPickleError(f"it is a whole model ({module}.{name}) and no state_dict")
        if module.partition(".")[0] in _DATA_PACKAGES:
            return Inert
        raise _RefusedPickleError(f"it names {module}.{name}, which is no tensor")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, *rest = pid
        view = rest[2] if len(rest) > 2 else None  # noqa: PLR2004 location, length, view
        if kind != "storage" or view is not None or not isinstance(dtype, _Dtype):
            raise _RefusedPickleError("it holds objects other than plain tensors")
        self.dtypes[str(key)] = dtype.name
        return _Storage(str(key), dtype.name)


def _bounded(step: Callable[[Any], None]) -> Callable[[_TensorsOnly], None]:
    def bounded(unpickler: _TensorsOnly) -> None:
        step(unpickler)
        unpickler.note_depth()

    return bounded


for _code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
    _TensorsOnly.dispatch[_code[0]] = _bounded(_TensorsOnly.dispatch[_code[0]])
_TensorsOnly.dispatch[pickle.BUILD[0]] = _TensorsOnly.build
_TensorsOnly.dispatch[pickle.BYTEARRAY8[0]] = _TensorsOnly.bytes_8


def _note_tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *rest: object
) -> StoredTensor:
    # An untyped storage is followed by the tensor's own type.
    dtype = next((one.name for one in rest if isinstance(one, _Dtype)), storage.dtype)
    numbers = (offset, *shape, *stride)
    if len(shape) != len(stride) or not all(
        type(number) is int and 0 <= number < _LARGEST for number in numbers
    ):
        raise pickle.UnpicklingError(f"a tensor of shape {shape!r:.80} and stride {stride!r:.80}")
    return StoredTensor(dtype, tuple(shape), storage.key, offset, tuple(stride))


def _note_parameter(noted: StoredTensor, *_: object) -> StoredTensor:
    return noted


_KNOWN: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _note_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _note_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _note_tensor,
    ("torch._utils", "_rebuild_parameter"): _note_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _note_parameter,
}


def load_noted(file: IO[bytes], *, script: bool = False) -> tuple[Any, dict[str, str]]:
    """Return the next pickle's value, tensors as `StoredTensor`, and the dtype of each storage.

    With `script`, modules of TorchScript become `ScriptModule`.
    """
    unpickler = _TensorsOnly(file, script=script)
    try:
        return unpickler.load(), unpickler.dtypes
    except _RefusedPickleError as error:
        raise MoreThanTensorsError(f"{error}; {SAVE_STATE}") from error
    except pickle.UnpicklingError as error:
        raise ValueError(str(error)) from error


def named_tensors(noted: Any, depth: int = 0) -> dict[str, StoredTensor]:
    """Return a network's tensors by name, from the likeliest entry if the file has several."""
    if depth > _MOST_ENTRIES:
        raise ValueError(f"networks nest deeper than {_MOST_ENTRIES} levels")
    if isinstance(noted, ScriptModule):
        return dict(_flatten(noted))
    if not isinstance(noted, dict):
        kind = "Tensor" if isinstance(noted, StoredTensor) else type(noted).__name__
        raise RefusedError(f"it holds a {kind}; expected a state_dict, names to tensors")
    own = {str(name): one for name, one in noted.items() if isinstance(one, StoredTensor)}
    for key in _ENTRIES:
        if isinstance(noted.get(key), dict) and any(_flatten(noted[key])):
            if own and key != "state_dict":
                break
            return named_tensors(noted[key], depth + 1)
    return own or dict(_flatten(noted))


def _flatten(tree: Any) -> Iterator[tuple[str, StoredTensor]]:
    """Yield the tensors of nested tables, with keys joined by dots."""
    # A table may be in several places, and so be met more often than the file has bytes.
    left = itertools.repeat(None, _MOST_TABLES)
    return _tensors_in(tree, "", 0, left)


def _tensors_in(
    tree: Any, prefix: str, depth: int, left: Iterator[None]
) -> Iterator[tuple[str, StoredTensor]]:
    if depth > _DEEPEST or next(left, left) is left:
        raise ValueError("its tables nest too deep, or without end")
    items = tree.state if isinstance(tree, ScriptModule) else tree
    if not isinstance(items, dict):
        return
    for key, value in items.items():
        if isinstance(value, StoredTensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, dict | ScriptModule):
            yield from _tensors_in(value, f"{prefix}{key}.", depth + 1, left)
