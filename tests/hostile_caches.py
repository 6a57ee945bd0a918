"""Caches of format version 1 as h5py makes them, whatever vggfeat writes today."""

from __future__ import annotations

import hashlib
import json
import zlib
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from vggfeat.cache.identity import Identity
from vggfeat.core.preprocessing import Preprocess

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray


def attributes(layers: tuple[str, ...], **lies: Any) -> dict[str, Any]:
    """Attributes of `/` of a float32 cache; `lies` replace them before the fingerprint is made."""
    preprocess = {**Preprocess().recorded(), **lies.pop("preprocess", {})}
    weights = hashlib.sha256(b"vggfeat random weights 1: vgg11 0").hexdigest()
    identity = Identity(
        model=lies.pop("model", "vgg11"), weights="random:0", weights_sha256=weights,
        precision=lies.pop("precision", "float32"), dtype="float32", preprocess=Preprocess(),
        layers=tuple(sorted(layers)),
    )  # fmt: skip
    return {
        "format": "vggfeat", "format_version": 1, "created_utc": "2026-01-02T03:04:05+00:00",
        "tool_version": "0.1.0", "model": identity.model, "weights": identity.weights,
        "weights_sha256": weights, "preprocess": json.dumps(preprocess),
        "precision": identity.precision, "config": json.dumps({"batch_size": 8}),
        "fingerprint": identity.fingerprint(), "versions": json.dumps({"torch": "2"}),
        "root": np.bytes_(b"/data"), "warning": "",
        **lies,
    }  # fmt: skip


def columns(rows: int, features: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The datasets of `/images`, all rows done."""
    whole = [np.ascontiguousarray(features[name]) for name in sorted(features)]
    sums = [zlib.crc32(b"".join(part[row].tobytes() for part in whole)) for row in range(rows)]
    return {
        "path": np.array([b"%06d.png" % row for row in range(rows)]),
        "size": np.arange(rows, dtype=np.int64) + 100,
        "mtime_ns": np.full(rows, 10**18, np.int64),
        "digest": np.arange(rows * 32, dtype=np.uint8).reshape(rows, 32),
        "state": np.ones(rows, np.uint8),
        "checksum": np.array(sums, np.uint32),
        "error": np.zeros(rows, "S160"),
    }


def write_version_1(path: Path, rows: int = 12) -> Path:
    """Write a cache of two small layers, every row done."""
    noise = np.random.default_rng(3)
    sizes = {"fc6": 16, "fc7": 24}
    features = {name: noise.random((rows, size), np.float32) for name, size in sizes.items()}
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        file.attrs.update(attributes(tuple(features)))
        for name, values in columns(rows, features).items():
            file[f"images/{name}"] = values
        for name, values in features.items():
            file[f"features/{name}"] = values
    return path


def write_sparse(path: Path, rows: int) -> Path:
    """Write a cache of many rows of fc7, all zeros, which takes no room on the disk."""
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        file.attrs.update(attributes(("fc7",)))
        for name, values in columns(rows, {"fc7": np.zeros((rows, 0))}).items():
            file[f"images/{name}"] = values
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple((rows, 4096))
        group = file.create_group("features")
        h5py.h5d.create(group.id, b"fc7", h5py.h5t.IEEE_F32LE, space, dcpl=layout)
    return path
