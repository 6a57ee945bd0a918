"""Checks of caches that a benchmark made, for shell scripts; exits 1 where one does not hold.

check.py row LABEL FILE.json    the summary of an extract as a row of a table
check.py cosine A.h5 B.h5       the rows of both agree, image by image
check.py done FILE.h5           how many rows are done; all of them, or exit 1
check.py same A.h5 B.h5         features, digests, states, checksums, reasons: byte for byte
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import h5py
    import numpy as np
    from numpy.typing import NDArray

LEAST_COSINE = 0.9999
BLOCK = 4096  # rows compared at a time


def lowest_cosine(ours: NDArray[np.generic], theirs: NDArray[np.generic]) -> float:
    """The lowest cosine between row k of the one and row k of the other, both (N, …)."""
    import numpy as np  # in functions, since `row`, which is called most, needs none of them

    a = np.asarray(ours).reshape(len(ours), -1)
    b = np.asarray(theirs).reshape(len(theirs), -1)
    # np.min keeps a NaN, where min would lose it.
    return float(np.min([_cosines(a[k : k + 256], b[k : k + 256]) for k in range(0, len(a), 256)]))


def _cosines(a: NDArray[np.generic], b: NDArray[np.generic]) -> float:
    import numpy as np

    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(wide_a, axis=1) * np.linalg.norm(wide_b, axis=1)
    return float(((wide_a * wide_b).sum(axis=1) / lengths).min())


def row(label: str, path: str) -> bool:
    """Prints speed, resolved settings and seconds a stage of one extract."""
    told = json.loads(Path(path).read_text())
    stages = ", ".join(f"{name} {seconds:.2f}" for name, seconds in told["stages"].items())
    print(
        f"| {label} | {told['done']} of {told['rows']} | {told['workers']} | {told['precision']} "
        f"| {told['images_per_second']:.1f} | {told['seconds']:.1f} | {stages} |"
    )
    return bool(told["done"] == told["rows"] and not told["redone"])


def cosine(left: str, right: str) -> bool:
    """Compares all layers of two caches over the images that both have done."""
    import vggfeat

    a, b = vggfeat.open(left), vggfeat.open(right)
    places = {name: at for at, name in enumerate(b.paths.tolist()) if b.done[at]}
    rows = [at for at, name in enumerate(a.paths.tolist()) if a.done[at] and name in places]
    others = [places[a.paths[at]] for at in rows]
    print(f"{len(rows)} images in both")
    good = bool(rows)
    for layer in a.layers:
        ours, theirs = a[layer][rows], b[layer][others]
        found = lowest_cosine(ours, theirs) if rows else 0.0
        next_one = lowest_cosine(ours[:-1], theirs[1:]) if len(rows) > 1 else 0.0
        same = "the same bytes" if ours.tobytes() == theirs.tobytes() else "other bytes"
        print(f"{layer}: lowest cosine {found:.7f} ({next_one:.4f} to the next image), {same}")
        good = good and found >= LEAST_COSINE
    return good


def done(path: str) -> bool:
    """Says how many rows are done."""
    import vggfeat

    cache = vggfeat.open(path)
    count = int(cache.done.sum())
    print(f"{count} of {len(cache)} rows done")
    return count == len(cache)


def same(left: str, right: str) -> bool:
    """Compares all that two runs must agree in, as plain h5py reads it."""
    import h5py

    with h5py.File(left, "r") as one, h5py.File(right, "r") as other:
        fields = ("path", "size", "digest", "state", "checksum", "error")
        names = [f"images/{field}" for field in fields]
        names += sorted({f"features/{spec}" for file in (one, other) for spec in file["features"]})
        different = [name for name in names if not _equal(one.get(name), other.get(name))]
        print(f"{len(one['images/path'])} rows: {', '.join(different) or 'nothing'} differs")
    return not different


def _equal(one: h5py.Dataset | None, other: h5py.Dataset | None) -> bool:
    if one is None or other is None or (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    blocks = (slice(start, start + BLOCK) for start in range(0, len(one), BLOCK))
    return all(one[block].tobytes() == other[block].tobytes() for block in blocks)


if __name__ == "__main__":
    checks: dict[str, Callable[..., bool]] = {
        "row": row,
        "cosine": cosine,
        "done": done,
        "same": same,
    }
    sys.exit(0 if checks[sys.argv[1]](*sys.argv[2:]) else 1)
