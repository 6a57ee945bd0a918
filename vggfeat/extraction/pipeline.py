"""The extraction loop: decode, compute, write, batch after batch."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
import os
import signal
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.cache.background_writer import Sink
from vggfeat.cache.format import DIGEST_BYTES
from vggfeat.cache.reader import FeatureCache
from vggfeat.cache.sharded import open_cache
from vggfeat.cache.writer import CacheWriter, create_cache
from vggfeat.core import activity
from vggfeat.core.records import FeatureBatch, Progress, Summary
from vggfeat.core.signals import StopFlag, how_to_resume
from vggfeat.core.text import agree, counted
from vggfeat.errors import InputError, InterruptedRunError, TooManyFailuresError
from vggfeat.extraction.early_decoding import decoding_early
from vggfeat.extraction.fresh_mark import continued, note_begun, note_finished, note_if_finished
from vggfeat.extraction.kept_replicas import KeptReplicas
from vggfeat.extraction.metadata import check_decoding, prepare_cache
from vggfeat.extraction.report import RunStats, summarise_run
from vggfeat.extraction.resume import check_output, is_complete, plan_resume
from vggfeat.extraction.vanishing import SourceGuard
from vggfeat.images.batch_plan import EMPTY, plan_batches
from vggfeat.images.decoding import choose_workers, decode_early
from vggfeat.images.sources import discover, log_skipped
from vggfeat.storage.locks import hold, refuse_if_held, unless_read_only

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    from numpy.typing import NDArray

    from vggfeat.core.records import DecodedBatch, Failure
    from vggfeat.core.settings import Settings
    from vggfeat.extraction.api import ExtractRequest
    from vggfeat.extraction.early_decoding import EarlyDecoding
    from vggfeat.images.dataset import ImageDataset
    from vggfeat.images.image_list import ImageList
    from vggfeat.images.worker_pool import DecodedImages
    from vggfeat.network.extractor import Pending
    from vggfeat.network.multi_device import Replicas
    from vggfeat.network.weights import Weights

log = logging.getLogger("vggfeat")


@dataclass(frozen=True, slots=True)
class RunContext:
    """Statistics, signals, request and caller of a run, and the networks it has built."""

    stats: RunStats
    stop: StopFlag
    request: ExtractRequest
    on_progress: Callable[[Progress], None] | None
    kept: KeptReplicas = field(default_factory=KeptReplicas)

    @property
    def stop_on_error(self) -> bool:
        """Whether the first image that fails ends the run."""
        return self.request.settings.on_error == "stop"

    def goes_on(self) -> bool:
        """Return whether another batch may begin."""
        return self.stats.fatal is None and self.stop.allows(self.stats.pace.slowest)

    def report(self) -> None:
        """Report the progress to the caller."""
        if self.on_progress is not None:
            self.on_progress(self.stats.progress())


@dataclass(frozen=True, slots=True)
class _Work:
    """The rows to extract, their positions among the images, and what it takes to extract them."""

    settings: Settings
    images: ImageList
    positions: NDArray[np.int64] | None
    plan: NDArray[np.int64]
    weights: Weights
    guard: SourceGuard
    activations: Callable[[], Mapping[str, float]] | None
    early: EarlyDecoding | None


def extract_file(
    request: ExtractRequest, on_progress: Callable[[Progress], None] | None = None
) -> Summary:
    """Extract features into a cache of one file, or resume one begun earlier.

    See `vggfeat.extract`; `request.sharding` is ignored.
    """
    started = time.perf_counter()
    stats, out = RunStats(), request.out
    check_output(out, fresh=request.fresh)  # before a listing that may take minutes
    refuse_if_held(out)
    images = list_images(request, stats)
    stats.discover = time.perf_counter() - started
    limit = request.settings.seconds_allowed
    limit = limit and limit - stats.discover
    with unless_read_only(hold(out)) as refusal, StopFlag(limit) as stop:
        if refusal is None:
            request = continued(request, images)
        context = RunContext(stats, stop, request, on_progress)
        exists = check_output(out, fresh=request.fresh)
        if exists and refusal is None:
            # by a run that was killed as it ended
            note_if_finished(out, functools.partial(FeatureCache, out))
        if refusal is not None and not (exists and is_complete(request, images)):
            raise refusal
        if exists:
            resume_cache(images, context)
        else:
            _begin(images, context)
        if refusal is None:
            note_if_finished(out, functools.partial(FeatureCache, out))
    summary = summarise_run(out, stats, time.perf_counter() - started, stop.reason)
    raise_if_cut_short(summary, request, stop.signum, stats.fatal)
    return summary


def list_images(request: ExtractRequest, stats: RunStats) -> ImageList:
    """List the images of the sources, and say which files were skipped."""
    if request.items is not None:
        if not len(request.items):
            raise InputError("the data set has no items; expected images")
        return request.items
    images = discover(request.sources, root=request.root)
    log_skipped(images)
    stats.skipped = images.skipped
    return images


def resume_cache(images: ImageList, context: RunContext) -> None:
    """Extract what is left in an existing cache, whose lock the caller holds."""
    out, started = context.request.out, time.perf_counter()
    resumed = plan_resume(context.request, images)
    context.stats.note(resumed.changes)
    if not len(resumed.todo) or resumed.weights is None:
        context.stats.prepare += time.perf_counter() - started
        return
    cache = resumed.cache
    batch_size = int(cache.header.provenance.config["batch_size"])
    positions = np.full(len(cache), -1, dtype=np.int64)
    positions[resumed.todo] = resumed.positions
    ranks = images.reading_ranks()
    ranks = None if ranks is None else ranks[resumed.positions]
    plan = plan_batches(resumed.todo, batch_size, ranks)
    with contextlib.ExitStack() as stack:
        early = stack.enter_context(
            decoding_early(resumed.settings, images, positions, lambda _: plan, context.goes_on)
        )
        work = _Work(
            resumed.settings,
            images,
            positions,
            plan,
            resumed.weights,
            SourceGuard(images, context.request.sources, lambda row: int(positions[row])),
            lambda: dict(cache.header.identity.activations),
            early,
        )
        loader, replicas = _start(work, context)
        stack.enter_context(contextlib.closing(loader))
        from vggfeat.network.pass_size import PassLimit  # torch is loaded by now

        replicas.scale_to(cache.header.scales)
        replicas.keep_to(PassLimit.recorded_in(cache.header.provenance.config))
        writer = CacheWriter(out, cache.header)
        writer.reserve(out)
        writer.clear_reasons(cache.rows_with_reason(resumed.todo))
        writer.update_files(
            resumed.stale, images.sizes[resumed.listed], images.mtimes[resumed.listed]
        )
        context.stats.prepare += time.perf_counter() - started
        _loop(loader, replicas, writer, work.guard, context)


def _begin(images: ImageList, context: RunContext) -> None:
    """Make a new cache, whose lock the caller holds, and extract all rows."""
    started = time.perf_counter()
    out, settings = context.request.out, context.request.settings
    rows, ranks = np.arange(len(images)), images.reading_ranks()
    plan_for = functools.partial(plan_batches, rows, ranks=ranks)
    with contextlib.ExitStack() as stack:
        early = stack.enter_context(
            decoding_early(settings, images, None, plan_for, context.goes_on)
        )
        new = prepare_cache(settings, images)
        work = _Work(
            new.settings,
            images,
            None,
            plan_for(new.batch_size),
            new.weights,
            SourceGuard(images, context.request.sources, lambda row: row),
            new.calibrate,
            early,
        )
        loader, replicas = _start(work, context)
        stack.enter_context(contextlib.closing(loader))
        metadata = new.describe(replicas)
        _end_if_stopped(out, context)
        note_finished(out)  # an earlier mark is not of the cache that comes
        header = create_cache(out, images, metadata)
        if context.request.fresh:
            note_begun(out, header.identity.fingerprint())
        writer = CacheWriter(out, header)
        context.stats.prepare += time.perf_counter() - started
        _loop(loader, replicas, writer, work.guard, context)


def _end_if_stopped(out: str, context: RunContext) -> None:
    """End a run to which a signal came while it was getting ready: `out` stays as it is."""
    if context.stop:
        there = f"{out!r} is as it was" if os.path.exists(out) else f"{out!r} is not made yet"
        raise InterruptedRunError(
            f"stopped by {context.stop.reason} before the first image: {there}; run the same "
            "command again",
            context.stop.signum,
            None,
        )


def _start(
    work: _Work, context: RunContext
) -> tuple[Generator[DecodedBatch, None, None], Replicas]:
    """Start decoding, or go on with it, and build the networks while batches are decoded."""
    from vggfeat.images.dataset import EncodedImages
    from vggfeat.images.loader import load_batches
    from vggfeat.network.device import choose_devices

    devices = choose_devices(work.settings.device)
    types = [device.type for device in devices]
    check_decoding(work.settings)
    todo = int((work.plan != EMPTY).sum())
    workers = min(todo, choose_workers(work.settings, types))
    dataset, decoded = _decoding(work, types, workers, context)
    loader = load_batches(
        dataset,
        work.plan,
        work.settings,
        workers=workers,
        pin="cuda" in types,
        goes_on=context.goes_on,
        decoded=decoded,
    )
    del decoded  # so that closing the loader ends the workers, whatever a traceback holds
    try:
        activations = work.activations() if work.activations is not None else None
        replicas = context.kept.get(work.settings, work.weights, activations)
        replicas.expect(todo)
        if isinstance(dataset, EncodedImages):
            from vggfeat.images.device_jpeg import DeviceJpegs

            decoder = DeviceJpegs(
                dataset, work.settings, devices, workers=workers, goes_on=context.goes_on
            )
            loader = decoder.batches(loader, lambda: replicas.next_device)
    except BaseException:
        loader.close()
        raise
    stats = context.stats
    stats.total = max(stats.total, stats.done + stats.failed + todo)  # known before of many shards
    stats.workers, stats.device = workers, replicas.devices
    return loader, replicas


def _decoding(
    work: _Work, devices: list[str], workers: int, context: RunContext
) -> tuple[ImageDataset, Iterator[DecodedImages] | None]:
    """Return the data set, and its batches that are being decoded already.

    Files that stay encoded are only read by the workers, which begin with the loader.
    """
    from vggfeat.images.dataset import EncodedImages, ImageDataset

    if work.settings.decode == "gpu":
        return EncodedImages(work.images, work.settings, work.positions), None
    dataset = ImageDataset(work.images, work.settings, work.positions)
    early = work.early.taken_if(work.settings, work.plan, devices) if work.early else None
    return dataset, early or decode_early(
        dataset,
        work.plan,
        work.settings,
        workers=workers,
        devices=devices,
        goes_on=context.goes_on,
    )


def _loop(
    loader: Generator[DecodedBatch, None, None],
    replicas: Replicas,
    writer: CacheWriter,
    guard: SourceGuard,
    context: RunContext,
) -> None:
    """Extract batch after batch until none is left, a signal asks to stop, or a source is gone."""
    under_way: deque[Pending] = deque()
    stats, redone = context.stats, replicas.redone
    activity.expects(stats.total - stats.done - stats.failed)
    with Sink(writer, replicas.settings.checkpoint_seconds) as sink:
        outlet = _Outlet(sink, guard, context)
        for number in itertools.count():
            if not context.goes_on():
                break
            started = time.perf_counter()
            decoded = next(loader, None)
            stats.wait += time.perf_counter() - started
            if decoded is None:
                break
            stats.decode += decoded.seconds
            stats.wait -= decoded.collated
            stats.collate += decoded.collated
            if len(decoded.rows):
                launching = time.perf_counter()
                under_way.append(replicas.launch(decoded))
                stats.network += time.perf_counter() - launching
            else:
                outlet.put(FeatureBatch(decoded.rows, decoded.digests, {}, decoded.failures, 0))
            if len(under_way) > replicas.overlap:
                outlet.finish(under_way.popleft())
            # The first batch on each device loads its libraries, in its launch or until it is done.
            cold = number <= replicas.overlap
            stats.pace.note(time.perf_counter() - started, cold=cold)
            context.report()
        while under_way:
            outlet.finish(under_way.popleft())
        outlet.close()
        closing = time.perf_counter()
    stats.write += time.perf_counter() - closing
    stats.redone += replicas.redone - redone
    context.report()


@dataclass(frozen=True, slots=True)
class _Outlet:
    """Passes finished batches to the writer, and holds back failures that need a second look."""

    sink: Sink
    guard: SourceGuard
    context: RunContext

    def finish(self, pending: Pending) -> None:
        """Wait for a batch of the network, and write it."""
        started = time.perf_counter()
        batch = pending.collect()
        self.context.stats.network += time.perf_counter() - started
        self.put(batch)

    def put(self, batch: FeatureBatch) -> None:
        """Write a batch; failures of images not found wait until their source is known to exist.

        If a source is gone, the features of the batch are written before `InputError`.
        """
        failures = self.guard.certain(batch.failures)
        self._write(dataclasses.replace(batch, failures=failures))
        if len(failures) < len(batch.failures):
            self.guard.check()
            if self.context.stop_on_error:
                self.close()

    def close(self) -> None:
        """Write the failures that waited, or raise `InputError` as `put` does."""
        failures = self.guard.release()
        if failures:
            rows, digests = np.empty(0, dtype=np.int64), np.empty((0, DIGEST_BYTES), dtype=np.uint8)
            self._write(FeatureBatch(rows, digests, {}, failures, 0))

    def _write(self, batch: FeatureBatch) -> None:
        stats = self.context.stats
        if self.context.stop_on_error and batch.failures:
            # Left pending and not failed: once it is mended, the same command does it.
            stats.fatal = stats.fatal or stats.placed(batch.failures[0])
            batch = dataclasses.replace(batch, failures=())
        started = time.perf_counter()
        self.sink.put(batch)
        stats.write += time.perf_counter() - started
        stats.add(batch)


def raise_if_cut_short(
    summary: Summary, request: ExtractRequest, signum: int, fatal: Failure | None
) -> None:
    """Raise the error of a run that a signal, a failed image or too many of them cut short."""
    images = summary.rows - summary.removed
    if fatal is not None:
        name = open_cache(summary.out, summary.share).name(fatal.row)
        raise TooManyFailuresError(
            f"image {name!r} failed: {fatal.reason}; stopped there (--on-error stop), "
            f"{summary.done} of {counted(images, 'image')} {agree(summary.done, 'is')} done. Mend "
            "or remove it and run again",
            summary,
        )
    if signum and summary.pending:
        raise InterruptedRunError(
            f"stopped by {signal.Signals(signum).name}: {summary.done} of "
            f"{counted(images, 'image')} {agree(summary.done, 'is')} done, {summary.pending} "
            f"{agree(summary.pending, 'is')} left; {how_to_resume()}",
            signum,
            summary,
        )
    if not images:
        return  # all are removed; or a share of more than there are shards
    allowed = request.settings.failures_allowed(images)
    if summary.failed > allowed or not (summary.done or summary.pending):
        others = (
            f"the other {summary.done} {agree(summary.done, 'is')} done"
            if summary.done
            else "none is done"
        )
        limit = f", and --max-failures allows {allowed}" if summary.failed > allowed else ""
        raise TooManyFailuresError(
            f"{summary.failed} of {counted(images, 'image')} failed{limit}; {others}. `vggfeat "
            f"inspect {summary.out}` names {'it' if summary.failed == 1 else 'them'}, with the "
            f"{'reason' if summary.failed == 1 else 'reasons'}",
            summary,
        )
