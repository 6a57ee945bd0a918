"""Large caches of noise, made of a small one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import h5py
import numpy as np

if TYPE_CHECKING:
    from pathlib import Path


def blow_up(small: Path, large: Path, count: int) -> None:
    """A cache of `count` rows of noise, made of one of two."""
    from vggfeat.cache.checksums import row_checksums, seal_rows
    from vggfeat.cache.header import read_header
    from vggfeat.cache.writer import create_cache
    from vggfeat.core.records import Images

    header = read_header(str(small))
    paths = np.array([f"{row:06}.png" for row in range(count)], dtype=np.bytes_)
    numbers = np.arange(count, dtype=np.int64)
    create_cache(str(large), Images(paths, numbers, numbers), header)
    noise = np.random.default_rng(0)
    with h5py.File(large, "r+") as file:
        values = {name: noise.random(data.shape, np.float32) for name, data in
                  file["features"].items()}  # fmt: skip
        for name, array in values.items():
            file["features"][name][:] = array
        sums = row_checksums([values[name] for name in sorted(values)], count)
        nothing = np.zeros((count, 32), np.uint8), np.zeros(count, "S160"), np.ones(count, np.uint8)
        file["images/checksum"][:] = seal_rows(sums, *nothing)
        file["images/state"][:] = 1
