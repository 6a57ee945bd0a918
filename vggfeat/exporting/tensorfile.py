"""safetensors: 8 bytes of length, JSON of names, raw values (huggingface.co/docs/safetensors)."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vggfeat.exporting.content import Content
    from vggfeat.exporting.options import Options

_NAMES = {"<f4": "F32", "<f2": "F16"}
_ALIGNMENT = 8
_PATHS = "paths"


def write_safetensors(content: Content, path: str, _options: Options) -> None:
    """A tensor a layer; `paths` uint8 (n, longest), padded with zeros: safetensors has no text."""
    # The widest numbers first, so that all begin at a multiple of their size.
    layers = sorted(content.layers, key=lambda layer: -content.dtype(layer).itemsize)
    paths = np.asarray(content.cache.paths[content.rows])
    longest = paths.dtype.itemsize
    with open(path, "wb") as file:
        file.write(_header(content, layers, longest))
        for layer in layers:
            file.writelines(values.tobytes() for values in content.of(layer))
        file.write(paths.tobytes())


def _header(content: Content, layers: list[str], longest: int) -> bytes:
    entries = dict(_entries(content, layers, longest))
    text = json.dumps({"__metadata__": _metadata(content), **entries}).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _entries(
    content: Content, layers: list[str], longest: int
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    at = 0
    shapes = [(len(content), *content.row_shape(layer)) for layer in layers]
    kinds = [(_NAMES[content.dtype(layer).str], content.dtype(layer).itemsize) for layer in layers]
    for name, shape, (kind, size) in zip(
        [*layers, _PATHS], [*shapes, (len(content), longest)], [*kinds, ("U8", 1)], strict=True
    ):
        end = at + size * math.prod(shape)
        yield name, {"dtype": kind, "shape": list(shape), "data_offsets": [at, end]}
        at = end


def _metadata(content: Content) -> dict[str, str]:
    identity = content.cache.header.identity
    return {
        "model": identity.model,
        "weights": identity.weights,
        "weights_sha256": identity.weights_sha256,
        "fingerprint": identity.fingerprint(),
        "warning": content.cache.header.provenance.warning,
    }
