"""Export caches to formats of other tools, in blocks; a result appears complete or not at all.

Begin with `export.py`, the command; a format is one file here and one line in `registry.py`.

Public: `vggfeat.export`, `vggfeat.ExportReport`.
"""
