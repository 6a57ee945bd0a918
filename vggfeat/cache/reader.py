"""Read a cache as NumPy arrays over a memory map: no copy, no torch, no lock."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.cache import tables
from vggfeat.cache.format import DIGEST_BYTES, FEATURES, IMAGES, Header, RowState
from vggfeat.cache.header import read_header
from vggfeat.cache.mapped_rows import map_rows
from vggfeat.core.layer_spec import parse_specs
from vggfeat.core.quantization import decode_codes
from vggfeat.core.records import Failure
from vggfeat.core.text import counted
from vggfeat.errors import CacheError, UnknownLayerError, UsageError
from vggfeat.storage.local_copies import local_copy
from vggfeat.storage.paths import path_text, remote_scheme

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from typing_extensions import Self

    from vggfeat.cache.tables import Rows


_log = logging.getLogger("vggfeat")


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a cache.

    Attributes:
        path: of the file.
        header: of the file.
        first: its first row among those of the cache.
    """

    path: str
    header: Header
    first: int


class FeatureCache:
    """A cache opened for reading.

        cache = vggfeat.open("feats.h5")
        cache["fc7"]                 # (N, 4096) float16, a read-only numpy.memmap
        cache.row("cats/tom.jpg")    # 17
        cache["fc7"][cache.done]     # only rows that have features
        cache.to_pandas("fc7")       # as a table, by path

        with vggfeat.open("feats.h5") as cache:
            for layer in cache:
                print(layer, cache[layer].shape, cache.model, len(cache))

    Arrays show the file as it is now: while a run fills it, `state` and the features change.
    If another program cuts the file short while it is mapped, the kernel ends the process that
    touches what is gone (SIGBUS); the command line alone makes an error of that. Replacing the
    file by a rename does no harm.

    Rows that failed hold NaN; rows still pending hold anything, mostly zeros.

    Args:
        path: the cache; one in an object store, `s3://bucket/feats.h5`, is downloaded first unless
            the local copy is still current.
        header: its metadata, if read already.

    Raises:
        CacheError: the file is not a cache of ours, or is damaged.
        InputError: it is in an object store and could not be downloaded.
    """

    _states_checked = False

    def __init__(self, path: str | os.PathLike[str], header: Header | None = None) -> None:
        self.path = path_text(path)
        if remote_scheme(self.path):
            self.path = local_copy(self.path)
        self.header: Header = header or read_header(self.path)
        self.layers: tuple[str, ...] = self.header.identity.layers
        self._arrays: dict[str, np.memmap[tuple[int, ...], np.dtype[np.generic]]] = {}

    def __len__(self) -> int:
        """Return the number of rows; each image has one."""
        return self.header.rows

    def __repr__(self) -> str:
        return (
            f"FeatureCache({self.path!r}, {counted(len(self), 'row')}, layers "
            f"{', '.join(self.layers)})"
        )

    def __reduce__(self) -> tuple[type[FeatureCache], tuple[str]]:
        return FeatureCache, (self.path,)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Drop the memory maps, as `release` does; arrays that are held elsewhere stay valid."""
        self.release()

    def __iter__(self) -> Iterator[str]:
        """Iterate over the layers; `len` counts the rows."""
        return iter(self.layers)

    def __contains__(self, layer: str) -> bool:
        """Return whether the layer, or another name of it, is in the cache."""
        return self.canonical(layer) in self.layers

    def __getitem__(self, layer: str) -> np.memmap[tuple[int, ...], np.dtype[np.generic]]:
        """Return all rows of a layer as stored, (N, D) or (N, C, H, W), read-only and mapped.

        In a cache of int8 these are codes; `values` gives the numbers they stand for.

        Args:
            layer: a layer spec; aliases work.

        Raises:
            UnknownLayerError: the cache has no such layer; says which it has.
        """
        name = self.canonical(layer)
        if name not in self.layers:
            raise UnknownLayerError(
                f"cache {self.path!r} has no layer {layer!r}; it has {', '.join(self.layers)}"
            )
        return self._array(f"{FEATURES}/{name}")

    def canonical(self, layer: str) -> str:
        """Return the canonical name of a layer or alias; this cache need not contain it.

        Raises:
            UnknownLayerError: it is no layer spec.
        """
        if layer in self.layers or self.header.identity.steps:
            return layer  # names of derived features have no aliases
        try:
            return str(parse_specs(layer, self.header.identity.model)[0])
        except UsageError as error:
            raise UnknownLayerError(f"cache {self.path!r}: {error}") from error

    def _array(self, name: str) -> np.memmap[tuple[int, ...], np.dtype[np.generic]]:
        if name not in self._arrays:
            self._arrays[name] = map_rows(self.path, self.header.runs[name])
        return self._arrays[name]

    @property
    def state(self) -> NDArray[np.uint8]:
        """State of each row, uint8 (N,): see `RowState`.

        Raises:
            CacheError: a row has another state; looked for when the states are first asked for.
        """
        states = self._array(f"{IMAGES}/state")
        if not self._states_checked:
            wrong = np.flatnonzero(np.asarray(states) > max(RowState))
            if len(wrong):
                raise CacheError(
                    f"cache {self.path!r} is damaged: row {wrong[0]} has state {states[wrong[0]]}, "
                    f"expected 0 to {max(RowState)}; `vggfeat verify --repair` sets such rows to "
                    "pending, and the next run does them again"
                )
            self._states_checked = True
        return states  # type: ignore[return-value] # the format says uint8

    @property
    def done(self) -> NDArray[np.bool_]:
        """Mask of the rows with features, bool (N,)."""
        return np.asarray(self.state == RowState.DONE)

    @property
    def checksums(self) -> NDArray[np.uint32]:
        """CRC-32 of each row, uint32 (N,); docs/FORMAT.md says of which bytes."""
        return self._array(f"{IMAGES}/checksum")  # type: ignore[return-value] # as above

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Size of each image file in bytes as found, int64 (N,)."""
        return self._array(f"{IMAGES}/size")  # type: ignore[return-value] # as above

    @property
    def mtimes(self) -> NDArray[np.int64]:
        """Time of last change of each image file, nanoseconds since 1970, int64 (N,)."""
        return self._array(f"{IMAGES}/mtime_ns")  # type: ignore[return-value] # as above

    @property
    def digests(self) -> NDArray[np.uint8]:
        """SHA-256 of each image file's bytes, uint8 (N, 32); zeros where it was never read."""
        name = f"{IMAGES}/digest"
        if name not in self.header.runs:
            return np.zeros((len(self), DIGEST_BYTES), np.uint8)
        return self._array(name)  # type: ignore[return-value] # as above

    @property
    def paths(self) -> NDArray[np.bytes_]:
        """Path of each image relative to the source root, bytes (N,), sorted."""
        return self._array(f"{IMAGES}/path")  # type: ignore[return-value] # as above

    @property
    def model(self) -> str:
        """The network that made the features, such as `vgg19`."""
        return self.header.identity.model

    @property
    def names(self) -> list[str]:
        """Path of each image as text, N of them, as `name` gives it; made anew each time."""
        return [os.fsdecode(path) for path in self.paths[:].tolist()]

    def to_pandas(self, layers: str | Sequence[str] = (), *, rows: Rows = "done") -> Any:
        """Return layers of vectors as a pandas DataFrame with the paths as its index.

        Args:
            layers: one, whose columns are its dimensions, 0 to D - 1; or several, or none for all
                that hold vectors, whose columns are pairs of layer and dimension.
            rows: `done`, or `all`, where rows without features hold anything.

        Returns:
            float16 or float32 (n, D). Of one layer in one file whose rows follow one another it is
            a view of the memory map, and read-only; else a copy.

        Raises:
            UsageError: pandas is not installed (`vggfeat[pandas]`), or a layer holds maps.
            CacheError: the cache has no such layer.
        """
        return tables.to_pandas(self, layers, rows)

    def to_arrow(self, layers: str | Sequence[str] = (), *, rows: Rows = "done") -> Any:
        """Return `path` and layers as a `pyarrow.Table`, a fixed-size list for each row.

        Args:
            layers: one or several; none for all. Maps are flattened; the field's metadata has their
                shape.
            rows: see `to_pandas`.

        Returns:
            lists of halffloat or float, over the memory map itself where the rows follow one
            another in one file.

        Raises:
            UsageError: pyarrow is not installed (`vggfeat[arrow]`).
            CacheError: the cache has no such layer.
        """
        return tables.to_arrow(self, layers, rows)

    def to_xarray(self, layers: str | Sequence[str] = (), *, rows: Rows = "done") -> Any:
        """Return layers as an `xarray.Dataset` along `path`; maps keep their axes.

        Args:
            layers: one or several; none for all.
            rows: see `to_pandas`.

        Returns:
            variables (path, "<layer> dimension"), or (path, "<layer> channel", "<layer> height",
            "<layer> width"), views of the memory map where the rows follow one another in one file.

        Raises:
            UsageError: xarray is not installed (`vggfeat[xarray]`).
            CacheError: the cache has no such layer.
        """
        return tables.to_xarray(self, layers, rows)

    def column(self, name: str) -> NDArray[np.generic]:
        """Return a dataset of `/images` by its name, (N,) or (N, 32)."""
        return self._array(f"{IMAGES}/{name}")

    def parts(self) -> list[Part]:
        """Return the files of the cache, in the order of their rows."""
        return [Part(self.path, self.header, 0)]

    def warn(self) -> str:
        """Log what its run recorded to be known of the features, and return it; mostly empty.

        Those of random weights, for one, have no meaning. Whatever is made of them is to say so.
        """
        warning = self.header.provenance.warning
        if warning:
            _log.warning("cache %r: %s", self.path, warning)
        return warning

    def release(self) -> None:
        """Drop all memory maps, each of which holds a file descriptor; use opens them again."""
        self._arrays.clear()

    def values(
        self, layer: str, rows: NDArray[np.integer] | slice = slice(None)
    ) -> NDArray[np.float32]:
        """Return features as float32, whatever type they are stored in.

        Args:
            layer: a layer spec.
            rows: row numbers, or a slice of rows; all by default.

        Returns:
            float32 (n, D) or (n, C, H, W), a copy.

        Raises:
            CacheError: the cache has no such layer.
        """
        return self._as_values(layer, self[layer][rows])

    def _as_values(self, layer: str, stored: NDArray[np.generic]) -> NDArray[np.float32]:
        scales = self.header.scales.get(self.canonical(layer))
        if scales is not None:
            return decode_codes(np.asarray(stored, dtype=np.int8), scales)
        return np.array(stored, dtype=np.float32)

    def name(self, row: int) -> str:
        """Return the path of one image as text; bytes that are no UTF-8 as surrogate escapes."""
        return os.fsdecode(bytes(self.paths[row]))

    def row(self, path: str | bytes) -> int:
        """Row of the image with that path.

        Raises:
            KeyError: no such image in the cache.
        """
        key = os.fsencode(path)
        row = int(np.searchsorted(self.paths, np.bytes_(key)))
        if row == len(self) or bytes(self.paths[row]) != key:
            raise KeyError(path)
        return row

    def failures(self) -> list[Failure]:
        """Return every failed row and its reason."""
        rows = np.flatnonzero(self.state == RowState.FAILED).tolist()
        errors = self._array(f"{IMAGES}/error")
        return [Failure(row, bytes(errors[row]).decode(errors="replace")) for row in rows]

    def rows_with_reason(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of `rows` with a reason of failure in the file, current or not."""
        reasons = np.asarray(self._array(f"{IMAGES}/error")[rows])
        kept: NDArray[np.int64] = rows[reasons != b""]
        return kept

    def batches(
        self, layer: str, size: int = 1024
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.generic]]]:
        """Done rows in file order, some at a time: their row numbers, and (n, …) features.

        Where the rows follow one another the features are a view of the map, else a copy; of a
        cache in int8 they are the values, float32.

        Args:
            layer: a layer spec.
            size: rows at a time, at most.
        """
        features = self[layer]
        rows = np.flatnonzero(self.done)
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            follow = part[-1] - part[0] + 1 == len(part)
            stored = features[part[0] : part[-1] + 1] if follow else features[part]
            yield part, self._as_values(layer, stored) if self.header.scales else stored
