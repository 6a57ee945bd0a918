"""The folder of a sharded cache: whether it can be one, fits what is asked, and what may go."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from vggfeat.errors import CacheMismatchError, UsageError
from vggfeat.names import absolute_place
from vggfeat.shardlist import MANIFEST, ShardManifest, is_ours

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vggfeat.splitting import Sharding


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


def check_folder(out: str) -> None:
    """Refuses a place that cannot be a sharded cache, before anything is listed; makes the folder.

    Raises:
        UsageError: it is a file, has no parent, or is a folder of something else.
    """
    if os.path.exists(out) and not os.path.isdir(out):
        raise UsageError(
            f"output {out!r} is a file, and shards go into a folder; name a folder such as feats/, "
            "or leave --shard and --shards out"
        )
    if out.endswith((".h5", ".hdf5")):
        raise UsageError(f"output {out!r} is named like a file; name a folder such as feats/")
    parent = os.path.dirname(os.path.abspath(out))
    if not os.path.isdir(parent):
        raise UsageError(f"output {out!r}: its folder {parent!r} is not there; make it first")
    with contextlib.suppress(FileExistsError):
        os.mkdir(out)
    if os.path.exists(os.path.join(out, MANIFEST)):
        return
    others = sorted(name for name in os.listdir(out) if not is_ours(name))
    if others:
        raise UsageError(
            f"output {out!r} is a folder that holds {len(others)} other files, such as "
            f"{others[0]!r}, and no {MANIFEST}; name a new or an empty folder for shards, or a "
            "file such as feats.h5"
        )


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
    """Removes what plans before left, and those that were killed; the caller holds the lock."""
    names = {shard.name for shard in manifest.shards}
    kept = {*names, *(f"{name}.lock" for name in names), MANIFEST, f"{MANIFEST}.lock"}
    for name in os.listdir(out):
        # What a killed run was making of a shard is for the run that holds that one.
        if is_ours(name) and name not in kept and name.removesuffix(".tmp") not in names:
            remove_file(os.path.join(out, name))


def remove_file(path: str) -> None:
    """Removes a file if it is there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
