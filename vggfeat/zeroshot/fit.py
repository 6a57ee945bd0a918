"""Fit a zero-shot model to images of seen classes, and save it."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.cache.labels import labels_of
from vggfeat.cache.sharded import open_cache
from vggfeat.core.isolation import isolated
from vggfeat.core.text import counted
from vggfeat.errors import CacheMismatchError, InputError, UsageError
from vggfeat.storage.paths import path_text
from vggfeat.transforms.base import chosen_layers
from vggfeat.transforms.model_file import (
    check_model_place,
    check_replaceable,
    load_fitted,
    model_differences,
    network_record,
    save_fitted,
)
from vggfeat.zeroshot.class_split import (
    Classes,
    Labelled,
    held_out,
    image_keys,
    labelled_classes,
    labelled_rows,
    read_class_list,
    split_classes,
)
from vggfeat.zeroshot.class_tree import ClassTree, read_tree
from vggfeat.zeroshot.class_vectors import ClassVectors, class_vectors
from vggfeat.zeroshot.features import fit_inputs
from vggfeat.zeroshot.model import ZEROSHOT_KIND, ZeroShotModel
from vggfeat.zeroshot.name_matching import identifier, listed, nearest_names
from vggfeat.zeroshot.nearest import NearestWords
from vggfeat.zeroshot.settings import ZeroShotSettings
from vggfeat.zeroshot.train import Learner

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vggfeat.cache.reader import FeatureCache

_SUGGESTED = 20  # names without images for which similar ones are looked up, which takes time

log = logging.getLogger("vggfeat")


@dataclass(frozen=True, slots=True)
class ZeroShotFitReport:
    """What `fit_zeroshot` did.

    Attributes:
        out: the model file.
        method: `eszsl`, `ridge`, `nearest` or `devise`; that which `auto` chose.
        centered: whether the mean of the seen classes' vectors is subtracted from class vectors.
        layers: that the model takes.
        seen, unseen: classes.
        images: number of training images.
        held_out: number of images of seen classes kept for `evaluate`.
        dims: of the class vectors.
        calibration: bias of seen classes found on held-out classes; None if none were.
        temperature: that makes probabilities of scores, likewise.
        notes: how the model was fitted, and remarks for the user.
        anew: whether it was fitted by this call; else an existing file had been fitted to the same.
        seconds: duration of this call.
    """

    out: str
    method: str
    centered: bool
    layers: tuple[str, ...]
    seen: tuple[str, ...]
    unseen: tuple[str, ...]
    images: int
    held_out: int
    dims: int
    calibration: float | None
    temperature: float | None
    notes: tuple[str, ...]
    anew: bool
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    """Everything that a fit needs."""

    cache: FeatureCache
    settings: ZeroShotSettings
    layers: tuple[str, ...]
    classes: Classes
    vectors: ClassVectors
    tree: ClassTree
    train: Labelled
    spared: int
    notes: list[str]

    def requested(self, keys: NDArray[np.uint64]) -> dict[str, Any]:
        """Return everything that an existing model must have been fitted to, to be kept."""
        parents = sorted(self.tree.parents.items())
        settings = dataclasses.asdict(self.settings)
        for name in ("labels", "seen", "unseen", "device"):  # their results are below
            del settings[name]
        return {
            **settings,
            "layers": list(self.layers),
            "tree": hashlib.sha256(repr(parents).encode()).hexdigest() if parents else None,
            "vectors": self.vectors.sha256,
            "images": hashlib.sha256(keys.tobytes() + self.train.classes.tobytes()).hexdigest(),
            "source": self.cache.header.identity.fingerprint(),
        }


@isolated()
def fit_zeroshot(
    source: str | os.PathLike[str],
    vectors: str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings: ZeroShotSettings | None = None,
    *,
    fresh: bool = False,
) -> ZeroShotFitReport:
    """Fit a model to images of seen classes and the vectors of all classes.

    The rows are read through the memory map, one block or batch at a time.

    Args:
        source: the cache.
        vectors: word vectors or a table: see `class_vectors`.
        out: the model file; an existing one that was fitted to the same is kept.
        settings: of the fit; by default on all layers that are vectors.
        fresh: fit again in any case.

    Raises:
        UsageError: settings exclude each other, classes or layers do not exist, or a file is
            malformed.
        InputError: a file cannot be read, or there are no training images.
        CacheError: a file is not ours, or damaged.
        CacheMismatchError: `out` was fitted to something else.
        DeviceError: no such device.
        SpaceError: the model cannot be written.
    """
    started = time.perf_counter()
    settings, out = settings or ZeroShotSettings(), path_text(out)
    settings.check()
    check_model_place(out)
    check_replaceable(out, ZEROSHOT_KIND)
    cache = open_cache(source)
    task = _task(cache, os.fspath(vectors), settings)
    cache.warn()
    keys = image_keys(task.cache, task.train.rows)
    requested = task.requested(keys)
    anew = fresh or not _is_up_to_date(out, requested)
    if anew:
        model = _fit(task, keys, requested)
        save_fitted(out, model.to_fitted())
    else:
        model = ZeroShotModel.load(out)
    seen = int(model.seen.sum())
    return ZeroShotFitReport(
        out=out,
        method=model.method,
        centered=model.center is not None,
        layers=model.inputs.layers,
        seen=model.names[:seen],
        unseen=model.names[seen:],
        images=len(model.trained),
        held_out=model.record["held_out"],
        dims=model.vectors.shape[1],
        calibration=model.bias,
        temperature=model.temperature,
        notes=(*model.record["notes"], *([] if anew else _age(model))),
        anew=anew,
        seconds=time.perf_counter() - started,
    )


def _is_up_to_date(out: str, requested: dict[str, Any]) -> bool:
    if not os.path.exists(out):
        return False
    asked = load_fitted(out, ZEROSHOT_KIND).parameters.get("asked", {})
    if "center" not in asked:
        requested = _as_earlier(requested)
    unlike = model_differences(asked, requested)
    if unlike:
        raise CacheMismatchError(
            f"model {out!r} was fitted to something else: {'; '.join(unlike)}. Choose another "
            "--out, or --fresh to fit again"
        )
    return True


def _as_earlier(requested: dict[str, Any]) -> dict[str, Any]:
    """Return a request as versions before `auto` recorded it: their default was `eszsl`.

    So a command that is repeated keeps the model that it fitted then. What they did not have stays
    in the request where it is not the default, and differs.
    """
    default = ZeroShotSettings()
    new = {"center": default.center, "neighbors": default.neighbors}
    earlier = {name: value for name, value in requested.items() if new.get(name, ...) != value}
    if earlier["method"] == default.method:
        earlier["method"] = "eszsl"
    return earlier


def _age(model: ZeroShotModel) -> list[str]:
    """Say that a model which is kept was fitted by a version that knew no centering."""
    if "center" in model.record.get("asked", {}):
        return []
    how = f"by {model.method} to class vectors that are not centered"
    return [f"fitted by an earlier version, {how}; --fresh fits again as this version does"]


def _task(cache: FeatureCache, vectors: str, settings: ZeroShotSettings) -> _Task:
    layers = chosen_layers(cache, settings.layers)
    if settings.attention and len(layers) < 2:  # noqa: PLR2004 one weighs all
        raise UsageError(
            f"attention weighs several layers, found {', '.join(layers)} alone; name more by "
            "--layers, or leave it out"
        )
    if not cache.done.any():
        raise InputError(f"no image of cache {cache.path!r} is done; run vggfeat extract first")
    labels = labels_of(cache, settings.labels)
    labelled = labelled_classes(cache, labels)
    lists = [
        None if one is None else read_class_list(one) for one in (settings.seen, settings.unseen)
    ]
    classes = split_classes(labelled, *lists)
    found = class_vectors(vectors, classes.names)
    _check_apart(found, classes, vectors)
    tree = ClassTree({}) if settings.tree is None else read_tree(settings.tree).above(classes.names)
    rows = labelled_rows(cache, labels, classes.seen)
    spared = held_out(rows.classes, settings.held_out, np.random.default_rng(settings.seed))
    train = rows.where(~spared)
    notes = list(labels.notes)
    without = [name for name in classes.unseen if name not in labelled]
    if without:
        near = {name: nearest_names(name, labelled) for name in without[:_SUGGESTED]}
        notes.append(f"unseen classes without images here: {listed(without, near)}")
    return _Task(cache, settings, layers, classes, found, tree, train, int(spared.sum()), notes)


def _check_apart(vectors: ClassVectors, classes: Classes, path: str) -> None:
    """Refuse an unseen class that is a seen one by another name: it would have been trained on.

    Two identifiers are two classes, such as the two cranes of ImageNet.
    """
    seen: dict[tuple[str, ...], list[str]] = {}
    for name, words in zip(vectors.names, vectors.found_as, strict=True):
        if name in classes.seen:
            seen.setdefault(words, []).append(name)
    wrong = [
        f"{name!r} is {other!r}"
        for name, words in zip(vectors.names, vectors.found_as, strict=True)
        if name in classes.unseen
        for other in seen.get(words, ())
        if not (identifier(name) and identifier(other))
    ]
    if wrong:
        raise UsageError(
            f"unseen classes are seen ones by another name, of one vector in {path!r}: "
            f"{'; '.join(wrong)}; name each as the labels do, or leave it out"
        )


def _fit(task: _Task, keys: NDArray[np.uint64], requested: dict[str, Any]) -> ZeroShotModel:
    settings, count = task.settings, len(task.classes.seen)
    inputs = fit_inputs(task.cache, task.layers, settings.norm, task.train.rows)
    center = None
    if settings.center:
        center = task.vectors.unit[:count].mean(0, dtype=np.float64).astype(np.float32)
    vectors = task.vectors.about(center)
    learner = Learner(task.cache, settings, inputs, task.train, vectors[:count])
    log.info(
        "fitting %s to %s of %s",
        settings.fitted_method,
        counted(len(task.train), "image"),
        counted(count, "class"),
    )
    learnt = learner(task.tree, task.classes.seen)
    return ZeroShotModel(
        learnt.method,
        learnt.inputs,
        learnt.map,
        NearestWords.of(learnt.means, vectors[:count], learnt.neighbors),
        learnt.ridge,
        task.classes.names,
        np.arange(len(task.classes.names)) < count,
        center,
        vectors,
        learnt.means,
        np.bincount(task.train.classes, minlength=count),
        np.sort(keys),
        learnt.bias,
        learnt.temperature,
        task.tree,
        network_record(task.cache, task.layers),
        {
            "asked": requested,
            "notes": [
                *learnt.notes,
                f"class vectors: {task.vectors.form}",
                *task.vectors.notes,
                *task.notes,
            ],
            "held_out": task.spared,
            **learnt.figures,
        },
    )
