"""The folder of a sharded cache: whether it can be one, fits what is asked, and what may go."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING

from vggfeat.cache.shard_manifest import MANIFEST, ShardManifest, is_ours
from vggfeat.core.text import counted
from vggfeat.errors import CacheMismatchError, SpaceError, UsageError
from vggfeat.storage.atomic import TEMPORARY_SUFFIX, sync_directory
from vggfeat.storage.paths import absolute_place, check_place, refuse_standard_output

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vggfeat.cache.sharding import Sharding

log = logging.getLogger("vggfeat")


def named_sources(sources: Sequence[str | os.PathLike[str]]) -> tuple[str, ...]:
    """Sources as a manifest records them: absolute, `-` and the mark of `@LIST` kept."""
    found = set()
    for source in sources:
        text = os.fspath(source)
        marked = isinstance(source, str) and text.startswith("@")
        if isinstance(source, str) and text == "-":
            found.add(text)
        else:
            found.add(("@" if marked else "") + absolute_place(text[marked:]))
    return tuple(sorted(found))


@contextlib.contextmanager
def checked_folder(out: str) -> Iterator[None]:
    """Refuse a place that cannot be a sharded cache, before anything is listed; make the folder.

    A folder that was made goes again if the block fails and has put nothing into it.

    Raises:
        see `_check_folder`.
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
    """Refuses a place that cannot be a sharded cache, before anything is listed; makes the folder.

    Raises:
        UsageError: it is a file, has no parent, or is a folder of something else.
        SpaceError: it cannot be made.
    """
    refuse_standard_output(out)
    if os.path.exists(out) and not os.path.isdir(out):
        raise UsageError(
            f"output {out!r} is a file, and shards go into a folder; name a folder such as feats/, "
            "or leave --shard and --shards out"
        )
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
            f"{others[0]!r}, and no {MANIFEST}; name a new or an empty folder for shards, or a "
            "file such as feats.h5"
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


def check_plan(
    out: str,
    manifest: ShardManifest,
    sources: Sequence[str | os.PathLike[str]],
    root: str | None,
    sharding: Sharding,
) -> None:
    """Refuses what a plan that is there was not made for.

    Raises:
        UsageError: another number of shards.
        CacheMismatchError: of other sources, or relative to another root.
    """
    sharding.check_count(out, len(manifest.shards))
    asked = named_sources(sources)
    if asked != manifest.sources:
        raise CacheMismatchError(
            f"sharded cache {out!r} was planned of {', '.join(manifest.sources)}, asked "
            f"{', '.join(asked)}; name the same, --update to list anew, or choose another --out"
        )
    if root is not None and os.fsencode(absolute_place(root)) != manifest.root:
        raise CacheMismatchError(
            f"sharded cache {out!r} has paths relative to {os.fsdecode(manifest.root)!r}, asked "
            f"{absolute_place(root)!r}; leave --root out, or --update to list anew"
        )


def remove_leftovers(out: str, manifest: ShardManifest) -> None:
    """Remove what earlier plans, and plans that were interrupted, left in the folder.

    A file that cannot be removed is a warning: it costs room and nothing else. Where a shard that
    the manifest names is missing nothing is removed, since the manifest may be an old one from a
    backup, and what looks left over may be the shards themselves.

    Args:
        out: the folder, whose lock the caller holds.
        manifest: the one that is in place there.
    """
    names = {shard.name for shard in manifest.shards if shard.name}
    kept = {*names, *(f"{name}.lock" for name in names), MANIFEST, f"{MANIFEST}.lock"}
    found = os.listdir(out)
    # What a killed run was making of a shard is for the run that holds that one.
    left = [
        name
        for name in found
        if is_ours(name) and name not in kept and name.removesuffix(TEMPORARY_SUFFIX) not in names
    ]
    if not left or not names.issubset(found):
        return
    # The manifest may have been put in place by a run that ended before the disk had it; and a
    # power cut must not bring the old one back without its shards.
    try:
        sync_directory(out)
    except SpaceError as error:
        log.warning("files left over in %r are not removed: %s", out, error)
        return
    remove_files(out, left)


def remove_files(folder: str, names: Sequence[str]) -> None:
    """Remove files that nothing needs; those that cannot be removed are one warning."""
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
