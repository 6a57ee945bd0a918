"""The file format, version 1: names, types, attributes and where each dataset's bytes lie.

`docs/FORMAT.md` is the norm; this module is that page in code. It touches HDF5 metadata only: rows
are written and read by offset, elsewhere.
"""

from __future__ import annotations

import enum
import json
import math
import os
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from h5py import h5d, h5f, h5p, h5s, h5t

from vggfeat.cache.extent import DatasetExtent, elsewhere, mappable
from vggfeat.cache.identity import Identity
from vggfeat.core.preprocessing import preprocess_from
from vggfeat.core.quantization import Scales, scales_digest
from vggfeat.core.settings import DTYPES
from vggfeat.core.text import counted
from vggfeat.errors import CacheError
from vggfeat.storage.marked_files import open_hdf5

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FORMAT = "vggfeat"
FORMAT_VERSION = 1
VIEW_FORMAT = "vggfeat-view"
"""`format` of a view of shards, which other HDF5 tools read; vggfeat reads the shards."""

ERROR_BYTES = 160
"""Longest reason a failed row keeps."""

# HDF5 converts no UTF-8 into the plain C strings that Octave, Fortran and others read into, and
# Octave then drops the whole group. Readers of ASCII get all bytes as they are, UTF-8 or not.
TEXT_ENCODING = "ascii"
"""Character set that new files declare for `/images/path` and `/images/error`."""

DIGEST_BYTES = 32
"""A SHA-256 of an image file."""

FEATURES = "features"
IMAGES = "images"
SCALES = "scales"
OFFSETS = "offsets"

_ALIGNMENT = 4096
_CHUNK_BYTES = 1 << 20
_STORED_TYPES: Mapping[str, str] = {"float16": "<f2", "float32": "<f4", "int8": "|i1"}


class RowState(enum.IntEnum):
    """What has become of one image."""

    PENDING = 0
    DONE = 1
    FAILED = 2
    REMOVED = 3


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a cache says about its making, beside its identity.

    Attributes:
        root: directory the paths are relative to, as it was then; bytes of the file system.
        config: all settings of the run, `batch_size` and `precision` resolved.
        created_utc: ISO 8601.
        tool_version: of vggfeat.
        versions: of Python and the libraries that made it.
        warning: what a reader must know, empty if nothing.
        sources: of a derived cache, for each of `Identity.steps` what it read and when: `path`,
            `fingerprint`, `created_utc`.
    """

    root: bytes
    config: Mapping[str, Any]
    created_utc: str
    tool_version: str
    versions: Mapping[str, str]
    warning: str = ""
    sources: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Header:
    """All that HDF5 knows of a cache.

    Attributes:
        identity: what another run must agree in to go on with it.
        provenance: how it was made.
        rows: number of images.
        runs: dataset name without the leading slash → where its bytes lie.
        scales: of each layer, where the features are int8; else empty.
    """

    identity: Identity
    provenance: Provenance
    rows: int
    runs: Mapping[str, DatasetExtent]
    scales: Mapping[str, Scales] = field(default_factory=dict)

    def feature(self, spec: str) -> DatasetExtent:
        """The run of `/features/<spec>`."""
        return self.runs[f"{FEATURES}/{spec}"]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical spec → shape of one row."""
        return {spec: self.feature(spec).shape[1:] for spec in self.identity.layers}


