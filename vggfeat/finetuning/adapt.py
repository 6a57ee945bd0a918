"""Fine-tune a network: features before, linear probe, training, weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.cache.labels import UNLABELLED, labels_of_paths
from vggfeat.cache.reader import FeatureCache
from vggfeat.cache.rows import match_paths
from vggfeat.core import activity
from vggfeat.core.isolation import isolated
from vggfeat.core.records import Progress
from vggfeat.core.signals import StopFlag, how_to_resume
from vggfeat.core.text import agree, counted
from vggfeat.errors import CacheError, InterruptedRunError, UsageError
from vggfeat.extraction.api import ExtractRequest
from vggfeat.extraction.fresh_mark import is_marked, note_begun, was_begun
from vggfeat.extraction.pipeline import extract_file
from vggfeat.extraction.update import UpdatePolicy
from vggfeat.finetuning.dataset import Shares, Split, TrainingData, split_images
from vggfeat.finetuning.groups import read_groups
from vggfeat.finetuning.held_out_test import TEST, compare_answers, warnings_of
from vggfeat.finetuning.report import FinetuneReport
from vggfeat.finetuning.resume import (
    IDENTITY,
    REPORT,
    Job,
    OutputFiles,
    Request,
    as_cache_error,
    finished_report,
    identity_of,
    preprocessing_metadata,
    start_or_resume,
)
from vggfeat.images.sources import discover, log_skipped
from vggfeat.network.weights import find_weights
from vggfeat.storage.locks import hold, refuse_if_held
from vggfeat.storage.paths import check_place, path_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vggfeat.cache.labels import Labels
    from vggfeat.finetuning.groups import Groups
    from vggfeat.finetuning.held_out_test import BeforeAndAfter
    from vggfeat.finetuning.report import Metrics
    from vggfeat.finetuning.settings import AdaptSettings
    from vggfeat.images.image_list import ImageList
    from vggfeat.network.weights import Weights

log = logging.getLogger("vggfeat")

_SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True)
class _Task:
    """The network, the images and the files of one call.

    `root` is the directory that paths in the labels are relative to.
    """

    settings: AdaptSettings
    sources: Sequence[str | os.PathLike[str]]
    root: str | None
    images: ImageList
    labels: Labels
    groups: Groups | None
    weights: Weights
    files: OutputFiles
    stop: StopFlag
    notice: Callable[[Progress], None]

    def notice_extraction(self, progress: Progress) -> None:
        """Report the extraction of the untouched network's features as part of the whole work."""
        images = len(self.images)
        skipped = images - progress.total  # done by an earlier run
        whole = images * (1 + self.settings.epochs)
        self.notice(Progress(skipped + progress.done, progress.failed, whole))

    def notice_training(self, images: int) -> Callable[[Progress], None]:
        """Return a callback that reports training, of so many images an epoch, likewise."""
        first = len(self.images)
        whole = first + images * self.settings.epochs

        def notice(progress: Progress) -> None:
            self.notice(Progress(first + progress.done, progress.failed, whole))

        return notice

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that two runs must agree in, with a digest of each image's path and class."""
        digest = hashlib.sha256()
        paths, sizes = self.images.paths, self.images.sizes
        for path, size, number in zip(paths, sizes, self.labels.classes.tolist(), strict=True):
            name = self.labels.names[number] if number != UNLABELLED else ""
            fields = (path.hex(), int(size), name)
            digest.update(json.dumps(fields).encode())
        groups = None if self.groups is None else self.groups.sha256
        return identity_of(self.settings, self.weights.sha256, digest.hexdigest(), groups)


