"""`vggfeat.extract`: here or on a Ray cluster, into files of this machine or an object store."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypedDict

from vggfeat.cache.sharding import Sharding
from vggfeat.core.choices import unknown_value
from vggfeat.core.forked import refuse_broken_threads
from vggfeat.core.isolation import isolated
from vggfeat.core.sequences import as_tuple
from vggfeat.errors import UsageError
from vggfeat.extraction.pipeline import extract_file
from vggfeat.extraction.progress_bar import with_bar
from vggfeat.extraction.remote_output import extract_to_store, scratch_place
from vggfeat.extraction.update import UpdatePolicy
from vggfeat.images.item_list import files_of, is_dataset, items_of
from vggfeat.storage.paths import path_text, remote_scheme

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Unpack

    from vggfeat.core.records import Progress, Summary
    from vggfeat.core.settings import Settings
    from vggfeat.extraction.kept_replicas import KeptReplicas
    from vggfeat.extraction.ray_cluster import RayCluster
    from vggfeat.images.item_list import ItemList

Fingerprint: TypeAlias = Literal["bytes", "name"]


class Indexable(Protocol):
    """A map-style data set: what has a length and items by number."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int, /) -> Any:
        raise NotImplementedError


class ExtractOptions(TypedDict, total=False):
    """Arguments of `extract` that few callers need; described there."""

    names: str | Sequence[str] | None
    fingerprint: Fingerprint
    on_progress: Callable[[Progress], None] | None
    policy: UpdatePolicy
    wish: UpdatePolicy | None


@dataclass(frozen=True, slots=True)
class ExtractRequest:
    """The arguments of `extract`, as every later step gets them; `out` is a path here."""

    sources: tuple[str | os.PathLike[str], ...]
    out: str
    settings: Settings
    fresh: bool = False
    policy: UpdatePolicy = field(default_factory=UpdatePolicy)
    root: str | None = None
    sharding: Sharding = field(default_factory=Sharding)
    items: ItemList | None = None  # of a data set, in place of `sources`
    fingerprint: Fingerprint = "bytes"

    @property
    def is_sharded(self) -> bool:
        """Whether the output is a sharded cache: by its name, by what exists, or by request."""
        return self.sharding != Sharding() or self.out.endswith("/") or os.path.isdir(self.out)


