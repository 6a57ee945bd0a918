"""Export to tables, CSV and Parquet, with one row an image."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.core.csv_text import path_cell
from vggfeat.core.optional import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from vggfeat.exporters.registry import Options
    from vggfeat.exporters.selection import Content


def write_csv(content: Content, path: str, _options: Options) -> None:
    """Write `path,state,<layer>_0,<layer>_1,…` (RFC 4180) with enough digits for each value."""
    head = [f"{layer}_{at}" for layer in content.layers for at in range(content.width(layer))]
    writers = {layer: _number_texts(content.dtype(layer)) for layer in content.layers}
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("path", "state", *head))
        for part in content.parts():
            texts = np.hstack(
                [
                    writers[layer](part.values[layer].reshape(len(part.rows), -1))
                    for layer in content.layers
                ]
            )  # (n, D) object
            for name, state, line in zip(part.paths, part.states, texts, strict=True):
                table.writerow((path_cell(name), state, *line))


def _number_texts(
    dtype: np.dtype[np.floating[Any]],
) -> Callable[[NDArray[np.floating[Any]]], NDArray[np.object_]]:
    """Return a function that formats an array; float16 has only 65536 values, so a table does."""
    if dtype == np.float16:
        numbers = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
        words = np.array([str(number) for number in numbers], dtype=object)
        return lambda values: words[np.ascontiguousarray(values).view(np.uint16)]
    return np.vectorize(lambda value: f"{value:.9g}", otypes=[object])


def write_parquet(content: Content, path: str, options: Options) -> None:
    """Write `path`, `state`, and a fixed-size list for each layer; maps are flattened."""
    pyarrow = require("pyarrow", "parquet", "parquet")
    parquet = require("pyarrow.parquet", "parquet", "parquet")
    schema = _parquet_schema(pyarrow, content)
    with parquet.ParquetWriter(path, schema, compression=options.compress) as writer:
        for batch in _record_batches(pyarrow, content, schema):
            writer.write_batch(batch)


def _parquet_schema(pyarrow: Any, content: Content) -> Any:
    fields = [pyarrow.field("path", pyarrow.string()), pyarrow.field("state", pyarrow.string())]
    for layer in content.layers:
        kind = pyarrow.from_numpy_dtype(content.dtype(layer))
        about = {"shape": json.dumps(list(content.row_shape(layer)))}
        if content.norm != "none":
            about["norm"] = content.norm
        fields.append(
            pyarrow.field(layer, pyarrow.list_(kind, content.width(layer)), metadata=about)
        )
    return pyarrow.schema(fields)


def _record_batches(pyarrow: Any, content: Content, schema: Any) -> Iterator[Any]:
    for part in content.parts():
        columns = [pyarrow.array(part.paths), pyarrow.array(part.states)]
        for layer in content.layers:
            flat = pyarrow.array(part.values[layer].reshape(-1))
            columns.append(pyarrow.FixedSizeListArray.from_arrays(flat, content.width(layer)))
        yield pyarrow.RecordBatch.from_arrays(columns, schema=schema)
