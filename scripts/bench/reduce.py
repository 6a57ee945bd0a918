"""Principal components of features in memory: ours against scikit-learn's, in turns.

reduce.py [--rows 20000] [--dims 128] [--widths 512 2048] [--repeats 3]

Ours gets the data as blocks of 1024 rows and computes in float64; scikit-learn gets the array.
Results are compared before anything is timed. IncrementalPCA keeps a few directions of each batch
and forgets the others, so it is held to the subspace alone, and loosely.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING

import numpy as np
from sklearn.decomposition import PCA, IncrementalPCA

from vggfeat.transforms.pca import fit_pca

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

BATCH = 1024
EXACT = {"PCA, full": "full", "PCA, covariance_eigh": "covariance_eigh"}


def main() -> None:
    """Makes the data, compares results, times all contestants in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dims", type=int, default=128)
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    for width in given.widths:
        data = features(given.rows, width)
        contestants = fits(data, given.dims)
        compare({name: fit() for name, fit in contestants.items()})
        report(f"{given.rows} x {width}, {given.dims} wanted", contestants, given.repeats)


def features(rows: int, width: int) -> NDArray[np.float32]:
    """Data whose i-th variance falls as 1 / i, as that of features roughly does."""
    noise = np.random.default_rng(0)
    turn = np.linalg.qr(noise.standard_normal((width, width)))[0]
    scale = np.arange(1, width + 1) ** -0.5
    data: NDArray[np.float32] = (noise.standard_normal((rows, width)) * scale @ turn).astype("f4")
    return data


def fits(data: NDArray[np.float32], dims: int) -> dict[str, Callable[[], NDArray[np.float32]]]:
    """Contestants by name; each gives components (dims, D)."""

    def blocks() -> Iterator[NDArray[np.float32]]:
        return (data[start : start + BATCH] for start in range(0, len(data), BATCH))

    def exact(solver: str) -> Callable[[], NDArray[np.float32]]:
        return lambda: PCA(dims, svd_solver=solver).fit(data).components_

    incremental = IncrementalPCA(dims, batch_size=BATCH)
    return {
        "ours": lambda: fit_pca(blocks, dims).components,
        **{name: exact(solver) for name, solver in EXACT.items()},
        "IncrementalPCA": lambda: incremental.fit(data).components_,
    }


def compare(found: dict[str, NDArray[np.float32]]) -> None:
    """Exact contestants agree component by component; the others in the space they span."""
    ours = found["ours"]
    for name, theirs in found.items():
        if name in EXACT:
            cosines = np.abs((ours * theirs).sum(axis=1))
            assert cosines.min() > 1 - 1e-4, f"{name}: a component is off, cosine {cosines.min()}"
        shared = np.linalg.norm(ours @ theirs.T) ** 2 / len(ours)  # mean squared cosine
        assert shared > 0.8, f"{name}: only {shared:.3f} of the subspace is shared"
        print(f"{name}: {shared:.6f} of the subspace shared with ours")


def report(
    name: str, contestants: dict[str, Callable[[], NDArray[np.float32]]], repeats: int
) -> None:
    """A table of medians, and medians of the ratios within a turn."""
    print(f"\n{name}\n\n| contestant | median s | times ours |\n|---|---|---|")
    turns = [{who: timed(fit) for who, fit in contestants.items()} for _ in range(repeats)]
    for who in contestants:
        seconds = statistics.median(turn[who] for turn in turns)
        ratio = statistics.median(turn[who] / turn["ours"] for turn in turns)
        print(f"| {who} | {seconds:.2f} | {ratio:.1f} |", flush=True)


def timed(fit: Callable[[], object]) -> float:
    """Seconds of a call."""
    started = time.perf_counter()
    fit()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
