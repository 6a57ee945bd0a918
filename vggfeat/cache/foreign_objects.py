"""What other programs have put into a cache or model, and is lost when vggfeat writes it anew."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from vggfeat.cache.format import ATTRIBUTES, FEATURES, IMAGES, OFFSETS, SCALES, image_fields
from vggfeat.core.text import first_few, printable
from vggfeat.storage.hdf5_metadata.blocks import MetadataError
from vggfeat.storage.hdf5_metadata.reader import Dataset, Group, open_metadata

if TYPE_CHECKING:
    from collections.abc import Iterator

_COLUMNS = frozenset(image_fields(1))

log = logging.getLogger("vggfeat")


def warn_of_losses(path: str) -> None:
    """Log a warning that names what is in the HDF5 cache `path` and not of the format.

    To be called before the file is replaced by another of its name; a file that cannot be read has
    nothing that can be named.
    """
    lost = find_foreign_objects(path)
    if lost:
        log.warning(
            "%s is written anew without what other programs have put into it: %s",
            printable(path),
            first_few(map(printable, lost)),
        )


def find_foreign_objects(path: str) -> list[str]:
    """Name what is in the HDF5 cache `path` and not of the format; nothing if it is unreadable."""
    try:
        with open_metadata(path) as file:
            return list(_foreign_objects(file.root))
    except (OSError, MetadataError):
        return []


def _foreign_objects(root: Group) -> Iterator[str]:
    yield from (f"attribute {name}" for name in sorted(root.attributes) if name not in ATTRIBUTES)
    for name in sorted(root.links):
        group = root.get(name) if name in {IMAGES, FEATURES, SCALES, OFFSETS} else None
        if not isinstance(group, Group):
            yield f"/{name}"
            continue
        yield from _foreign_members(group)


def _foreign_members(group: Group) -> Iterator[str]:
    yield from (f"attribute {name} of {group.name}" for name in sorted(group.attributes))
    for name in sorted(group.links):
        member = group.get(name)
        known = group.name != f"/{IMAGES}" or name in _COLUMNS
        if known and isinstance(member, Dataset):
            yield from (f"attribute {one} of {member.name}" for one in sorted(member.attributes))
        else:
            yield f"{group.name}/{name}"
