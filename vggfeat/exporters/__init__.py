"""Cache → formats of other tools: streamed in blocks, whole or not at all.

Begin with `export.py`, the command; a format is one file here and one line in `registry.py`.

Public: `vggfeat.export`, `vggfeat.ExportReport`.
"""
