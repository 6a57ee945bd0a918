"""What other programs have put into a cache or model, and is lost when vggfeat writes it anew."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import h5py

from vggfeat.cache.format import ATTRIBUTES, FEATURES, IMAGES, OFFSETS, SCALES, image_fields
from vggfeat.core.text import first_few, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

_COLUMNS = frozenset(image_fields(1))

log = logging.getLogger("vggfeat")


def warn_of_losses(path: str) -> None:
    """Log a warning that names what is in the HDF5 cache `path` and not of the format.

    To be called before the file is replaced by another of its name; a file that cannot be read has
    nothing that can be named.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            lost = list(_foreign_objects(file))
    except (OSError, RuntimeError):
        return
    if lost:
        log.warning(
            "%s is written anew without what other programs have put into it: %s",
            printable(path),
            first_few(map(printable, lost)),
        )


def _foreign_objects(file: h5py.File) -> Iterator[str]:
    yield from (f"attribute {name}" for name in file.attrs if name not in ATTRIBUTES)
    for group in file:
        members = file.get(group) if group in {IMAGES, FEATURES, SCALES, OFFSETS} else None
        if not isinstance(members, h5py.Group):
            yield f"/{group}"
            continue
        yield from _foreign_members(members)


def _foreign_members(group: h5py.Group) -> Iterator[str]:
    yield from (f"attribute {name} of {group.name}" for name in group.attrs)
    for name in group:
        member = group.get(name)
        known = group.name != f"/{IMAGES}" or name in _COLUMNS
        if known and isinstance(member, h5py.Dataset):
            yield from (f"attribute {one} of {member.name}" for one in member.attrs)
        else:
            yield f"{group.name}/{name}"
