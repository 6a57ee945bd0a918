"""Export one layer to a flat faiss index."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.core.arrays import unit_rows
from vggfeat.core.optional import require
from vggfeat.errors import UsageError
from vggfeat.exporters.numpy import write_lines

if TYPE_CHECKING:
    from vggfeat.exporters.registry import Options
    from vggfeat.exporters.selection import Content


def write_faiss(content: Content, folder: str, options: Options) -> None:
    """Write `index.faiss`, whose ids are line numbers of `paths.txt` beside it."""
    faiss = require("faiss", "faiss", "a faiss index")
    (layer, *others) = content.layers
    if others or len(content.row_shape(layer)) != 1:
        raise UsageError(
            f"a faiss index is of one layer of vectors, requested {', '.join(content.layers)}; "
            "name one by --layers, or make one of several by `vggfeat fuse`"
        )
    width = content.width(layer)
    index = faiss.IndexFlatL2(width) if options.metric == "l2" else faiss.IndexFlatIP(width)
    for values in content.of(layer):
        rows = np.array(values, dtype=np.float32)
        index.add(unit_rows(rows) if options.metric == "cosine" else rows)
    os.mkdir(folder)
    faiss.write_index(index, os.path.join(folder, "index.faiss"))
    write_lines(content, folder)
