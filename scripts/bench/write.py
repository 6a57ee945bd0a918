"""Rows a second that reach the disk: our writer against h5py in the ways people use it.

write.py [--rows 20000] [--folder DIR]

All write the same float16 rows of fc7 and conv5_3 in batches of 64; checked to read back equal.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from typing import TYPE_CHECKING

import h5py
import numpy as np
from caches import new_cache

import vggfeat
from vggfeat.cache.writer import CacheWriter
from vggfeat.core.records import FeatureBatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Rows = dict[str, NDArray[np.float16]]

SHAPES = {"conv5_3": (512,), "fc7": (4096,)}
BATCH = 64
BATCHES_A_CHECKPOINT = 20
ROUNDS = 5


def main() -> None:
    """Times each way in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--folder", default=None)
    given = parser.parse_args()
    noise = np.random.default_rng(0)
    rows = {
        name: noise.standard_normal((given.rows, *shape)).astype(np.float16)
        for name, shape in SHAPES.items()
    }
    ways = {
        "vggfeat": ours,
        "h5py, flushed with every batch": flushed,
        "h5py, a dataset an image": each,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            with tempfile.TemporaryDirectory(dir=given.folder) as folder:
                seconds[name].append(timed(way, os.path.join(folder, "f.h5"), rows))
    size = sum(values.nbytes for values in rows.values()) / 1e6
    print("| way | rows/s | MB/s | vggfeat is faster by |\n|---|---|---|---|")
    for name, spent in seconds.items():
        took = statistics.median(spent)
        ratio = statistics.median(s / o for s, o in zip(spent, seconds["vggfeat"], strict=True))
        print(f"| {name} | {given.rows / took:.0f} | {size / took:.0f} | {ratio:.2f} |")


def timed(way: Callable[[str, Rows], None], path: str, rows: Rows) -> float:
    """Seconds until the rows are on the disk; then they are read back."""
    started = time.perf_counter()
    way(path, rows)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    spent = time.perf_counter() - started
    check(path, rows)
    return spent


def check(path: str, rows: Rows) -> None:
    """Every row is there, whatever the layout of the file."""
    with h5py.File(path) as file:
        for name, values in rows.items():
            found = file.get(f"features/{name}", file.get(name))
            if found is None:
                last = len(values) - 1
                assert np.array_equal(file[f"{last:08}/{name}"][()], values[last])
            else:
                assert np.array_equal(found[()], values)


def ours(path: str, rows: Rows) -> None:
    """Checksums, states and two syncs a checkpoint included."""
    count = len(rows["fc7"])
    writer = CacheWriter(path, new_cache(path, count, SHAPES))
    for number, start in enumerate(range(0, count, BATCH), 1):
        part = {name: values[start : start + BATCH] for name, values in rows.items()}
        at = np.arange(start, min(start + BATCH, count))
        digests = np.zeros((len(at), 32), dtype=np.uint8)
        writer.write(FeatureBatch(at, digests, part, (), 0))
        if number % BATCHES_A_CHECKPOINT == 0:
            writer.checkpoint()
    writer.checkpoint()
    writer.close()
    assert vggfeat.open(path).done.all()


def flushed(path: str, rows: Rows) -> None:
    """Growing datasets, a flush a batch, without any sync."""
    with h5py.File(path, "w") as file:
        for name, shape in SHAPES.items():
            file.create_dataset(
                name, (0, *shape), "f2", maxshape=(None, *shape), chunks=(BATCH, *shape)
            )
        for start in range(0, len(rows["fc7"]), BATCH):
            for name, values in rows.items():
                part = values[start : start + BATCH]
                file[name].resize(start + len(part), axis=0)
                file[name][start:] = part
            file.flush()


def each(path: str, rows: Rows) -> None:
    """As the plain loop keeps them: a group an image."""
    with h5py.File(path, "w") as file:
        for row in range(len(rows["fc7"])):
            for name, values in rows.items():
                file[f"{row:08}/{name}"] = values[row]


if __name__ == "__main__":
    main()
