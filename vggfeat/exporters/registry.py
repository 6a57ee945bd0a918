"""Formats that a cache can be exported to. To add one, add a line to `EXPORT_FORMATS`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from vggfeat.exporters.faiss import write_faiss
from vggfeat.exporters.hdf5 import write_hdf5, write_hloc
from vggfeat.exporters.numpy import write_npy, write_npz
from vggfeat.exporters.safetensors import write_safetensors
from vggfeat.exporters.tables import write_csv, write_parquet
from vggfeat.exporters.webdataset import write_webdataset

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
    """Options of formats.

    Attributes:
        compress: of hdf5 and parquet.
        metric: of a faiss index; with `cosine` rows are brought to unit length.
    """

    compress: Compress = "none"
    metric: IndexMetric = "cosine"


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
        descriptor_norm: of single vectors unless another norm is requested: for formats whose
            readers take inner products for similarities.
    """

    write: Callable[[Content, str, Options], None]
    is_folder: bool = False
    compressions: tuple[Compress, ...] = ()
    exact_paths: bool = False
    keeps_codes: bool = False
    descriptor_norm: Norm = "none"


EXPORT_FORMATS: Mapping[str, Format] = {
    "npy": Format(write_npy, is_folder=True),
    "npz": Format(write_npz, exact_paths=True),
    "parquet": Format(write_parquet, compressions=("gzip", "zstd")),
    "safetensors": Format(write_safetensors, exact_paths=True),
    "csv": Format(write_csv),
    "webdataset": Format(write_webdataset, is_folder=True),
    "hloc": Format(write_hloc, descriptor_norm="l2"),
    "faiss": Format(write_faiss, is_folder=True),
    "hdf5": Format(write_hdf5, compressions=("gzip", "zstd"), exact_paths=True, keeps_codes=True),
}
