"""The file format, version 2: names, types and attributes of a cache.

`docs/FORMAT.md` is the specification. `layout` creates a file of this format, `header` reads its
metadata by `index` or by HDF5, and `writer` and `reader` access rows by offset.
"""

from __future__ import annotations

import enum
import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.core.records import RowCounts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from vggfeat.cache.identity import Identity
    from vggfeat.core.quantization import Scales

FORMAT = "vggfeat"
FORMAT_VERSION = 2
"""Of new files."""
READ_VERSIONS = (1, 2)
"""Of files that are read and gone on with, each in its own version."""
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
        version: of the format.
        user_block: bytes in front of HDF5's first one, where index and column records are; 0 in
            files of version 1.
    """

    identity: Identity
    provenance: Provenance
    rows: int
    runs: Mapping[str, DatasetExtent]
    scales: Mapping[str, Scales] = field(default_factory=dict)
    version: int = 1
    user_block: int = 0

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


REQUIRED_ATTRIBUTES = (
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
ATTRIBUTES = frozenset((*REQUIRED_ATTRIBUTES, "activations", "first_layer", "derived", "sources"))
"""Of `/`; the last four only where there is something to say."""


def attributes_of(identity: Identity, provenance: Provenance) -> dict[str, str | int]:
    """Return the attributes of `/` by name; bytes that are no UTF-8 are surrogates."""
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
        "root": provenance.root.decode("utf-8", "surrogateescape"),
        "warning": provenance.warning,
    }
