"""A cache in the formats of others: streamed in blocks, whole or not at all."""

from __future__ import annotations

from vggfeat.exporting.command import Exported, export
from vggfeat.exporting.formats import FORMATS, Format

__all__ = ["FORMATS", "Exported", "Format", "export"]
