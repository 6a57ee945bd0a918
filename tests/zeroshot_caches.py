"""Caches and class vectors for zero-shot learning."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import h5py

from vggfeat.cache.format import Provenance
from vggfeat.cache.identity import Identity
from vggfeat.cache.layout import lay_out
from vggfeat.core.preprocessing import Preprocess

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    Values = NDArray[np.float32]


NAMES = tuple(f"class{number:02}" for number in range(40))


def write_cache(path: Path, layers: Mapping[str, Values], paths: list[str]) -> Path:
    """A cache of these features under these paths, which must be sorted."""
    assert paths == sorted(paths)
    identity = Identity(
        "vgg16", "w", "00" * 32, "float32", "float32", Preprocess(), tuple(layers)
    )  # fmt: skip
    provenance = Provenance(b"/", {"batch_size": 1}, "2026-01-02T03:04:05+00:00", "1", {})
    shapes = {name: values.shape[1:] for name, values in layers.items()}
    lay_out(str(path), len(paths), max(map(len, paths)), shapes=shapes, identity=identity,
            provenance=provenance)  # fmt: skip
    with h5py.File(path, "r+") as file:
        file["images/path"][:] = [os.fsencode(name) for name in paths]
        file["images/state"][:] = 1
        for name, values in layers.items():
            file[f"features/{name}"][:] = values
    return path


def write_vectors(path: Path, vectors: Values, names: tuple[str, ...] = NAMES) -> Path:
    lines = [
        ",".join([name, *map(str, row)]) for name, row in zip(names, vectors.tolist(), strict=True)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path