@isolated()
def adapt(
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    settings: AdaptSettings,
    *,
    labels: str | os.PathLike[str] | None = None,
    groups: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    root: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> FinetuneReport:
    """Fine-tune layers of a network on images of known classes, or resume.

    First a linear probe is fitted to the features of the untouched network. Then the chosen layers
    are trained together with a linear head that begins as that probe. The network of the epoch with
    the best validation accuracy is written as float32 weights that `extract` accepts, with the head
    beside them as `head.weight` (classes, D) and `head.bias` (classes,). The report has accuracy
    before and after on test images, which chose nothing, with 95 % intervals.

    Args:
        images: folders of class folders, archives or lists, as for `extract`, except standard
            input.
        out: the weight file, `.safetensors`. Files with `.progress` and `.before.h5` appended to
            its name stand beside it until training is done.
        settings: the network, the layers that are trained, and the training.
        labels: a CSV file of `path,label`; without it the folder of an image is its class.
        groups: a CSV file of `path,group`, such as the patient or the scanner of each image; all
            images of a group are on one side of the split.
        fresh: start again instead of resuming.
        root: directory that the paths in `labels` are relative to.
        on_progress: called after every batch.

    Raises:
        UsageError: a setting is invalid, there are no labels, or an image has no group.
        InputError: there are no images, or too few of a class or groups of it.
        WeightsError: the weights are not found and cannot be downloaded, or have other input
            channels.
        CacheError: `out` exists and was not written by `adapt`.
        CacheMismatchError: `out` or its checkpoint was begun with other settings or images.
        LockedError: another run writes to `out`.
        SpaceError: the disk is full; the last checkpoint is kept.
        DeviceError: the device is missing, failed or is out of memory, or training diverged.
        TooManyFailuresError: more images failed than are allowed.
        InterruptedRunError: SIGINT, SIGTERM or SIGHUP arrived; call again to resume.
    """
    listed = [images] if isinstance(images, str | os.PathLike) else list(images)
    files = OutputFiles(path_text(out))
    _check_request(files.out, listed)
    refuse_if_held(files.out)
    with hold(files.out), StopFlag(settings.network.seconds_allowed) as stop:
        found = discover(listed, root=root)
        log_skipped(found)
        where = f"the images of {', '.join(repr(os.fspath(one)) for one in listed)}"
        known = labels_of_paths(found.paths, where, labels, found.root)
        together = None
        if groups is not None:
            together = read_groups(groups, found.paths, found.root, known.classes)
        task = _Task(
            settings,
            listed,
            root,
            found,
            known,
            together,
            find_weights(settings.network.weights, settings.network.model),
            files,
            stop,
            on_progress or (lambda _: None),
        )
        return _run(task, fresh=fresh)


def _check_request(out: str, sources: Sequence[str | os.PathLike[str]]) -> None:
    wrong = []
    if not out.endswith(_SUFFIX):
        wrong.append(f"output {out!r}: expected a name that ends in {_SUFFIX}")
    if "-" in sources:
        wrong.append("images are read more than once, and a list on standard input cannot be; "
                     "write it to a file and name it as @list.txt")  # fmt: skip
    if wrong:
        raise UsageError("; ".join(wrong))
    check_place(out)


def _run(task: _Task, *, fresh: bool) -> FinetuneReport:
    """Train, resume, or return the report of a training that is finished."""
    settings, files = task.settings, task.files
    request = Request(task.identity, settings.network.precision)
    mark = hashlib.sha256(json.dumps([task.identity, request.precision]).encode()).hexdigest()
    begun = was_begun(files.out, mark)  # by `fresh` with these settings, which was interrupted
    resumes = begun and os.path.lexists(files.checkpoint)
    done = finished_report(files.out, request, fresh=fresh or resumes)
    # A mark says that other temporary files than those of the finished training lie there.
    if (fresh and not begun) or (done is not None and not is_marked(files.out)):
        files.remove_temporary()
    if done is not None:
        return done
    if fresh:
        note_begun(files.out, mark)
    from vggfeat.finetuning.model import choose_training_precision

    precision = choose_training_precision(settings.network.precision, settings.network.device)
    try:
        job = start_or_resume(files.checkpoint, request, precision)
    except CacheError:
        if not (fresh and begun):
            raise
        files.remove_temporary()  # damaged, and `fresh` begins again
        note_begun(files.out, mark)
        job = start_or_resume(files.checkpoint, request, precision)
    cache = _untouched_features(task)
    if cache is None:
        return _report(task, job, stopped="time limit")
    report = _train(task, job, _training_data(task, cache))
    if report.stopped and task.stop:
        raise InterruptedRunError(
            f"stopped by {report.stopped} in epoch {len(report.epochs) + 1}; " + how_to_resume(),
            task.stop.signum,
            report,
        )
    return report


def _train(task: _Task, job: Job, data: TrainingData) -> FinetuneReport:
    """Train until finished or stopped; write the weights or a checkpoint."""
    from vggfeat.finetuning.linear_probe import best_probe, probe_answers
    from vggfeat.finetuning.model import build_network, initial_tensors
    from vggfeat.finetuning.trainer import BatchLoader, Checkpointer, Trainer, batch_count
    from vggfeat.network.checkpoint_reader import read_own_safetensors
    from vggfeat.storage.safetensors import write_tensors

    settings, files, split = task.settings, task.files, data.split
    probe = best_probe(data)
    tensors = initial_tensors(settings, task.weights)
    steps = batch_count(len(split.train), settings.batch_size)
    network = build_network(settings, job.precision, tensors, probe, steps)
    if job.resumed:
        with as_cache_error(files.checkpoint):
            network.restore(read_own_safetensors(files.checkpoint))
    trainer = Trainer(
        network,
        data,
        BatchLoader(data.images, settings.network, network.device),
        settings,
        Checkpointer(
            lambda state: write_tensors(files.checkpoint, network.state(), job.metadata(state)),
            settings.network.checkpoint_seconds,
        ),
        task.stop,
        task.notice_training(len(split.train) + len(split.validation)),
    )
    state = trainer.train(job.state)
    finished = state.is_finished(settings.epochs, settings.patience)
    job = dataclasses.replace(job, state=state)
    comparison = None
    if finished and len(split.test):
        trainer.checkpointer.save(state)
        after = trainer.test(split.test)
        finished = after is not None
        if after is not None:
            comparison = compare_answers(data, probe_answers(probe, data, after.rows), after)
    stopped = "" if finished else task.stop.reason
    report = _report(task, job, data, probe.validation, comparison, stopped=stopped)
    if finished:
        metadata = {**preprocessing_metadata(settings.network), REPORT: report.to_json()}
        metadata[IDENTITY] = json.dumps(job.identity)
        write_tensors(files.out, {**tensors, **network.best_tensors()}, metadata)
        files.remove_temporary()
    return report


def _untouched_features(task: _Task) -> FeatureCache | None:
    """Extract the features of the untouched network; return None if time ran out."""
    settings = task.settings
    left = task.stop.seconds_left
    network = dataclasses.replace(
        settings.network,
        layers=str(settings.spec),
        pool="avg",  # the canonical name leaves this default out
        norm="none",
        precision="float32",
        dtype="float32",
        time_limit=None if math.isinf(left) else f"{max(left, 0.1):.1f}s",
    )
    log.info("features of the untouched network")
    activity.expects(len(task.images) * (1 + settings.epochs))
    request = ExtractRequest(
        tuple(task.sources),
        task.files.untouched_features,
        network,
        policy=UpdatePolicy(update=True),
        root=task.root,
    )
    summary = extract_file(request, task.notice_extraction)
    return FeatureCache(task.files.untouched_features) if not summary.pending else None


def _training_data(task: _Task, cache: FeatureCache) -> TrainingData:
    """Return the decodable images that have a class, split, with their features."""
    classes, settings = task.labels.classes, task.settings
    match = match_paths(cache.paths, task.images.paths)
    kept = cache.done[match.rows] & (classes[match.listed] != UNLABELLED)
    rows, in_cache = match.listed[kept], match.rows[kept]
    without = int((classes == UNLABELLED).sum())
    if without:
        log.warning(
            "%s without a class %s no part", counted(without, "image"), agree(without, "takes")
        )
    shares = Shares(settings.val_share, settings.test_share, settings.seed)
    groups = None if task.groups is None else task.groups.of
    split = split_images(
        rows, classes[rows], task.labels.names, shares, None if groups is None else groups[rows]
    )
    layer = str(settings.spec)
    train, validation, test = (
        cache.values(layer, in_cache[np.searchsorted(rows, part)])
        for part in (split.train, split.validation, split.test)
    )
    names = task.labels.names
    return TrainingData(task.images, classes, len(names), split, train, validation, test, groups)


def _report(
    task: _Task,
    job: Job,
    data: TrainingData | None = None,
    before: Metrics | None = None,
    comparison: BeforeAndAfter | None = None,
    *,
    stopped: str,
) -> FinetuneReport:
    settings, classes = task.settings, task.labels.classes
    network, best = settings.network, job.state.best
    split = data.split if data else Split(np.zeros(0, np.int64), np.zeros(0, np.int64))
    held_out = np.bincount(classes[split.validation], minlength=len(task.labels.names))
    taken = len(split.train) + len(split.validation) + len(split.test)
    known = int((classes != UNLABELLED).sum())
    measured = held_out if comparison is None else np.array(comparison.images)
    report = FinetuneReport(
        out=task.files.out,
        model=network.model,
        weights=task.weights.name,
        warning=task.weights.warning or "",
        layer=str(settings.spec),
        channels=network.channels,
        trained=settings.parts.names,
        classes=task.labels.names,
        train_images=len(split.train),
        held_out=tuple(held_out.tolist()),
        failed=known - taken if data else 0,
        chance=float(measured.max() / measured.sum()) if taken else 0.0,
        before=before if comparison is None else comparison.before,
        after=best.validation if best and not stopped else None,
        epochs=job.state.epochs,
        best_epoch=best.number if best else 0,
        precision=job.precision,
        stopped=stopped,
        test=tuple(np.bincount(classes[split.test], minlength=len(held_out)).tolist()),
        before_validation=before,
    )
    if comparison is not None:
        report = dataclasses.replace(
            report,
            after=comparison.after,
            measured_on=TEST,
            test=comparison.images,
            groups=comparison.groups,
            before_interval=comparison.before_interval,
            after_interval=comparison.after_interval,
            gain_interval=comparison.gain_interval,
        )
    return dataclasses.replace(report, warnings=warnings_of(report))
