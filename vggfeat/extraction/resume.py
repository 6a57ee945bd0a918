"""Whether a run makes its output, resumes it or refuses it, and which rows are left to do."""

from __future__ import annotations

import dataclasses
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from vggfeat.cache.format import RowState
from vggfeat.cache.header import read_header
from vggfeat.cache.reader import FeatureCache
from vggfeat.cache.rows import Match, match_paths
from vggfeat.core.file_types import other_format
from vggfeat.core.fusion_spec import recipe_of
from vggfeat.core.text import agree, counted
from vggfeat.errors import CacheError, CacheMismatchError, InputError, UsageError
from vggfeat.extraction.metadata import make_identity
from vggfeat.extraction.update import (
    UpdatePolicy,
    apply_changes,
    files_differ,
    find_changes,
    has_returned,
)
from vggfeat.network.weights import find_weights, weights_name
from vggfeat.storage.paths import check_place, remote_scheme

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vggfeat.core.settings import Precision, Settings
    from vggfeat.extraction.api import ExtractRequest
    from vggfeat.extraction.update import Changes
    from vggfeat.images.image_list import ImageList
    from vggfeat.network.weights import Weights

log = logging.getLogger("vggfeat")


@dataclass(frozen=True, slots=True)
class Resumed:
    """An existing cache that fits a request, opened and updated."""

    cache: FeatureCache
    settings: Settings  # the requested ones; what the file fixes is replaced by its own
    todo: NDArray[np.int64]  # rows still to do, ascending
    positions: NDArray[np.int64]  # of the `todo` rows in the image list
    stale: NDArray[np.int64]  # of `todo`, rows whose file has changed since it was listed
    listed: NDArray[np.int64]  # positions in the image list of the `stale` rows
    changes: Changes  # made by the update
    weights: Weights | None  # None, without a search for them, where nothing is left


def check_output(out: str, *, fresh: bool) -> bool:
    """Return whether a cache exists at `out` to resume; raise if none can be there.

    With `fresh` an existing cache is to be replaced; what is not a cache of vggfeat never is.
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


def plan_resume(request: ExtractRequest, images: ImageList) -> Resumed:
    """Open an existing cache, update it as the policy allows, and find the rows left to do.

    Args:
        request: its `out` is the cache, whose lock the caller holds; where its settings say `auto`,
            the file decides.
        images: the requested images.
    """
    cache = FeatureCache(request.out)
    match = match_paths(cache.paths, images.paths)
    changes = find_changes(cache, images, match, request.policy)
    if len(changes.removed):
        first = cache.name(int(changes.removed[0]))
        present = int((cache.state != RowState.REMOVED).sum())
        check_removals(request.settings, cache.path, len(changes.removed), present, first)
    work = changes.makes_work or bool((cache.state[match.rows] == RowState.PENDING).any())
    weights = check_settings(cache, request.settings, work=work)
    if not request.policy.update:
        _check_images(cache, match, images)
        if request.items is not None and request.fingerprint == "bytes":
            check_items(cache, match, images)
    apply_changes(cache, images, match, changes)
    if len(changes.added):  # the file is another one now
        cache = FeatureCache(request.out)
        match = match_paths(cache.paths, images.paths)
    pending = cache.state[match.rows] == RowState.PENDING
    changed = files_differ(cache, images, match)
    removed = cache.state[match.rows] == RowState.REMOVED
    kept = int((changed & ~pending & ~removed).sum())
    if kept:
        log.warning(
            "%s %s changed since their features were taken; their rows are kept "
            "(--update takes them anew)",
            counted(kept, "image"),
            agree(kept, "has"),
        )
    stale = changed & pending
    return Resumed(
        cache=cache,
        settings=_take_over(request.settings, cache),
        todo=match.rows[pending],
        positions=match.listed[pending],
        stale=match.rows[stale],
        listed=match.listed[stale],
        changes=changes,
        weights=weights,
    )


def is_complete(request: ExtractRequest, images: ImageList) -> bool:
    """Return whether a run would write nothing to an existing cache."""
    cache = FeatureCache(request.out)
    match = match_paths(cache.paths, images.paths)
    changes = find_changes(cache, images, match, request.policy)
    return changes.is_empty and not (cache.state[match.rows] == RowState.PENDING).any()


def check_settings(cache: FeatureCache, settings: Settings, *, work: bool) -> Weights | None:
    """Refuse settings that a cache was not made with, naming all that differ.

    Where the settings say `auto`, the file decides. `work` is whether rows are left to do, which
    needs weights. Return these; None if none are needed and the name is that of the cache's.
    """
    existing = cache.header.identity
    weights = None
    if work or weights_name(settings.weights, settings.model) != existing.weights:
        weights = find_weights(settings.weights, settings.model)
    precision = existing.precision if settings.precision == "auto" else settings.precision
    requested = make_identity(settings, precision, weights)
    preprocess = requested.preprocess
    if settings.decode == "auto":
        preprocess = dataclasses.replace(preprocess, decode=existing.preprocess.decode)
    requested = dataclasses.replace(
        requested,
        preprocess=preprocess,
        # Measured once, when the cache was made, and kept from then on.
        activations=existing.activations,
        scales=existing.scales,
        # Not computed where the name is the same and no rows are left.
        weights_sha256=requested.weights_sha256 or existing.weights_sha256,
    )
    differences = existing.differences(requested)
    if differences:
        raise CacheMismatchError(
            f"cache {cache.path!r} was made with other settings: {'; '.join(differences)}. Ask for "
            "the same, choose another --out, or --fresh to begin again"
        )
    return weights


def check_removals(settings: Settings, path: str, removed: int, present: int, first: str) -> None:
    """Refuse to remove more of the rows present in a cache than `settings.max_removed` allows.

    `first` is the name of an image that is gone.
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
    """Return the settings with the layers, precision, batch size and decoding of the file."""
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
        decode=identity.preprocess.decode,
    )


def check_items(cache: FeatureCache, match: Match, images: ImageList) -> None:
    """Refuse a data set of which items whose rows are done have other bytes now."""
    by_digest = UpdatePolicy(update=True, by_digest=True)
    changed = find_changes(cache, images, match, by_digest).changed
    if len(changed):
        raise CacheMismatchError(
            f"cache {cache.path!r} was made of other items: {len(changed)} of the {len(images)} "
            f"have changed, the first is {cache.name(int(changed[0]))!r}; update=True extracts "
            "them again; or choose another output, or fresh=True to begin again"
        )


def _check_images(cache: FeatureCache, match: Match, images: ImageList) -> None:
    returned = match.listed[has_returned(cache, images, match)]
    unknown = np.sort(np.concatenate([match.unknown, returned]))
    if len(unknown):
        first = images[int(unknown[0])].name
        raise CacheMismatchError(
            f"cache {cache.path!r} was made of other images: {len(unknown)} of the "
            f"{len(images)} requested are not in it, the first is {first!r}. --update brings "
            "them in; or choose another --out, or --fresh to begin again"
        )
    others = int((cache.state[match.unlisted] != RowState.REMOVED).sum())
    if others:
        log.info(
            "%s of the cache %s not requested; kept",
            counted(others, "image"),
            agree(others, "was"),
        )
