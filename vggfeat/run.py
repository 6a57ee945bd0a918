"""The one loop: images in, features out."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.errors import InterruptedRunError, TooManyFailuresError
from vggfeat.job import check_output, make_identity, make_provenance, resume
from vggfeat.lock import hold
from vggfeat.plan import plan_batches
from vggfeat.reader import FeatureCache
from vggfeat.records import FailedImage, FeatureBatch, Progress, Stages, Summary
from vggfeat.schema import RowState
from vggfeat.signals import StopFlag
from vggfeat.sink import Sink
from vggfeat.sources import discover
from vggfeat.weights import find_weights
from vggfeat.writer import CacheWriter, create_cache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from vggfeat.config import Settings
    from vggfeat.extractor import Extractor, Pending
    from vggfeat.records import DecodedBatch
    from vggfeat.sources import Manifest
    from vggfeat.weights import Weights

log = logging.getLogger("vggfeat")

FAILURES_NAMED = 100
"""Failed images a summary names; the cache names all of them."""


@dataclass(slots=True)
class _Tally:
    """Counts and seconds of the run in progress."""

    total: int = 0
    done: int = 0
    failed: int = 0
    clamped: int = 0
    redone: int = 0
    device: str = ""
    workers: int = 0
    discover: float = 0.0
    prepare: float = 0.0
    wait: float = 0.0
    network: float = 0.0
    write: float = 0.0
    decode: float = 0.0
    failures: list[tuple[int, str]] = field(default_factory=list)

    def add(self, batch: FeatureBatch) -> None:
        self.done += len(batch.rows)
        self.failed += len(batch.failures)
        self.clamped += batch.clamped
        room = FAILURES_NAMED - len(self.failures)
        self.failures += [(failure.row, failure.reason) for failure in batch.failures[:room]]

    def progress(self) -> Progress:
        return Progress(self.done, self.failed, self.total)


@dataclass(frozen=True, slots=True)
class _Watch:
    """What looks at the run from outside the loop: the counts, the signals, the caller."""

    tally: _Tally
    stop: StopFlag
    on_progress: Callable[[Progress], None] | None

    def report(self) -> None:
        if self.on_progress is not None:
            self.on_progress(self.tally.progress())


@dataclass(frozen=True, slots=True)
class _Work:
    """Everything the loop needs: what to do, what to do it with, where it goes."""

    settings: Settings
    root: bytes
    paths: NDArray[np.bytes_]
    todo: NDArray[np.int64]
    weights: Weights
    batch_size: int


def extract(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    settings: Settings,
    *,
    fresh: bool = False,
    root: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Extracts features of images into a cache, or goes on with a cache begun earlier.

    Args:
        sources: folders, files, `@list.txt`, or `-` for a list on standard input.
        out: the cache, one HDF5 file.
        settings: which layers of which network, and how.
        fresh: begin again even if `out` is there.
        root: directory that the recorded paths are relative to.
        on_progress: called after every batch.

    Returns:
        what was done, and what the cache now holds.

    Raises:
        InputError: a source is missing, or there is no image.
        WeightsError: the weights cannot be had.
        CacheError: `out` is not ours, damaged, or made with other settings or of other images.
        LockedError: another run writes to `out`.
        SpaceError: the disk is full. All rows written before are kept.
        DeviceError: the device is missing or failed. All rows written before are kept.
        TooManyFailuresError: more images failed than `settings.max_failures`; the rest is done.
        InterruptedRunError: SIGINT or SIGTERM; call again to go on.
    """
    started = time.perf_counter()
    tally = _Tally()
    listed = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    out = os.fspath(out)
    check_output(out, fresh=fresh)  # before a listing that may take minutes
    manifest = discover(listed, root=root)
    if manifest.skipped:
        kinds = ", ".join(f"{kind or 'no extension'} {n}" for kind, n in manifest.skipped.items())
        log.info(
            "passed over %d files that are no images: %s", sum(manifest.skipped.values()), kinds
        )
    tally.discover = time.perf_counter() - started
    with hold(out), StopFlag() as stop:
        watch = _Watch(tally, stop, on_progress)
        if check_output(out, fresh=fresh):
            _go_on(out, settings, manifest, watch)
        else:
            _begin(out, settings, manifest, watch)
    summary = _summarise(out, tally, time.perf_counter() - started)
    _raise_if_cut_short(summary, settings, stop.signum)
    return summary


def _go_on(
    out: str,
    settings: Settings,
    manifest: Manifest,
    watch: _Watch,
) -> None:
    resumed, weights = resume(out, settings, manifest)
    if not len(resumed.todo) or weights is None:
        return
    cache = resumed.cache
    batch_size = int(cache.header.provenance.config["batch_size"])
    work = _Work(resumed.settings, manifest.root, cache.paths, resumed.todo, weights, batch_size)
    loader, extractor = _start(work, watch.tally)
    writer = CacheWriter(out, cache.header)
    writer.update_files(
        resumed.stale, manifest.sizes[resumed.listed], manifest.mtimes[resumed.listed]
    )
    _loop(loader, extractor, writer, watch)


