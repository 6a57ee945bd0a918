"""A cache in the formats of others: streamed in blocks, whole or not at all."""

from __future__ import annotations

from vggfeat.exporters.export import Exported, export
from vggfeat.exporters.registry import FORMATS, Format

__all__ = ["FORMATS", "Exported", "Format", "export"]
