"""A cache against a pickle of the same features, as articles keep them: path → layer → array.

pickled.py [--rows 10000] [--folder DIR]

Both hold float16 and are read from the page cache, in turns; what is read is asserted equal first.
"""

from __future__ import annotations

import argparse
import pickle
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from caches import new_cache

import vggfeat
from vggfeat.cache.disk import write_all
from vggfeat.cache.format import Header, RowState

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

WIDTHS = {"conv5_3": 512, "fc7": 4096}
ROUNDS = 7

Half = np.float16


def main() -> None:
    """Write the same features in both forms, check that both read alike, and time them in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--folder", default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        cache, pickled = Path(name) / "feats.h5", Path(name) / "feats.pkl"
        write_both(cache, pickled, given.rows)
        middle = given.rows // 2
        print("| read | pickle | cache | ratio |\n|---|---|---|---|")
        for label, theirs, ours in (
            ("one image, fc7", lambda: image_of(pickled, middle), lambda: row_of(cache, middle)),
            ("conv5_3 of all images", lambda: layer_of(pickled, "conv5_3"),
             lambda: column_of(cache, "conv5_3")),
            ("both layers of all images", lambda: both_of(pickled), lambda: both_in(cache)),
        ):  # fmt: skip
            compare(label, theirs, ours)


def write_both(cache: Path, pickled: Path, rows: int) -> None:
    """Features at random, in a cache with the names that `new_cache` gives, and in a pickle."""
    noise = np.random.default_rng(0)
    features = {
        layer: noise.standard_normal((rows, width), np.float32).astype(Half)
        for layer, width in WIDTHS.items()
    }

    def fill(handle: int, header: Header) -> None:
        for layer, values in features.items():
            write_all(handle, values, header.feature(layer).offset)
        states = np.full(rows, RowState.DONE, dtype=np.uint8)
        write_all(handle, states, header.runs["images/state"].offset)

    new_cache(str(cache), rows, {layer: (width,) for layer, width in WIDTHS.items()}, fill)
    by_image = {
        row: {layer: values[row].copy() for layer, values in features.items()}
        for row in range(rows)
    }
    with pickled.open("wb") as file:
        pickle.dump(by_image, file, pickle.HIGHEST_PROTOCOL)
    sizes = [path.stat().st_size / 1e6 for path in (cache, pickled)]
    print(f"{rows} images, float16: cache {sizes[0]:.1f} MB, pickle {sizes[1]:.1f} MB\n")


def load(path: Path) -> dict[int, dict[str, NDArray[np.float16]]]:
    """Return all of a pickle, which is the only way to read it."""
    with path.open("rb") as file:
        loaded: dict[int, dict[str, NDArray[np.float16]]] = pickle.load(file)
    return loaded


def image_of(path: Path, row: int) -> NDArray[np.float16]:
    """Return fc7 (4096,) of one image, from the pickle."""
    return load(path)[row]["fc7"]


def row_of(path: Path, row: int) -> NDArray[np.float16]:
    """Return the same from the cache."""
    return np.array(vggfeat.open(path)["fc7"][row])


def layer_of(path: Path, layer: str) -> NDArray[np.float16]:
    """Return a layer of all images (N, D), from the pickle."""
    return np.stack([layers[layer] for layers in load(path).values()])


def column_of(path: Path, layer: str) -> NDArray[np.float16]:
    """Return the same from the cache, copied into memory."""
    return np.array(vggfeat.open(path)[layer])


def both_of(path: Path) -> NDArray[np.float16]:
    """Return all layers of all images (N, 4608), from the pickle."""
    return np.stack([np.concatenate(list(layers.values())) for layers in load(path).values()])


def both_in(path: Path) -> NDArray[np.float16]:
    """Return the same from the cache."""
    cache = vggfeat.open(path)
    return np.concatenate([cache[layer] for layer in WIDTHS], axis=1)


def compare(
    label: str,
    theirs: Callable[[], NDArray[np.float16]],
    ours: Callable[[], NDArray[np.float16]],
) -> None:
    """Print a row of the table: medians, and the median of the ratios of each turn."""
    assert np.array_equal(theirs(), ours())
    pairs = [(seconds(theirs), seconds(ours)) for _ in range(ROUNDS)]
    pickled, cached = (statistics.median(side) * 1e3 for side in zip(*pairs, strict=True))
    ratios = sorted(a / b for a, b in pairs)
    print(
        f"| {label} | {pickled:.1f} ms | {cached:.2f} ms "
        f"| {statistics.median(ratios):.1f} ({ratios[0]:.1f}-{ratios[-1]:.1f}) |"
    )


def seconds(work: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
