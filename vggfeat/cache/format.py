"""The file format, version 1: names, types and attributes, and where the bytes of datasets lie.

`docs/FORMAT.md` is the specification; this module implements it. It touches HDF5 metadata only:
`writer` and `reader` access rows by offset.
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

from vggfeat.cache.identity import Identity
from vggfeat.core.preprocessing import preprocess_from
from vggfeat.core.quantization import Scales, scales_digest
from vggfeat.core.records import RowCounts
from vggfeat.core.settings import DTYPES
from vggfeat.core.steps import Step
from vggfeat.core.text import counted
from vggfeat.errors import CacheError
from vggfeat.storage.hdf5_file import open_hdf5

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

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
_CHUNKS_LOOKED_AT = 16
_STORED_TYPES: Mapping[str, str] = {"float16": "<f2", "float32": "<f4", "int8": "|i1"}


class RowState(enum.IntEnum):
    """State of the row of one image."""

    PENDING = 0
    DONE = 1
    FAILED = 2
    REMOVED = 3


def count_rows(state: NDArray[Any]) -> RowCounts:
    """Count rows by state, uint8 (N,)."""
    counts = np.bincount(state, minlength=len(RowState)).tolist()
    done, failed, pending = (
        counts[one] for one in (RowState.DONE, RowState.FAILED, RowState.PENDING)
    )
    return RowCounts(len(state), done, failed, pending)


@dataclass(frozen=True, slots=True)
class DatasetExtent:
    """Where the bytes of one dataset lie in the file: one contiguous range.

    Attributes:
        dtype: NumPy's name of the element type, little-endian.
        shape: rows first.
        offset: of the first row, in bytes from the start of the file.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.dtype(self.dtype).itemsize) * math.prod(self.shape[1:])


@dataclass(frozen=True, slots=True)
class Provenance:
    """How a cache was made, apart from what decides its identity.

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
class CacheMetadata:
    """What a new cache records about itself; a `Header` has the same attributes.

    Attributes:
        identity: what a run must agree in to resume the cache.
        provenance: how it is made.
        shapes: canonical spec → shape of one row.
        scales: of each layer, where the features are int8; else empty.
    """

    identity: Identity
    provenance: Provenance
    shapes: Mapping[str, tuple[int, ...]]
    scales: Mapping[str, Scales] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Header:
    """Metadata of an existing cache; for what is not here see `CacheMetadata`.

    Attributes:
        rows: number of images.
        runs: dataset name without the leading slash → where its bytes lie.
    """

    identity: Identity
    provenance: Provenance
    rows: int
    runs: Mapping[str, DatasetExtent]
    scales: Mapping[str, Scales] = field(default_factory=dict)

    def feature(self, spec: str) -> DatasetExtent:
        """Return where the bytes of `/features/<spec>` lie."""
        return self.runs[f"{FEATURES}/{spec}"]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical spec → shape of one row."""
        return {spec: self.feature(spec).shape[1:] for spec in self.identity.layers}


