"""Export to safetensors: a length of 8 bytes, a JSON header, raw values.

The own header is used because the `safetensors` library writes only tensors that are whole in
memory; this streams blocks (format: huggingface.co/docs/safetensors).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vggfeat.storage.safetensors import TensorEntry, header_bytes

if TYPE_CHECKING:
    from vggfeat.exporters.registry import Options
    from vggfeat.exporters.selection import Content

_NAMES = {"<f4": "F32", "<f2": "F16"}
_PATHS = "paths"


def write_safetensors(content: Content, path: str, _options: Options) -> None:
    """Write a tensor for each layer, and `paths`, uint8 (n, longest), padded with zeros."""
    # The widest numbers first, so that all begin at a multiple of their size.
    layers = sorted(content.layers, key=lambda layer: -content.dtype(layer).itemsize)
    paths = np.asarray(content.cache.paths[content.rows])
    count = len(content)
    entries = [
        TensorEntry(layer, _NAMES[content.dtype(layer).str], (count, *content.row_shape(layer)))
        for layer in layers
    ]
    entries.append(TensorEntry(_PATHS, "U8", (count, paths.dtype.itemsize)))
    with open(path, "wb") as file:
        file.write(header_bytes(entries, _metadata(content)))
        for layer in layers:
            file.writelines(values.tobytes() for values in content.of(layer))
        file.write(paths.tobytes())


def _metadata(content: Content) -> dict[str, str]:
    identity = content.cache.header.identity
    norm = {} if content.norm == "none" else {"norm": content.norm}
    return {
        **norm,
        "model": identity.model,
        "weights": identity.weights,
        "weights_sha256": identity.weights_sha256,
        "fingerprint": identity.fingerprint(),
        "warning": content.cache.header.provenance.warning,
    }
