"""An index against the exact scan of the same cache: how long it takes to build, and what it saves.

index.py [--rows 5000000] [--width 128] [--repeats 5] [--folder DIR]

Rows are mixtures of a few directions, with noise: features are of low rank too, and an index of
pure noise would find nothing. Queries are rows of the cache; single ones, as people ask. Needs
`pip install faiss-cpu`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from typing import TYPE_CHECKING

import numpy as np
from caches import new_cache

from vggfeat.cache.reader import FeatureCache
from vggfeat.core.text import byte_count
from vggfeat.retrieval.exact_search import top_k
from vggfeat.retrieval.faiss_index import open_index

if TYPE_CHECKING:
    from vggfeat.cache.format import Header

LAYER, TOP, RANK, BLOCK, QUERIES = "conv5_3", 10, 24, 8192, 20


def main() -> None:
    """Builds the index, then asks both in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        cache = make_cache(os.path.join(folder, "mixtures.h5"), given.rows, given.width)
        path = os.path.join(folder, "mixtures.faiss")
        started = time.perf_counter()
        info = open_index(cache, LAYER, "cosine", path).info
        print(f"built in {time.perf_counter() - started:.1f} s: {info}")
        print(f"its file: {byte_count(os.stat(path).st_size)}")
        ask(cache, path, given.repeats)


def make_cache(path: str, rows: int, width: int) -> FeatureCache:
    """A cache of mixtures that are never negative, as behind a ReLU."""
    random = np.random.default_rng(0)
    directions = random.standard_normal((RANK, width), np.float32)

    def fill(handle: int, header: Header) -> None:
        for start in range(0, rows, BLOCK):
            count = min(BLOCK, rows - start)
            mixed = random.standard_normal((count, RANK), np.float32) @ directions
            mixed += 0.3 * random.standard_normal(mixed.shape, np.float32)
            some = np.maximum(mixed, 0).astype(np.float16)
            os.pwrite(handle, some.tobytes(), header.feature(LAYER).offset + start * some[0].nbytes)
        os.pwrite(handle, np.ones(rows, np.uint8).tobytes(), header.runs["images/state"].offset)

    new_cache(path, rows, {LAYER: (width,)}, fill)
    return FeatureCache(path)


def ask(cache: FeatureCache, path: str, repeats: int) -> None:
    """Median seconds of a query, in turns, and how many of the exact ones the index finds."""
    index = open_index(cache, LAYER, "cosine", path)
    queries = cache.values(LAYER, np.linspace(0, len(cache) - 1, QUERIES).astype(np.int64))
    scans, lookups, found = [], [], []
    for turn in range(repeats * QUERIES):
        query = queries[turn % QUERIES][None]
        started = time.perf_counter()
        right, _ = top_k(cache, LAYER, query, TOP)
        between = time.perf_counter()
        rows = index.search(query, TOP).rows
        lookups.append(time.perf_counter() - between)
        scans.append(between - started)
        found.append(len(np.intersect1d(right, rows)) / TOP)
    ratio = statistics.median(a / b for a, b in zip(scans, lookups, strict=True))
    print(f"of the exact ten nearest found: {statistics.mean(found):.3f}")
    print(f"exact {statistics.median(scans):.4f} s, index {statistics.median(lookups):.5f} s")
    print(f"the scan takes {ratio:.0f} times as long")


if __name__ == "__main__":
    main()
