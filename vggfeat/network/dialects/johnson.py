"""Caffe's weights as Justin Johnson converted them to torch, which style transfer still uses.

A layer that flattens precedes the classifier, so its layers have other numbers. Colours and scale
are Caffe's: `caffe.py` recognizes them by the files' digests and by the values of conv1_1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vggfeat.core.vgg_layers import VGG
from vggfeat.network.dialects.records import Dialect, TensorSource

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vggfeat.network.dialects.records import Shape

_MODULES: Mapping[str, str] = {"classifier.1": "classifier.0", "classifier.4": "classifier.3"}
_MATRIX = 2  # axes


def _translate(shapes: Mapping[str, Shape]) -> dict[str, TensorSource] | None:
    own = all(len(shapes.get(f"{name}.weight", ())) == _MATRIX for name in _MODULES)
    if VGG.first_weight not in shapes or not own or VGG.fc6_weight in shapes:
        return None
    sources = {}
    for name, shape in shapes.items():
        module, _, part = name.rpartition(".")
        sources[f"{_MODULES.get(module, module)}.{part}"] = TensorSource(name, shape)
    return sources


JOHNSON = Dialect("torch, converted from Caffe", _translate)
