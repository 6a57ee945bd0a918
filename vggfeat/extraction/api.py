"""`vggfeat.extract`: here or on a Ray cluster, into files of this machine or an object store."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

from vggfeat.cache.sharding import Sharding
from vggfeat.core.file_names import path_text, remote_scheme
from vggfeat.core.forked import refuse_broken_threads
from vggfeat.core.isolation import isolated
from vggfeat.errors import UsageError
from vggfeat.extraction import ray_driver as dealing
from vggfeat.extraction import sharded as extraction
from vggfeat.extraction.remote_output import extract_to_store, scratch_place
from vggfeat.extraction.request import ExtractRequest
from vggfeat.extraction.update import UpdatePolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vggfeat.core.records import Progress, Summary
    from vggfeat.core.settings import Settings
    from vggfeat.extraction.ray_cluster import RayCluster


def working_place(out: str | os.PathLike[str], scratch: str | None = None) -> str:
    """Where the cache lies while a run is under way: `out`, or its place in the scratch folder.

    Raises:
        UsageError: a scratch folder for an output that needs none; see also `scratch_place`.
    """
    text = path_text(out)
    if not (isinstance(out, str) and remote_scheme(text)):
        if scratch is not None:
            raise UsageError(
                f"--scratch is for outputs in an object store, and {text!r} is a path; leave it out"
            )
        return text
    return scratch_place(text, scratch)


@isolated()
def extract(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    settings: Settings,
    *,
    fresh: bool = False,
    wish: UpdatePolicy = UpdatePolicy(),  # noqa: B008 frozen
    root: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    sharding: Sharding | None = None,
    scratch: str | None = None,
    cluster: RayCluster | None = None,
) -> Summary:
    """Extracts features of images into a cache, or goes on with a cache begun earlier.

    Args:
        sources: folders, files, `@list.txt`, or `-` for a list on standard input; or folders and
            objects in an object store, `s3://bucket/folder`.
        out: the cache, one HDF5 file; or a folder, which gets a sharded cache: one that is there,
            a name that ends in `/`, or with `sharding` any name. Either may be in an object store:
            it is then made in `scratch`, and put there when it is complete.
        settings: which layers of which network, and how.
        fresh: begin again even if `out` is there.
        wish: what to do about images that are new to `out`, changed, gone, or failed.
        root: directory that the recorded paths are relative to.
        on_progress: called after every batch; with a cluster, now and then.
        sharding: of a folder, how it is split and which of its shards to do.
        scratch: folder that an output in an object store is made in; by default one in the user's
            cache. The same one again goes on with what is there.
        cluster: have the shards done by Ray; `out` is then a folder that all its machines share.

    Returns:
        what was done, and what the cache now holds, or the share of it that was asked for.

    Raises:
        UsageError: `out` can be no cache, or what is asked for does not go together.
        InputError: a source is missing, or there is no image; or its store does not answer.
        WeightsError: the weights cannot be had.
        CacheError: `out` is not ours, damaged, or made with other settings or of other images.
        LockedError: another run writes to `out`; of a folder, to shards that are left.
        SpaceError: the disk is full, or the store refuses. All rows written before are kept.
        DeviceError: the device is missing or failed, or workers of the cluster end again and again.
            All rows written before are kept.
        TooManyFailuresError: more images failed than `settings.max_failures`, the rest is done;
            or one failed, and `settings.on_error` is `stop`.
        InterruptedRunError: SIGINT or SIGTERM; call again to go on.
    """
    out = path_text(out) if isinstance(out, str) else out
    refuse_broken_threads()
    work = working_place(out, scratch)
    listed = (sources,) if isinstance(sources, str | os.PathLike) else tuple(sources)
    request = ExtractRequest(listed, work, settings, fresh, wish, root, sharding or Sharding())

    def extract_here(request: ExtractRequest) -> Summary:
        if cluster is None:
            return extraction.extract_here(request, on_progress)
        return dealing.extract_on_ray(request, cluster, on_progress)

    if work == os.fspath(out):
        return extract_here(request)
    named = os.fspath(out).endswith("/")
    sharded = named or cluster is not None or extraction.is_sharded(work, request.sharding)
    if sharded:
        request = dataclasses.replace(request, out=f"{work}/")
    return extract_to_store(
        os.fspath(out), work, lambda: extract_here(request), sharded=sharded, fresh=fresh
    )
