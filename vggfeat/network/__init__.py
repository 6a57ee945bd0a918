"""Pixels → features: weights, a VGG cut behind the deepest layer asked for, pooling, devices.

Begin with `extractor.py`, the network on its device; `vgg.py` is the network, `pooling.py` makes
vectors of maps, `weights.py` finds weights and `dialects/` knows whose names their tensors bear.

Public: `vggfeat.Extractor`, `vggfeat.calibrate`.
"""
