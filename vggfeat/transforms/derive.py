"""Derive a cache from another: read its rows, transform them, write them, record the source.

The new cache has the images of the old one, row for row. It can be resumed like any cache: rows
that are done stay, rows that the source has computed anew since are transformed again.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from vggfeat._version import __version__
from vggfeat.cache.background_writer import Sink
from vggfeat.cache.disk import write_all
from vggfeat.cache.format import IMAGES, CacheMetadata, RowState, count_rows
from vggfeat.cache.reader import FeatureCache
from vggfeat.cache.row_copy import copy_rows
from vggfeat.cache.rows import match_paths
from vggfeat.cache.sharded import open_cache
from vggfeat.cache.writer import CacheWriter, create_cache
from vggfeat.core import activity
from vggfeat.core.quantization import encode, scales_digest, to_float16
from vggfeat.core.records import (
    Failure,
    FeatureBatch,
    HasRowCounts,
    Images,
    Progress,
    RowCounts,
)
from vggfeat.core.signals import StopFlag, how_to_resume
from vggfeat.core.steps import Step
from vggfeat.core.text import agree, counted
from vggfeat.errors import CacheError, CacheMismatchError, InterruptedRunError, UsageError
from vggfeat.extraction.fresh_mark import is_marked, note_begun, note_finished, was_begun
from vggfeat.extraction.resume import check_output
from vggfeat.storage.locks import hold, refuse_if_held, unless_read_only
from vggfeat.transforms.base import Transform, blocks_of, find_scales

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from vggfeat.cache.format import Header
    from vggfeat.cache.identity import Identity
    from vggfeat.core.quantization import Scales
    from vggfeat.core.settings import Dtype

    Values = NDArray[np.float32]
    OnProgress = Callable[[Progress], None]

Begin = Literal["resume", "update", "fresh"]

_CHECKPOINT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class TransformReport(HasRowCounts):
    """Outcome of a transform of one cache into another.

    Attributes:
        out: the new cache.
        source: the cache it was made from.
        row_counts: `rows`, `done`, `failed` and `pending`, also attributes of the report; rows
            are pending most likely because they are pending in the source.
        new_done: of `done`, from this run.
        layers: name → width of each new layer.
        dtype: of the stored features.
        clamped: values beyond the stored type's range that were set to its largest, in this run.
        seconds: of the whole run.
        model: file with what was fitted; empty if nothing was.
        notes: remarks on the fit, a line each.
        rows_per_second: of this run, without the fit; 0 if it transformed none.
    """

    out: str
    source: str
    row_counts: RowCounts
    new_done: int
    layers: Mapping[str, int]
    dtype: str
    clamped: int
    seconds: float
    model: str = ""
    notes: tuple[str, ...] = ()
    rows_per_second: float = 0.0


def open_source(
    source: str | os.PathLike[str], out: str, *, begin: Begin, settings: object, use: object
) -> FeatureCache:
    """Open the source; refuse early what cannot become `out`, since a fit may take long."""
    if use is not None and settings is not None:
        raise UsageError("a model has its own settings; give settings or a model, not both")
    cache = open_cache(source)
    check_output(out, fresh=begin == "fresh")
    refuse_if_held(out)
    return cache


def derive(
    source: FeatureCache,
    out: str,
    transform: Transform,
    *,
    dtype: Dtype = "float16",
    begin: Begin = "resume",
    on_progress: OnProgress | None = None,
) -> TransformReport:
    """Make a cache of transformed features, or resume one.

    Args:
        source: where the features are.
        out: the new cache.
        transform: makes new features of old ones.
        dtype: of the stored features; for int8 a first pass measures the range of each dimension.
        begin: what to do if `out` exists: see `fuse`.
        on_progress: called after every block of rows.
    """
    started = time.perf_counter()
    if os.path.exists(out) and os.path.samefile(out, source.path):
        raise UsageError(f"output {out!r} is the cache that is read; choose another --out")
    with unless_read_only(hold(out)) as refusal, StopFlag() as stop:
        if begin == "fresh" and _has_begun(source, out, transform, dtype):
            begin = "update"
        exists = check_output(out, fresh=begin == "fresh")
        if refusal is not None and not (exists and _same_rows(source, FeatureCache(out))):
            raise refusal
        if exists:
            target = FeatureCache(out)
            requested = _identity(source, transform, dtype, target.header.scales)
            if differences := target.header.identity.differences(requested):
                raise CacheMismatchError(
                    f"cache {out!r} was made in another way: {'; '.join(differences)}. Repeat its "
                    "settings, choose another --out, or --fresh to begin again"
                )
            _check_images(source, target, update=begin == "update")
        else:
            note_finished(out)  # an earlier mark is not of the cache that comes
            _begin(source, out, transform, dtype)
            if begin == "fresh":
                note_begun(out, FeatureCache(out).header.identity.fingerprint())
        work = _Work(source, FeatureCache(out), transform, stop, on_progress)
        source.warn()
        if refusal is None:
            work.do()
            if not stop:
                note_finished(out)
    result = work.result(time.perf_counter() - started)
    if stop and result.pending:
        raise InterruptedRunError(
            f"stopped by {signal.Signals(stop.signum).name}: {result.done} of "
            f"{counted(result.rows, 'row')} {agree(result.done, 'is')} done; "
            f"{how_to_resume()}",
            stop.signum,
            result,
        )
    return result


def _has_begun(source: FeatureCache, out: str, transform: Transform, dtype: Dtype) -> bool:
    """Return whether `fresh` has begun this very output, and no run has finished it."""
    if not (is_marked(out) and os.path.exists(out)):
        return False
    try:
        target = FeatureCache(out)
    except CacheError:  # damaged, and to be replaced
        return False
    identity, made = target.header.identity, target.header.provenance
    if not was_begun(out, identity.fingerprint()):
        return False
    began = made.sources[-1].get("created_utc") if made.sources else None
    if (made.tool_version, began) != (__version__, source.header.provenance.created_utc):
        return False  # by another version, or from a source that was extracted again since
    return not identity.differences(_identity(source, transform, dtype, target.header.scales))


def _begin(source: FeatureCache, out: str, transform: Transform, dtype: Dtype) -> None:
    scales = find_scales(source, transform) if dtype == "int8" else {}
    identity = _identity(source, transform, dtype, scales)
    origin = source.header.provenance
    came_from = {
        "path": os.path.abspath(source.path),
        "fingerprint": source.header.identity.fingerprint(),
        "created_utc": origin.created_utc,
    }
    # A step that extract itself made has no cache as its source.
    unknown: list[dict[str, str]] = [{}] * (len(identity.steps) - 1 - len(origin.sources))
    provenance = dataclasses.replace(
        origin,
        created_utc=dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        tool_version=__version__,
        sources=(*origin.sources, *unknown, came_from),
    )
    create_cache(
        out,
        Images(source.paths, source.sizes, source.mtimes),
        CacheMetadata(
            identity,
            provenance,
            {name: (width,) for name, width in transform.outputs.items()},
            scales,
        ),
    )


def _identity(
    source: FeatureCache, transform: Transform, dtype: str, scales: Mapping[str, Scales]
) -> Identity:
    identity = source.header.identity
    step = Step({**transform.step.record, "source": identity.fingerprint()})
    return dataclasses.replace(
        identity,
        dtype=dtype,
        layers=tuple(sorted(transform.outputs)),
        scales=scales_digest(scales),
        steps=(*identity.steps, step),
    )


def _same_rows(source: FeatureCache, target: FeatureCache) -> bool:
    columns = ("paths", "state", "sizes", "mtimes", "digests")
    return all(np.array_equal(getattr(source, one), getattr(target, one)) for one in columns)


def _check_images(source: FeatureCache, target: FeatureCache, *, update: bool) -> None:
    """With `update` give the target the source's images; else refuse a target of other images."""
    if np.array_equal(source.paths, target.paths):
        return
    if not update:
        raise CacheMismatchError(
            f"cache {target.path!r} has {counted(len(target), 'image')}, not those {len(source)} "
            f"that {source.path!r} has now; --update brings it in line, --fresh begins again"
        )
    # The rows of images that the target has already are kept.
    match = match_paths(target.paths, source.paths)
    origin = np.full(len(source), -1, dtype=np.int64)
    origin[match.listed] = match.rows
    # Sizes and times are listed anew, so they are compared here; digests later, row by row.
    same = (source.sizes == target.sizes[origin]) & (source.mtimes == target.mtimes[origin])
    kept = np.where((origin >= 0) & same, target.state[origin], RowState.PENDING)
    state = kept.astype(np.uint8)
    header = target.header

    def copy(handle: int, new: Header) -> None:
        copy_rows(target.path, header, handle, new, origin, states=state)
        write_all(handle, state, new.runs[f"{IMAGES}/state"].offset)

    images = Images(source.paths, source.sizes, source.mtimes)
    create_cache(target.path, images, header, fill=copy)


