"""Export to HDF5: compressed for distribution, and with one group an image as hloc reads it."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from vggfeat.cache.checksums import row_checksums, seal_rows
from vggfeat.cache.format import (
    FEATURES,
    FORMAT_VERSION,
    IMAGES,
    OFFSETS,
    SCALES,
    DatasetExtent,
    RowState,
    attributes_of,
)
from vggfeat.cache.layout import write_attributes
from vggfeat.core.layer_spec import parse_specs
from vggfeat.core.optional import require
from vggfeat.core.quantization import scales_digest
from vggfeat.errors import UsageError
from vggfeat.storage.hdf5_file import checked_hdf5

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from vggfeat.exporters.registry import Options
    from vggfeat.exporters.selection import Content

_CHUNK_BYTES = 1 << 20
_GZIP_LEVEL = 4


def write_hdf5(content: Content, path: str, options: Options) -> None:
    """Write the groups, names and attributes of a cache, with only the chosen rows and layers.

    int8 codes are kept, with their scales. Normalised layers get the specs of their values,
    `fc7:l2` for `fc7`, and codes then become float32.
    """
    how = _filters(options)
    header, names = content.cache.header, _names(content)
    scales = (
        {names[layer]: one for layer, one in header.scales.items() if layer in names}
        if content.norm == "none"
        else {}
    )
    kept = dataclasses.replace(
        header.identity,
        layers=tuple(sorted(names.values())),
        scales=scales_digest(scales),
        dtype="float32" if header.scales and not scales else header.identity.dtype,
    )
    with open(path, "r+b") as target, checked_hdf5(target, libver="v110") as (new, written):
        write_attributes(new, attributes_of(kept, header.provenance))
        for name, run in header.runs.items():
            group, _, short = name.partition("/")
            if group == IMAGES and short != "digest":
                column = _create(new, name, run, len(content), how)
                column[...] = content.cache.column(short)[content.rows].astype(column.dtype)
        digests = content.cache.digests  # which the first files of version 1 have not
        extent = DatasetExtent("|u1", digests.shape, 0)
        column = _create(new, f"{IMAGES}/digest", extent, len(content), how)
        column[...] = digests[content.rows]
        for layer in content.layers:
            run = header.feature(layer)
            if content.norm != "none":
                run = dataclasses.replace(run, dtype=content.dtype(layer).str)
            dataset = _create(new, f"{FEATURES}/{names[layer]}", run, len(content), how)
            for start, stop in content.blocks([layer]):
                dataset[start:stop] = _stored(content, layer, start, stop)
                written.check()
            if names[layer] in scales:
                one = scales[names[layer]]
                new[f"{SCALES}/{names[layer]}"] = one.scale.astype("<f4")
                new[f"{OFFSETS}/{names[layer]}"] = one.offset.astype("<f4")
        versions = {part.header.version for part in content.cache.parts()}
        others = set(content.layers) != set(content.cache.layers) or content.norm != "none"
        if others or versions != {FORMAT_VERSION}:
            new[f"{IMAGES}/checksum"][...] = _checksums(content, names)


def _checksums(content: Content, names: Mapping[str, str]) -> NDArray[np.uint32]:
    """Return the checksums of rows that hold other layers than their cache, or are of version 1."""
    layers = sorted(content.layers, key=names.__getitem__)
    cache, parts = content.cache, []
    for start, stop in content.blocks(layers):
        rows = content.rows[start:stop]
        sums = row_checksums([_stored(content, one, start, stop) for one in layers], len(rows))
        reasons, states = (np.asarray(cache.column(name)[rows]) for name in ("error", "state"))
        sums = seal_rows(sums, np.asarray(cache.digests[rows]), reasons, states)
        sums[states == RowState.PENDING] = 0
        parts.append(sums)
    return np.concatenate(parts)


def _names(content: Content) -> dict[str, str]:
    """Return the spec of each layer in the export, which a norm changes."""
    if content.norm == "none":
        return {layer: layer for layer in content.layers}
    identity = content.cache.header.identity
    if identity.steps:
        raise UsageError(
            f"norm {content.norm} has no name in hdf5 for {', '.join(content.layers)}, which fuse "
            f"or reduce made in {content.cache.path!r}; give --norm to another format"
        )
    names = {}
    for layer in content.layers:
        (spec,) = parse_specs(layer, identity.model)
        if spec.norm == "l2" and content.norm == "ssr":
            raise UsageError(f"layer {layer} has norm l2 already, and cannot have ssr on top")
        norm = spec.norm if spec.norm != "none" else content.norm
        names[layer] = str(dataclasses.replace(spec, norm=norm))
    if len(set(names.values())) < len(names):
        raise UsageError(
            f"with norm {content.norm} two of {', '.join(names)} are one layer; name one by "
            "--layers"
        )
    return names


def _stored(content: Content, layer: str, start: int, stop: int) -> NDArray[np.generic]:
    """Read rows as they are written: exactly as in the cache, unless normalised."""
    if content.norm == "none":
        return content.cache[layer][content.rows[start:stop]]
    return content.read(layer, content.rows[start:stop])


def _filters(options: Options) -> Mapping[str, Any]:
    if options.compress == "zstd":
        return {**require("hdf5plugin", "zstd-hdf5", "hdf5 with zstd").Zstd(), "shuffle": True}
    if options.compress == "gzip":
        return {"compression": "gzip", "compression_opts": _GZIP_LEVEL, "shuffle": True}
    return {}


def _create(
    new: h5py.File, name: str, like: DatasetExtent, rows: int, how: Mapping[str, Any]
) -> h5py.Dataset:
    """Create a dataset of so many rows, else as in the cache, with chunks of whole rows."""
    chunk = None
    if how and rows:
        chunk = (max(1, min(rows, _CHUNK_BYTES // like.row_bytes)), *like.shape[1:])
    kind = np.dtype(like.dtype)
    dtype = h5py.string_dtype("utf-8", kind.itemsize) if kind.kind == "S" else kind
    return new.create_dataset(name, (rows, *like.shape[1:]), dtype, chunks=chunk, **how)


def write_hloc(content: Content, path: str, _options: Options) -> None:
    """Write a group for each image, with `global_descriptor` or a dataset for each layer.

    Names follow hloc (github.com/cvg/Hierarchical-Localization, extract_features), whose
    pairs_from_retrieval takes inner products of global descriptors.
    """
    with open(path, "r+b") as target, checked_hdf5(target, libver="latest") as (file, written):
        for part in content.parts():
            for at, name in enumerate(part.paths):
                written.check()
                group = file.create_group(name.lstrip(os.sep))
                for layer, values in part.values.items():
                    group["global_descriptor" if content.is_one_vector else layer] = values[at]
