"""Scores of blocks of rows on a CUDA device; torch is imported here alone."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.retrieval.similarity import similarities, to_float32

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from vggfeat.cache.reader import FeatureCache
    from vggfeat.retrieval.similarity import Side, Values

_UNIT = 2.0**-24


def cuda_device(name: str) -> torch.device | None:
    """The CUDA device to score on; None for the CPU.

    Args:
        name: `cpu`, `cuda`, `cuda:1`; or `auto`, which is CUDA only where torch is loaded already:
            a scan is over before torch has been.

    Raises:
        DeviceError: no such device.
    """
    if name == "auto" and "torch" not in sys.modules:
        return None
    from vggfeat.network.device import choose_device

    device = choose_device(name)
    return device if device.type == "cuda" else None


class CudaKernel:
    """As `blocks.Kernel`, with the products computed on a CUDA device."""

    def __init__(
        self, device: torch.device, cache: FeatureCache, queries: Sequence[Side], size: int
    ) -> None:
        import torch

        self._device = device
        self._cache = cache
        self._queries = queries
        self._size = size
        self._vectors = {
            side.layer: torch.from_numpy(side.vectors).to(device).T for side in queries
        }

    @classmethod
    def on(cls, device: torch.device) -> Callable[[FeatureCache, Sequence[Side], int], CudaKernel]:
        """What makes kernels on that device."""
        return partial(cls, device)

    def __call__(self, start: int, stop: int) -> tuple[Values, float]:
        """See `blocks.Kernel`."""
        import torch

        total, error = None, 0.0
        with torch.no_grad():
            for side in self._queries:
                x = self._load(side.layer, start, stop)  # (n, D)
                products = (x @ self._vectors[side.layer]).cpu().numpy()  # (n, q)
                squares = (x * x).sum(1).cpu().numpy()
                part, off = similarities(products, squares, side, x.shape[1])
                part *= np.float32(side.share)
                total = part if total is None else total + part
                error += side.share * off + 2 * _UNIT
        return np.asarray(total), error

    def _load(self, layer: str, start: int, stop: int) -> torch.Tensor:
        import torch

        stored = np.array(self._cache[layer][start:stop])
        scales = self._cache.header.scales.get(layer)
        if scales is not None:
            stored = to_float32(stored, np.empty(stored.shape, np.float32), scales)
        return torch.from_numpy(stored).to(self._device).float()