def image_fields(longest_path: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and row shape of each `/images` dataset for paths of up to that many bytes."""
    return {
        "path": (f"|S{max(longest_path, 1)}", ()),
        "size": ("<i8", ()),
        "mtime_ns": ("<i8", ()),
        "digest": ("|u1", (DIGEST_BYTES,)),
        "state": ("|u1", ()),
        "checksum": ("<u4", ()),
        "error": (f"|S{ERROR_BYTES}", ()),
    }


_IMAGE_FIELDS = tuple(image_fields(1))
_OPTIONAL = ("digest",)  # the first files had none
_ATTRIBUTES = (
    "format",
    "format_version",
    "created_utc",
    "tool_version",
    "model",
    "weights",
    "weights_sha256",
    "preprocess",
    "precision",
    "config",
    "fingerprint",
    "versions",
    "root",
    "warning",
)
ATTRIBUTES = frozenset((*_ATTRIBUTES, "activations", "first_layer", "derived", "sources"))
"""Of `/`; the last four only where there is something to say."""


def lay_out(
    file_name: str,
    rows: int,
    longest_path: int,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    identity: Identity,
    provenance: Provenance,
    scales: Mapping[str, Scales] = MappingProxyType({}),
) -> None:
    """Makes the file `file_name` with all metadata and every dataset allocated, rows unwritten.

    Args:
        file_name: if it exists, it must be empty.
        rows: number of images.
        longest_path: bytes of the longest path.
        shapes: canonical spec → shape of one row.
        identity: see `Header`.
        provenance: see `Header`.
        scales: see `Header`.

    Raises:
        OSError: the file cannot be made.
    """
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_libver_bounds(h5f.LIBVER_V110, h5f.LIBVER_V110)
    access.set_alignment(_ALIGNMENT, _ALIGNMENT)
    empty = os.path.exists(file_name) and not os.path.getsize(file_name)
    how = h5f.ACC_TRUNC if empty else h5f.ACC_EXCL
    with h5py.File(h5f.create(os.fsencode(file_name), how, fapl=access)) as file:
        images = file.create_group(IMAGES)
        for name, (dtype, shape) in image_fields(longest_path).items():
            _create_dataset(images, name, dtype, (rows, *shape))
        features = file.create_group(FEATURES)
        for spec, shape in shapes.items():
            _create_dataset(features, spec, _STORED_TYPES[identity.dtype], (rows, *shape))
        for spec, one in scales.items():
            file.create_dataset(f"{SCALES}/{spec}", data=one.scale.astype("<f4"))
            file.create_dataset(f"{OFFSETS}/{spec}", data=one.offset.astype("<f4"))
        file.attrs.update(attributes_of(identity, provenance))


def _create_dataset(group: h5py.Group, name: str, dtype: str, shape: tuple[int, ...]) -> None:
    """A dataset in full-row chunks that HDF5 needs no index for: they follow one another."""
    row_bytes = np.dtype(dtype).itemsize * math.prod(shape[1:])
    layout = h5p.create(h5p.DATASET_CREATE)
    layout.set_chunk((max(1, min(shape[0], _CHUNK_BYTES // row_bytes)), *shape[1:]))
    layout.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5d.FILL_TIME_NEVER)
    h5d.create(
        group.id, name.encode(), _hdf5_type(dtype), h5s.create_simple(shape, shape), dcpl=layout
    )


def _hdf5_type(dtype: str) -> h5t.TypeID:
    kind = np.dtype(dtype)
    if kind.kind == "S":
        return h5t.py_create(h5py.string_dtype(TEXT_ENCODING, kind.itemsize), logical=True)
    return h5t.py_create(kind, logical=True)


def attributes_of(identity: Identity, provenance: Provenance) -> dict[str, Any]:
    """The attributes of `/` by name, as HDF5 takes them."""
    optional = {}
    if identity.activations:
        optional["activations"] = json.dumps(dict(identity.activations))
    if identity.first_layer:
        optional["first_layer"] = identity.first_layer
    if identity.steps:
        optional["derived"] = json.dumps([json.loads(step) for step in identity.steps])
        optional["sources"] = json.dumps([dict(source) for source in provenance.sources])
    return {
        **optional,
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "created_utc": provenance.created_utc,
        "tool_version": provenance.tool_version,
        "model": identity.model,
        "weights": identity.weights,
        "weights_sha256": identity.weights_sha256,
        "preprocess": json.dumps(identity.preprocess.recorded()),
        "precision": identity.precision,
        "config": json.dumps(dict(provenance.config)),
        "fingerprint": identity.fingerprint(),
        "versions": json.dumps(dict(provenance.versions)),
        "root": np.bytes_(provenance.root),
        "warning": provenance.warning,
    }


def read_header(file_name: str) -> Header:
    """Reads and checks a cache's metadata; no lock is taken and nothing is changed.

    Raises:
        CacheError: not HDF5, not a cache of ours, of a newer version, or damaged; every offence
            is named.
    """
    try:
        with open_hdf5(file_name) as file:
            return _header(file_name, file)
    except FileNotFoundError:
        raise CacheError(f"cache {file_name!r} is not there") from None
    except (IsADirectoryError, PermissionError) as error:
        raise CacheError(f"cache {file_name!r} cannot be read: {error.strerror}") from error
    except (OSError, KeyError, RuntimeError) as error:  # h5py's words for damaged metadata
        raise CacheError(
            f"cache {file_name!r} is not an HDF5 file, or was cut short: {error}"
        ) from error


def _header(file_name: str, file: h5py.File) -> Header:
    _check_format(file_name, file)
    linked = elsewhere(file, (IMAGES, FEATURES, SCALES, OFFSETS))
    if linked:
        raise CacheError(
            f"cache {file_name!r} does not hold its own data: {'; '.join(linked)}; name the file "
            "that holds them, or copy them into one (h5py: copy with expand_external=True)"
        )
    wrong: list[str] = []
    runs = dict(_runs(file, wrong))
    rows = runs[f"{IMAGES}/state"].shape[0] if f"{IMAGES}/state" in runs else -1
    wrong += [
        f"/{name} has {counted(run.shape[0], 'row')}, /{IMAGES}/state {rows}"
        for name, run in runs.items()
        if rows >= 0 and run.shape[0] != rows
    ]
    wrong += [f"attribute {name} is missing" for name in _ATTRIBUTES if name not in file.attrs]
    scales = dict(_scales(file, runs, wrong))
    try:
        identity, provenance = _read_attributes(file, runs, scales)
    except (KeyError, TypeError, ValueError) as error:
        wrong.append(f"attributes cannot be read: {error}")
    else:
        if identity.fingerprint() != str(file.attrs.get("fingerprint")):
            wrong.append("attribute fingerprint does not belong to the other attributes")
    if wrong:
        raise CacheError(f"cache {file_name!r} is damaged: {'; '.join(wrong)}")
    return Header(identity, provenance, rows, runs, scales)


def _check_format(file_name: str, file: h5py.File) -> None:
    found = file.attrs.get("format")
    if isinstance(found, str) and found == VIEW_FORMAT:
        raise CacheError(
            f"{file_name!r} is a view of shards for other tools; name the folder of the shards"
        )
    if not isinstance(found, str) or found != FORMAT:
        raise CacheError(
            f"{file_name!r} is an HDF5 file but no cache of ours: attribute format is {found!r}, "
            f"expected {FORMAT!r}"
        )
    version = file.attrs.get("format_version")
    if not isinstance(version, int | np.integer) or version != FORMAT_VERSION:
        newer = isinstance(version, int | np.integer) and version > FORMAT_VERSION
        raise CacheError(
            f"cache {file_name!r} has format version {version}, this vggfeat reads "
            f"{FORMAT_VERSION}; {'upgrade it' if newer else 'it is damaged'}"
        )


def _runs(file: h5py.File, wrong: list[str]) -> Iterator[tuple[str, DatasetExtent]]:
    """Each dataset's run; what is missing or cannot be mapped goes to `wrong`."""
    fields = image_fields(1)
    for column in _IMAGE_FIELDS:
        name = f"{IMAGES}/{column}"
        dataset = file.get(name)
        expected, shape = np.dtype(fields[column][0]), fields[column][1]
        if column in _OPTIONAL and file.get(name, getlink=True) is None:
            continue
        if not isinstance(dataset, h5py.Dataset) or dataset.shape[1:] != shape:
            wrong.append(f"/{name} is missing or not {_row_words(shape)} a row")
        elif dataset.dtype.kind != expected.kind or (
            expected.kind != "S" and dataset.dtype != expected
        ):
            wrong.append(f"/{name} has type {dataset.dtype}, expected {expected}")
        else:
            yield from mappable(name, dataset, wrong)
    features = file.get(FEATURES)
    if not isinstance(features, h5py.Group) or not len(features):
        wrong.append(f"/{FEATURES} holds no layer")
        return
    for spec, dataset in features.items():
        name = f"{FEATURES}/{spec}"
        if not isinstance(dataset, h5py.Dataset) or dataset.ndim < 2:  # noqa: PLR2004 (N, D)
            wrong.append(f"/{name} is no array of rows")
        elif dataset.dtype.name not in DTYPES:
            wrong.append(f"/{name} has type {dataset.dtype}, expected {' or '.join(DTYPES)}")
        else:
            yield from mappable(name, dataset, wrong)


def _scales(
    file: h5py.File, runs: Mapping[str, DatasetExtent], wrong: list[str]
) -> Iterator[tuple[str, Scales]]:
    """Scale and offset of each layer of codes; what is missing or of another shape is wrong."""
    for name, run in runs.items():
        group, _, spec = name.partition("/")
        if group != FEATURES or np.dtype(run.dtype) != np.int8:
            continue
        found = [file.get(f"{kind}/{spec}") for kind in (SCALES, OFFSETS)]
        if not all(isinstance(one, h5py.Dataset) and one.shape == run.shape[1:2] for one in found):
            wrong.append(
                f"/{SCALES}/{spec} or /{OFFSETS}/{spec} is missing or not of shape {run.shape[1:2]}"
            )
            continue
        yield spec, Scales(*(one[()].astype(np.float32) for one in found))


def _row_words(shape: tuple[int, ...]) -> str:
    return f"{counted(shape[0], 'value')}" if shape else "one value"


def _read_attributes(
    file: h5py.File, runs: Mapping[str, DatasetExtent], scales: Mapping[str, Scales]
) -> tuple[Identity, Provenance]:
    attributes = file.attrs
    derived = json.loads(attributes.get("derived", "[]"))
    specs = sorted(name.partition("/")[2] for name in runs if name.startswith(FEATURES))
    dtypes = {np.dtype(runs[f"{FEATURES}/{spec}"].dtype).name for spec in specs}
    identity = Identity(
        model=attributes["model"],
        weights=attributes["weights"],
        weights_sha256=attributes["weights_sha256"],
        precision=attributes["precision"],
        dtype="+".join(sorted(dtypes)),
        preprocess=preprocess_from(json.loads(attributes["preprocess"])),
        layers=tuple(specs),
        first_layer=attributes.get("first_layer", ""),
        activations=tuple(json.loads(attributes.get("activations", "{}")).items()),
        scales=scales_digest(scales),
        steps=tuple(json.dumps(step, sort_keys=True) for step in derived),
    )
    config = json.loads(attributes["config"])
    if not (isinstance(config, dict) and type(config.get("batch_size")) is int):
        raise ValueError("config has no batch_size, which a run that goes on needs")
    provenance = Provenance(
        root=bytes(attributes["root"]),
        config=config,
        created_utc=attributes["created_utc"],
        tool_version=attributes["tool_version"],
        versions=json.loads(attributes["versions"]),
        warning=attributes["warning"],
        sources=tuple(json.loads(attributes.get("sources", "[]"))),
    )
    return identity, provenance
