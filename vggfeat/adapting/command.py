"""Adapting a network to other images: what is there already, the probe, the course, the weights."""

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

from vggfeat.adapting.job import Asked, Begun, Places, begin, damage, finished
from vggfeat.adapting.settings import IDENTITY, REPORT, Adapted, carried_metadata, identity_of
from vggfeat.adapting.split import Split, stratified
from vggfeat.errors import InterruptedRunError, UsageError
from vggfeat.labels import UNLABELLED, labels_of_paths
from vggfeat.lock import hold, refuse_if_held
from vggfeat.plan import match_paths
from vggfeat.reader import FeatureCache
from vggfeat.records import Progress
from vggfeat.run import extract
from vggfeat.signals import StopFlag
from vggfeat.sources import discover
from vggfeat.update import Wish
from vggfeat.weights import find_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vggfeat.adapting.model import Material
    from vggfeat.adapting.settings import AdaptSettings
    from vggfeat.adapting.state import Score
    from vggfeat.labels import Labels
    from vggfeat.sources import Manifest
    from vggfeat.weights import Weights

log = logging.getLogger("vggfeat")

_SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True)
class _Task:
    """What is adapted to what.

    Attributes:
        settings: as asked for.
        sources: of the images.
        root: see `extract`.
        manifest: of the images.
        labels: of the manifest's rows.
        weights: that it begins with.
        places: of its files.
        stop: a signal, or the end of the time there is.
        notice: called after each batch.
    """

    settings: AdaptSettings
    sources: Sequence[str | os.PathLike[str]]
    root: str | None
    manifest: Manifest
    labels: Labels
    weights: Weights
    places: Places
    stop: StopFlag
    notice: Callable[[Progress], None]

    def notice_before(self, progress: Progress) -> None:
        """Tells how far the features of the untouched network are, as part of the whole."""
        images = len(self.manifest)
        skipped = images - progress.total  # done by an earlier run
        whole = images * (1 + self.settings.epochs)
        self.notice(Progress(skipped + progress.done, progress.failed, whole))

    def notice_learning(self, images: int) -> Callable[[Progress], None]:
        """Likewise of learning, in each epoch of which come so many images."""
        first = len(self.manifest)
        whole = first + images * self.settings.epochs

        def notice(progress: Progress) -> None:
            self.notice(Progress(first + progress.done, progress.failed, whole))

        return notice

    @property
    def identity(self) -> dict[str, Any]:
        """What two runs must agree in: see `identity_of`."""
        return identity_of(self.settings, self.weights.sha256, self._images_digest())

    def _images_digest(self) -> str:
        """SHA-256 over path, size and class of every image."""
        digest = hashlib.sha256()
        manifest, classes = self.manifest, self.labels.classes.tolist()
        for path, size, number in zip(manifest.paths, manifest.sizes, classes, strict=True):
            name = self.labels.names[number] if number != UNLABELLED else ""
            fields = (path.hex(), int(size), name)
            digest.update(json.dumps(fields).encode())
        return digest.hexdigest()


