"""HDF5 to ship, compressed; and as hloc has it, one group an image."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from vggfeat.browsing import blocks
from vggfeat.exporting.options import need
from vggfeat.quantisation import scales_digest
from vggfeat.schema import FEATURES, IMAGES, OFFSETS, SCALES, attributes_of
from vggfeat.writer import row_checksums

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from vggfeat.exporting.content import Content
    from vggfeat.exporting.options import Options
    from vggfeat.runs import Run

_CHUNK_BYTES = 1 << 20
_GZIP_LEVEL = 4


def write_hdf5(content: Content, path: str, options: Options) -> None:
    """The groups, names and attributes of a cache, but for the rows and layers that are left out.

    Codes of int8 stay codes, with their scales.
    """
    how = _filters(options)
    identity = content.cache.header.identity
    scales = {
        layer: one for layer, one in content.cache.header.scales.items() if layer in content.layers
    }
    kept = dataclasses.replace(
        identity, layers=tuple(sorted(content.layers)), scales=scales_digest(scales)
    )
    header = content.cache.header
    with h5py.File(path, "w", libver="v110") as new:
        new.attrs.update(attributes_of(kept, header.provenance))
        for name, run in header.runs.items():
            group, _, short = name.partition("/")
            if group == IMAGES:
                column = _create(new, name, run, len(content), how)
                column[...] = content.cache.column(short)[content.rows].astype(column.dtype)
        for layer in content.layers:
            run = header.feature(layer)
            target = _create(new, f"{FEATURES}/{layer}", run, len(content), how)
            for start, stop in blocks(len(content), run.row_bytes):
                target[start:stop] = content.cache[layer][content.rows[start:stop]]
            if layer in scales:
                new[f"{SCALES}/{layer}"] = scales[layer].scale.astype("<f4")
                new[f"{OFFSETS}/{layer}"] = scales[layer].offset.astype("<f4")
        if set(content.layers) != set(content.cache.layers):
            new[f"{IMAGES}/checksum"][...] = _checksums(content)


def _checksums(content: Content) -> NDArray[np.uint32]:
    """Checksums of rows that have lost some of their layers, uint32 (n,)."""
    layers = sorted(content.layers)
    size = sum(_stored_bytes(content, layer) for layer in layers)
    return np.concatenate(
        [
            row_checksums(
                [content.cache[layer][content.rows[start:stop]] for layer in layers], stop - start
            )
            for start, stop in blocks(len(content), size)
        ]
    )


def _stored_bytes(content: Content, layer: str) -> int:
    return content.cache.header.feature(layer).row_bytes


def _filters(options: Options) -> Mapping[str, Any]:
    if options.compress == "zstd":
        return {**need("hdf5plugin", "zstd-hdf5", "hdf5 with zstd").Zstd(), "shuffle": True}
    if options.compress == "gzip":
        return {"compression": "gzip", "compression_opts": _GZIP_LEVEL, "shuffle": True}
    return {}


def _create(
    new: h5py.File, name: str, like: Run, rows: int, how: Mapping[str, Any]
) -> h5py.Dataset:
    """A dataset of as many rows and the same type, filtered in chunks of whole rows."""
    chunk = None
    if how and rows:
        chunk = (max(1, min(rows, _CHUNK_BYTES // like.row_bytes)), *like.shape[1:])
    kind = np.dtype(like.dtype)
    dtype = h5py.string_dtype("utf-8", kind.itemsize) if kind.kind == "S" else kind
    return new.create_dataset(name, (rows, *like.shape[1:]), dtype, chunks=chunk, **how)


def write_hloc(content: Content, path: str, _options: Options) -> None:
    """A group an image under its path; in it `global_descriptor`, or of several a dataset a layer.

    The names are those of hloc (github.com/cvg/Hierarchical-Localization, extract_features).
    """
    single = len(content.layers) == 1 and len(content.row_shape(content.layers[0])) == 1
    paths = content.paths()
    with h5py.File(path, "w", libver="latest") as file:
        for part in content.parts():
            for at in range(len(part.rows)):
                group = file.create_group(paths[part.start + at].lstrip(os.sep))
                for layer, values in part.values.items():
                    group["global_descriptor" if single else layer] = values[at]
