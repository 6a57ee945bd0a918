"""Estimate the memory that one image of a batch takes, from the layers requested and their rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vggfeat.core.layer_spec import LayerSpec
    from vggfeat.core.settings import Settings

_CHANNELS = 64  # of the widest maps, those of the first block
_MAPS = 4  # of these at once: input and output of a convolution, and as much again for workspace
_FLOAT32 = 4
_CLASSES = 1000
_WAITING = 6  # batches of stored rows on the host: made, being written, and 4 in the queue
_CONVERTED = 10  # bytes a value while rows are converted: two copies in float32, two masks
_STORED = {"float32": 4, "float16": 2, "int8": 1}
_POOL_COPIES = {"gem": 3, "std": 2}  # of the map in float32
_NORM_COPIES = 3  # of the rows in float32


@dataclass(frozen=True, slots=True)
class ImageBytes:
    """Bytes that an image takes in each of two memories, the same one where a CPU computes."""

    device: int
    host: int


def bytes_per_image(settings: Settings, compute_bytes: int, *, on_cpu: bool) -> ImageBytes:
    """Return what an image of the settings' size takes at most while its batch is computed.

    Args:
        settings: layers, size of the input and storage dtype.
        compute_bytes: of a value of the network, 2 or 4.
        on_cpu: the device's memory is the host's.
    """
    size = settings.preprocess().size
    values = [math.prod(spec.output_shape(size, size, _CLASSES)) for spec in settings.specs]
    network = _MAPS * _CHANNELS * size * size * compute_bytes
    taken = _FLOAT32 * sum(values)  # float32 rows, kept until all layers are computed
    stored = _STORED[settings.dtype] * sum(values)
    passing = max(
        _passing_bytes(spec, count, size)
        for spec, count in zip(settings.specs, values, strict=True)
    )
    waiting = _WAITING * stored
    if on_cpu:
        whole = network + taken + passing + waiting
        return ImageBytes(whole, whole)
    gathered = 2 * stored  # the rows of a last batch are gathered before they are copied
    return ImageBytes(network + taken + passing + gathered, waiting)


def _passing_bytes(spec: LayerSpec, values: int, size: int) -> int:
    """Return the most that pooling, normalising and converting a layer takes beside its rows."""
    copies = _POOL_COPIES.get(spec.pool.name if spec.pool else "", 0)
    pooling = copies * spec.layer.channels * math.prod(spec.layer.grid(size, size))
    norms = _NORM_COPIES * values if spec.norm != "none" else 0
    return max(_FLOAT32 * pooling, _FLOAT32 * norms, _CONVERTED * values)
