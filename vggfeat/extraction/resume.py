"""What a run has to do with its output: make it, go on with it, or refuse it."""

from __future__ import annotations

import dataclasses
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from vggfeat.cache.format import RowState, read_header
from vggfeat.cache.reader import FeatureCache
from vggfeat.cache.rows import Match, match_paths
from vggfeat.core.file_types import other_format
from vggfeat.core.fusion_spec import recipe_of
from vggfeat.core.text import agree, counted
from vggfeat.errors import CacheError, CacheMismatchError, InputError, UsageError
from vggfeat.extraction.metadata import make_identity
from vggfeat.extraction.update import apply_changes, files_differ, find_changes, has_returned
from vggfeat.network.weights import find_weights, weights_name
from vggfeat.storage.paths import check_place, remote_scheme

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vggfeat.cache.identity import Identity
    from vggfeat.core.settings import Precision, Settings
    from vggfeat.extraction.update import Changes, UpdatePolicy
    from vggfeat.images.image_list import ImageList
    from vggfeat.network.weights import Weights

log = logging.getLogger("vggfeat")


@dataclass(frozen=True, slots=True)
class Resumed:
    """An existing cache that fits what is asked for.

    Attributes:
        cache: opened.
        settings: those asked for, with what the file fixes taken over from it.
        todo: int64, rows still to do, ascending.
        positions: of the `todo` rows in the image list.
        stale: of `todo`, rows whose file has changed since it was listed.
        listed: positions in the image list of the `stale` rows.
        changes: what was brought in line with the images before.
    """

    cache: FeatureCache
    settings: Settings
    todo: NDArray[np.int64]
    positions: NDArray[np.int64]
    stale: NDArray[np.int64]
    listed: NDArray[np.int64]
    changes: Changes


def check_output(out: str, *, fresh: bool) -> bool:
    """Whether there is a cache at `out` to go on with.

    Raises:
        UsageError: no folder to put it in, `out` is a folder or a device, or named like another
            format's file.
        CacheError: with `fresh`, what is there is not ours to replace.
    """
    if remote_scheme(out):
        raise UsageError(
            f"output {out!r}: only extract writes to an object store; name a file here, and copy it"
        )
    if wrong := other_format(out):
        raise UsageError(wrong)
    check_place(out)
    if os.path.isdir(out):
        raise UsageError(f"output {out!r} is a folder; expected a file name such as feats.h5")
    if not os.path.exists(out):
        return False
    if fresh:
        try:
            read_header(out)
        except CacheError as error:
            raise CacheError(
                f"--fresh replaces caches of ours only: {error}; delete it yourself if it may go"
            ) from error
    return not fresh


def plan_resume(
    out: str, settings: Settings, images: ImageList, policy: UpdatePolicy
) -> tuple[Resumed, Weights | None]:
    """Opens an existing cache, brings it in line as wished, and finds what is left to do in it.

    Args:
        out: the cache.
        settings: as asked for; what they leave to `auto` is the file's.
        images: the images asked for.
        policy: what may be done about images that are new, changed, gone, or failed.

    Returns:
        what is left, and the weights, which are not looked for when nothing is.

    Raises:
        CacheError: not a cache of ours, or damaged.
        CacheMismatchError: made with other settings, or without some of the images.
        InputError: more images are gone than `settings.max_removed`.
        WeightsError: there is work, and the weights cannot be had.
    """
    cache = FeatureCache(out)
    match = match_paths(cache.paths, images.paths)
    changes = find_changes(cache, images, match, policy)
    _check_removed(cache, changes, settings)
    work = changes.makes_work or bool((cache.state[match.rows] == RowState.PENDING).any())
    weights = check_settings(cache, settings, work=work)
    if not policy.update:
        _check_images(cache, match, images)
    apply_changes(cache, images, match, changes)
    if len(changes.added):  # the file is another one now
        cache = FeatureCache(out)
        match = match_paths(cache.paths, images.paths)
    pending = cache.state[match.rows] == RowState.PENDING
    changed = files_differ(cache, images, match)
    removed = cache.state[match.rows] == RowState.REMOVED
    _tell_changed(int((changed & ~pending & ~removed).sum()))
    stale = changed & pending
    return Resumed(
        cache=cache,
        settings=_take_over(settings, cache),
        todo=match.rows[pending],
        positions=match.listed[pending],
        stale=match.rows[stale],
        listed=match.listed[stale],
        changes=changes,
    ), weights


