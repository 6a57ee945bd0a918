"""The model file: what was fitted to features, saved once, applied to any number of caches.

A plain HDF5 file: attributes `format` ("vggfeat-model"), `format_version`, `kind` and `parameters`
(JSON), and one dataset an array. Its digest runs over what is in it, not over the file's bytes.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np

from vggfeat.core.file_kinds import MODEL_FORMAT
from vggfeat.core.file_types import foreign_ending
from vggfeat.errors import (
    CacheError,
    CacheMismatchError,
    MissingFileError,
    SpaceError,
    UsageError,
)
from vggfeat.storage.atomic import atomic_file
from vggfeat.storage.damage import DAMAGE
from vggfeat.storage.foreign_files import ForeignFileError, parse_json
from vggfeat.storage.hdf5_file import checked_hdf5, reason_of
from vggfeat.storage.hdf5_metadata.blocks import MetadataError
from vggfeat.storage.hdf5_metadata.reader import Dataset, metadata_of, open_metadata
from vggfeat.storage.paths import check_place

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from vggfeat.cache.reader import FeatureCache
    from vggfeat.storage.hdf5_metadata.reader import Hdf5File

T = TypeVar("T")

VERSIONS = (1, 2)
"""Of the format. A model that a reader of version 1 would use wrongly has version 2."""

_VERSIONS = " and ".join(map(str, VERSIONS))


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """The content of a model file: what was fitted, and how.

    Attributes:
        kind: `fuse`, `reduce` or `zeroshot`.
        parameters: all that is no array, ready for JSON.
        arrays: name → array.
        version: of the format, one of `VERSIONS`; not part of the digest.
    """

    kind: str
    parameters: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]
    version: int = 1

    @property
    def sha256(self) -> str:
        """Digest over kind, parameters and arrays."""
        digest = hashlib.sha256(self.kind.encode() + b"\0" + _json(self.parameters).encode())
        for name, array in sorted(self.arrays.items()):
            plain = np.ascontiguousarray(array)
            digest.update(f"\0{name} {plain.dtype.str} {plain.shape}\0".encode())
            digest.update(plain.tobytes())
        return digest.hexdigest()


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(dict(value), sort_keys=True)


def save_fitted(path: str, fitted: Fitted) -> None:
    """Write a model file, whole or not at all; replace an older one of that name."""
    try:
        with atomic_file(path) as target:
            with checked_hdf5(target, libver=("v110", "v110")) as (file, _):
                file.attrs["format"] = MODEL_FORMAT
                file.attrs["format_version"] = fitted.version
                file.attrs["kind"] = fitted.kind
                file.attrs["parameters"] = _json(fitted.parameters)
                for name, array in fitted.arrays.items():
                    file.create_dataset(name, data=array)
            _check_as_written(target, fitted)
    except (OSError, RuntimeError) as error:
        raise SpaceError(f"model {path!r} cannot be written: {reason_of(error)}") from error


def _check_as_written(target: BinaryIO, fitted: Fitted) -> None:
    """Read a model back before it gets its name; raise OSError if it differs."""
    written = _read(target.name, metadata_of(target.fileno()), fitted.kind)
    if written.sha256 != fitted.sha256:
        raise OSError(errno.EIO, "it reads back otherwise than it was written")


def load_fitted(path: str, kind: str) -> Fitted:
    """Read a model file, which must be of a kind: `fuse`, `reduce` or `zeroshot`."""
    try:
        with open_metadata(path) as file:
            fitted = _read(path, file, kind)
    except FileNotFoundError:
        raise MissingFileError(f"model {path!r} does not exist; {_maker(kind)} makes one") from None
    except CacheError:
        raise
    except ForeignFileError as error:
        raise CacheError(f"model {path!r} cannot be read: {error}") from error
    except (OSError, *DAMAGE) as error:
        words = " ".join(str(error).split())
        raise CacheError(f"model {path!r} is damaged, or no HDF5 file: {words}") from error
    if fitted.kind != kind:
        raise CacheError(
            f"model {path!r} was made by vggfeat {fitted.kind}, expected one of vggfeat {kind}"
        )
    return fitted


def check_complete(parameters: Mapping[str, Any], what: str) -> None:
    """Raise CacheError unless the parameters say which network a model is for, and its notes."""
    network, notes = parameters.get("network"), parameters.get("notes", [])
    fits = (
        isinstance(network, dict)
        and isinstance(network.get("layers"), dict)
        and {"model", "weights_sha256", "steps"} <= network.keys()
        and isinstance(notes, list)
        and all(isinstance(note, str) for note in notes)
    )
    if not fits:
        raise CacheError(f"{what} is damaged: its parameters do not say what it was fitted to")


def _maker(kind: str) -> str:
    return "vggfeat zeroshot fit" if kind == "zeroshot" else "--save of vggfeat fuse or reduce"


def _read(path: str, file: Hdf5File, kind: str) -> Fitted:
    name, version = (
        file.root.attributes[key].value() if key in file.root.attributes else None
        for key in ("format", "format_version")
    )
    if not isinstance(name, str) or name != MODEL_FORMAT:
        raise CacheError(
            f"{path!r} is no model of ours: format {name!r} {version}, expected {MODEL_FORMAT!r} "
            f"{_VERSIONS}; {_maker(kind)} makes one"
        )
    if not isinstance(version, int) or version not in VERSIONS:
        newer = isinstance(version, int) and version > max(VERSIONS)
        raise CacheError(
            f"model {path!r} has format version {version!r:.40}, this vggfeat reads {_VERSIONS}; "
            f"{'upgrade it' if newer else 'the file is damaged'}"
        )
    parameters = parse_json(file.root.attributes["parameters"].text())
    if not isinstance(parameters, dict) or not isinstance(parameters.get("asked", {}), dict):
        raise ValueError("its parameters are no table")  # noqa: TRY004 of the file, not of ours
    return Fitted(
        file.root.attributes["kind"].text(),
        parameters,
        {name: _array(file, name) for name in sorted(file.root.links)},
        version,
    )


def _array(file: Hdf5File, name: str) -> NDArray[Any]:
    dataset = file.root.get(name)
    if not isinstance(dataset, Dataset):
        raise MetadataError(f"/{name} is {file.root.links[name].words} to no dataset")
    return dataset.read()


def default_model(out: str) -> str:
    """Return the default place of a new cache's model, such as `fused.model.h5`."""
    return f"{out.removesuffix('.h5')}.model.h5"


