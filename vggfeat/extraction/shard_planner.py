"""The plan of a sharded cache: images are listed once, and each shard is created with its own.

From then on no process lists images: the shards say which are left. A plan is published by its
manifest and replaced by another one; the shards of two plans never have the same names, so a kill
at any instant leaves the old plan or the new one, whole.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import io
import itertools
import logging
import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vggfeat._version import __version__
from vggfeat.cache.format import RowState
from vggfeat.cache.reader import FeatureCache
from vggfeat.cache.rows import match_paths
from vggfeat.cache.shard_manifest import (
    MANIFEST,
    Shard,
    ShardManifest,
    is_ours,
    publish_manifest,
    read_manifest,
    shard_name,
)
from vggfeat.cache.sharding import split_rows
from vggfeat.cache.writer import create_cache
from vggfeat.core.file_types import other_format
from vggfeat.core.text import byte_count, counted
from vggfeat.errors import (
    CacheError,
    CacheMismatchError,
    InputError,
    InterruptedRunError,
    SpaceError,
    UsageError,
)
from vggfeat.extraction.fresh_mark import SUFFIX
from vggfeat.extraction.resume import check_removals, check_settings
from vggfeat.extraction.update import (
    Changes,
    UpdatePolicy,
    apply_changes,
    find_changes,
    join_changes,
    other_root,
)
from vggfeat.images.image_list import ImageList
from vggfeat.images.item_list import ItemList
from vggfeat.images.sources import discover
from vggfeat.storage.atomic import TEMPORARY_SUFFIX, sync_directory
from vggfeat.storage.locks import hold
from vggfeat.storage.paths import (
    absolute_place,
    check_place,
    refuse_standard_output,
    remote_scheme,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vggfeat.cache.format import CacheMetadata
    from vggfeat.cache.rows import Match
    from vggfeat.core.settings import Settings
    from vggfeat.core.signals import StopFlag
    from vggfeat.extraction.api import ExtractRequest

log = logging.getLogger("vggfeat")


@dataclass(frozen=True, slots=True)
class Planner:
    """Makes and updates the plan of a sharded cache; the caller holds the lock of the folder.

    Attributes:
        out: the folder.
        images: all of them, as listed.
        sources: as `named_sources` gives them.
        stop: looked at between shards, until the manifest is published.
        token: in the names of all files of this plan.
    """

    out: str
    images: ImageList
    sources: tuple[str, ...]
    stop: StopFlag
    token: str = dataclasses.field(default_factory=lambda: secrets.token_hex(4))

    def begin(self, made: CacheMetadata, shards: int) -> None:
        """Create all shards with every row pending and publish their manifest.

        An error, as for a signal or too little room for all shards once full, leaves no file. If
        another process has published a manifest meanwhile, that one counts.
        """
        replace = os.path.exists(os.path.join(self.out, MANIFEST))
        batch_size = int(made.provenance.config["batch_size"])
        bounds = split_rows(len(self.images), batch_size, shards)
        with self._own_files_removed_on_error():
            laid = tuple(
                self._lay_out(made, number, start, stop)
                for number, (start, stop) in enumerate(itertools.pairwise(bounds))
            )
            self._check_room(laid)
            manifest = ShardManifest(
                fingerprint=made.identity.fingerprint(),
                batch_size=batch_size,
                root=self.images.root,
                sources=self.sources,
                path_bytes=max(map(len, self.images.paths)),
                shards=laid,
                created_utc=made.provenance.created_utc,
                tool_version=__version__,
            )
            self._publish(manifest, replace=replace)

    def _lay_out(self, made: CacheMetadata, number: int, start: int, stop: int) -> Shard:
        self._end_if_stopped()
        if start == stop:
            return Shard("", start, 0)
        name = shard_name(number, self.token)
        create_cache(
            os.path.join(self.out, name),
            part_of(self.images, start, stop),
            made,
            reserve=False,  # each run reserves its own; here `_check_room` looks at all
        )
        return Shard(name, start, stop - start)

    def _check_room(self, shards: Sequence[Shard]) -> None:
        files = [os.stat(os.path.join(self.out, one.name)) for one in shards if one.name]
        needed = sum(file.st_size - file.st_blocks * 512 for file in files)
        status = os.statvfs(self.out)
        free = status.f_bavail * status.f_frsize
        if needed > free:
            raise SpaceError(
                f"sharded cache {self.out!r} needs {byte_count(needed)} more once it is full, the "
                f"disk has {byte_count(free)} free; make room, ask for fewer or smaller layers, or "
                "choose another --out"
            )

    def _publish(self, manifest: ShardManifest, *, replace: bool) -> None:
        self._end_if_stopped()
        if publish_manifest(self.out, manifest, self.token, replace=replace):
            remove_leftovers(self.out, manifest)
        else:
            self._remove_own()

    def _end_if_stopped(self) -> None:
        if self.stop:
            raise InterruptedRunError(
                f"stopped by {self.stop.reason} while the shards of {self.out!r} were laid out; "
                "the earlier plan, if any, stays, and no done row is lost. "
                "Run the same command again",
                self.stop.signum,
                None,
            )

    def _remove_own(self) -> None:
        """Remove the files of this plan, unless its manifest is in place: then they are the cache.

        The manifest itself decides, since the error may have come in the very call that put it in
        place. If it cannot be read nothing is removed; the next run does that.
        """
        mark = f"-{self.token}."
        try:
            os.lstat(os.path.join(self.out, MANIFEST))
            if any(mark in shard.name for shard in read_manifest(self.out).shards):
                return
        except FileNotFoundError:
            pass
        except (OSError, CacheError):
            return
        names = os.listdir(self.out)
        remove_files(self.out, [name for name in names if is_ours(name) and mark in name])

    @contextlib.contextmanager
    def _own_files_removed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._remove_own()
            raise

    def update(self, had: ShardManifest, settings: Settings, policy: UpdatePolicy) -> Changes:
        """Update all shards to the images, and the manifest to the shards.

        First everything is compared; then shards that get images are rewritten under new names,
        the others are changed in place, and the new manifest is published. An error leaves the
        cache as it was, except for rows changed in place, which are pending. Of the changes
        returned, which are over all shards, only the lengths mean anything.
        """
        remove_leftovers(self.out, had)
        found = self._find_changes(had, settings, policy)
        with self._own_files_removed_on_error():
            laid = [self._apply(one) for one in found]
            renumbered, first = [], 0
            for shard in laid:
                renumbered.append(dataclasses.replace(shard, first=first))
                first += shard.rows
            longest = max(map(len, self.images.paths))
            manifest = dataclasses.replace(
                had,
                root=self.images.root,
                sources=self.sources,
                path_bytes=max(had.path_bytes, longest),  # rows stay that were not listed
                shards=tuple(renumbered),
            )
            self._publish(manifest, replace=True)
        return join_changes([one.changes for one in found if one is not None])

    def is_up_to_date(self, had: ShardManifest, settings: Settings, policy: UpdatePolicy) -> bool:
        """Return whether `update` has nothing to write; write nothing."""
        found = self._find_changes(had, settings, policy)
        named = sum(bool(shard.name) for shard in had.shards)
        existing = [one for one in found if one is not None]
        same_place = (had.root, had.sources) == (self.images.root, self.sources)
        unchanged = all(one.changes.is_empty for one in existing)
        return same_place and unchanged and named == len(existing)

    def _find_changes(
        self, had: ShardManifest, settings: Settings, policy: UpdatePolicy
    ) -> list[_Piece | None]:
        """Compare each shard, None for one without a file, with the images that belong to it.

        These are the images from its first path to that of the next.
        """
        paths = [os.path.join(self.out, shard.name) for shard in had.shards]
        caches = {
            number: FeatureCache(path)
            for number, path in enumerate(paths)
            if had.shards[number].name and os.path.exists(path)
        }
        if not caches:
            raise CacheError(
                f"sharded cache {self.out!r} has none of its shards left; --fresh begins again"
            )
        bounds = [bisect.bisect_left(self.images.paths, bytes(c.paths[0])) for c in caches.values()]
        bounds = [0, *bounds[1:], len(self.images)]
        for cache in caches.values():
            cache.release()
        found: list[_Piece | None] = [None] * len(paths)
        for (number, cache), start, stop in zip(caches.items(), bounds, bounds[1:], strict=False):
            images = part_of(self.images, start, stop)
            found[number] = self._compare(number, cache, images, policy)
        self._check([one for one in found if one is not None], had, settings)
        return found

    def _compare(
        self, number: int, cache: FeatureCache, images: ImageList, policy: UpdatePolicy
    ) -> _Piece:
        self._end_if_stopped()
        match = match_paths(cache.paths, images.paths)
        root = images.root
        if not len(match.rows):  # else another root would be another folder
            root = cache.header.provenance.root
        changes = find_changes(cache, dataclasses.replace(images, root=root), match, policy)
        cache.release()
        return _Piece(number, cache, images, match, changes)

    def _check(self, found: Sequence[_Piece], had: ShardManifest, settings: Settings) -> None:
        if self.images.root != had.root and not any(len(one.match.rows) for one in found):
            raise other_root(f"sharded cache {self.out!r}", had.root, self.images.root)
        work = any(one.changes.makes_work for one in found)
        check_settings(found[0].cache, settings, work=work)
        gone = [one for one in found if len(one.changes.removed)]
        if gone:
            present = sum(
                int((FeatureCache(one.cache.path).state != RowState.REMOVED).sum()) for one in found
            )
            check_removals(
                settings,
                self.out,
                sum(len(one.changes.removed) for one in gone),
                present,
                gone[0].cache.name(int(gone[0].changes.removed[0])),
            )

    def _apply(self, piece: _Piece | None) -> Shard:
        self._end_if_stopped()
        if piece is None:
            return Shard("", 0, 0)
        name = os.path.basename(piece.cache.path)
        if len(piece.changes.added):
            name = shard_name(piece.number, self.token)
        out = os.path.join(self.out, name)
        with hold(piece.cache.path):
            apply_changes(piece.cache, piece.images, piece.match, piece.changes, out=out)
        piece.cache.release()
        return Shard(name, 0, len(FeatureCache(out)))


@dataclass(frozen=True, slots=True)
class _Piece:
    """One shard in an update, and all images that belong to it now."""

    number: int
    cache: FeatureCache
    images: ImageList
    match: Match
    changes: Changes


def part_of(images: ImageList, start: int, stop: int) -> ImageList:
    """Return a range of the images as a list."""
    if isinstance(images, ItemList):
        return images.part(np.arange(start, stop))
    places = images.places
    return dataclasses.replace(
        images,
        paths=images.paths[start:stop],
        sizes=images.sizes[start:stop],
        mtimes=images.mtimes[start:stop],
        places=None
        if places is None
        else dataclasses.replace(places, table=places.table[start:stop]),
    )


def items_of_shard(cache: FeatureCache, items: ItemList) -> ImageList | None:
    """Return the items of a data set that are rows of one shard; None if there are none.

    Removed rows are left out; those that the data set does not have stay as they are.
    """
    match = match_paths(cache.paths, items.paths)
    listed = match.listed[cache.state[match.rows] != RowState.REMOVED]
    return items.part(np.sort(listed)) if len(listed) else None


def list_shard(cache: FeatureCache, root: bytes) -> ImageList | None:
    """List the images of one shard as they are now; those that are gone have size 0, and will fail.

    Removed rows are left out, whether their files exist or not; None if all are removed. Objects in
    a store are listed as the plan has them, without a request for each.
    """
    rows = np.flatnonzero(cache.state != RowState.REMOVED)
    if not len(rows):
        return None
    paths = tuple(map(bytes, cache.paths[rows]))
    if remote_scheme(root):
        return ImageList(root, paths, cache.sizes[rows], cache.mtimes[rows], {})
    listing = b"\0".join([*(os.path.join(root, path) for path in paths), b""])
    images = discover(["-"], root=os.fsdecode(root), stdin=io.BytesIO(listing))
    if not (images.sizes.any() or images.mtimes.any()):
        raise InputError(
            f"not one of the {counted(len(images), 'image')} of shard {cache.path!r} exists, "
            f"the first was {os.fsdecode(images.absolute(0))!r}. Is a folder not mounted? If they "
            "are gone for good, --update gives their rows up"
        )
    return images


def named_sources(sources: Sequence[str | os.PathLike[str]]) -> tuple[str, ...]:
    """Return sources as a manifest records them."""
    return tuple(sorted(set(map(absolute_source, sources))))


def absolute_source(source: str | os.PathLike[str]) -> str:
    """Return a source as an absolute path; `-` and the mark of `@LIST` are kept."""
    if source == "-":
        return "-"
    text = os.fspath(source)
    mark = "@" if isinstance(source, str) and text.startswith("@") else ""
    return mark + absolute_place(text[len(mark) :])


@contextlib.contextmanager
def checked_folder(out: str) -> Iterator[None]:
    """Refuse a place that cannot be a sharded cache, before anything is listed; make the folder.

    A folder that was made is removed if the block fails and has put nothing into it.
    """
    new = not os.path.exists(out)
    _check_folder(out)
    try:
        yield
    except BaseException:
        if new:
            with contextlib.suppress(OSError):  # it holds something: a plan, or another run's lock
                os.rmdir(os.path.realpath(out))
        raise


def _check_folder(out: str) -> None:
    refuse_standard_output(out)
    if os.path.exists(out) and not os.path.isdir(out):
        raise UsageError(
            f"output {out!r} is a file, and shards go into a folder; name a folder such as feats/, "
            "or leave --shard and --shards out"
        )
    if not out.endswith(os.sep) and not os.path.isdir(out) and (wrong := other_format(out)):
        raise UsageError(wrong)
    if out.endswith((".h5", ".hdf5")):
        raise UsageError(f"output {out!r} is named like a file; name a folder such as feats/")
    check_place(out.rstrip(os.sep) or out)
    if not os.path.isdir(out):
        _make_folder(os.path.realpath(out))
    if os.path.exists(os.path.join(out, MANIFEST)):
        return
    others = sorted(name for name in os.listdir(out) if not is_ours(name))
    if others:
        raise UsageError(
            f"output {out!r} is a folder that holds {counted(len(others), 'other file')}, such as "
            f"{others[0]!r}, and no cache; name a file such as feats.h5, or for shards a new or "
            "an empty folder"
        )


def _make_folder(out: str) -> None:
    try:
        os.mkdir(out)
    except FileExistsError:
        pass  # another run was first
    except OSError as error:
        raise SpaceError(
            error.errno, f"output {out!r}: the folder cannot be made: {error.strerror}"
        ) from error


def check_plan(request: ExtractRequest, manifest: ShardManifest) -> None:
    """Refuse a request that an existing plan was not made for."""
    out, root = request.out, request.root
    request.sharding.check_count(out, len(manifest.shards))
    requested = named_sources(request.sources)
    if requested != manifest.sources:
        had, wanted = (", ".join(one) or "a data set" for one in (manifest.sources, requested))
        raise CacheMismatchError(
            f"sharded cache {out!r} was planned of {had}, requested {wanted}; name the same, "
            "--update to list anew, or choose another --out"
        )
    if root is not None and os.fsencode(absolute_place(root)) != manifest.root:
        raise CacheMismatchError(
            f"sharded cache {out!r} has paths relative to {os.fsdecode(manifest.root)!r}, "
            f"requested {absolute_place(root)!r}; leave --root out, or --update to list anew"
        )


def check_known_items(items: ItemList, manifest: ShardManifest, out: str) -> None:
    """Refuse a data set of which items are in no shard, or were removed."""
    if not len(items):
        raise InputError("the data set has no items; expected images")
    names = set(items.paths)
    for shard in manifest.shards:
        path = os.path.join(out, shard.name)
        if shard.name and os.path.exists(path):
            cache = FeatureCache(path)
            names.difference_update(map(bytes, cache.paths[cache.state != RowState.REMOVED]))
    if names and all(os.path.exists(os.path.join(out, one.name)) for one in manifest.shards):
        raise CacheMismatchError(
            f"sharded cache {out!r} was made of other items: {len(names)} of the {len(items)} "
            f"requested are not in it, the first is {os.fsdecode(min(names))!r}; update=True "
            "brings them in; or choose another output, or fresh=True to begin again"
        )


def remove_leftovers(out: str, manifest: ShardManifest) -> None:
    """Remove what earlier and interrupted plans left in a folder, whose lock the caller holds.

    A file that cannot be removed is a warning: it only costs room. If a shard of the published
    manifest is missing, nothing is removed: the manifest may be an old one from a backup, and what
    looks left over may be the shards themselves.
    """
    names = {shard.name for shard in manifest.shards if shard.name}
    kept = {*names, *(f"{name}.lock" for name in names), MANIFEST, f"{MANIFEST}.lock"}
    kept.add(f"{MANIFEST}{SUFFIX}")
    found = os.listdir(out)
    # Temporary files of a shard belong to the run that holds the shard.
    left = [
        name
        for name in found
        if is_ours(name) and name not in kept and name.removesuffix(TEMPORARY_SUFFIX) not in names
    ]
    if not left or not names.issubset(found):
        return
    # The run that published the manifest may have ended before it was on the disk; a power cut must
    # not bring the old manifest back after its shards are removed.
    try:
        sync_directory(out)
    except SpaceError as error:
        log.warning("files left over in %r are not removed: %s", out, error)
        return
    remove_files(out, left)


def remove_files(folder: str, names: Sequence[str]) -> None:
    """Remove files that no run needs; give one warning for all that cannot be removed."""
    kept: list[tuple[str, OSError]] = []
    for name in names:
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))
        except OSError as error:
            kept.append((name, error))
    if kept:
        name, why = kept[0]
        log.warning(
            "%s left over in %r could not be removed, the first is %r: %s; no run needs "
            "what is left over, and the next one tries again",
            counted(len(kept), "file"),
            folder,
            name,
            why.strerror,
        )