def _begin(
    out: str,
    settings: Settings,
    manifest: Manifest,
    watch: _Watch,
) -> None:
    from vggfeat.device import choose_batch_size

    weights = find_weights(settings.weights, settings.model)
    if weights.warning:
        log.warning(weights.warning)
    batch_size = choose_batch_size(settings, len(manifest))
    todo = np.arange(len(manifest))
    paths = np.asarray(manifest.paths, dtype=np.bytes_)
    work = _Work(settings, manifest.root, paths, todo, weights, batch_size)
    loader, extractor = _start(work, watch.tally)
    size = settings.preprocess().size
    header = create_cache(
        out,
        manifest,
        extractor.output_shapes(size, size),
        make_identity(settings, extractor.precision, weights),
        make_provenance(
            settings, manifest, weights, batch_size=batch_size, precision=extractor.precision
        ),
    )
    _loop(loader, extractor, CacheWriter(out, header), watch)


def _start(work: _Work, tally: _Tally) -> tuple[Iterator[DecodedBatch], Extractor]:
    """Starts decoding first, then brings the network up beside it."""
    started = time.perf_counter()
    from vggfeat.batches import BatchDataset, choose_workers, load_batches
    from vggfeat.device import choose_device
    from vggfeat.extractor import Extractor

    device = choose_device(work.settings.device)
    plan = plan_batches(work.todo, work.batch_size)
    dataset = BatchDataset(
        work.root,
        work.paths,
        plan,
        work.settings.preprocess(),
        max_pixels=work.settings.max_pixels,
    )
    workers = min(len(plan), choose_workers(work.settings, work.batch_size, device.type))
    loader = load_batches(dataset, workers, pin=device.type == "cuda")
    extractor = Extractor(work.settings, work.weights)
    tally.total, tally.workers, tally.device = len(work.todo), workers, str(device)
    tally.prepare = time.perf_counter() - started
    return loader, extractor


def _loop(
    loader: Iterator[DecodedBatch],
    extractor: Extractor,
    writer: CacheWriter,
    watch: _Watch,
) -> None:
    """Batch after batch until none is left or a signal asks to stop."""
    depth = 1 if extractor.device.type == "cuda" else 0  # batches under way while one is launched
    under_way: deque[Pending] = deque()
    tally = watch.tally
    with Sink(writer, extractor.settings.checkpoint_seconds) as sink:
        while not watch.stop:
            started = time.perf_counter()
            decoded = next(loader, None)
            tally.wait += time.perf_counter() - started
            if decoded is None:
                break
            tally.decode += decoded.seconds
            if len(decoded.rows):
                under_way.append(_launch(extractor, decoded, tally))
            else:
                _hand_over(_nothing_but_failures(decoded), sink, tally)
            if len(under_way) > depth:
                _finish(under_way.popleft(), sink, tally)
            watch.report()
        while under_way:
            _finish(under_way.popleft(), sink, tally)
        closing = time.perf_counter()
    tally.write += time.perf_counter() - closing
    tally.redone = extractor.redone
    watch.report()


def _launch(extractor: Extractor, decoded: DecodedBatch, tally: _Tally) -> Pending:
    started = time.perf_counter()
    pending = extractor.launch(decoded)
    tally.network += time.perf_counter() - started
    return pending


def _finish(pending: Pending, sink: Sink, tally: _Tally) -> None:
    started = time.perf_counter()
    batch = pending.collect()
    tally.network += time.perf_counter() - started
    _hand_over(batch, sink, tally)


def _hand_over(batch: FeatureBatch, sink: Sink, tally: _Tally) -> None:
    started = time.perf_counter()
    sink.put(batch)
    tally.write += time.perf_counter() - started
    tally.add(batch)


def _nothing_but_failures(decoded: DecodedBatch) -> FeatureBatch:
    return FeatureBatch(decoded.rows, {}, decoded.failures, 0)


def _summarise(out: str, tally: _Tally, seconds: float) -> Summary:
    cache = FeatureCache(out)
    counts = np.bincount(cache.state, minlength=len(RowState)).tolist()
    identity, provenance = cache.header.identity, cache.header.provenance
    busy = tally.wait + tally.network + tally.write
    return Summary(
        out=out,
        rows=len(cache),
        done=counts[RowState.DONE],
        failed=counts[RowState.FAILED],
        pending=counts[RowState.PENDING],
        new_done=tally.done,
        new_failed=tally.failed,
        failures=tuple(FailedImage(cache.name(row), why) for row, why in tally.failures),
        clamped=tally.clamped,
        redone=tally.redone,
        layers={spec: cache.header.feature(spec).shape[1:] for spec in cache.layers},
        model=identity.model,
        weights=identity.weights,
        warning=provenance.warning,
        device=tally.device,
        precision=identity.precision,
        dtype=identity.dtype,
        batch_size=int(provenance.config["batch_size"]),
        workers=tally.workers,
        seconds=seconds,
        images_per_second=(tally.done + tally.failed) / busy if busy else 0.0,
        stages=Stages(
            tally.discover, tally.prepare, tally.wait, tally.network, tally.write, tally.decode
        ),
    )


def _raise_if_cut_short(summary: Summary, settings: Settings, signum: int) -> None:
    if signum and summary.pending:
        raise InterruptedRunError(
            f"stopped by {signal.Signals(signum).name}: {summary.done} of {summary.rows} images "
            f"are done, {summary.pending} are left; run the same command again to go on",
            signum,
            summary,
        )
    allowed = settings.failures_allowed(summary.rows)
    if summary.failed > allowed or not summary.done:
        raise TooManyFailuresError(
            f"{summary.failed} of {summary.rows} images failed, {min(allowed, summary.rows - 1)} "
            f"were allowed; the other {summary.done} are done. `vggfeat inspect {summary.out}` "
            "names them",
            summary,
        )
