"""The small records that travel between the stages, each frozen and slotted.

Shapes: B is the batch shape fixed for the run, n ≤ B the images really in it.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One image as the sources list it.

    Attributes:
        path: relative to the source root, the file system's own bytes, `/` as separator.
        size: bytes, 0 where the file could not be looked at.
        mtime_ns: time of last change in nanoseconds since 1970, 0 likewise.
    """

    path: bytes
    size: int
    mtime_ns: int

    @property
    def name(self) -> str:
        """The path as text; bytes that are no UTF-8 as surrogate escapes."""
        return os.fsdecode(self.path)


class ImageColumns(Protocol):
    """Images as a cache is made of them: one entry a row in each column."""

    @property
    def paths(self) -> Sequence[bytes] | NDArray[np.bytes_]:
        """Relative to the root."""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """In bytes, int64 (N,)."""

    @property
    def mtimes(self) -> NDArray[np.int64]:
        """In nanoseconds since 1970, int64 (N,)."""


@dataclass(frozen=True, slots=True)
class Images:
    """The images of a cache, one a row, sorted by path.

    Attributes:
        paths: bytes (N,), relative to the source root.
        sizes: int64 (N,), bytes.
        mtimes: int64 (N,), nanoseconds since 1970.
    """

    paths: NDArray[np.bytes_]
    sizes: NDArray[np.int64]
    mtimes: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that gave no features.

    Attributes:
        row: in the cache.
        reason: one line.
        digest: SHA-256 of the image's bytes, empty where they could not be read.
    """

    row: int
    reason: str
    digest: bytes = b""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedImage:
    """A JPEG that a device is to decode.

    Attributes:
        data: uint8 (n,), the file without its metadata.
        height, width: of its pixels before they are turned.
        turn: the EXIF orientation to undo, 1 to 8; 1 is upright.
    """

    data: NDArray[np.uint8]
    height: int
    width: int
    turn: int


@dataclass(frozen=True, slots=True)
class DecodedBatch:
    """Images of one batch as the workers hand them over.

    Attributes:
        images: uint8 or uint16, (B, H, W, C) in memory or on the network's device;
            `.permute(0, 3, 1, 2)` is (B, C, H, W) in channels-last layout without a copy. Slots
            that hold no image, or one that is still encoded, are zero.
        rows: int64 (n,), the cache rows of the images that decoded.
        slots: int64 (n,), where in `images` each of them lies, ascending.
        digests: uint8 (n, 32), SHA-256 of each image's bytes as they were read.
        failures: the images that did not decode.
        seconds: time spent decoding, in the worker.
        encoded: slot → an image of the batch that the device is to decode, with `--decode gpu`.
        collated: seconds that making the batch took, in the main thread.
    """

    images: torch.Tensor
    rows: NDArray[np.int64]
    slots: NDArray[np.int64]
    digests: NDArray[np.uint8]
    failures: tuple[Failure, ...]
    seconds: float
    encoded: Mapping[int, EncodedImage] = field(default_factory=dict)
    collated: float = 0.0


@dataclass(frozen=True, slots=True)
class FeatureBatch:
    """Features of one batch on their way into the file.

    Attributes:
        rows: int64 (n,), the cache row of each feature.
        digests: uint8 (n, 32), SHA-256 of each image's bytes.
        features: canonical layer spec → (n, …) array in the file's dtype.
        failures: rows of the batch that have no features, and why.
        clamped: values beyond the dtype's range that were set to its largest.
    """

    rows: NDArray[np.int64]
    digests: NDArray[np.uint8]
    features: Mapping[str, NDArray[np.generic]]
    failures: tuple[Failure, ...]
    clamped: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        done: images that have features by now, in this run.
        failed: images that failed, in this run.
        total: images this run has to do.
        images_per_second: of this run since its first batch, as its summary has it; 0 where it is
            not known yet.
    """

    done: int
    failed: int
    total: int
    images_per_second: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class Stages:
    """Seconds of the caller's time in each stage; `decode` alone is the workers' sum.

    Attributes:
        discover: listing the sources.
        prepare: reading or making the file, weights, device, network, until the first batch.
        wait: with nothing decoded yet.
        network: starting batches on the device and waiting for them.
        write: waiting for the writing thread.
        decode: work of the decoding processes, beside all of that.
        collate: copying decoded pixels into batches.
    """

    discover: float
    prepare: float
    wait: float
    network: float
    write: float
    decode: float
    collate: float = 0.0


