"""A mark beside an output that `fresh` has begun and no run has finished yet.

It lets the command that was interrupted go on, instead of beginning again each time: a crontab has
one command, and under a time limit that would never be done. The mark is written before the first
row is, and holds the fingerprint of what was begun.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from typing import TYPE_CHECKING

import numpy as np

from vggfeat._version import __version__
from vggfeat.cache.format import RowState
from vggfeat.cache.reader import FeatureCache
from vggfeat.cache.rows import match_paths
from vggfeat.core.text import agree, counted
from vggfeat.errors import CacheError, CacheMismatchError, UsageError
from vggfeat.extraction.metadata import versions_of
from vggfeat.extraction.resume import check_settings
from vggfeat.extraction.update import UpdatePolicy, find_changes
from vggfeat.storage.atomic import write_bytes
from vggfeat.storage.foreign_files import read_foreign

if TYPE_CHECKING:
    from collections.abc import Callable

    from vggfeat.cache.sharded import ShardedCache
    from vggfeat.core.settings import Settings
    from vggfeat.extraction.api import ExtractRequest
    from vggfeat.images.image_list import ImageList

SUFFIX = ".vggfeat.fresh"
_MOST_BYTES = 4096
_NAMES = UpdatePolicy(update=True)

log = logging.getLogger("vggfeat")


def note_begun(out: str, fingerprint: str) -> None:
    """Mark an output, whose lock the caller holds, as begun by `fresh`.

    Without a mark, as where the name is too long for one, `fresh` begins again each time.
    """
    try:
        write_bytes(f"{out}{SUFFIX}", f"{fingerprint}\n".encode())
    except (OSError, UsageError) as error:
        log.warning(
            "no mark %r: %s; if this run is interrupted, --fresh begins again, and the command "
            "without it resumes",
            f"{out}{SUFFIX}",
            getattr(error, "strerror", None) or error,
        )


def note_finished(out: str) -> None:
    """Remove the mark of an output, if there is one."""
    if not is_marked(out):
        return
    try:
        os.unlink(f"{out}{SUFFIX}")
    except FileNotFoundError:
        pass
    except OSError as error:  # a folder, or another user's: it does no harm to what comes
        log.warning("mark %r cannot be removed: %s", f"{out}{SUFFIX}", error.strerror)


def was_begun(out: str, fingerprint: str) -> bool:
    """Return whether `fresh` has begun this very output, and no run has finished it since."""
    try:
        text = read_foreign(f"{out}{SUFFIX}", _MOST_BYTES)
    except OSError:
        return False
    return text.decode(errors="replace").strip() == fingerprint


def is_marked(out: str) -> bool:
    """Return whether an output has a mark at all."""
    return os.path.lexists(f"{out}{SUFFIX}")


def continued(request: ExtractRequest, images: ImageList) -> ExtractRequest:
    """Return a request that resumes what `fresh` has begun, where it has; else the request.

    It then updates the output, whose lock the caller holds, and retries failed images: all that is
    left is as if the run had begun anew. Other settings, or images from elsewhere, begin again.
    """
    out = request.out
    if not (request.fresh and is_marked(out) and os.path.exists(out)):
        return request
    try:
        cache = FeatureCache(out)
        if not (was_begun(out, cache.header.identity.fingerprint()) and has_pending(cache)):
            return request
        check_same(cache, request.settings)
        find_changes(cache, images, match_paths(cache.paths, images.paths), _NAMES)
    except CacheError:  # also a damaged one, which is replaced
        return request
    return as_continued(request, cache)


def check_same(cache: FeatureCache, settings: Settings) -> None:
    """Raise `CacheMismatchError` unless a new cache of these settings would be as this one.

    Resuming takes also fewer layers, another batch size and other versions than the cache has.
    """
    check_settings(cache, settings, work=True)
    made = cache.header.provenance
    if (made.tool_version, made.versions) != (__version__, versions_of(settings)):
        raise CacheMismatchError(f"cache {cache.path!r} was begun by other versions")
    batch_size = int(made.config["batch_size"])
    if set(settings.stored) != set(cache.header.shapes):
        raise CacheMismatchError(f"cache {cache.path!r} has other layers")
    if settings.batch_size not in ("auto", batch_size):
        raise CacheMismatchError(f"cache {cache.path!r} has another batch size")


def as_continued(request: ExtractRequest, cache: FeatureCache | ShardedCache) -> ExtractRequest:
    """Return the request as one that resumes, after saying so."""
    _tell_resuming(request.out, cache)
    by_digest = request.items is not None and request.fingerprint == "bytes"
    policy = UpdatePolicy(update=True, by_digest=by_digest, retry_failed=True)
    return dataclasses.replace(request, fresh=False, policy=policy)


def note_if_finished(out: str, opened: Callable[[], FeatureCache | ShardedCache]) -> None:
    """Remove the mark of an output of which no row is left to do; without one, open nothing."""
    if is_marked(out) and not has_pending(opened()):
        note_finished(out)


def has_pending(cache: FeatureCache | ShardedCache) -> bool:
    """Return whether rows of a cache are left to do."""
    return bool((np.asarray(cache.state) == RowState.PENDING).any())


def _tell_resuming(out: str, cache: FeatureCache | ShardedCache) -> None:
    """Say that `fresh` resumes what an interrupted run of it has begun."""
    done = int((np.asarray(cache.state) == RowState.DONE).sum())
    log.info(
        "resuming %r, which --fresh has begun and no run has finished: %s %s done; delete it to "
        "begin again",
        out,
        counted(done, "row"),
        agree(done, "is"),
    )
