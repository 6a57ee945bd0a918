"""The batch size as a run begins. Loads without torch, so that decoding may begin before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vggfeat.core.cgroups import memory_available
from vggfeat.network.memory_estimate import bytes_per_image

if TYPE_CHECKING:
    from vggfeat.core.settings import Settings

CPU_BATCH = 16
"""Batch size at which throughput on a CPU levels off; more memory gains nothing."""

CPU_CONVOLUTIONS_BATCH = 4
"""The same without fully connected layers, whose weights larger batches read less often. A larger
batch would be 1 or 2 % faster, and need more than 1 GB."""

GPU_BATCH = 256


def is_batch_size_fixed(settings: Settings) -> bool:
    """Return whether the settings determine the batch size, whatever the device."""
    return settings.batch_size != "auto" or settings.crop == "none"


def fixed_batch_size(settings: Settings) -> int:
    """Return the batch size that the settings determine."""
    if settings.batch_size != "auto":
        return settings.batch_size
    return 1  # shapes may differ, and a batch of each shape is computed with all its slots


def largest_cpu_batch(settings: Settings) -> int:
    """Return the batch size for a CPU: smaller than usual if memory is short."""
    connected = any(spec.layer.container == "classifier" for spec in settings.specs)
    usual = CPU_BATCH if connected else CPU_CONVOLUTIONS_BATCH
    return _fitting(usual, bytes_per_image(settings, 4, on_cpu=True).host)


def largest_cuda_batch(settings: Settings, free: int) -> int:
    """Return the batch size for a CUDA device with so many bytes free, and for its host."""
    half = settings.precision in ("auto", "float16", "bfloat16")
    each = bytes_per_image(settings, 2 if half else 4, on_cpu=False)
    return _fitting(min(GPU_BATCH, free // 2 // each.device), each.host)


def _fitting(most: int, each: int) -> int:
    """Return as many images as half of the host's memory suffices for, 1 to `most`."""
    available = memory_available()
    return max(1, most if available is None else min(most, available // 2 // each))


def spread_batches(images: int, most: int, devices: int) -> int:
    """Return the size of equal batches of at most so many images, as many for each device."""
    passes = -(-images // most)
    passes += -passes % devices
    return -(-images // passes)
