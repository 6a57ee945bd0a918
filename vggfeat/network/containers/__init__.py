"""Locate named tensors in weight files of each format, without reading their values.

Begin with `registry`: a format is one file here and one line there. `vggfeat.network.dialects`
interprets the names.
"""
