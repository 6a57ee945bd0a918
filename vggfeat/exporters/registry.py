"""Registry of export formats. To add one, add a line to `EXPORT_FORMATS`."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vggfeat.core.layer_spec import Norm
    from vggfeat.exporters.selection import Content

Compress = Literal["none", "gzip", "zstd"]
IndexMetric = Literal["cosine", "ip", "l2"]

COMPRESSIONS: tuple[Compress, ...] = get_args(Compress)
INDEX_METRICS: tuple[IndexMetric, ...] = get_args(IndexMetric)


@dataclass(frozen=True, slots=True)
class Options:
    """Options of formats."""

    compress: Compress = "none"  # of hdf5 and parquet
    metric: IndexMetric = "cosine"  # of a faiss index; for cosine its rows have unit length


@dataclass(frozen=True, slots=True)
class Format:
    """An export format.

    Attributes:
        write: writes the content to the path of an empty file, or, for a folder, to a path at which
            nothing exists.
        is_folder: whether it is a folder.
        compressions: that it supports besides none.
        exact_paths: whether paths are kept as bytes, whatever they contain.
        keeps_codes: whether int8 stays int8, with its scales, unless rows are normalised.
        descriptor_norm: default norm of an export of single vectors, for formats whose readers
            take inner products for similarities.
    """

    write: Callable[[Content, str, Options], None]
    is_folder: bool = False
    compressions: tuple[Compress, ...] = ()
    exact_paths: bool = False
    keeps_codes: bool = False
    descriptor_norm: Norm = "none"


def _by(module: str, function: str) -> Callable[[Content, str, Options], None]:
    """Return a writer that imports its module when it is called: help texts need the names only."""

    def write(content: Content, path: str, options: Options) -> None:
        writer = getattr(importlib.import_module(f"vggfeat.exporters.{module}"), function)
        writer(content, path, options)

    return write


_PACKED: tuple[Compress, ...] = ("gzip", "zstd")

EXPORT_FORMATS: Mapping[str, Format] = {
    "npy": Format(_by("numpy", "write_npy"), is_folder=True),
    "npz": Format(_by("numpy", "write_npz"), exact_paths=True),
    "parquet": Format(_by("tables", "write_parquet"), compressions=_PACKED),
    "safetensors": Format(_by("safetensors", "write_safetensors"), exact_paths=True),
    "csv": Format(_by("tables", "write_csv")),
    "webdataset": Format(_by("webdataset", "write_webdataset"), is_folder=True),
    "hloc": Format(_by("hdf5", "write_hloc"), descriptor_norm="l2"),
    "faiss": Format(_by("faiss", "write_faiss"), is_folder=True),
    "hdf5": Format(
        _by("hdf5", "write_hdf5"), compressions=_PACKED, exact_paths=True, keeps_codes=True
    ),
}
