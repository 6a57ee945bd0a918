"""Opening a cache of a million rows, and reading rows at random: memory map against h5py.

read.py [--rows 1000000] [--folder DIR]

Rows are read from the page cache, so what is measured is the way to them and not the disk.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
from caches import new_cache

import vggfeat
from vggfeat.cache.disk import write_all
from vggfeat.cache.format import Header, RowState

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

WIDTH = 512
LAYER = "conv5_3"
REPEATS = 5


def main() -> None:
    """Makes the cache, checks that both ways read the same, times them in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = os.path.join(folder, "feats.h5")
        make_cache(path, given.rows)
        time_opening(path)
        cache = vggfeat.open(path)
        with h5py.File(path) as file:
            noise = np.random.default_rng(0)
            for count in (1, 100, 10_000):
                rows = np.sort(noise.choice(given.rows, count, replace=False))
                compare(cache, file, rows)
            compare_scan(cache, file)


def make_cache(path: str, rows: int) -> None:
    """`rows` done rows of random features."""

    def fill(handle: int, header: Header) -> None:
        block = np.random.default_rng(0).standard_normal((10_000, WIDTH)).astype(np.float16)
        run = header.feature(LAYER)
        for start in range(0, rows, len(block)):
            part = block[: rows - start]
            write_all(handle, part, run.offset + start * run.row_bytes)
        states = np.full(rows, RowState.DONE, dtype=np.uint8)
        write_all(handle, states, header.runs["images/state"].offset)

    new_cache(path, rows, {LAYER: (WIDTH,)}, fill)
    print(f"{rows} rows of {WIDTH} float16, {Path(path).stat().st_size / 1e9:.2f} GB\n")


def time_opening(path: str) -> None:
    """Opening with all its checks, and the first row."""
    seconds = timed(lambda: vggfeat.open(path)[LAYER][0])
    print(f"open and one row: {seconds * 1e3:.2f} ms\n")
    print("| read | memory map | h5py | ratio |\n|---|---|---|---|")


def compare(cache: vggfeat.FeatureCache, file: h5py.File, rows: NDArray[np.int64]) -> None:
    """Rows at random, sorted as h5py wants them."""
    mapped, plain = cache[LAYER], file[f"features/{LAYER}"]
    assert np.array_equal(mapped[rows], plain[rows])
    report(f"{len(rows)} rows at random", lambda: mapped[rows], lambda: plain[rows])


def compare_scan(cache: vggfeat.FeatureCache, file: h5py.File) -> None:
    """All rows once, in blocks, summed up."""
    mapped, plain = cache[LAYER], file[f"features/{LAYER}"]
    starts = range(0, len(cache), 65_536)

    def scan(features: NDArray[np.float16]) -> int:
        return sum(int(features[s : s + 65_536].view(np.uint16)[::64].sum()) for s in starts)

    assert scan(mapped) == scan(plain)  # type: ignore[arg-type] # any float16
    report("all rows, in blocks", lambda: scan(mapped), lambda: scan(plain))  # type: ignore[arg-type] # as above


def report(name: str, ours: Callable[[], object], theirs: Callable[[], object]) -> None:
    """A row of the table, both sides in turns."""
    pairs = [(timed(ours, 1), timed(theirs, 1)) for _ in range(REPEATS)]
    a, b = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(theirs / ours for ours, theirs in pairs)
    print(f"| {name} | {a * 1e3:.3f} ms | {b * 1e3:.3f} ms | {ratio:.1f} |")


def timed(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median seconds of a call."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