def model_for(
    cache: FeatureCache,
    path: str,
    kind: str,
    requested: Mapping[str, Any] | None,
    fit: Callable[[], Fitted],
    *,
    fresh: bool = False,
) -> Fitted:
    """Load the model to apply to a cache, or fit one now and save it.

    So a resumed run applies the model that it began with, also where the source has grown since.

    Args:
        cache: what the model is applied to.
        path: the file.
        kind: see `load_fitted`.
        requested: what the model must have been fitted to; None takes it as it is.
        fit: returns a model that has `requested` among its parameters as `asked`.
        fresh: fit again even if the file exists.
    """
    if requested is not None:
        check_model_place(path)
    if requested is None or (os.path.exists(path) and not fresh):
        fitted = load_fitted(path, kind)
        asked = fitted.parameters.get("asked", {})
        if unlike := model_differences(asked, requested or asked):
            raise CacheMismatchError(
                f"model {path!r} was fitted to something else: {'; '.join(unlike)}. "
                "Repeat its settings, choose another --save, or --fresh to fit again; --use "
                "applies it as it is"
            )
    else:
        check_replaceable(path, kind)
        fitted = fit()
        save_fitted(path, fitted)
    check_complete(fitted.parameters, f"model {path!r}")
    check_network(cache, fitted.parameters["network"], path)
    return fitted


def model_differences(had: Mapping[str, Any], requested: Mapping[str, Any]) -> list[str]:
    """Return how the fit of a model and a request differ, each `name: model a, requested b`."""
    known, wanted = json.loads(_json(had)), json.loads(_json(requested))
    return [
        f"{name}: model {known.get(name)}, requested {wanted.get(name)}"
        for name in sorted({*known, *wanted})
        if known.get(name) != wanted.get(name)
    ]


def check_model_place(path: str) -> None:
    """Refuse a path where no file can be, or one named like a file of another format."""
    check_place(path, "model")
    if os.path.isdir(path):
        raise UsageError(f"model {path!r} is a folder; expected a file name such as model.h5")
    if ending := foreign_ending(path):
        raise UsageError(
            f"model {path!r} is named like a file of another format, and a model is HDF5; name it "
            f"{path[: -len(ending)] + 'h5'!r}"
        )


def check_replaceable(path: str, kind: str) -> None:
    """Refuse to replace what is no model, such as a cache named by mistake."""
    if not os.path.lexists(path):
        return
    try:
        load_fitted(path, kind)
    except CacheError as error:
        raise CacheError(
            f"{error}. It is not replaced; name another place, or move it away"
        ) from error


def network_record(cache: FeatureCache, layers: Sequence[str]) -> dict[str, Any]:
    """Return what must be the same in every cache that a model is applied to."""
    identity = cache.header.identity
    return {
        "model": identity.model,
        "weights_sha256": identity.weights_sha256,
        "steps": [step.anywhere().text() for step in identity.steps],
        "layers": {layer: list(cache.header.shapes[layer]) for layer in layers},
    }


def check_network(cache: FeatureCache, network: Mapping[str, Any], other: str) -> None:
    """Refuse features of another network, or without some of its layers."""
    missing = [layer for layer in network["layers"] if layer not in cache.layers]
    wrong = [f"it has no {', '.join(missing)}"] if missing else []
    own = network_record(cache, [layer for layer in network["layers"] if layer in cache.layers])
    wrong += [
        f"{name}: {own[name]}, expected {network[name]}"
        for name in (["layers"] if not missing else []) + ["model", "weights_sha256", "steps"]
        if own[name] != network[name]
    ]
    if wrong:
        raise CacheMismatchError(
            f"cache {cache.path!r} does not fit {other!r}: {'; '.join(wrong)}. Extract the same "
            "layers with the same network"
        )


def pack(prefix: str, record: Any) -> dict[str, NDArray[Any]]:
    """Return a dataclass of arrays and numbers as arrays: `prefix.field` → its value."""
    return {
        f"{prefix}.{item.name}": np.asarray(getattr(record, item.name))
        for item in dataclasses.fields(record)
    }


def unpack(kind: type[T], prefix: str, arrays: Mapping[str, NDArray[Any]]) -> T:
    """Return what `pack` packed."""
    names = [item.name for item in dataclasses.fields(kind)]  # type: ignore[arg-type] # a dataclass
    values = {name: arrays[f"{prefix}.{name}"] for name in names}
    return kind(**{name: one if one.ndim else one.item() for name, one in values.items()})