def adapt(
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    settings: AdaptSettings,
    *,
    labels: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    root: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Adapted:
    """Trains parts of a network on images of known classes, or goes on with what was begun.

    First a linear probe is fitted to the features of the untouched network; then the parts asked
    for learn, together with a linear head that begins as that probe. Of all epochs the one that
    does best on images held out is written, as float32 weights that `extract` takes, with the
    head beside them as `head.weight` (classes, D) and `head.bias`.

    Args:
        images: folders of class folders, archives, lists: as for `extract`, but no `-`.
        out: the weights to make, `.safetensors`. Beside them lie `.progress` and `.before.h5`
            until they are done.
        settings: which network, what of it learns, and how.
        labels: a CSV file of `path,label`; without one an image's folder is its class.
        fresh: begin again.
        root: directory that the paths in `labels` are relative to.
        on_progress: called after every batch.

    Raises:
        UsageError: a setting makes no sense, or there are no labels.
        InputError: no images, or too few of a class.
        WeightsError: the weights cannot be had, or take images of other channels.
        CacheError: `out` is not ours.
        CacheMismatchError: what is there was begun otherwise.
        LockedError: another run writes to `out`.
        SpaceError: the disk is full; what was saved before is kept.
        DeviceError: the device is missing, failed, is out of memory, or learning diverged.
        TooManyFailuresError: more images failed than allowed.
        InterruptedRunError: SIGINT, SIGTERM or SIGHUP; call again to go on.
    """
    listed = [images] if isinstance(images, str | os.PathLike) else list(images)
    places = Places(os.fspath(out))
    _check_request(places.out, listed)
    refuse_if_held(places.out)
    with hold(places.out), StopFlag(settings.network.seconds_allowed) as stop:
        manifest = discover(listed, root=root)
        paths = manifest.paths
        where = f"the images of {', '.join(repr(os.fspath(one)) for one in listed)}"
        task = _Task(
            settings,
            listed,
            root,
            manifest,
            labels_of_paths(paths, where, labels),
            find_weights(settings.network.weights, settings.network.model),
            places,
            stop,
            on_progress or (lambda _: None),
        )
        return _run(task, fresh=fresh)


def _check_request(out: str, sources: Sequence[str | os.PathLike[str]]) -> None:
    wrong = []
    if not out.endswith(_SUFFIX):
        wrong.append(f"output {out!r}: expected a name that ends in {_SUFFIX}")
    folder = os.path.dirname(os.path.abspath(out))
    if not os.path.isdir(folder):
        wrong.append(f"output {out!r}: its folder {folder!r} is not there; make it first")
    if "-" in sources:
        wrong.append("images are read more than once, and a list on standard input cannot be; "
                     "write it to a file and name it as @list.txt")  # fmt: skip
    if wrong:
        raise UsageError("; ".join(wrong))


def _run(task: _Task, *, fresh: bool) -> Adapted:
    """Whatever is left to do."""
    settings, places = task.settings, task.places
    asked = Asked(task.identity, settings.network.precision)
    done = finished(places.out, asked, fresh=fresh)
    if done is not None or fresh:
        places.tidy()
    if done is not None:
        return done
    from vggfeat.adapting.model import Pupil, choose_learning_precision, probe
    from vggfeat.checkpoints import read_safetensors
    from vggfeat.tensorwrite import write_tensors

    precision = choose_learning_precision(settings.network.precision, settings.network.device)
    begun = begin(places.progress, asked, precision)
    cache = _before(task)
    if cache is None:
        return _result(task, begun, stopped="time limit")
    material = _material(task, cache)
    start = probe(material)
    pupil = Pupil(settings, begun.precision, task.weights, material, start)
    if begun.there:
        with damage(places.progress):
            pupil.restore(read_safetensors(places.progress), begun.course)
    course = pupil.learn(
        begun.course,
        task.stop,
        lambda now: write_tensors(places.progress, pupil.state(), begun.metadata(now)),
        task.notice_learning(len(material.split.train) + len(material.split.judge)),
    )
    over = course.is_over(settings.epochs, settings.patience)
    found = _result(
        task, dataclasses.replace(begun, course=course), material, start.score,
        stopped="" if over else task.stop.reason,
    )  # fmt: skip
    if over:
        metadata = {**carried_metadata(settings.network), REPORT: found.report()}
        metadata[IDENTITY] = json.dumps(begun.identity)
        write_tensors(places.out, pupil.written(), metadata)
        places.tidy()
    _raise_if_stopped(task.stop, found)
    _tell(found)
    return found


def _before(task: _Task) -> FeatureCache | None:
    """Features of the untouched network, as a cache; None if there was no time to finish it."""
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
    summary = extract(
        task.sources,
        task.places.before,
        network,
        wish=Wish(update=True),
        root=task.root,
        on_progress=task.notice_before,
    )
    return FeatureCache(task.places.before) if not summary.pending else None


def _material(task: _Task, cache: FeatureCache) -> Material:
    """Images that could be decoded and have a class, split, with their features."""
    from vggfeat.adapting.model import Material

    classes, settings = task.labels.classes, task.settings
    match = match_paths(cache.paths, task.manifest.paths)
    kept = cache.done[match.rows] & (classes[match.listed] != UNLABELLED)
    rows, in_cache = match.listed[kept], match.rows[kept]
    without = int((classes == UNLABELLED).sum())
    if without:
        log.warning("%d images have no class and take no part", without)
    split = stratified(
        rows, classes[rows], task.labels.names, share=settings.val_share, seed=settings.seed
    )
    layer = str(settings.spec)
    train, judge = (
        cache.values(layer, in_cache[np.searchsorted(rows, part)])
        for part in (split.train, split.judge)
    )
    return Material(task.manifest, classes, len(task.labels.names), split, train, judge)


def _result(
    task: _Task,
    begun: Begun,
    material: Material | None = None,
    before: Score | None = None,
    *,
    stopped: str,
) -> Adapted:
    settings, classes = task.settings, task.labels.classes
    network, course = settings.network, begun.course
    split = material.split if material else Split(np.zeros(0, np.int64), np.zeros(0, np.int64))
    held_out = np.bincount(classes[split.judge], minlength=len(task.labels.names))
    taken = len(split.train) + len(split.judge)
    known = int((classes != UNLABELLED).sum())
    return Adapted(
        out=task.places.out,
        model=network.model,
        weights=task.weights.name,
        warning=task.weights.warning or "",
        layer=str(settings.spec),
        channels=network.channels,
        trained=settings.parts.names,
        classes=task.labels.names,
        train_images=len(split.train),
        held_out=tuple(held_out.tolist()),
        failed=known - taken if material else 0,
        chance=float(held_out.max() / held_out.sum()) if taken else 0.0,
        before=before,
        after=course.best.score if course.best and not stopped else None,
        epochs=course.history,
        best=course.best.number if course.best else 0,
        precision=begun.precision,
        stopped=stopped,
    )


def _raise_if_stopped(stop: StopFlag, found: Adapted) -> None:
    if found.stopped and stop:
        raise InterruptedRunError(
            f"stopped by {found.stopped} in epoch {len(found.epochs) + 1}; run the same command "
            "again to go on",
            stop.signum,
            found,
        )


def _tell(found: Adapted) -> None:
    """Warns where learning brought nothing."""
    if found.before and found.after and found.after.accuracy <= found.before.accuracy:
        log.warning(
            "the images held out are recognised no better than by a probe of the untouched "
            "network (%.3f, before %.3f)",
            found.after.accuracy,
            found.before.accuracy,
        )