def image_fields(longest_path: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return type and row shape of each `/images` dataset, for paths of up to that many bytes."""
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
    """Create a file with all metadata and every dataset allocated, rows unwritten.

    An existing file must be empty. `longest_path` is in bytes; for the others see `CacheMetadata`.
    """
    access = h5p.create(h5p.FILE_ACCESS)
    # 1.10 is the first version with chunks that need no index; fixed, so that files do not depend
    # on the installed HDF5.
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
    """Create a dataset in chunks of whole rows that follow one another, so HDF5 needs no index."""
    row_bytes = np.dtype(dtype).itemsize * math.prod(shape[1:])
    layout = h5p.create(h5p.DATASET_CREATE)
    layout.set_chunk((max(1, min(shape[0], _CHUNK_BYTES // row_bytes)), *shape[1:]))
    # Allocated at once, and never filled: offsets are then known before the first row, and HDF5
    # writes no zeros over a file whose blocks are about to be reserved.
    layout.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5d.FILL_TIME_NEVER)
    kind = np.dtype(dtype)
    if kind.kind == "S":
        kind = h5py.string_dtype(TEXT_ENCODING, kind.itemsize)
    stored = h5t.py_create(kind, logical=True)
    h5d.create(group.id, name.encode(), stored, h5s.create_simple(shape, shape), dcpl=layout)


def attributes_of(identity: Identity, provenance: Provenance) -> dict[str, Any]:
    """Return the attributes of `/` by name, as HDF5 takes them."""
    optional = {}
    if identity.activations:
        optional["activations"] = json.dumps(dict(identity.activations))
    if identity.first_layer:
        optional["first_layer"] = identity.first_layer
    if identity.steps:
        optional["derived"] = json.dumps([dict(step.record) for step in identity.steps])
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
    """Read and check the metadata of a cache; take no lock and change nothing."""
    try:
        with open_hdf5(file_name) as file:
            return _header(file_name, file)
    except FileNotFoundError:
        raise CacheError(f"cache {file_name!r} does not exist") from None
    except (IsADirectoryError, PermissionError) as error:
        raise CacheError(f"cache {file_name!r} cannot be read: {error.strerror}") from error
    except (OSError, KeyError, RuntimeError) as error:  # h5py's words for damaged metadata
        raise CacheError(
            f"cache {file_name!r} is not an HDF5 file, or was cut short: {error}"
        ) from error


def _header(file_name: str, file: h5py.File) -> Header:
    _check_format(file_name, file)
    linked = _elsewhere(file, (IMAGES, FEATURES, SCALES, OFFSETS))
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
    """Yield the extent of each dataset; append what is missing or cannot be mapped to `wrong`."""
    fields = image_fields(1)
    for column in _IMAGE_FIELDS:
        name = f"{IMAGES}/{column}"
        dataset = file.get(name)
        expected, shape = np.dtype(fields[column][0]), fields[column][1]
        if column in _OPTIONAL and file.get(name, getlink=True) is None:
            continue
        if not isinstance(dataset, h5py.Dataset) or dataset.shape[1:] != shape:
            values = counted(shape[0], "value") if shape else "one value"
            wrong.append(f"/{name} is missing or not {values} a row")
        elif dataset.dtype.kind != expected.kind or (
            expected.kind != "S" and dataset.dtype != expected
        ):
            wrong.append(f"/{name} has type {dataset.dtype}, expected {expected}")
        else:
            yield from _mappable(name, dataset, wrong)
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
            yield from _mappable(name, dataset, wrong)


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
        steps=tuple(map(Step, derived)),
    )
    config = json.loads(attributes["config"])
    if not (isinstance(config, dict) and type(config.get("batch_size")) is int):
        raise ValueError("config has no batch_size, which a run that resumes needs")
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


def _elsewhere(file: h5py.File, groups: tuple[str, ...]) -> list[str]:
    """Name each link, virtual dataset and dataset in a raw file in some groups below `/`.

    The offsets of what they refer to mean nothing in this file.
    """
    found = []
    for group in groups:
        link = file.get(group, getlink=True)
        if link is not None and not isinstance(link, h5py.HardLink):
            found.append(f"/{group} is {_link_words(link)}")
        elif link is not None and isinstance(file[group], h5py.Group):
            found += _members_elsewhere(file[group])
    return found


def _members_elsewhere(group: h5py.Group) -> Iterator[str]:
    for name in group:
        path = f"{group.name}/{name}"
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            yield f"{path} is {_link_words(link)}"
        elif isinstance(group[name], h5py.Dataset):
            dataset = group[name]
            if dataset.is_virtual:
                yield f"{path} is a virtual dataset of {dataset.virtual_sources()[0].file_name!r}"
            elif dataset.external:
                yield f"{path} lies in the raw file {dataset.external[0][0]!r}"


def _link_words(link: object) -> str:
    if isinstance(link, h5py.ExternalLink):
        return f"an external link to {link.path!r} in {link.filename!r}"
    if isinstance(link, h5py.SoftLink):
        return f"a soft link to {link.path!r}"
    return "a link of a kind that is not known"


def _mappable(
    name: str, dataset: h5py.Dataset, wrong: list[str]
) -> Iterator[tuple[str, DatasetExtent]]:
    """Yield the name and extent of a dataset, or append to `wrong` why it cannot be mapped."""
    offset = _find_offset(dataset)
    if offset is None:
        wrong.append(
            f"/{name} does not lie in one run (compressed or repacked?), so it cannot be memory "
            "mapped; `h5repack -f NONE -l CONTI` makes it so"
        )
        return
    # Little-endian in the file, whatever this machine is.
    dtype = dataset.dtype.newbyteorder("<").str
    yield name, DatasetExtent(dtype, tuple(dataset.shape), offset)


def _find_offset(dataset: h5py.Dataset) -> int | None:
    """Return where the bytes of a dataset begin; None unless they are one little-endian range."""
    layout = dataset.id.get_create_plist()
    big_endian = dataset.dtype.byteorder == ">"
    if big_endian or layout.get_nfilters() or layout.get_external_count():
        return None
    if layout.get_layout() == h5d.CONTIGUOUS:
        offset = dataset.id.get_offset()
        return None if offset is None else int(offset)
    if layout.get_layout() != h5d.CHUNKED or dataset.chunks[1:] != dataset.shape[1:]:
        return None
    return _chunked_offset(dataset)


def _chunked_offset(dataset: h5py.Dataset) -> int | None:
    rows = dataset.chunks[0]
    size = rows * dataset.dtype.itemsize * math.prod(dataset.shape[1:])
    count = -(-dataset.shape[0] // rows)
    # A few chunks stand for all: looking up each one of a large file takes too long.
    zeros = (0,) * (dataset.ndim - 1)
    places = {
        chunk: dataset.id.get_chunk_info_by_coord((chunk * rows, *zeros)).byte_offset
        for chunk in np.unique(np.linspace(0, count - 1, _CHUNKS_LOOKED_AT).astype(int)).tolist()
    }
    first = places[0]
    if first is None or any(place != first + chunk * size for chunk, place in places.items()):
        return None
    return int(first)
