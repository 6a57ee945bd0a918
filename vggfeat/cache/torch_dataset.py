"""Use a cache from PyTorch: tensors over the same memory map, and a Dataset of its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

from vggfeat.cache.format import DatasetExtent
from vggfeat.cache.mapped_rows import map_rows
from vggfeat.cache.reader import FeatureCache
from vggfeat.cache.sharded import ShardedCache, open_cache
from vggfeat.core.text import counted
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence


def as_tensor(cache: FeatureCache, layer: str) -> torch.Tensor:
    """Return all rows of a layer as a tensor over the memory map: pages are read on use.

    Args:
        cache: the cache.
        layer: a layer spec.

    Returns:
        (N, D) or (N, C, H, W), the stored dtype, CPU: of an int8 cache codes, whose scales are in
        `cache.header.scales`. Writing to it changes this process's copy
        of the page and never the file.

    Raises:
        CacheError: the cache has no such layer.
        UsageError: it is a sharded cache.
    """
    if isinstance(cache, ShardedCache):
        raise UsageError(
            f"cache {cache.path!r} lies in {counted(len(cache.shards), 'file')}, and a tensor "
            f"maps one: merge them (vggfeat merge {cache.path} --out FILE.h5), or use "
            "FeatureDataset"
        )
    array = cache[layer]
    # A private map: torch has no read-only tensors, and a shared one would let a slip of the pen
    # into the file.
    run = DatasetExtent(array.dtype.str, array.shape, array.offset)
    return torch.from_numpy(map_rows(cache.path, run, "c"))


class FeatureDataset(Dataset[tuple[torch.Tensor, ...]]):
    """The done rows of a cache, for `torch.utils.data.DataLoader`.

    Item i is the features of the i-th done row, one tensor a layer, and last its row number as an
    int64 scalar, which finds its path (`cache.name(row)`) or a label. Features have the stored
    dtype; of an int8 cache they are the values, float32. Rows are read from the
    memory map on access; the dataset pickles as a path and so suits any number of workers.

    Args:
        path: the cache, or a `FeatureCache`.
        layers: layer specs; all of the cache's by default.
    """

    def __init__(
        self, path: str | os.PathLike[str] | FeatureCache, layers: Sequence[str] | None = None
    ) -> None:
        self.cache = path if isinstance(path, FeatureCache) else open_cache(path)
        self.layers = tuple(layers or self.cache.layers)
        self.rows = np.flatnonzero(self.cache.done)
        self._tensors: tuple[torch.Tensor, ...] = ()
        if not isinstance(self.cache, ShardedCache):
            self._tensors = tuple(as_tensor(self.cache, layer) for layer in self.layers)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        row = int(self.rows[index])
        if self.cache.header.scales:
            rows = np.array([row])
            values = (torch.from_numpy(self.cache.values(name, rows)[0]) for name in self.layers)
            return (*values, torch.tensor(row, device="cpu"))
        if not self._tensors:
            stored = (torch.from_numpy(np.array(self.cache[name][row])) for name in self.layers)
            return (*stored, torch.tensor(row, device="cpu"))
        return (*(tensor[row] for tensor in self._tensors), torch.tensor(row, device="cpu"))

    def __reduce__(self) -> tuple[type[FeatureDataset], tuple[str, tuple[str, ...]]]:
        return FeatureDataset, (self.cache.path, self.layers)
