"""Pixels → features: weights, a VGG truncated after the deepest requested layer, pooling, devices.

Begin with `extractor.py`, the network on its device; `vgg.py` is the network, `pooling.py` turns
maps into vectors, `weights.py` finds weight files, `containers/` reads their formats and
`dialects/` translates the names of their tensors.

Public: `vggfeat.calibrate`; `vggfeat.Extractor` is in `extraction/extractor.py`.
"""