def extract(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Indexable,
    out: str | os.PathLike[str],
    settings: Settings,
    *,
    fresh: bool = False,
    update: bool = False,
    by_digest: bool = False,
    retry_failed: bool = False,
    root: str | None = None,
    progress: bool = False,
    sharding: Sharding | None = None,
    scratch: str | None = None,
    cluster: RayCluster | None = None,
    **options: Unpack[ExtractOptions],
) -> Summary:
    """Extract features of images into a cache, or resume a cache begun earlier.

    Args:
        sources: folders, files, `@list.txt`, or `-` for a list on standard input; or folders and
            objects in an object store, `s3://bucket/folder`. Or images that are no files: any
            map-style data set, such as one of torch, torchvision or Hugging Face, or a list of PIL
            images, arrays or tensors; see `images.item_list`. These go into one file, on this
            machine.
        out: the cache, one HDF5 file; or a folder, which gets a sharded cache: an existing one, a
            name that ends in `/`, or with `sharding` any name. Either may be in an object store:
            it is then made in `scratch` and uploaded when it is complete.
        settings: layers, network, preprocessing, storage.
        fresh: begin again even if `out` exists.
        update: bring in new, changed and removed images.
        by_digest: detect changed images by the contents of their files.
        retry_failed: retry images that failed.
        root: directory that the recorded paths are relative to.
        progress: show a progress bar on standard error, or in a notebook.
        sharding: of a folder, how it is split and which of its shards to process.
        scratch: folder in which an output for an object store is made; by default one in the
            user's cache. A later run with the same folder resumes what it finds there.
        cluster: process the shards with Ray; `out` is then a folder that all nodes share.
        names: of the items of a data set, or its column that has them; by default the paths of its
            `samples`, or `000000` and so on.
        fingerprint: of a data set, how a later run knows that an item is the same: by its "bytes",
            the default, for which all that are done are read again, or by its "name" alone.
        on_progress: called after every batch; with a cluster, several times a second.
        policy: `update`, `by_digest` and `retry_failed` as one record.
        wish: earlier name of `policy`, deprecated.

    Returns:
        what was done, and what the cache, or the requested share of it, now holds.

    Raises:
        UsageError: `out` cannot be a cache, or the arguments contradict each other.
        InputError: a source is missing, there is no image, or the store of a source does not
            answer.
        WeightsError: the weights were not found and could not be downloaded.
        CacheError: `out` is not a cache of vggfeat, damaged, or made with other settings or of
            other images.
        LockedError: another run writes to `out`; of a folder, to all shards that are left.
        SpaceError: the disk is full, or the store refuses. All rows written before are kept.
        DeviceError: the device is missing or failed, or workers of the cluster die repeatedly.
            All rows written before are kept.
        TooManyFailuresError: more images failed than `settings.max_failures`, and all others are
            done; or one failed, and `settings.on_error` is `stop`.
        InterruptedRunError: SIGINT or SIGTERM; call again to resume.
    """
    unknown = sorted(options.keys() - ExtractOptions.__annotations__.keys())
    if unknown:
        raise TypeError(f"extract() got an unexpected keyword argument {unknown[0]!r}")
    policy, wish = options.get("policy", UpdatePolicy()), options.get("wish")
    if wish is not None:
        # Before `isolated`, which sets the caller's filters of warnings aside.
        warnings.warn(
            "extract(wish=...) is now extract(policy=...); the old name goes with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        policy = wish
    policy = dataclasses.replace(
        policy,
        update=update or policy.update,
        by_digest=by_digest or policy.by_digest,
        retry_failed=retry_failed or policy.retry_failed,
    )
    on_progress = options.get("on_progress")
    with isolated(), contextlib.ExitStack() as stack:
        if progress:
            on_progress = stack.enter_context(with_bar(on_progress))
        refuse_broken_threads()
        work = working_place(out, scratch)
        request = _request(
            ExtractRequest((), work, settings, fresh, policy, root, sharding or Sharding()),
            sources,
            options.get("names"),
            options.get("fingerprint", "bytes"),
        )
        if work == path_text(out):
            return extract_request(request, on_progress, cluster)
        return _run_for_store(path_text(out), request, on_progress, cluster)


def _request(
    request: ExtractRequest,
    sources: Any,
    names: str | Sequence[str] | None,
    fingerprint: Fingerprint,
) -> ExtractRequest:
    """Return the request with its sources: paths, or the items of a data set."""
    if fingerprint not in ("bytes", "name"):
        raise UsageError(unknown_value("fingerprint", ("bytes", "name"), fingerprint))
    if not is_dataset(sources):
        if names is not None or fingerprint != "bytes":
            raise UsageError("names and fingerprint are for data sets; files have paths and times")
        paths = as_tuple(sources)
        wrong = [type(one).__name__ for one in paths if not isinstance(one, (str, os.PathLike))]
        if wrong:
            raise UsageError(
                f"sources hold an object of type {wrong[0]}; expected paths, or a data set, which "
                "has a length and items by number"
            )
        return dataclasses.replace(request, sources=paths)
    files = None if names is not None or fingerprint != "bytes" else files_of(sources)
    if files is not None:
        return dataclasses.replace(request, sources=files[0], root=request.root or files[1])
    if request.root is not None:
        raise UsageError("root is for files; the items of a data set have names")
    by_digest = request.policy.update and fingerprint == "bytes"
    return dataclasses.replace(
        request,
        policy=dataclasses.replace(request.policy, by_digest=by_digest),
        items=items_of(sources, names),
        fingerprint=fingerprint,
    )


def working_place(out: str | os.PathLike[str], scratch: str | None = None) -> str:
    """Return the path where the cache is made: `out`, or its place in the scratch folder."""
    text = path_text(out)
    if not (isinstance(out, str) and remote_scheme(text)):
        if scratch is not None:
            raise UsageError(
                f"--scratch is for outputs in an object store, and {text!r} is a path; leave it out"
            )
        return text
    return scratch_place(text, scratch)


def _run_for_store(
    address: str,
    request: ExtractRequest,
    on_progress: Callable[[Progress], None] | None,
    cluster: RayCluster | None,
) -> Summary:
    work = request.out
    sharded = address.endswith("/") or cluster is not None or request.is_sharded
    if sharded:
        request = dataclasses.replace(request, out=f"{work}/")
    return extract_to_store(
        address,
        work,
        lambda: extract_request(request, on_progress, cluster),
        sharded=sharded,
        fresh=request.fresh,
    )


def extract_request(
    request: ExtractRequest,
    on_progress: Callable[[Progress], None] | None = None,
    cluster: RayCluster | None = None,
    kept: KeptReplicas | None = None,
) -> Summary:
    """Extract features into files of this machine: one, or a folder of shards.

    `kept` holds the networks for further calls about shards.
    """
    if request.items is not None and cluster is not None:
        raise UsageError(
            "a data set is extracted by processes that have it, not by Ray's; leave the cluster "
            "out, and give each process a share of the shards"
        )
    if cluster is not None:
        from vggfeat.extraction.ray_driver import extract_on_ray

        return extract_on_ray(request, cluster, on_progress)
    if request.is_sharded:
        from vggfeat.extraction.sharded import extract_shards

        return extract_shards(request, on_progress, kept)
    return extract_file(request, on_progress)
