"""Exact search of a cache: ours against faiss's flat indexes and a plain NumPy loop, in turns.

search.py [--rows 1000000] [--width 512] [--queries 1 16 128] [--repeats 5] [--folder DIR]

Ours reads a cache of float16 through its memory map, as it lies in the page cache; faiss holds the
same rows as float32 in memory, twice the bytes, for cosines already at unit length. All must find
the same rows before anything is timed. Needs `pip install faiss-cpu`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from typing import TYPE_CHECKING

import faiss
import numpy as np

from vggfeat.cache.format import Provenance
from vggfeat.cache.header import read_header
from vggfeat.cache.identity import Identity
from vggfeat.cache.layout import lay_out
from vggfeat.cache.reader import FeatureCache
from vggfeat.core.preprocessing import Preprocess
from vggfeat.retrieval.exact_search import top_k

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from vggfeat.retrieval.similarity import Metric

LAYER, TOP, BLOCK = "conv5_3", 10, 8192


def main() -> None:
    """Makes the cache, compares results, times all contestants in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 16, 128])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        cache = make_cache(os.path.join(folder, "noise.h5"), given.rows, given.width)
        metrics: tuple[Metric, ...] = ("cosine", "l2")
        for metric in metrics:
            index = flat_index(cache, metric)
            for count in given.queries:
                queries = cache.values(LAYER, slice(0, given.rows, given.rows // count))[:count]
                contestants = searches(cache, index, queries, metric)
                compare({name: find() for name, find in contestants.items()})
                report(f"{metric}, {count} queries", contestants, given.repeats)
            del index


def make_cache(path: str, rows: int, width: int) -> FeatureCache:
    """A cache of noise that is never negative, as behind a ReLU."""
    identity = Identity("vgg19", "noise", "00" * 32, "float32", "float16", Preprocess(), (LAYER,))
    provenance = Provenance(b"/", {"batch_size": 1}, "2026-01-01T00:00:00+00:00", "1", {})
    lay_out(path, rows, 8, shapes={LAYER: (width,)}, identity=identity, provenance=provenance)
    runs = read_header(path).runs
    noise = np.random.default_rng(0)
    values = np.memmap(path, "<f2", "r+", runs[f"features/{LAYER}"].offset, (rows, width))
    for start in range(0, rows, BLOCK):
        some = values[start : start + BLOCK]
        some[:] = np.maximum(noise.standard_normal(some.shape, np.float32), 0)
    values.flush()
    np.memmap(path, "u1", "r+", runs["images/state"].offset, (rows,))[:] = 1
    return FeatureCache(path)


def flat_index(cache: FeatureCache, metric: Metric) -> faiss.Index:
    """The rows in faiss's exact index for the metric."""
    width = cache[LAYER].shape[1]
    index = faiss.IndexFlatIP(width) if metric == "cosine" else faiss.IndexFlatL2(width)
    for start in range(0, len(cache), BLOCK):
        index.add(prepared(cache.values(LAYER, slice(start, start + BLOCK)), metric))
    return index


def prepared(x: NDArray[np.float32], metric: Metric) -> NDArray[np.float32]:
    """Rows at unit length for cosines, else as they are."""
    return x / np.linalg.norm(x, axis=1, keepdims=True) if metric == "cosine" else x


def searches(
    cache: FeatureCache, index: faiss.Index, queries: NDArray[np.float32], metric: Metric
) -> dict[str, Callable[[], NDArray[np.int64]]]:
    """Contestants by name; each gives rows (q, TOP)."""
    asked = prepared(queries, metric)
    return {
        "ours": lambda: top_k(cache, LAYER, queries, TOP, metric)[0],
        "faiss flat, float32 in memory": lambda: index.search(asked, TOP)[1],
        "NumPy loop": lambda: plain_loop(cache, asked, metric),
    }


def plain_loop(
    cache: FeatureCache, queries: NDArray[np.float32], metric: Metric
) -> NDArray[np.int64]:
    """What one writes first: blocks as float32, a product, the best of old and new."""
    best = np.full((len(queries), TOP), -np.inf, np.float32)
    rows = np.zeros((len(queries), TOP), np.int64)
    for start in range(0, len(cache), BLOCK):
        x = prepared(cache[LAYER][start : start + BLOCK].astype(np.float32), metric)
        scores = queries @ x.T  # (q, n)
        if metric == "l2":
            scores -= (x * x).sum(1) / 2
        both = np.hstack([best, scores])
        names = np.hstack([rows, np.tile(np.arange(start, start + len(x)), (len(queries), 1))])
        kept = np.argpartition(-both, TOP, axis=1)[:, :TOP]
        best, rows = (np.take_along_axis(part, kept, 1) for part in (both, names))
    return np.take_along_axis(rows, np.argsort(-best, axis=1, kind="stable"), 1)


def compare(found: dict[str, NDArray[np.int64]]) -> None:
    """All find the same rows; the order of two may differ where float32 cannot tell them apart."""
    ours = np.sort(found["ours"], axis=1)
    for name, theirs in found.items():
        same = (np.sort(theirs, axis=1) == ours).mean()
        assert same > 0.999, f"{name}: only {same:.4f} of the rows are ours"
        print(f"{name}: {same:.4%} of the rows are ours")


def report(
    name: str, contestants: dict[str, Callable[[], NDArray[np.int64]]], repeats: int
) -> None:
    """A table of medians, and medians of the ratios within a turn."""
    print(f"\n{name}\n\n| contestant | median s | times ours |\n|---|---|---|")
    turns = [{who: timed(find) for who, find in contestants.items()} for _ in range(repeats)]
    for who in contestants:
        seconds = statistics.median(turn[who] for turn in turns)
        ratio = statistics.median(turn[who] / turn["ours"] for turn in turns)
        print(f"| {who} | {seconds:.3f} | {ratio:.2f} |", flush=True)
    print()


def timed(find: Callable[[], object]) -> float:
    """Seconds of a call."""
    started = time.perf_counter()
    find()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
