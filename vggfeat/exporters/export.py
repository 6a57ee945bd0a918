"""Export a cache: check first, write beside the destination, then rename."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vggfeat.cache.sharded import open_cache
from vggfeat.core.choices import choose
from vggfeat.core.file_types import foreign_ending
from vggfeat.core.isolation import isolated
from vggfeat.core.layer_spec import NORMS
from vggfeat.core.sequences import as_tuple
from vggfeat.core.text import agree, counted
from vggfeat.errors import SpaceError, UsageError, VggfeatError
from vggfeat.exporters.registry import (
    COMPRESSIONS,
    EXPORT_FORMATS,
    INDEX_METRICS,
    Compress,
    Format,
    IndexMetric,
    Options,
)
from vggfeat.exporters.selection import select
from vggfeat.storage.atomic import TEMPORARY_SUFFIX, atomic_folder, atomic_path, remove_unfinished
from vggfeat.storage.hdf5_file import reason_of
from vggfeat.storage.locks import hold
from vggfeat.storage.paths import check_place, path_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vggfeat.core.layer_spec import Norm
    from vggfeat.exporters.selection import Content


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What `export` did.

    Attributes:
        out: the file or folder.
        format: one of `EXPORT_FORMATS`.
        rows: images in it.
        layers: canonical specs.
        bytes: size of the file, or of all files of the folder.
        notes: differences from the cache.
        norm: applied to every vector.
    """

    out: str
    format: str
    rows: int
    layers: tuple[str, ...]
    bytes: int
    notes: tuple[str, ...]
    norm: str = "none"


@isolated()
def export(
    cache: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    to: str,
    layers: str | Sequence[str] = (),
    rows: str = "done",
    compress: Compress = "none",
    metric: IndexMetric = "cosine",
    norm: Norm | None = None,
) -> ExportReport:
    """Export a cache to another format; the result appears complete or not at all.

    Memory is bounded, except for a faiss index, which faiss builds in memory.

    Args:
        cache: a cache.
        out: file or folder to make; must not exist.
        to: one of `EXPORT_FORMATS`.
        layers: specs; empty for all.
        rows: `done`, `all` (NaN where not done), or a shell pattern of paths.
        compress: see `Options`.
        metric: see `Options`.
        norm: `none`; `l2`, unit length; `ssr`, signed square root, then unit length. By default
            none, but l2 for global descriptors of hloc.

    Raises:
        UsageError: a setting is invalid, a library is missing, or `out` exists.
        CacheError: it is no cache of ours, damaged, or lacks a layer.
        LockedError: another run writes `out`.
        SpaceError: the disk is full; nothing is left.
    """
    place = path_text(out).rstrip(os.sep) or path_text(out)
    form = _check(to, place, compress, metric, norm)
    opened = open_cache(cache)
    content = select(opened, as_tuple(layers), rows)
    opened.warn()
    if norm is None:
        norm = form.descriptor_norm if content.is_one_vector else "none"
    content = replace(content, norm=norm)
    with hold(place, hidden=True):
        if os.path.lexists(place):
            remove_unfinished(_temporary(place))  # of a run that was killed at its very end
            raise _exists(place)
        _put(content, place, form, Options(compress, metric))
    notes = tuple(_notes(content, form, to, compress))
    files = [os.path.join(place, name) for name in os.listdir(place)] if form.is_folder else [place]
    size = sum(map(os.path.getsize, files))
    return ExportReport(place, to, len(content), content.layers, size, notes, norm)


_HDF5 = ("hdf5", "hloc")


def _check(to: str, place: str, compress: str, metric: str, norm: str | None) -> Format:
    form = EXPORT_FORMATS[choose("format", EXPORT_FORMATS, to)]
    choose("compress", COMPRESSIONS, compress)
    if compress != "none" and compress not in form.compressions:
        able = [name for name, one in EXPORT_FORMATS.items() if compress in one.compressions]
        raise UsageError(f"compress {compress} is not for {to}; it is for {' and '.join(able)}")
    choose("metric", INDEX_METRICS, metric)
    if norm is not None:
        choose("norm", NORMS, norm)
    if to in _HDF5 and (ending := foreign_ending(place)):
        name = place[: -len(ending)] + "h5"
        raise UsageError(
            f"output {place!r} is named like a file of another format, and --to {to} writes HDF5; "
            f"name it {name!r}, or use another --to"
        )
    check_place(place)
    return form


def _exists(place: str) -> UsageError:
    return UsageError(f"output {place!r} exists; choose another --out or delete it")


def _temporary(place: str) -> str:
    """Return the path to write to at first."""
    folder, name = os.path.split(os.path.realpath(place))
    # It begins with a dot, as the lock's name does: pyarrow and others read all other files.
    return os.path.join(folder, f".{name}{TEMPORARY_SUFFIX}")


def _put(content: Content, place: str, form: Format, options: Options) -> None:
    temporary = _temporary(place)
    try:
        with (
            atomic_folder(place, temporary=temporary)
            if form.is_folder
            else atomic_path(place, temporary=temporary, exclusive=True)
        ) as path:
            form.write(content, path, options)
    except FileExistsError as error:  # another program was faster
        raise _exists(place) from error
    except VggfeatError:
        raise
    except (OSError, RuntimeError) as error:  # the latter is faiss's word for a full disk
        raise SpaceError(
            getattr(error, "errno", None) or 0,
            f"{place!r} cannot be written: {reason_of(error)}; name another place",
        ) from error


def _notes(content: Content, form: Format, to: str, compress: str) -> list[str]:
    notes = []
    if content.norm != "none":
        root = "the signed root of each value, then " if content.norm == "ssr" else ""
        notes.append(f"norm {content.norm}: {root}vectors at unit length; --norm none keeps values")
    if content.cache.header.scales and (not form.keeps_codes or content.norm != "none"):
        notes.append("int8 codes were written as the float32 values they stand for")
    strange = 0 if form.exact_paths else content.not_utf8()
    if strange:
        notes.append(
            f"{counted(strange, 'path')} {agree(strange, 'holds')} bytes that are no UTF-8, or "
            r"control characters, written as \xNN"
        )
    if to == "hdf5" and compress != "none":
        notes.append(
            "compressed, it cannot be memory mapped: read it by h5py, or `h5repack -f NONE -l "
            "CONTI` makes a cache of it again"
        )
    return notes
