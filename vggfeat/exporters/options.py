"""What a format is told beside what to write, and what to say where a library is missing."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vggfeat.errors import UsageError

Compress = Literal["none", "gzip", "zstd"]
IndexMetric = Literal["cosine", "ip", "l2"]

COMPRESSIONS: tuple[Compress, ...] = get_args(Compress)
INDEX_METRICS: tuple[IndexMetric, ...] = get_args(IndexMetric)


@dataclass(frozen=True, slots=True)
class Options:
    """What a format is told beside what to write.

    Attributes:
        compress: of hdf5 and parquet.
        metric: of a faiss index; for `cosine` rows are brought to unit length.
    """

    compress: Compress = "none"
    metric: IndexMetric = "cosine"


def need(module: str, extra: str, what: str) -> Any:
    """A library that is an extra.

    Raises:
        UsageError: it is not installed; says how to.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"{what} needs {module.partition('.')[0]} ({error}): pip install 'vggfeat[{extra}]'"
        ) from error