def is_complete(out: str, images: ImageList, policy: UpdatePolicy) -> bool:
    """Return whether a run would write nothing to an existing cache.

    Raises:
        CacheError: not a cache of ours, or damaged.
        CacheMismatchError: of another folder altogether.
    """
    cache = FeatureCache(out)
    match = match_paths(cache.paths, images.paths)
    changes = find_changes(cache, images, match, policy)
    if not changes.is_empty:
        return False
    return not bool((cache.state[match.rows] == RowState.PENDING).any())


def check_settings(cache: FeatureCache, settings: Settings, *, work: bool) -> Weights | None:
    """Refuses settings that a cache was not made with.

    Args:
        cache: what is there.
        settings: as asked for; what they leave to `auto` is the file's.
        work: whether there is any, for which weights are needed.

    Returns:
        the weights; None if there is no work and their name is the cache's.

    Raises:
        CacheMismatchError: lists all that differs.
        WeightsError: the weights are needed and cannot be had.
    """
    had = cache.header.identity
    weights = None
    if work or weights_name(settings.weights, settings.model) != had.weights:
        weights = find_weights(settings.weights, settings.model)
    precision = had.precision if settings.precision == "auto" else settings.precision
    _check_identity(cache, make_identity(settings, precision, weights))
    return weights


def _check_removed(cache: FeatureCache, changes: Changes, settings: Settings) -> None:
    if len(changes.removed):
        first = cache.name(int(changes.removed[0]))
        present = int((cache.state != RowState.REMOVED).sum())
        check_removals(settings, cache.path, len(changes.removed), present, first)


def check_removals(settings: Settings, path: str, removed: int, present: int, first: str) -> None:
    """Refuses to give up more rows than an update may.

    Raises:
        InputError: `removed` of the `present` images are too many; `first` is one of them.
    """
    allowed = settings.removals_allowed(present)
    if removed > allowed:
        raise InputError(
            f"{removed} of the {counted(present, 'image')} of cache {path!r} "
            f"{agree(removed, 'is')} gone, the first is {first!r}; {allowed} may be "
            "(--max-removed), and nothing was changed. Is a "
            "folder not mounted?"
        )


def _take_over(settings: Settings, cache: FeatureCache) -> Settings:
    """The settings with the file's layers, its precision and its batch shape."""
    identity = cache.header.identity
    batch_size = int(cache.header.provenance.config["batch_size"])
    recipe = recipe_of(identity.steps)
    if settings.batch_size not in ("auto", batch_size):
        log.warning("the cache was begun with batch size %d, which is kept", batch_size)
    return dataclasses.replace(
        settings,
        layers=",".join(recipe.layers if recipe else identity.layers),
        pool="avg",  # canonical names leave this default out
        norm="none",
        batch_size=batch_size,
        precision=cast("Precision", identity.precision),
    )


def _check_identity(cache: FeatureCache, asked: Identity) -> None:
    had = cache.header.identity
    # Once found, they stay.
    asked = dataclasses.replace(asked, activations=had.activations, scales=had.scales)
    if not asked.weights_sha256:  # not looked for: the name is the same and there is no work
        asked = dataclasses.replace(asked, weights_sha256=had.weights_sha256)
    differences = had.differences(asked)
    if differences:
        raise CacheMismatchError(
            f"cache {cache.path!r} was made with other settings: {'; '.join(differences)}. Ask for "
            "the same, choose another --out, or --fresh to begin again"
        )


def _check_images(cache: FeatureCache, match: Match, images: ImageList) -> None:
    returned = match.listed[has_returned(cache, images, match)]
    unknown = np.sort(np.concatenate([match.unknown, returned]))
    if len(unknown):
        first = images[int(unknown[0])].name
        raise CacheMismatchError(
            f"cache {cache.path!r} was made of other images: {len(unknown)} of the "
            f"{len(images)} asked for are not in it, the first is {first!r}. --update brings "
            "them in; or choose another --out, or --fresh to begin again"
        )
    others = int((cache.state[match.unlisted] != RowState.REMOVED).sum())
    if others:
        log.info(
            "%s of the cache %s not requested; kept",
            counted(others, "image"),
            agree(others, "was"),
        )


def _tell_changed(count: int) -> None:
    if count:
        log.warning(
            "%s %s changed since their features were taken; their rows are kept "
            "(--update takes them anew)",
            counted(count, "image"),
            agree(count, "has"),
        )
