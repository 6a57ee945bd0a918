"""The manifest of a sharded cache: its files, in order.

`docs/FORMAT.md` specifies it. The manifest is small however many images there are:
their paths are in the shards, each of which is a cache by itself.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import Any

from vggfeat.core.text import counted
from vggfeat.errors import CacheError, SpaceError
from vggfeat.storage.atomic import TEMPORARY_SUFFIX, atomic_file
from vggfeat.storage.foreign_files import MOST_BYTES, parse_json, read_foreign
from vggfeat.storage.paths import SHARD_MANIFEST

MANIFEST_FORMAT = "vggfeat-shards"
MANIFEST_VERSION = 1
MANIFEST = SHARD_MANIFEST

# Other files in the folder, such as a user's manifest.json.bak, are never removed.
_OURS = re.compile(
    r"shard-\d{5,}-[0-9a-f]{8}\.h5(\.lock|(\.vggfeat)?\.tmp)?"
    r"|manifest\.json(\.lock|(\.vggfeat\.fresh)?\.vggfeat\.tmp|\.vggfeat\.fresh|\.[0-9a-f]{8}(\.vggfeat)?\.tmp)?"
)


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of a sharded cache.

    Attributes:
        name: of the file, in the folder; empty where there are no rows, and so no file.
        first: its first row among those of all shards.
        rows: images in it.
    """

    name: str
    first: int
    rows: int


@dataclass(frozen=True, slots=True)
class ShardManifest:
    """What a sharded cache is made of.

    Attributes:
        fingerprint: of every shard.
        batch_size: of every shard.
        root: directory the paths are relative to, as it was then; bytes of the file system.
        sources: what was named to be listed, absolute; `-` for standard input.
        path_bytes: of the longest path.
        shards: in the order of their rows.
        created_utc: ISO 8601.
        tool_version: of vggfeat.
    """

    fingerprint: str
    batch_size: int
    root: bytes
    sources: tuple[str, ...]
    path_bytes: int
    shards: tuple[Shard, ...]
    created_utc: str
    tool_version: str

    @property
    def rows(self) -> int:
        """Images in all shards."""
        return sum(shard.rows for shard in self.shards)

    def as_json(self) -> str:
        """Return the text of the file; bytes that are no UTF-8 as escaped lone surrogates."""
        fields = {
            "format": MANIFEST_FORMAT,
            "format_version": MANIFEST_VERSION,
            "created_utc": self.created_utc,
            "tool_version": self.tool_version,
            "fingerprint": self.fingerprint,
            "batch_size": self.batch_size,
            "root": os.fsdecode(self.root),
            "sources": list(self.sources),
            "rows": self.rows,
            "path_bytes": self.path_bytes,
        }
        head = json.dumps(fields, indent=2).removesuffix("\n}")
        lines = ",\n".join(
            "    " + json.dumps({"name": one.name, "first_row": one.first, "rows": one.rows})
            for one in self.shards
        )
        return f'{head},\n  "shards": [\n{lines}\n  ]\n}}\n'


def shard_name(number: int, token: str) -> str:
    """Return the file name of a shard; the token is unique to its plan."""
    return f"shard-{number:05}-{token}.h5"


def is_ours(name: str) -> bool:
    """Return whether a file of that name in the folder of a sharded cache belongs to it."""
    return _OURS.fullmatch(name) is not None


def read_manifest(folder: str) -> ShardManifest:
    """Read and check the manifest of the sharded cache `folder`."""
    path = os.path.join(folder, MANIFEST)
    try:
        # UTF-8, also as an editor saved it with its mark.
        found = parse_json(read_foreign(path, MOST_BYTES["manifest"]))
    except (FileNotFoundError, NotADirectoryError):
        raise CacheError(
            f"{folder!r} is no sharded cache: it has no {MANIFEST}; name the folder that `vggfeat "
            "extract --out FOLDER/` has filled, or one file such as feats.h5"
        ) from None
    except OSError as error:
        raise CacheError(f"{path!r} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CacheError(
            f"{path!r} is no JSON: {error}; take it from a backup, or begin again"
        ) from error
    _check_format(path, found)
    try:
        manifest = _as_manifest(found)
    except (KeyError, TypeError, ValueError) as error:
        raise CacheError(f"{path!r} is damaged: {type(error).__name__}: {error}") from error
    wrong = _inconsistencies(manifest, found["rows"])
    if wrong:
        raise CacheError(f"{path!r} is damaged: {'; '.join(wrong)}")
    return manifest


def _check_format(path: str, found: Any) -> None:
    name = found.get("format") if isinstance(found, dict) else None
    if name != MANIFEST_FORMAT:
        raise CacheError(
            f"{path!r} is not one of ours: format is {name!r}, expected {MANIFEST_FORMAT!r}"
        )
    version = found.get("format_version")
    if type(version) is not int or version != MANIFEST_VERSION:
        newer = type(version) is int and version > MANIFEST_VERSION
        raise CacheError(
            f"{path!r} has format version {version!r:.40}, this vggfeat reads {MANIFEST_VERSION}; "
            f"{'upgrade it' if newer else 'it is damaged'}"
        )


def _as_manifest(found: dict[str, Any]) -> ShardManifest:
    return ShardManifest(
        fingerprint=str(found["fingerprint"]),
        batch_size=_whole(found, "batch_size"),
        root=os.fsencode(found["root"]),
        sources=tuple(map(str, found["sources"])),
        path_bytes=_whole(found, "path_bytes"),
        shards=tuple(
            Shard(str(one["name"]), _whole(one, "first_row"), _whole(one, "rows"))
            for one in found["shards"]
        ),
        created_utc=str(found["created_utc"]),
        tool_version=str(found["tool_version"]),
    )


def _whole(record: dict[str, Any], key: str) -> int:
    value = record[key]
    if type(value) is not int:
        raise ValueError(f"{key} is {value!r:.40}, expected a whole number")
    return value


def _inconsistencies(manifest: ShardManifest, rows: object) -> list[str]:
    wrong = []
    at = 0
    for number, shard in enumerate(manifest.shards):
        if shard.first != at or shard.rows < 0:
            wrong.append(
                f"shard {number} has {counted(shard.rows, 'row')} from {shard.first}, expected {at}"
            )
        plain = os.path.basename(shard.name) == shard.name and "\0" not in shard.name
        if bool(shard.name) != bool(shard.rows) or not plain:
            wrong.append(
                f"shard {number} of {counted(shard.rows, 'row')} has the name {shard.name!r}"
            )
        at = shard.first + shard.rows
    if rows != at or not at:
        wrong.append(f"rows is {rows}, those of the shards are {at}")
    names = [shard.name for shard in manifest.shards if shard.name]
    if len(set(names)) < len(names):
        wrong.append("two shards have one name")
    return wrong


def publish_manifest(folder: str, manifest: ShardManifest, token: str, *, replace: bool) -> bool:
    """Publish the manifest, whole and synced to the disk; return False if another was first.

    A new one (not `replace`) is linked there, which the file system, NFS included, lets one process
    alone do; so of two that plan at once where locks do not reach, one wins. `token` keeps the
    temporary file apart from others'.
    """
    path = os.path.join(folder, MANIFEST)
    temporary = f"{path}.{token}{TEMPORARY_SUFFIX}"
    try:
        with atomic_file(path, temporary=temporary, exclusive=not replace) as file:
            file.write(manifest.as_json().encode())
    except FileExistsError:
        return False
    except OSError as error:
        raise SpaceError(error.errno, f"{path!r} cannot be written: {error.strerror}") from error
    return True