@dataclass(slots=True, eq=False)
class _Work:
    """One run from a source into an existing target."""

    source: FeatureCache
    target: FeatureCache
    transform: Transform
    stop: StopFlag
    on_progress: OnProgress | None
    new_done: int = 0
    clamped: int = 0
    seconds: float = 0.0

    def do(self) -> None:
        """Bring the target in line with the source and transform the rows that are missing."""
        state = np.array(self.source.state)  # before any feature: what is done by now is whole
        writer = CacheWriter(self.target.path, self.target.header)
        with Sink(writer, _CHECKPOINT_SECONDS) as sink:
            todo, failed = self._bring_in_line(writer, state)
            activity.expects(len(todo))
            started = time.perf_counter()
            for batch in self._batches(todo):
                sink.put(batch)
                self.new_done += len(batch.rows)
                self.clamped += batch.clamped
                self.seconds = time.perf_counter() - started
                if self.on_progress is not None:
                    self.on_progress(Progress(self.new_done, 0, len(todo), self.rate))
            if not self.stop:
                sink.put(self._failures(failed))

    @property
    def rate(self) -> float:
        """Rows of this run a second."""
        return self.new_done / self.seconds if self.seconds else 0.0

    def _bring_in_line(
        self, writer: CacheWriter, state: NDArray[np.uint8]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Copy the source's states; return rows to do, and rows that failed there."""
        source, target = self.source, self.target
        own = np.array(target.state)
        other = (source.sizes != target.sizes) | (source.mtimes != target.mtimes)
        other |= (source.digests != target.digests).any(1) & (own != RowState.PENDING)
        settled = np.isin(own, (RowState.DONE, RowState.FAILED))
        gone = state == RowState.REMOVED
        stale = np.flatnonzero(settled & ~gone & (other | (state != own)))
        # States first and synced, as for any row that is to be written anew.
        writer.set_states(stale, RowState.PENDING)
        writer.set_states(np.flatnonzero(gone), RowState.REMOVED)
        writer.sync()
        writer.clear_reasons(target.rows_with_reason(stale))
        changed = np.flatnonzero(other)
        writer.update_files(changed, source.sizes[changed], source.mtimes[changed])
        own[stale] = RowState.PENDING
        todo = np.flatnonzero((state == RowState.DONE) & (own != RowState.DONE))
        return todo, np.flatnonzero((state == RowState.FAILED) & (own != RowState.FAILED))

    def _batches(self, todo: NDArray[np.int64]) -> Iterator[FeatureBatch]:
        for rows, layers in blocks_of(self.source, self.transform.inputs, todo):
            if self.stop:
                return
            with np.errstate(all="ignore"):  # values that are not finite fail their row below
                values = self.transform(layers)
            finite = np.all([np.isfinite(one).all(1) for one in values.values()], axis=0)
            stored, clamped = {}, 0
            for name, one in values.items():
                stored[name], beyond = self._stored(name, one[finite])
                clamped += beyond
            reason = f"{self.transform.step.name} gave values that are not finite"
            failures = tuple(Failure(row, reason) for row in rows[~finite].tolist())
            digests = np.asarray(self.source.digests[rows[finite]])
            yield FeatureBatch(rows[finite], digests, stored, failures, clamped)

    def _stored(self, name: str, values: Values) -> tuple[NDArray[np.generic], int]:
        """Return values in the target's dtype, and how many were beyond its range."""
        dtype = self.target.header.identity.dtype
        if dtype == "int8":
            return encode(values, self.target.header.scales[name])
        if dtype == "float32":
            return values, 0
        return to_float16(values)

    def _failures(self, rows: NDArray[np.int64]) -> FeatureBatch:
        """Return the source's failures as the target's."""
        wanted = set(rows.tolist())
        digests = self.source.digests
        failures = tuple(
            dataclasses.replace(failure, digest=digests[failure.row].tobytes())
            for failure in self.source.failures()
            if failure.row in wanted
        )
        nothing = np.empty(0, dtype=np.int64)
        return FeatureBatch(nothing, np.empty((0, 32), np.uint8), {}, failures, 0)

    def result(self, seconds: float) -> TransformReport:
        """Return the outcome of the run."""
        header: Header = self.target.header
        return TransformReport(
            out=self.target.path,
            source=self.source.path,
            row_counts=count_rows(self.target.state),
            new_done=self.new_done,
            layers={name: shape[0] for name, shape in header.shapes.items()},
            dtype=header.identity.dtype,
            clamped=self.clamped,
            seconds=seconds,
            rows_per_second=self.rate,
        )
