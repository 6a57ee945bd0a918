"""The known dialects, recognised by names and shapes; a new one is a file here and a line below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vggfeat.network.dialects.johnson import JOHNSON
from vggfeat.network.dialects.keras import KERAS
from vggfeat.network.dialects.records import Reading
from vggfeat.network.dialects.sequential import SEQUENTIAL
from vggfeat.network.dialects.timm import TIMM
from vggfeat.network.dialects.torchvision import TORCHVISION
from vggfeat.network.dialects.wrapped import kept_plain, unwrap

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vggfeat.network.dialects.records import Dialect, Shape

DIALECTS: tuple[Dialect, ...] = (
    TIMM,
    JOHNSON,
    TORCHVISION,
    SEQUENTIAL,
    KERAS,
)
"""The first that knows a file reads it: those with torchvision's convolutions by what differs."""


def translate(shapes: Mapping[str, Shape]) -> Reading:
    """Find whose names a file has, and read it by them; names that nobody knows are kept.

    Args:
        shapes: of the file's tensors by their names.
    """
    return unwrap(shapes, _read) or kept_plain(shapes)


def _read(shapes: Mapping[str, Shape]) -> Reading | None:
    for dialect in DIALECTS:
        sources = dialect.translate(shapes)
        if sources is not None:
            notes = (dialect.note,) if dialect.note else ()
            return Reading(dialect.name, sources, dialect.transform, notes)
    return None