@dataclass(frozen=True, slots=True)
class RowCounts:
    """Numbers of rows of a cache, by state.

    Attributes:
        rows: all of them, one for each image.
        done: with features.
        failed: whose image failed.
        pending: not computed yet.
    """

    rows: int
    done: int
    failed: int
    pending: int

    def __add__(self, other: RowCounts) -> RowCounts:
        return RowCounts(
            self.rows + other.rows,
            self.done + other.done,
            self.failed + other.failed,
            self.pending + other.pending,
        )


class HasRowCounts:
    """A record with a field `row_counts`, whose numbers are attributes of the record too."""

    __slots__ = ()
    row_counts: RowCounts

    @property
    def rows(self) -> int:
        """Number of rows, one for each image."""
        return self.row_counts.rows

    @property
    def done(self) -> int:
        """Number of rows with features."""
        return self.row_counts.done

    @property
    def failed(self) -> int:
        """Number of rows whose image failed."""
        return self.row_counts.failed

    @property
    def pending(self) -> int:
        """Number of rows not computed yet."""
        return self.row_counts.pending


def as_plain(record: Any) -> dict[str, Any]:
    """Return a dataclass as JSON shows it: the numbers of `row_counts` among its own."""

    def flatten(fields: list[tuple[str, Any]]) -> dict[str, Any]:
        plain: dict[str, Any] = {}
        for name, value in fields:
            plain |= value if name == "row_counts" else {name: value}
        return plain

    return dataclasses.asdict(record, dict_factory=flatten)


@dataclass(frozen=True, slots=True)
class FailedImage:
    """An image that failed in this run, by name."""

    path: str
    reason: str


PLAN_ONLY = "plan only"
"""`Summary.stopped` of a run that was to lay out shards and extract nothing."""


@dataclass(frozen=True, slots=True)
class Summary(HasRowCounts):
    """What a run did and what the cache now holds.

    Attributes:
        out: the cache.
        row_counts: `rows`, `done`, `failed` and `pending`, also attributes of the summary.
        removed: rows whose image is gone, kept until the file is next written anew.
        added, changed, retried, gone: what `update` and `retry_failed` found in this run: images
            new to the cache, changed since, tried again, and no longer there.
        stopped: why the run ended before its work did: a signal's name, `time limit`,
            `plan only`, or empty.
        new_done: of `done`, from this run.
        new_failed: of `failed`, from this run.
        failures: the first of those that failed in this run.
        clamped: values beyond the stored type's range that were set to its largest, in this run.
        redone: batches computed again in float32 because float16 overflowed, in this run.
        layers: canonical spec → shape of one row.
        model: VGG variant.
        weights: name of the weights.
        warning: what a user of the features must know, empty if nothing.
        device: where the network ran; empty if there was nothing to do.
        precision: of the network.
        dtype: of the stored features.
        batch_size: images per batch.
        workers: decoding processes.
        seconds: of the whole run.
        images_per_second: of this run's images, from the first batch requested to the last written.
        stages: where the time went.
        share: of a sharded cache, the share that all counts are of; empty for all of it.
        skipped: files that the listing of this run skipped, by kind: see `ImageList.skipped`;
            empty where nothing was listed.
        pass_images: images that the network computes at once, less than `batch_size` where the
            memory of the device did not suffice for a batch when the cache was made.
    """

    out: str
    row_counts: RowCounts
    removed: int
    added: int
    changed: int
    retried: int
    gone: int
    stopped: str
    new_done: int
    new_failed: int
    failures: tuple[FailedImage, ...]
    clamped: int
    redone: int
    layers: Mapping[str, tuple[int, ...]]
    model: str
    weights: str
    warning: str
    device: str
    precision: str
    dtype: str
    batch_size: int
    workers: int
    seconds: float
    images_per_second: float
    stages: Stages
    share: str = ""
    skipped: Mapping[str, int] = field(default_factory=dict)
    pass_images: int = 0
